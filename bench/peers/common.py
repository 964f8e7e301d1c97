"""What is the same for every peer: where the database is, whose tokens count, and where a page begins."""

import base64
import os
from datetime import datetime
from uuid import UUID

DATABASE_URL = os.environ["DATABASE_URL"]
JWT_SECRET = os.environ["JWT_SECRET"]
POOL_SIZE = int(os.environ["POOL_SIZE"])
PUBLIC_URL = os.environ["PUBLIC_URL"]
ISSUER = "project"
AUDIENCE = "project-api"
STAFF = ("staff", "admin")
SECONDS_PER_DAY = 86_400
DEFAULT_SECONDS, MAX_SECONDS = 7 * SECONDS_PER_DAY, 30 * SECONDS_PER_DAY


def write_cursor(created_at: datetime, user_id: UUID) -> str:
    """Return where the next page begins; unsigned, as most APIs have it."""
    return base64.urlsafe_b64encode(f"{created_at.isoformat()} {user_id}".encode()).decode()


def read_cursor(cursor: str) -> tuple[datetime, UUID]:
    """Return what `write_cursor` was given.

    Raises:
        ValueError: it is none.
    """
    created_at, user_id = base64.urlsafe_b64decode(cursor).decode().split(" ")
    return datetime.fromisoformat(created_at), UUID(user_id)
