"""What a signed-in user does with their own credentials; each asks for the current password."""

from uuid import UUID

from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from project import audit
from project.auth.links import (
    InvalidLink,
    change_user,
    forget_links,
    redeem,
    send_bounded,
    send_link,
    send_notice,
)
from project.auth.models import LinkPurpose, Session
from project.auth.passwords import check_policy, hash_password, hashing, verify_password
from project.auth.service import InvalidCredentials
from project.auth.sessions import revoke
from project.database import db, transaction
from project.errors import Invalid
from project.jobs import defer, task
from project.limits import refill, spend
from project.security import Principal, Role
from project.users import service as users
from project.users.models import User


def _require_password(caller: Principal, password: str, *, pointer: str) -> User:
    """Return the account if the password is its own.

    Raises:
        Invalid: invalid_credentials at `pointer`. RateLimited: too many wrong ones in this session.
    """
    user = users.get_user(caller.id)
    with hashing():
        spend("password", str(caller.session_id))
        fits = verify_password(password, user.password_hash)
    if not fits:
        raise Invalid.field(pointer, InvalidCredentials.code, "This is not your current password.")
    refill("password", str(caller.session_id))
    return user


def change_password(caller: Principal, *, current_password: str, new_password: str) -> None:
    """Set a new password and end the other sessions. The new one may equal the old.

    Raises:
        Invalid, RateLimited.
    """
    user = _require_password(caller, current_password, pointer="/current_password")
    check_policy(new_password, pointer="/new_password", email=user.email or "")
    new_hash = hash_password(new_password)
    # Guarded by what was verified, so that of two changes at once the second fails instead of winning silently.
    unchanged = update(User).where(User.id == user.id, User.password_hash == user.password_hash)
    statement = unchanged.values(password_hash=new_hash, version=User.version + 1)
    with transaction():
        changed = db.session.scalar(statement.returning(User.id))
        if changed is None:
            raise Invalid.field("/current_password", InvalidCredentials.code)
        forget_links(user.id)
        revoke("password_changed", Session.user_id == user.id, Session.id != caller.session_id)
        audit.record("password_changed", actor_id=user.id, target_type="user", target_id=user.id)
        defer(send_notice, template="password_changed", to=user.email)


def request_email_change(caller: Principal, *, new_email: str, password: str) -> None:
    """Mail a link to the new address and tell the old one; nothing changes until the link is followed.

    The answer is the same when the new address has an account already: only its owner may learn that.

    Raises:
        Invalid, RateLimited.
    """
    user = _require_password(caller, password, pointer="/password")
    with transaction():
        audit.record("email_change_requested", actor_id=user.id, target_type="user", target_id=user.id)
        defer(send_notice, template="email_change_requested", to=user.email)
        defer(send_confirmation, user_id=user.id, new_email=new_email)


@task
def send_confirmation(*, user_id: str, new_email: str) -> None:
    """Mail the link that makes `new_email` the account's address, or tell the one who has it already."""
    user = users.find_user(UUID(user_id))
    if user is None or not user.is_active:
        return
    if users.find_by_email(new_email) is None:
        send_link(user, LinkPurpose.CONFIRM_EMAIL, to=new_email, email=new_email)
    else:
        send_bounded("already_registered", to=new_email)


def confirm_email(*, token: str) -> None:
    """Make the address that a link was sent to the account's own; links sent to the old one stop working.

    Raises:
        InvalidLink: also when the address has been taken since.
    """
    try:
        with transaction():
            link = redeem(token, LinkPurpose.CONFIRM_EMAIL)
            old_email = users.get_user(link.user_id).email
            change_user(link.user_id, email=link.email, email_verified=True)
            forget_links(link.user_id)
            audit.record("email_changed", actor_id=link.user_id, target_type="user", target_id=link.user_id)
            defer(send_notice, template="email_changed", to=old_email)
    except IntegrityError as error:
        raise InvalidLink() from error


def erase_account(caller: Principal, *, password: str) -> None:
    """Erase the caller's own account.

    Raises:
        Invalid, RateLimited, LastAdmin.
    """
    user = _require_password(caller, password, pointer="/password")
    users.erase_user(user.id, actor_id=user.id)


def create_admin(*, email: str, password: str) -> User:
    """Create a confirmed administrator; for the command line, where the first one comes from.

    Raises:
        Invalid, EmailTaken.
    """
    check_policy(password, pointer="/password", email=email)
    return users.create_user(email=email, role=Role.ADMIN, password_hash=hash_password(password), email_verified=True)
