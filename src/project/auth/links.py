"""One-time links by mail: registration, verification, invitation, reset, and change of address.

What a request does here never depends on whether an account exists: it defers a job with what was sent, and the
job looks. Neither the answer nor its time then tells who has an account.
"""

import hashlib
import logging
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, delete, select, update

from project import audit, mail, signing
from project.auth.models import Link, LinkPurpose
from project.auth.passwords import check_policy, hash_password
from project.database import db, transaction, utcnow
from project.errors import BadRequest, Conflict
from project.jobs import current_key, defer, task
from project.limits import count, has_room
from project.security import Role
from project.users import service as users
from project.users.models import User

logger = logging.getLogger(__name__)

MAX_LIVE_VERIFICATIONS = 5

_LIFETIME = {
    LinkPurpose.VERIFY_EMAIL: timedelta(hours=24),
    LinkPurpose.INVITATION: timedelta(days=7),
    LinkPurpose.RESET_PASSWORD: timedelta(minutes=30),
    LinkPurpose.CONFIRM_EMAIL: timedelta(minutes=30),
}
_PATH = {
    LinkPurpose.VERIFY_EMAIL: "/verify-email",
    LinkPurpose.INVITATION: "/invitation",
    LinkPurpose.RESET_PASSWORD: "/reset-password",
    LinkPurpose.CONFIRM_EMAIL: "/confirm-email",
}


class InvalidLink(BadRequest):
    """400: one answer for an unknown, used, expired or altered token."""

    code = "invalid_link"
    message = "This link is not valid any more."
    cure = "Ask for a new one; each works once and for a limited time."


class AlreadyVerified(Conflict):
    """409: the account needs no invitation, its owner has set a password."""

    code = "already_verified"
    message = "This account has been confirmed already."
    cure = "Its owner can sign in, or use /v1/auth/forgot-password."


def send_bounded(template: str, *, to: str, **context: Any) -> None:
    """Send a mail that anybody can ask for, unless this mailbox had its share of the kind.

    What is counted are mails that were sent, each kind apart: else asking for one would suppress another.
    """
    mailbox = (template, hashlib.sha256(to.encode()).hexdigest()[:32])
    if has_room("mailbox", *mailbox):
        mail.send(template, to=to, **context)
        count("mailbox", *mailbox)
    else:
        logger.info("mail_withheld", extra={"template": template})


def send_link(user: User, purpose: LinkPurpose, *, to: str, **bound: str | None) -> None:
    """Make a one-time token, store its hash, and mail it. A job that runs twice mails the same token again."""
    token = signing.token("link", f"{current_key()} {purpose.value} {user.id}".encode())
    token_hash, now = _digest(token), utcnow()
    replaced = (Link.token_hash == token_hash) | Link.id.in_(_replaced(user.id, purpose))
    with transaction():
        db.session.execute(delete(Link).where(replaced))
        expires_at = now + _LIFETIME[purpose]
        db.session.add(Link(user_id=user.id, purpose=purpose, token_hash=token_hash, expires_at=expires_at, **bound))
    send_bounded(purpose.value, to=to, link=mail.app_link(_PATH[purpose], token))


def _replaced(user_id: UUID, purpose: LinkPurpose) -> Select[UUID]:
    """Select the links that a new one replaces: all before it.

    Not so for verifications: else a stranger who registers the address again would disable the link that its owner
    is about to follow.
    """
    kept = MAX_LIVE_VERIFICATIONS - 1 if purpose is LinkPurpose.VERIFY_EMAIL else 0
    same = select(Link.id).where(Link.user_id == user_id, Link.purpose == purpose)
    return same.order_by(Link.id.desc()).offset(kept)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def redeem(token: str, *purposes: LinkPurpose) -> Link:
    """Use up a link, in the caller's transaction. Deleting the row decides who was first.

    Raises:
        InvalidLink.
    """
    statement = delete(Link).where(Link.token_hash == _digest(token), Link.purpose.in_(purposes))
    link: Link | None = db.session.scalar(statement.where(Link.expires_at > utcnow()).returning(Link))
    if link is None:
        raise InvalidLink()
    return link


def change_user(user_id: UUID, *conditions: ColumnElement[bool], **values: Any) -> User:
    """Write to the account of a link that was just redeemed.

    Raises:
        InvalidLink: the account has been deactivated or erased since, or does not meet a condition.
    """
    changeable = update(User).where(User.id == user_id, User.is_active, *conditions)
    statement = changeable.values(**values, version=User.version + 1)
    user: User | None = db.session.scalar(statement.returning(User), execution_options={"populate_existing": True})
    if user is None:
        raise InvalidLink()
    return user


def forget_links(user_id: UUID) -> None:
    """Disable every link that was mailed for an account, in the caller's transaction."""
    db.session.execute(delete(Link).where(Link.user_id == user_id))


users.on_erase(forget_links)


def purge() -> None:
    """Delete the links whose time is over (housekeeping)."""
    with transaction():
        db.session.execute(delete(Link).where(Link.expires_at < utcnow()))


def register(*, email: str, password: str, name: str | None = None) -> None:
    """Begin a registration: the mail that a job sends tells the owner of the address what is next.

    Raises:
        Invalid: the password breaks the policy.
    """
    check_policy(password, pointer="/password", email=email)
    password_hash = hash_password(password)
    with transaction():
        defer(complete_registration, email=email, name=name, password_hash=password_hash)


@task
def complete_registration(*, email: str, name: str | None, password_hash: str) -> None:
    """Create the unverified account and mail its link, or tell the owner of the account that there is one."""
    user = _find_or_create(email, name, password_hash)
    if user.email_verified or not user.is_active:
        send_bounded("already_registered", to=email)
    elif user.password_hash is None:
        # Invited, perhaps with a role: a stranger's password must not get in by the owner's click.
        send_link(user, LinkPurpose.INVITATION, to=email)
    else:
        _change_unverified(user, password_hash)
        send_link(user, LinkPurpose.VERIFY_EMAIL, to=email, password_hash=password_hash)


def _find_or_create(email: str, name: str | None, password_hash: str) -> User:
    user = users.find_by_email(email)
    if user is not None:
        return user
    try:
        return users.create_user(email=email, name=name, password_hash=password_hash)
    except users.EmailTaken:  # by a registration that ran at the same time
        return users.get_by_email(email)


def _change_unverified(user: User, password_hash: str) -> None:
    waiting = update(User).where(
        User.id == user.id, User.email_verified.is_(False), User.password_hash != password_hash
    )
    change = waiting.values(password_hash=password_hash, version=User.version + 1).returning(User.id)
    with transaction():
        if db.session.scalar(change) is not None:
            audit.record("registered_again", actor_id=None, target_type="user", target_id=user.id)


def resend_verification(*, email: str) -> None:
    """Mail a new verification link if there is an account that waits for one."""
    with transaction():
        defer(send_verification, email=email)


@task
def send_verification(*, email: str) -> None:
    """Mail a verification link, if an account waits for one; it confirms the password that the account has now."""
    user = users.find_by_email(email)
    if user is None or user.email_verified or not user.is_active:
        return
    if user.password_hash is None:
        send_link(user, LinkPurpose.INVITATION, to=email)
    else:
        send_link(user, LinkPurpose.VERIFY_EMAIL, to=email, password_hash=user.password_hash)


def verify_email(*, token: str) -> User:
    """Confirm an address, and with it only the password that this link was sent for.

    Raises:
        InvalidLink.
    """
    with transaction():
        link = redeem(token, LinkPurpose.VERIFY_EMAIL)
        # Once confirmed, an account's password is its owner's: no link that was left over may replace it.
        waits = User.email_verified.is_(False)
        user = change_user(link.user_id, waits, email_verified=True, password_hash=link.password_hash)
        forget_links(user.id)
        audit.record("email_verified", actor_id=user.id, target_type="user", target_id=user.id)
    return user


def forgot_password(*, email: str) -> None:
    """Mail a link to set a new password, if there is an active account."""
    with transaction():
        defer(send_reset, email=email)


@task
def send_reset(*, email: str) -> None:
    """Mail a reset link, or the invitation again to somebody who has not followed it yet."""
    user = users.find_by_email(email)
    if user is not None and user.is_active:
        invited = user.password_hash is None
        send_link(user, LinkPurpose.INVITATION if invited else LinkPurpose.RESET_PASSWORD, to=email)


def reset_password(*, token: str, password: str) -> None:
    """Set a password by a reset or invitation link; ends every session. It also proves the address.

    Raises:
        Invalid: the password breaks the policy; the link stays good. InvalidLink.
    """
    owner = select(User.email).join(Link, Link.user_id == User.id).where(Link.token_hash == _digest(token))
    email = db.session.scalar(owner)
    check_policy(password, pointer="/password", email=email or "")
    if email is None:
        raise InvalidLink()  # before the work of a hash
    password_hash = hash_password(password)
    with transaction():
        link = redeem(token, LinkPurpose.RESET_PASSWORD, LinkPurpose.INVITATION)
        user = change_user(
            link.user_id,
            password_hash=password_hash,
            email_verified=True,
            session_epoch=User.session_epoch + 1,
        )
        forget_links(user.id)
        audit.record("password_reset", actor_id=user.id, target_type="user", target_id=user.id)
        defer(send_notice, template="password_changed", to=user.email)


@task
def send_notice(*, template: str, to: str) -> None:
    """Tell somebody what happened to their account."""
    mail.send(template, to=to)


def invite_user(*, email: str, role: Role, actor_id: UUID, name: str | None = None) -> User:
    """Create an account for somebody and mail them a link to set their password.

    Raises:
        EmailTaken.
    """
    with transaction():
        user = users.create_user(email=email, name=name, role=role, actor_id=actor_id)
        defer(send_invitation, user_id=user.id)
    return user


def invite_again(user_id: UUID, *, actor_id: UUID) -> None:
    """Mail a new invitation.

    Raises:
        NotFound. AlreadyVerified.
    """
    user = users.get_user(user_id)
    if user.email_verified:
        raise AlreadyVerified()
    with transaction():
        audit.record("user_invited", actor_id=actor_id, target_type="user", target_id=user_id)
        defer(send_invitation, user_id=user_id)


@task
def send_invitation(*, user_id: str) -> None:
    """Mail an invitation to an account that has not been confirmed."""
    user = users.find_user(UUID(user_id))
    if user is not None and user.email is not None and user.is_active and not user.email_verified:
        send_link(user, LinkPurpose.INVITATION, to=user.email)
