"""HTTP for registration, sign-in, sessions and credentials."""

from http import HTTPStatus
from typing import Any
from uuid import UUID

from project.auth import credentials, links, service, sessions, tokens
from project.auth.links import InvalidLink
from project.auth.models import Session
from project.auth.passwords import TOO_COMMON, TOO_LONG, TOO_SHORT
from project.auth.schemas import (
    Credentials,
    EmailChange,
    EmailOnly,
    EndSessionsQuery,
    LinkToken,
    PasswordChange,
    PasswordReset,
    Registration,
    SessionOut,
    SessionQuery,
    TokensOut,
)
from project.auth.service import InvalidCredentials, TokenReused
from project.blueprint import Blueprint
from project.errors import NotFound
from project.limits import limit
from project.pagination import Page
from project.schemas import AcceptedOut
from project.security import TokenKind, login_required, principal, public, token_required, verified_claims
from project.users.models import User
from project.users.schemas import UserOut

blueprint = Blueprint("auth", __name__, url_prefix="/auth", description="Signing up, in and out")

ACCEPTED = {"status": "accepted"}
POLICY = (TOO_SHORT, TOO_LONG, TOO_COMMON)
WRONG_PASSWORD = (InvalidCredentials.code,)


@blueprint.post("/register")
@limit("anonymous")
@public
@blueprint.arguments(Registration)
@blueprint.response(HTTPStatus.ACCEPTED, AcceptedOut)
@blueprint.raises(fields=POLICY)
def register(data: dict[str, Any]) -> dict[str, str]:
    """Register an account.

    The answer is the same for a new and a taken address; a mail tells its owner what to do next.
    """
    links.register(**data)
    return ACCEPTED


@blueprint.post("/verify-email")
@limit("anonymous")
@public
@blueprint.arguments(LinkToken)
@blueprint.response(HTTPStatus.OK, UserOut)
@blueprint.raises(InvalidLink)
def verify_email(data: dict[str, Any]) -> User:
    """Confirm an address by the token that was mailed to it."""
    return links.verify_email(**data)


@blueprint.post("/resend-verification")
@limit("anonymous")
@public
@blueprint.arguments(EmailOnly)
@blueprint.response(HTTPStatus.ACCEPTED, AcceptedOut)
def resend_verification(data: dict[str, Any]) -> dict[str, str]:
    """Ask for another verification mail; the answer does not tell whether there is an account."""
    links.resend_verification(**data)
    return ACCEPTED


@blueprint.post("/login")
@limit("anonymous")
@public
@blueprint.arguments(Credentials)
@blueprint.response(HTTPStatus.OK, TokensOut)
@blueprint.raises(InvalidCredentials)
def login(data: dict[str, Any]) -> dict[str, Any]:
    """Sign in with address and password."""
    return tokens.issue(service.login(**data))


@blueprint.post("/refresh")
@limit("write")
@token_required(TokenKind.REFRESH)
@blueprint.response(HTTPStatus.OK, TokensOut)
@blueprint.raises(TokenReused)
def refresh() -> dict[str, Any]:
    """Exchange the refresh token, sent as Bearer, for new tokens.

    Each refresh token works once. The one just replaced may be sent again for 10 seconds and gets the same
    successor; anything older ends the session.
    """
    return tokens.issue(service.refresh(verified_claims()))


@blueprint.post("/logout")
@limit("write")
@token_required(TokenKind.ACCESS, TokenKind.REFRESH)
@blueprint.response(HTTPStatus.NO_CONTENT)
def logout() -> None:
    """End the session of the access or refresh token, at once."""
    service.logout(verified_claims())


@blueprint.get("/sessions")
@limit("read")
@login_required
@blueprint.arguments(SessionQuery, location="query")
@blueprint.response(HTTPStatus.OK, SessionOut(many=True))
def list_sessions(query: dict[str, Any]) -> Page[Session]:
    """List one's own live sessions."""
    return sessions.list_sessions(user_id=principal().id, current=principal().session_id, **query)


@blueprint.delete("/sessions")
@limit("write")
@login_required
@blueprint.arguments(EndSessionsQuery, location="query")
@blueprint.response(HTTPStatus.NO_CONTENT)
def end_sessions(query: dict[str, Any]) -> None:
    """End all of one's own sessions, or with `others=true` all but this one."""
    sessions.end_sessions(user_id=principal().id, keep=principal().session_id if query["others"] else None)


@blueprint.delete("/sessions/<uuid:session_id>")
@limit("write")
@login_required
@blueprint.response(HTTPStatus.NO_CONTENT)
@blueprint.raises(NotFound)
def end_session(session_id: UUID) -> None:
    """End one of one's own sessions."""
    sessions.end_session(user_id=principal().id, session_id=session_id)


@blueprint.post("/forgot-password")
@limit("anonymous")
@public
@blueprint.arguments(EmailOnly)
@blueprint.response(HTTPStatus.ACCEPTED, AcceptedOut)
def forgot_password(data: dict[str, Any]) -> dict[str, str]:
    """Ask for a mail with a link to set a new password; the answer does not tell whether there is an account."""
    links.forgot_password(**data)
    return ACCEPTED


@blueprint.post("/reset-password")
@limit("anonymous")
@public
@blueprint.arguments(PasswordReset)
@blueprint.response(HTTPStatus.NO_CONTENT)
@blueprint.raises(InvalidLink, fields=POLICY)
def reset_password(data: dict[str, Any]) -> None:
    """Set a password by a mailed reset or invitation token; ends every session."""
    links.reset_password(**data)


@blueprint.post("/change-password")
@limit("write")
@login_required
@blueprint.arguments(PasswordChange)
@blueprint.response(HTTPStatus.NO_CONTENT)
@blueprint.raises(fields=(*POLICY, *WRONG_PASSWORD))
def change_password(data: dict[str, Any]) -> None:
    """Change one's own password; ends the other sessions."""
    credentials.change_password(principal(), **data)


@blueprint.post("/change-email")
@limit("write")
@login_required
@blueprint.arguments(EmailChange)
@blueprint.response(HTTPStatus.ACCEPTED, AcceptedOut)
@blueprint.raises(fields=WRONG_PASSWORD)
def change_email(data: dict[str, Any]) -> dict[str, str]:
    """Ask to change one's own address; it counts once the link mailed to the new one is followed."""
    credentials.request_email_change(principal(), **data)
    return ACCEPTED


@blueprint.post("/confirm-email")
@limit("anonymous")
@public
@blueprint.arguments(LinkToken)
@blueprint.response(HTTPStatus.NO_CONTENT)
@blueprint.raises(InvalidLink)
def confirm_email(data: dict[str, Any]) -> None:
    """Confirm a new address by the token that was mailed to it."""
    credentials.confirm_email(**data)
