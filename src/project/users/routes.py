"""HTTP for accounts and the audit log."""

from http import HTTPStatus
from typing import Any, cast
from uuid import UUID

from project import audit, etags
from project.audit import AuditEvent
from project.auth import credentials, links
from project.auth.links import AlreadyVerified
from project.auth.service import InvalidCredentials
from project.blueprint import Blueprint
from project.errors import NotFound
from project.etags import Expected
from project.idempotency import idempotent
from project.limits import limit
from project.pagination import Page
from project.schemas import AcceptedOut
from project.security import Role, login_required, principal, role_required
from project.users import service
from project.users.models import User
from project.users.schemas import (
    AuditEventOut,
    AuditQuery,
    Erase,
    MeUpdate,
    UserCreate,
    UserOut,
    UserQuery,
    UserUpdate,
)
from project.users.service import EmailTaken, LastAdmin

blueprint = Blueprint("users", __name__, url_prefix="/users", description="One's own account, and everyone's for staff")
audit_blueprint = Blueprint("audit", __name__, url_prefix="/audit-events", description="What happened, for admins")


@blueprint.get("/me")
@limit("read")
@login_required
@blueprint.response(HTTPStatus.OK, UserOut)
@etags.conditional
def get_me() -> User:
    """Show one's own account."""
    return cast(User, principal().account)


@blueprint.patch("/me")
@limit("write")
@login_required
@blueprint.arguments(MeUpdate)
@blueprint.response(HTTPStatus.OK, UserOut)
@etags.conditional
@etags.precondition
def update_me(data: dict[str, Any], expected: Expected) -> User:
    """Change one's own name."""
    return service.update_user(principal().id, actor_id=principal().id, expected=expected, **data)


@blueprint.post("/me/erase")
@limit("write")
@login_required
@blueprint.arguments(Erase)
@blueprint.response(HTTPStatus.NO_CONTENT)
@blueprint.raises(LastAdmin, fields=(InvalidCredentials.code,))
def erase_me(data: dict[str, Any]) -> None:
    """Erase one's own account for good: the person, the sessions and the files go."""
    credentials.erase_account(principal(), **data)


@blueprint.get("")
@limit("read")
@role_required(Role.STAFF)
@blueprint.arguments(UserQuery, location="query")
@blueprint.response(HTTPStatus.OK, UserOut(many=True))
def list_users(query: dict[str, Any]) -> Page[User]:
    """List and search accounts (staff)."""
    return service.list_users(caller_id=principal().id, **query)


@blueprint.post("")
@limit("write")
@role_required(Role.ADMIN)
@idempotent(resume=service.get_user)
@blueprint.arguments(UserCreate)
@blueprint.response(HTTPStatus.CREATED, UserOut, location="/v1/users/{0.id}")
@etags.conditional
@blueprint.raises(EmailTaken)
def create_user(data: dict[str, Any], resumed: User | None) -> User:
    """Create an account and invite its owner by mail to set a password (admins)."""
    return resumed or links.invite_user(actor_id=principal().id, **data)


@blueprint.get("/<uuid:user_id>")
@limit("read")
@role_required(Role.STAFF)
@blueprint.response(HTTPStatus.OK, UserOut)
@etags.conditional
@blueprint.raises(NotFound)
def get_user(user_id: UUID) -> User:
    """Show an account (staff)."""
    return service.get_user(user_id)


@blueprint.patch("/<uuid:user_id>")
@limit("write")
@role_required(Role.ADMIN)
@blueprint.arguments(UserUpdate)
@blueprint.response(HTTPStatus.OK, UserOut)
@etags.conditional
@etags.precondition
@blueprint.raises(NotFound, LastAdmin)
def update_user(data: dict[str, Any], user_id: UUID, expected: Expected) -> User:
    """Change an account's name or role, or deactivate it; acts on the very next request (admins)."""
    return service.update_user(user_id, actor_id=principal().id, expected=expected, **data)


@blueprint.delete("/<uuid:user_id>")
@limit("write")
@role_required(Role.ADMIN)
@blueprint.response(HTTPStatus.NO_CONTENT)
@etags.precondition
@blueprint.raises(NotFound, LastAdmin)
def delete_user(user_id: UUID, expected: Expected) -> None:
    """Erase an account for good (admins)."""
    service.erase_user(user_id, actor_id=principal().id, expected=expected)


@blueprint.delete("/<uuid:user_id>/sessions")
@limit("write")
@role_required(Role.ADMIN)
@blueprint.response(HTTPStatus.NO_CONTENT)
@blueprint.raises(NotFound)
def end_user_sessions(user_id: UUID) -> None:
    """End every session of an account (admins)."""
    service.end_sessions(user_id, actor_id=principal().id)


@blueprint.post("/<uuid:user_id>/invitation")
@limit("write")
@role_required(Role.ADMIN)
@blueprint.response(HTTPStatus.ACCEPTED, AcceptedOut)
@blueprint.raises(NotFound, AlreadyVerified)
def invite_user(user_id: UUID) -> dict[str, str]:
    """Mail an account's invitation again (admins)."""
    links.invite_again(user_id, actor_id=principal().id)
    return {"status": "accepted"}


@audit_blueprint.get("")
@limit("read")
@role_required(Role.ADMIN)
@audit_blueprint.arguments(AuditQuery, location="query")
@audit_blueprint.response(HTTPStatus.OK, AuditEventOut(many=True))
def list_audit_events(query: dict[str, Any]) -> Page[AuditEvent]:
    """Read the audit log (admins)."""
    return audit.list_events(caller_id=principal().id, **query)
