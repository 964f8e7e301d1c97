"""Who is calling: roles, the principal of a request, and the decorators that say what a route asks of it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar, cast
from uuid import UUID

from flask import current_app, g, request

from project.errors import Forbidden, Unauthorized
from project.marks import mark

P = ParamSpec("P")
R = TypeVar("R")

_BEARER = re.compile(r"bearer +([^ ,]+)", re.IGNORECASE)


class Role(StrEnum):
    """What an account may do; each role includes the ones before it."""

    USER = "user"
    STAFF = "staff"
    ADMIN = "admin"

    def covers(self, other: "Role") -> bool:
        """Tell whether this role may do what `other` may."""
        order = list(Role)
        return order.index(self) >= order.index(other)


class TokenKind(StrEnum):
    """What a token is for."""

    ACCESS = "access"
    REFRESH = "refresh"


class TokenRequired(Unauthorized):
    """401: no usable Authorization header."""

    code = "token_required"
    message = "This operation needs a token."
    cure = "Send `Authorization: Bearer <token>`; sign in at /v1/auth/login."


class InvalidToken(Unauthorized):
    """401: not a token of ours, altered, or of the wrong kind."""

    code = "invalid_token"
    message = "The token is not valid for this operation."
    cure = "Use the access token, or the refresh token at /v1/auth/refresh; otherwise sign in again."


class TokenExpired(Unauthorized):
    """401: the token was ours and its time is over."""

    code = "token_expired"
    message = "The token has expired."
    cure = "Get a new access token at /v1/auth/refresh; if that one has expired too, sign in again."


class SessionRevoked(Unauthorized):
    """401: signed out, deactivated, or ended from elsewhere."""

    code = "session_revoked"
    message = "The session has ended."
    cure = "Sign in again."


@dataclass(frozen=True)
class Claims:
    """What a verified token says. Whether its session still lives is the database's to say."""

    kind: TokenKind
    user_id: UUID
    session_id: UUID
    jti: UUID
    expires_at: datetime


class Account(Protocol):
    """What the shared code needs to know of the caller's account."""

    id: Any
    role: Any


@dataclass(frozen=True)
class Principal:
    """The caller of a request: the account as the database has it now, and the session."""

    account: Account
    session_id: UUID

    @property
    def id(self) -> UUID:
        """The account's id."""
        return cast(UUID, self.account.id)

    @property
    def role(self) -> Role:
        """The account's role in the database; the claim in the token only informs clients."""
        return cast(Role, self.account.role)


@dataclass(frozen=True)
class Authenticator:
    """How a token is verified (or 401), and how its principal is loaded (one query, or 401).

    The auth feature puts it at `app.extensions["authenticator"]`: shared code imports no feature.
    """

    verify_token: Callable[[str], Claims]
    load_principal: Callable[[Claims], Principal]


def _authenticator() -> Authenticator:
    return cast(Authenticator, current_app.extensions["authenticator"])


def _bearer_token() -> str:
    # A WSGI server joins repeated headers with a comma, which the pattern refuses.
    match = _BEARER.fullmatch(request.headers.get("Authorization", "").strip())
    if match is None:
        raise TokenRequired()
    return match[1]


def verified_claims() -> Claims:
    """Return the claims of this request's token, verified once.

    Raises:
        TokenRequired, InvalidToken, TokenExpired: no session was looked at yet.
    """
    if "claims" not in g:
        try:
            g.claims = _authenticator().verify_token(_bearer_token())
        except Unauthorized as error:
            g.claims = error
    if isinstance(g.claims, Unauthorized):
        raise g.claims
    return cast(Claims, g.claims)


def find_claims() -> Claims | None:
    """Return the verified claims, or None when there is no good token; for rate limits, which come first."""
    try:
        return verified_claims()
    except Unauthorized:
        return None


def principal() -> Principal:
    """Return the caller; only routes under `login_required` or `role_required` have one."""
    return cast(Principal, g.principal)


def find_principal() -> Principal | None:
    """Return the caller of a route under `login_optional`, None when nobody is signed in."""
    return cast("Principal | None", g.get("principal"))


def _load_principal() -> Principal:
    claims = verified_claims()
    if claims.kind is not TokenKind.ACCESS:
        raise InvalidToken()
    g.principal = _authenticator().load_principal(claims)
    g.user_id = g.principal.id
    return cast(Principal, g.principal)


def role_required(role: Role) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Ask for an access token of a live session whose account has `role` or more: 401, then 403."""

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        @wraps(view)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            if not _load_principal().role.covers(role):
                raise Forbidden()
            return view(*args, **kwargs)

        return mark(guarded, auth=role.value)

    return decorate


def login_required(view: Callable[P, R]) -> Callable[P, R]:
    """Ask for an access token of a live session, whatever the role."""
    return role_required(Role.USER)(view)


def login_optional(view: Callable[P, R]) -> Callable[P, R]:
    """Let everybody in; but whoever sends a token has to send a good one, and is then known."""

    @wraps(view)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        if "Authorization" in request.headers:
            _load_principal()
        return view(*args, **kwargs)

    return mark(guarded, auth="optional")


def token_required(*kinds: TokenKind) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Ask for a verified token of one of the kinds and leave its session to the service (refresh, logout)."""

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        @wraps(view)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            if verified_claims().kind not in kinds:
                raise InvalidToken()
            return view(*args, **kwargs)

        return mark(guarded, auth="+".join(kinds))

    return decorate


def public(view: Callable[P, R]) -> Callable[P, R]:
    """State that a route is for everybody; a token sent along is ignored."""
    return mark(view, auth="public")
