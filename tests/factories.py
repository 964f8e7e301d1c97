"""Builders of rows with boring defaults; a test states only what it is about. They need an application context."""

from functools import cache
from itertools import count
from typing import Any

from project.auth.models import Session
from project.auth.passwords import hash_password
from project.auth.service import REFRESH_IDLE, SESSION_LIFETIME
from project.database import db, transaction, utcnow, uuid7
from project.security import Role
from project.users.models import User

PASSWORD = "correct horse battery staple"

_numbers = count(1)


@cache
def password_hash() -> str:
    """Return a hash of PASSWORD, made once: each costs 35 ms."""
    return hash_password(PASSWORD)


def make_user(*, email: str | None = None, role: Role = Role.USER, password: bool = True, **attributes: Any) -> User:
    """Add a confirmed account whose password is PASSWORD."""
    user = User(
        email=email or f"user{next(_numbers)}@example.com",
        role=role,
        password_hash=password_hash() if password else None,
        **{"email_verified": True, **attributes},
    )
    with transaction():
        db.session.add(user)
    return user


def make_session(user: User, **attributes: Any) -> Session:
    """Add a live session of an account."""
    now = utcnow()
    issued_at = now.replace(microsecond=0)
    values: dict[str, Any] = {
        "epoch": user.session_epoch,
        "last_used_at": now,
        "expires_at": issued_at + SESSION_LIFETIME,
        "refresh_jti": uuid7(),
        "refresh_issued_at": issued_at,
        "refresh_expires_at": issued_at + REFRESH_IDLE,
    }
    session = Session(id=uuid7(), user_id=user.id, **{**values, **attributes})
    with transaction():
        db.session.add(session)
    return session
