"""Builds tokens that are not ours, with our own key."""

import base64
import hmac
import json
import time
from typing import Any

import jwt

JWT_KEY = "a signing key of these tests that is long enough"
KEY_ID = "http"


def claims_of(token: str) -> dict[str, Any]:
    """The claims of a token, unverified."""
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def sign(claims: Any, *, key: str = JWT_KEY, header: dict[str, Any] | None = None, digest: str = "sha256") -> str:
    """Make a token with a valid HMAC signature, whatever the header and the claims say."""
    head = {"alg": "HS256", "kid": KEY_ID, "typ": "JWT", **(header or {})}
    signed = f"{encode({name: value for name, value in head.items() if value is not None})}.{encode(claims)}"
    return f"{signed}.{_base64(hmac.digest(key.encode(), signed.encode(), digest))}"


def encode(part: Any) -> str:
    """Encode a segment; text is taken as it is, so that it need not be JSON."""
    return _base64((part if isinstance(part, str) else json.dumps(part)).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def changed(token: str, **claims: Any) -> str:
    """A token with other claims and a valid signature; None leaves a claim out."""
    new = {**claims_of(token), **claims}
    return sign({name: value for name, value in new.items() if value is not None})


def seconds_from_now(seconds: int) -> int:
    """A NumericDate (RFC 7519 §2)."""
    return int(time.time()) + seconds
