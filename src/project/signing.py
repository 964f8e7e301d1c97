"""Keys for one purpose each, derived from SECRET_KEY: what one of them signed is of no use anywhere else."""

import base64
import hmac

from project.config import settings


def digest(purpose: str, message: bytes) -> bytes:
    """Return the HMAC-SHA256 of a message under the key of a purpose; compare with `hmac.compare_digest`."""
    key = hmac.digest(settings.secret_key.encode(), purpose.encode(), "sha256")
    return hmac.digest(key, message, "sha256")


def token(purpose: str, message: bytes) -> str:
    """Return the digest as text that a URL can carry."""
    return base64.urlsafe_b64encode(digest(purpose, message)).rstrip(b"=").decode()
