"""The one issuer and the one verifier of JWTs; sessions are the service's."""

import base64
import binascii
import hashlib
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import Any
from uuid import UUID

import orjson
from flask import Flask
from flask_jwt_extended import create_access_token, create_refresh_token, decode_token
from flask_jwt_extended.exceptions import JWTExtendedException
from jwt.exceptions import ExpiredSignatureError, PyJWTError

from project.auth import service
from project.auth.models import Session
from project.auth.service import SignIn
from project.config import settings
from project.database import utcnow, uuid7
from project.extensions import jwt
from project.security import Authenticator, Claims, InvalidToken, TokenExpired, TokenKind

ACCESS_TOKEN_LIFETIME = timedelta(minutes=10)
# How far ahead the clock of the server that issued a token may be. An expiry is never stretched.
CLOCK_SKEW = timedelta(seconds=30)
ISSUER = "project"
AUDIENCE = "project-api"
MAX_TOKEN_LENGTH = 2048  # ours have about 500 characters
MAX_VERIFIED = 10_000  # tokens that a process remembers, with about 1 KiB each

_REFRESH_CLAIMS = {"iss", "aud", "sub", "sid", "type", "fresh", "iat", "exp", "jti"}
_CLAIMS = {TokenKind.ACCESS: _REFRESH_CLAIMS | {"role"}, TokenKind.REFRESH: _REFRESH_CLAIMS}
# What the parsers raise, and claims of whatever type; a time that no clock can show is an OSError or an overflow.
_NOT_OURS = (
    PyJWTError,
    JWTExtendedException,
    ValueError,
    TypeError,
    KeyError,
    OSError,
    OverflowError,
    RecursionError,
)


def init_app(app: Flask) -> None:
    """Configure flask-jwt-extended and take over the verification of tokens."""
    app.config.update(
        JWT_ALGORITHM="HS256",
        JWT_ENCODE_NBF=False,
        JWT_COOKIE_CSRF_PROTECT=False,  # tokens come in the header alone; else each would carry a csrf claim
        JWT_ENCODE_ISSUER=ISSUER,
        JWT_DECODE_ISSUER=ISSUER,
        JWT_ENCODE_AUDIENCE=AUDIENCE,
        JWT_DECODE_AUDIENCE=AUDIENCE,
        JWT_ACCESS_TOKEN_EXPIRES=ACCESS_TOKEN_LIFETIME,
        JWT_DECODE_LEEWAY=CLOCK_SKEW,
    )
    jwt.init_app(app)
    app.extensions["authenticator"] = Authenticator(VerifiedTokens().verify, service.load_principal)


@jwt.encode_key_loader
def _signing_key(_identity: str) -> str:
    return next(iter(settings.jwt_keys.values()))


@jwt.decode_key_loader
def _verifying_key(header: dict[str, Any], _payload: dict[str, Any]) -> str:
    try:
        return settings.jwt_keys[header["kid"]]
    except (KeyError, TypeError) as error:
        raise JWTExtendedException("unknown key") from error


def _headers() -> dict[str, str]:
    return {"kid": next(iter(settings.jwt_keys))}


def issue(sign_in: SignIn) -> dict[str, Any]:
    """Return the token answer of login and refresh for a session.

    The refresh token is made of the claims in the session row, so the same row gives the identical token.
    """
    session, user = sign_in.session, sign_in.user
    subject, common = str(user.id), {"sid": str(session.id)}
    access_token = create_access_token(
        subject,
        fresh=sign_in.fresh,
        additional_claims={**common, "role": user.role, "jti": str(uuid7())},
        additional_headers=_headers(),
    )
    return {
        "access_token": access_token,
        "refresh_token": _refresh_token(session, subject, common),
        "token_type": "Bearer",
        "expires_in": int(ACCESS_TOKEN_LIFETIME.total_seconds()),
        "user": user,
    }


def _refresh_token(session: Session, subject: str, common: dict[str, str]) -> str:
    claims = {
        **common,
        "fresh": False,
        "jti": str(session.refresh_jti),
        "iat": int(session.refresh_issued_at.timestamp()),
        "exp": int(session.refresh_expires_at.timestamp()),
    }
    return str(create_refresh_token(subject, additional_claims=claims, additional_headers=_headers()))


class VerifiedTokens:
    """The tokens that were verified before: signature and claims are the same each time, only the clock goes on.

    What may change is asked of the database on every request: whether the session lives, and the role. Tokens are kept
    by their SHA-256, so nobody who sees the memory has them, and only good ones: forged ones have no room here.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._claims: dict[bytes, Claims] = {}

    def verify(self, token: str) -> Claims:
        """Return the claims of a token of ours.

        Raises:
            TokenExpired, InvalidToken.
        """
        digest = hashlib.sha256(token.encode()).digest()
        claims = self._claims.get(digest)
        if claims is None:
            claims = verify(token)
            self._keep(digest, claims)
        elif claims.expires_at <= utcnow():
            raise TokenExpired()
        return claims

    def _keep(self, digest: bytes, claims: Claims) -> None:
        with self._lock:
            if len(self._claims) >= MAX_VERIFIED:
                del self._claims[next(iter(self._claims))]  # the one known for longest
            self._claims[digest] = claims


def verify(token: str) -> Claims:
    """Return the claims of a token of ours.

    Signature, algorithm, key id, issuer, audience and expiry are checked by flask-jwt-extended. Here: the exact
    set of claims with their exact types (the library fills in a missing type or jti), and one spelling per token
    (base64 decoders ignore the spare bits of the last character).

    Raises:
        TokenExpired, InvalidToken.
    """
    try:
        raw = orjson.loads(_canonical_payload(token))
        decode_token(token)
        claims = _claims(raw)
    except ExpiredSignatureError as error:
        raise TokenExpired() from error
    except _NOT_OURS as error:
        raise InvalidToken() from error
    if claims.expires_at <= utcnow():
        raise TokenExpired()
    return claims


def _canonical_payload(token: str) -> bytes:
    segments = token.split(".")
    if len(token) > MAX_TOKEN_LENGTH or len(segments) != 3:
        raise ValueError("not a compact JWS")
    decoded = []
    for segment in segments:
        try:
            data = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
        except binascii.Error as error:
            raise ValueError("not base64url") from error
        if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != segment:
            raise ValueError("not canonical base64url")
        decoded.append(data)
    return decoded[1]


def _claims(raw: dict[str, Any]) -> Claims:
    kind = TokenKind(raw["type"])
    times = (raw["iat"], raw["exp"])
    if set(raw) != _CLAIMS[kind] or raw["aud"] != AUDIENCE or any(type(time) is not int for time in times):
        raise ValueError("not our claims")
    return Claims(
        kind=kind,
        user_id=_id(raw["sub"]),
        session_id=_id(raw["sid"]),
        jti=_id(raw["jti"]),
        expires_at=datetime.fromtimestamp(raw["exp"], UTC),
    )


def _id(value: Any) -> UUID:
    found = UUID(str(value))
    if str(found) != value:
        raise ValueError("not a canonical UUID")
    return found
