"""What happened to a payment, written for the people who look after it."""

from typing import Any
from uuid import UUID

from sqlalchemy import select

from project.database import db
from project.pagination import Page, PageRequest, paginate
from project.payments.journal import TIMELINE_SORTS, TimelineEntry


def note(payment_id: UUID, actor: str, kind: str, **data: Any) -> None:
    """Write into a payment's timeline, in the caller's transaction."""
    db.session.add(TimelineEntry(payment_id=payment_id, actor=actor, type=kind, data=data))


def list_entries(payment_id: UUID, *, caller_id: UUID, page: PageRequest) -> Page[TimelineEntry]:
    """Return a page of what happened to a payment, the latest first."""
    statement = select(TimelineEntry).where(TimelineEntry.payment_id == payment_id)
    return paginate(statement, page, sorts=TIMELINE_SORTS, tiebreaker=TimelineEntry.id, owner=(caller_id, payment_id))
