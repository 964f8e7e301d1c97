"""Disputes, as staff see them, and what their statuses mean; snapshots.py mirrors what the provider says of them."""

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import select

from project.pagination import Page, PageRequest, paginate
from project.payments.models import DISPUTE_SORTS, Dispute, DisputeState

DECIDED = {"won", "lost"}
CLOSED = {*DECIDED, "warning_closed", "prevented"}
# From what matters least to what matters most.
_WEIGHTS = [DisputeState.NONE, DisputeState.INQUIRY, DisputeState.WON, DisputeState.LOST, DisputeState.OPEN]


def list_disputes(*, caller_id: UUID, page: PageRequest, payment_id: UUID | None = None) -> Page[Dispute]:
    """Return a page of the disputes, or of those of one payment."""
    statement = select(Dispute)
    if payment_id is not None:
        statement = statement.where(Dispute.payment_id == payment_id)
    return paginate(statement, page, sorts=DISPUTE_SORTS, tiebreaker=Dispute.id, owner=caller_id)


def is_older(before: str, after: str) -> bool:
    """Tell whether a dispute was so earlier: one that was decided stays so, and an inquiry opens once."""
    again = before in CLOSED and _state(after) is DisputeState.INQUIRY
    return again or (before in DECIDED and after not in DECIDED)


def gravest(statuses: Iterable[str]) -> DisputeState:
    """Return what a payment with disputes of these statuses shows: what matters most."""
    return max(map(_state, statuses), key=_WEIGHTS.index)


def _state(status: str) -> DisputeState:
    if status.startswith("warning_") or status == "prevented":
        return DisputeState.NONE if status in CLOSED else DisputeState.INQUIRY
    return {"won": DisputeState.WON, "lost": DisputeState.LOST}.get(status, DisputeState.OPEN)
