"""URLs that anyone may read a file with for a while: signed, and not kept anywhere.

They are for what cannot send a token, such as `<img>`, `<video>` and players of phones. One cannot be revoked by
itself: it ends with its time, with its file, or with SECRET_KEY.
"""

import base64
import hmac
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode
from uuid import UUID

from project import signing
from project.config import settings

DEFAULT_SECONDS = 300
MAX_SECONDS = 3600
# What `variant` is of the content itself; of a thumbnail it is such as `256-webp`.
CONTENT = "content"


@dataclass(frozen=True)
class SignedUrl:
    """A URL and when it ends."""

    url: str
    expires_at: datetime


def sign(
    file_id: UUID, *, expires_in: int = DEFAULT_SECONDS, disposition: str = "", size: int | None = None
) -> SignedUrl:
    """Return a URL of a file's content, or of its thumbnail of `size`, good for `expires_in` seconds."""
    expires = int(time.time()) + expires_in
    query: dict[str, str | int] = {"disposition": disposition} if disposition else {}
    path, variant = "content", CONTENT
    if size is not None:
        path, variant = "thumbnail", f"{size}-webp"
        query["size"] = size
    query |= {"exp": expires, "sig": _signature(file_id, variant, disposition, str(expires))}
    url = f"{settings.public_url}/v1/files/{file_id}/{path}?{urlencode(query)}"
    return SignedUrl(url, datetime.fromtimestamp(expires, UTC))


def is_valid(file_id: UUID, *, variant: str, disposition: str, expires: str, signature: str) -> bool:
    """Tell whether exactly this was signed, and its time is not over. Both texts are as the client sent them."""
    expected = _signature(file_id, variant, disposition, expires)
    # Compared as bytes: a text may hold anything. What we signed is a number, so only then it is read.
    return hmac.compare_digest(expected.encode(), signature.encode()) and int(expires) > time.time()


def _signature(file_id: UUID, variant: str, disposition: str, expires: str) -> str:
    # No part can hold the separator: two are ours, one is a choice, and the last may be anything.
    message = f"v1|{file_id}|{variant}|{disposition}|{expires}".encode()
    return base64.urlsafe_b64encode(signing.digest("signed URL of a file", message)).rstrip(b"=").decode()
