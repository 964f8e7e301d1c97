"""Disputes, as staff see them; snapshots.py mirrors what the provider says of them."""

from uuid import UUID

from sqlalchemy import select

from project.pagination import Page, PageRequest, paginate
from project.payments.models import DISPUTE_SORTS, Dispute


def list_disputes(*, caller_id: UUID, page: PageRequest, payment_id: UUID | None = None) -> Page[Dispute]:
    """Return a page of the disputes, or of those of one payment."""
    statement = select(Dispute)
    if payment_id is not None:
        statement = statement.where(Dispute.payment_id == payment_id)
    return paginate(statement, page, sorts=DISPUTE_SORTS, tiebreaker=Dispute.id, owner=caller_id)
