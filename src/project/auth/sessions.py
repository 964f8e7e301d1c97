"""Sessions of an account: which are alive, listing and ending them."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import BindParameter, ColumnElement, and_, delete, select, update

from project import audit
from project.auth.models import SESSION_SORTS, SESSIONS, KnownNetwork, Session
from project.database import db, transaction, utcnow
from project.errors import NotFound
from project.pagination import Page, PageRequest, paginate
from project.users.models import USERS, User
from project.users.service import on_erase

KNOWN_NETWORK_LIFETIME = timedelta(days=30)


def is_alive(now: datetime | BindParameter[datetime]) -> ColumnElement[bool]:
    """Return the condition under which a session joined to its account counts.

    It is about the tables' columns, so that it goes into statements of rows, which are cheaper, and of objects.
    """
    return and_(
        SESSIONS.c.revoked_at.is_(None),
        SESSIONS.c.expires_at > now,
        SESSIONS.c.epoch == USERS.c.session_epoch,
        USERS.c.is_active,
    )


def revoke(reason: str, *conditions: ColumnElement[bool]) -> int:
    """Revoke the sessions that are not revoked yet and return how many."""
    statement = update(Session).where(Session.revoked_at.is_(None), *conditions)
    result: Any = db.session.execute(
        statement.values(revoked_at=utcnow(), revoked_reason=reason),
        execution_options={"synchronize_session": False},
    )
    return int(result.rowcount)


def list_sessions(*, user_id: UUID, current: UUID, page: PageRequest) -> Page[Session]:
    """Return a page of the account's live sessions."""
    now = utcnow()
    statement = (
        select(Session)
        .join(User, User.id == Session.user_id)
        .where(Session.user_id == user_id, Session.refresh_expires_at > now, is_alive(now))
    )
    sessions = paginate(statement, page, sorts=SESSION_SORTS, tiebreaker=Session.id, owner=user_id)
    for session in sessions:
        session.current = session.id == current
    return sessions


def end_session(*, user_id: UUID, session_id: UUID) -> None:
    """End one of the account's own sessions.

    Raises:
        NotFound: also for another account's.
    """
    alive = select(Session.id).join(User, User.id == Session.user_id).where(is_alive(utcnow()))
    with transaction():
        if not revoke("ended", Session.id == session_id, Session.user_id == user_id, Session.id.in_(alive)):
            raise NotFound("There is no such session.")
        audit.record("session_ended", actor_id=user_id, target_type="session", target_id=session_id)


def end_sessions(*, user_id: UUID, keep: UUID | None = None) -> None:
    """End all sessions of an account, or all but one."""
    with transaction():
        conditions = [Session.user_id == user_id] + ([Session.id != keep] if keep else [])
        revoke("ended", *conditions)
        audit.record("sessions_ended", actor_id=user_id, target_type="user", target_id=user_id)


def purge() -> None:
    """Delete sessions past their end and networks not signed in from for 30 days (housekeeping)."""
    now = utcnow()
    with transaction():
        db.session.execute(delete(Session).where(Session.expires_at < now))
        db.session.execute(delete(KnownNetwork).where(KnownNetwork.last_login_at < now - KNOWN_NETWORK_LIFETIME))


@on_erase
def forget_sessions(user_id: UUID) -> None:
    """Remove where and with what an erased account signed in."""
    db.session.execute(delete(Session).where(Session.user_id == user_id))
    db.session.execute(delete(KnownNetwork).where(KnownNetwork.user_id == user_id))
