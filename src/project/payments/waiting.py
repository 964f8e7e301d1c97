"""What waits to be looked at: payments, refunds and events whose outcome is not known, or may have changed unheard.

Everything here is of the provider and mode that are set now: another one knows nothing of it.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, ColumnExpressionArgument, Select, and_, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute

from project import metrics
from project.config import settings
from project.database import db, utcnow
from project.payments.expiry import is_over, waits_for_customer
from project.payments.inbox import WAITING
from project.payments.journal import WebhookEvent
from project.payments.models import Payment, PaymentStatus, Refund, RefundStatus

# How many of a kind one run looks at; those that were looked at the longest ago come first.
BATCH = 200
HOUR = timedelta(hours=1)
# An event that could not be acted on for so long needs a person.
EVENT_LASTS = timedelta(days=3)
# An authorisation lapses after seven days.
CAPTURE_BY = timedelta(days=6)
# Reconciliation runs every five minutes; what it did not settle twice it does not settle by itself.
SETTLED_BY = timedelta(minutes=10)
# How old the payments are at most that the numbers for monitoring tell of.
COUNTED = timedelta(days=90)


def lost_creates(settled: timedelta) -> Sequence[Payment]:
    """Find payments that nobody knows to be at the provider."""
    lost = (Payment.status == PaymentStatus.CREATED, Payment.created_at < utcnow() - settled)
    return _payments(*lost, oldest=Payment.created_at)


def open_payments(settled: timedelta) -> Sequence[Payment]:
    """Find payments that may have gone on without our hearing of it.

    Not those with an open operation: asking for it again shows them as well, and a look would make them young again.
    """
    still = [status for status in PaymentStatus if not status.final]
    moving = and_(Payment.status.in_(still), Payment.pending_operation.is_(None))
    due = _due(Payment.synced_at, Payment.created_at, settled)
    return _payments(moving, Payment.provider_ref.is_not(None), due, oldest=Payment.synced_at)


def open_operations(settled: timedelta) -> Sequence[Payment]:
    """Find payments with a capture or cancellation whose outcome is not known."""
    asked = (Payment.pending_operation.is_not(None), Payment.provider_ref.is_not(None))
    return _payments(*asked, Payment.updated_at < utcnow() - settled, oldest=Payment.updated_at)


def open_refunds(settled: timedelta) -> Sequence[Refund]:
    """Find refunds that the provider may not know, or has not decided."""
    waiting = Refund.status.in_([RefundStatus.PENDING, RefundStatus.REQUIRES_ACTION])
    statement = select(Refund).join(Payment, Payment.id == Refund.payment_id).where(_ours(), waiting)
    due = _due(Refund.updated_at, Refund.created_at, settled)
    return _fresh(statement.where(due).order_by(Refund.updated_at).limit(BATCH))


def unprocessed_events(settled: timedelta) -> Sequence[WebhookEvent]:
    """Find events that were not acted on, though their job has had its time."""
    young = WebhookEvent.created_at > utcnow() - EVENT_LASTS
    return _events(young, _due(WebhookEvent.updated_at, WebhookEvent.created_at, settled))


def events_untouched_since(time: datetime) -> Sequence[WebhookEvent]:
    """Find events that were not acted on, and were not tried after this time."""
    return _events(WebhookEvent.updated_at < time)


def _events(*conditions: ColumnElement[bool]) -> Sequence[WebhookEvent]:
    ours = (WebhookEvent.provider == settings.payments.provider, WebhookEvent.status.in_(WAITING))
    return _fresh(select(WebhookEvent).where(*ours, *conditions).order_by(WebhookEvent.updated_at).limit(BATCH))


def overdue_payments() -> Sequence[Payment]:
    """Find payments that nobody has paid in time, or that were declined too often."""
    return _payments(waits_for_customer(), is_over(), oldest=Payment.created_at)


def lapsing_authorisations() -> Sequence[Payment]:
    """Find payments that have to be captured within a day."""
    late = Payment.authorized_at < utcnow() - CAPTURE_BY
    return _payments(Payment.status == PaymentStatus.REQUIRES_CAPTURE, late, oldest=Payment.authorized_at)


def _due(
    looked: InstrumentedAttribute[Any], made: InstrumentedAttribute[datetime], settled: timedelta
) -> ColumnElement[bool]:
    """Tell what is to be looked at again: the longer it has waited, the less often, and at last once an hour."""
    now = utcnow()
    return or_(
        and_(made > now - HOUR, looked < now - settled),
        and_(made > now - 6 * HOUR, looked < now - 5 * settled),
        looked < now - min(30 * settled, HOUR),
    )


def _ours() -> ColumnElement[bool]:
    return and_(Payment.provider == settings.payments.provider, Payment.livemode == settings.payments.livemode)


def _payments(*conditions: ColumnElement[bool], oldest: InstrumentedAttribute[Any]) -> Sequence[Payment]:
    return _fresh(select(Payment).where(_ours(), *conditions).order_by(oldest, Payment.id).limit(BATCH))


def _fresh(statement: Select[Any]) -> Sequence[Any]:
    return db.session.scalars(statement, execution_options={"populate_existing": True}).all()


@metrics.measured("payments_needing_review", "Payments at which a person has to look.")
def _count_needing_review() -> float:
    return _count(Payment.needs_review)


@metrics.measured("payments_unsettled", "Payments with a step whose outcome has been unknown for ten minutes.")
def _count_unsettled() -> float:
    late = utcnow() - SETTLED_BY
    lost = and_(Payment.status == PaymentStatus.CREATED, Payment.created_at < late)
    return _count(or_(lost, and_(Payment.pending_operation.is_not(None), Payment.updated_at < late)))


def _count(condition: ColumnExpressionArgument[bool]) -> float:
    recent = Payment.created_at > utcnow() - COUNTED  # there is an index of this
    return db.session.scalar(select(func.count()).select_from(Payment).where(_ours(), recent, condition)) or 0
