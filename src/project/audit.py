"""The append-only log of security events: sign-ins, credential changes, what staff and admins did."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, Index, String, select
from sqlalchemy.orm import Mapped, mapped_column

from project.database import Base, db, utcnow, uuid7
from project.observability import origin
from project.pagination import Page, PageRequest, paginate


class AuditEvent(Base):
    """Who did what to whom, from where. Triggers refuse to change or delete a row.

    No column refers to another table: the log outlives what it is about. `data` never holds personal data.
    """

    __tablename__ = "audit_events"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    at: Mapped[datetime] = mapped_column(default=utcnow, index=True)
    action: Mapped[str] = mapped_column(String(64))
    actor_id: Mapped[UUID | None]
    target_type: Mapped[str | None] = mapped_column(String(32))
    target_id: Mapped[UUID | None]
    ip: Mapped[str | None] = mapped_column(String(45))
    request_id: Mapped[str | None] = mapped_column(String(64))
    data: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)

    __table_args__ = (
        Index("ix_audit_events_actor_id_at", "actor_id", "at"),
        Index("ix_audit_events_target_id_at", "target_id", "at"),
        Index("ix_audit_events_action_at", "action", "at"),
    )


SORTS = {"created_at": AuditEvent.at}


def record(
    action: str,
    *,
    actor_id: UUID | None,
    target_type: str | None = None,
    target_id: UUID | None = None,
    **data: Any,
) -> None:
    """Write one event in the caller's transaction: it exists if and only if what it tells of happened."""
    where = origin()
    db.session.add(
        AuditEvent(
            action=action,
            actor_id=actor_id,
            target_type=target_type,
            target_id=target_id,
            ip=where.ip,
            request_id=where.request_id,
            data=data,
        )
    )


def list_events(
    *,
    caller_id: UUID | None,
    page: PageRequest,
    actor_id: UUID | None = None,
    target_id: UUID | None = None,
    action: str | None = None,
    after: datetime | None = None,
    before: datetime | None = None,
) -> Page[AuditEvent]:
    """Return a page of events, newest first; `after` is included, `before` is not."""
    statement = select(AuditEvent)
    if actor_id is not None:
        statement = statement.where(AuditEvent.actor_id == actor_id)
    if target_id is not None:
        statement = statement.where(AuditEvent.target_id == target_id)
    if action is not None:
        statement = statement.where(AuditEvent.action == action)
    if after is not None:
        statement = statement.where(AuditEvent.at >= after)
    if before is not None:
        statement = statement.where(AuditEvent.at < before)
    return paginate(statement, page, sorts=SORTS, tiebreaker=AuditEvent.id, owner=caller_id)
