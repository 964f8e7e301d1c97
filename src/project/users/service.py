"""Accounts: reading, creating, changing, deactivating and erasing them."""

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import or_, select, update
from sqlalchemy.exc import IntegrityError

from project import audit
from project.database import db, transaction, utcnow
from project.errors import Conflict, NotFound, PreconditionFailed
from project.etags import Expected, matches
from project.idempotency_keys import attach, forget
from project.pagination import Page, PageRequest, contains, paginate
from project.security import Role, SessionRevoked
from project.users.models import SHOWN, SORTS, USERS, User


class EmailTaken(Conflict):
    """409: another account has this address."""

    code = "email_taken"
    message = "An account with this e-mail address already exists."
    cure = "Use another address, or find the account at /v1/users?q=."


class LastAdmin(Conflict):
    """409: the change would leave nobody who can administer."""

    code = "last_admin"
    message = "This is the last active administrator."
    cure = "Make another account an administrator first."


# What features have to remove when an account is erased; each runs in the erasing transaction.
_erasers: list[Callable[[UUID], None]] = []


def on_erase(eraser: Callable[[UUID], None]) -> Callable[[UUID], None]:
    """Register what a feature does when an account is erased (a decorator)."""
    _erasers.append(eraser)
    return eraser


def find_by_email(email: str) -> User | None:
    """Return the account with this address, in its stored form."""
    return db.session.scalar(select(User).where(User.email == email))


def find_user(user_id: UUID) -> User | None:
    """Return an account that is not erased, if there is one."""
    return db.session.scalar(select(User).where(User.id == user_id, User.erased_at.is_(None)))


def get_user(user_id: UUID) -> User:
    """Return an account that is not erased.

    Raises:
        NotFound.
    """
    user = find_user(user_id)
    if user is None:
        raise NotFound("There is no such user.")
    return user


def keep_user(user_id: UUID) -> None:
    """Keep an account from being erased until the caller's transaction ends, so that nothing is made for it later.

    Raises:
        SessionRevoked: it is erased, and its sessions with it.
    """
    kept = select(User.id).where(User.id == user_id, User.erased_at.is_(None)).with_for_update(read=True)
    if db.session.scalar(kept) is None:
        raise SessionRevoked()


def get_by_email(email: str) -> User:
    """Return the account with this address; for the command line.

    Raises:
        NotFound.
    """
    user = find_by_email(email)
    if user is None:
        raise NotFound("There is no user with this address.")
    return user


def list_users(
    *,
    caller_id: UUID | None,
    page: PageRequest,
    q: str | None = None,
    role: Role | None = None,
    is_active: bool | None = None,
    created_after: datetime | None = None,
) -> Page[User]:
    """Return a page of accounts; `q` is looked for in addresses and names, whatever the case."""
    # Both say the same: each index that gives the order knows one of them, and skips who is erased.
    statement = select(*SHOWN).where(USERS.c.erased_at.is_(None), USERS.c.email.is_not(None))
    if q:
        statement = statement.where(or_(contains(USERS.c.email, q), contains(USERS.c.name, q)))
    if role is not None:
        statement = statement.where(USERS.c.role == role)
    if is_active is not None:
        statement = statement.where(USERS.c.is_active == is_active)
    if created_after is not None:
        statement = statement.where(USERS.c.created_at > created_after)
    return paginate(statement, page, sorts=SORTS, tiebreaker=USERS.c.id, owner=caller_id)


def create_user(
    *,
    email: str,
    name: str | None = None,
    role: Role = Role.USER,
    password_hash: str | None = None,
    email_verified: bool = False,
    actor_id: UUID | None = None,
) -> User:
    """Create an account and write it into the audit log.

    Raises:
        EmailTaken.
    """
    user = User(email=email, name=name, role=role, password_hash=password_hash, email_verified=email_verified)
    try:
        with transaction():
            db.session.add(user)
            db.session.flush()
            _record("user_created", user.id, actor_id=actor_id, role=role)
            attach(user.id)
    except IntegrityError as error:
        raise EmailTaken() from error
    return user


def update_user(user_id: UUID, *, actor_id: UUID | None, expected: Expected = None, **changes: Any) -> User:
    """Change name, role or is_active; a deactivated account loses its sessions at once.

    `expected` is what the caller's If-Match accepts.

    Raises:
        NotFound, PreconditionFailed, LastAdmin.
    """
    values = dict(changes)
    if changes.get("is_active") is False:
        values["session_epoch"] = User.session_epoch + 1
    with transaction():
        user = _apply(user_id, expected, values)
        _record_changes(user_id, changes, actor_id=actor_id)
    return user


def end_sessions(user_id: UUID, *, actor_id: UUID | None) -> None:
    """End every session of an account.

    Raises:
        NotFound.
    """
    with transaction():
        _apply(user_id, None, {"session_epoch": User.session_epoch + 1})
        _record("sessions_ended", user_id, actor_id=actor_id)


def erase_user(user_id: UUID, *, actor_id: UUID | None, expected: Expected = None) -> None:
    """Remove the person: address, name, password, sessions and whatever features registered; the row stays.

    Raises:
        NotFound, PreconditionFailed, LastAdmin.
    """
    values = {
        "email": None,
        "name": None,
        "password_hash": None,
        "role": Role.USER,
        "is_active": False,
        "email_verified": False,
        "erased_at": utcnow(),
        "session_epoch": User.session_epoch + 1,
    }
    with transaction():
        _apply(user_id, expected, values)
        for eraser in _erasers:
            eraser(user_id)
        # Last, since whoever makes something under a key locks what they make first.
        forget(user_id)
        _record("user_erased", user_id, actor_id=actor_id)


def _apply(user_id: UUID, expected: Expected, values: dict[str, Any]) -> User:
    """Write `values` if the account is there in an expected version, and an administrator remains."""
    may_lose_admin = values.get("role", Role.ADMIN) is not Role.ADMIN or values.get("is_active") is False
    had_admin = may_lose_admin and _has_admin()
    statement = update(User).where(User.id == user_id, User.erased_at.is_(None), matches(User, expected))
    if values:
        values = {**values, "version": User.version + 1}
    statement = statement.values(values or {"version": User.version, "updated_at": User.updated_at})
    user: User | None = db.session.scalar(statement.returning(User), execution_options={"populate_existing": True})
    if user is None:
        get_user(user_id)
        raise PreconditionFailed()
    if had_admin and not _has_admin():
        raise LastAdmin()
    return user


def _has_admin() -> bool:
    """Tell whether an active administrator is left, and let nobody change that before the transaction ends.

    Two administrators who demote each other at once would each still see the other: PostgreSQL has to lock the
    rows, while on SQLite the transaction is the only writer anyway.
    """
    # Who was invited and has not come yet cannot administer.
    admins = select(User.id).where(User.role == Role.ADMIN, User.is_active, User.email_verified).order_by(User.id)
    return bool(db.session.scalars(admins.with_for_update()).all())


def _record_changes(user_id: UUID, changes: dict[str, Any], *, actor_id: UUID | None) -> None:
    """Write an event for each change, so that whoever looks for one kind finds all of it."""
    if "role" in changes:
        _record("role_changed", user_id, actor_id=actor_id, role=changes["role"])
    if "is_active" in changes:
        _record("user_activated" if changes["is_active"] else "user_deactivated", user_id, actor_id=actor_id)
    if "name" in changes:
        # Not the name itself: it is personal data, and the log outlives the account.
        _record("name_changed", user_id, actor_id=actor_id)


def _record(action: str, user_id: UUID, *, actor_id: UUID | None, **data: Any) -> None:
    audit.record(action, actor_id=actor_id, target_type="user", target_id=user_id, **data)
