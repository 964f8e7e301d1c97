"""The account."""

from datetime import datetime
from typing import cast

from sqlalchemy import CheckConstraint, Index, String, Table
from sqlalchemy.orm import Mapped, mapped_column

from project.database import Record
from project.email_addresses import MAX_EMAIL_LENGTH
from project.indexes import only, trigrams
from project.security import Role

# Of these there are few, and a list of them must not walk past all others.
_INACTIVE = "erased_at IS NULL AND NOT is_active"
_PRIVILEGED = "role <> 'user'"


class User(Record):
    """An account. `email` is stored folded (see email_addresses.py), so uniqueness is the plain constraint.

    An erased account keeps its row, without the person, for the financial rows that point at it. Raising
    `session_epoch` ends every session: one is alive only while it carries the same number. `version` counts every
    change that a client can see, and makes the ETag.
    """

    __tablename__ = "users"

    email: Mapped[str | None] = mapped_column(String(MAX_EMAIL_LENGTH), unique=True)
    name: Mapped[str | None] = mapped_column(String(200))
    password_hash: Mapped[str | None] = mapped_column(String(255))
    role: Mapped[Role] = mapped_column(default=Role.USER)
    is_active: Mapped[bool] = mapped_column(default=True)
    email_verified: Mapped[bool] = mapped_column(default=False)
    last_login_at: Mapped[datetime | None]
    erased_at: Mapped[datetime | None]
    session_epoch: Mapped[int] = mapped_column(default=1)
    version: Mapped[int] = mapped_column(default=1)

    __table_args__ = (
        CheckConstraint("(email IS NULL) = (erased_at IS NOT NULL)", name="erased_has_no_email"),
        CheckConstraint("erased_at IS NULL OR NOT is_active", name="erased_is_inactive"),
        # Those of lists leave out who is erased: else a page might have to walk past many of them.
        Index("ix_users_created_at_id_alive", "created_at", "id", **only("erased_at IS NULL")),
        Index("ix_users_created_at_id_inactive", "created_at", "id", **only(_INACTIVE)),
        Index("ix_users_email_inactive", "email", **only(_INACTIVE)),
        Index("ix_users_role_created_at_id_privileged", "role", "created_at", "id", **only(_PRIVILEGED)),
        Index("ix_users_role_email_privileged", "role", "email", **only(_PRIVILEGED)),
        trigrams("ix_users_email_name_trigrams", "email", "name"),
    )


# The table, for statements that read rows, and what is shown of an account.
USERS = cast(Table, User.__table__)
SHOWN = [column for column in USERS.c if column.name not in {"password_hash", "session_epoch", "erased_at"}]

SORTS = {"created_at": USERS.c.created_at, "email": USERS.c.email}
