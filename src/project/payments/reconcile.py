"""Finding out what became of everything whose outcome is not known: the other half of every call to the provider."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, select, update

from project.config import settings
from project.database import db, give_back, transaction, utcnow
from project.errors import AppError
from project.jobs import periodic
from project.payments import inbox, ledger_check, operations, service
from project.payments.gateway import current_gateway
from project.payments.gateway_types import GatewayError, PaymentSnapshot
from project.payments.journal import EventStatus, WebhookEvent
from project.payments.models import Operation, Payment, PaymentStatus, Refund, RefundStatus
from project.payments.refunds import ask_to_refund
from project.payments.snapshots import apply_payment, apply_refund, release_refund

logger = logging.getLogger(__name__)

# A request is younger than this while it is still being worked on.
SETTLED = timedelta(minutes=2)
# The provider forgets keys after a day: until then the same request can be sent again.
KEYS_LIVE = timedelta(hours=23)
# An authorisation lapses after seven days.
CAPTURE_BY = timedelta(days=6)
BATCH = 200


@dataclass
class Report:
    """What a run found and did, and what it could not cure."""

    resolved: int = 0
    expired: int = 0
    events: int = 0
    unavailable: int = 0
    discrepancies: list[str] = field(default_factory=list)


def reconcile(*, since: timedelta = timedelta(hours=48), settled: timedelta = SETTLED) -> Report:
    """Resolve every payment, refund and event that waits, and compare the provider's payments with ours.

    `settled` is how long something has to be left alone before it counts as waiting.
    """
    report = Report()
    before = utcnow() - settled
    _each(report, _lost_creates(before), _settle_create)
    _each(report, _open_payments(before), lambda payment: service.update_from_provider(payment, actor="reconcile"))
    _each(report, _open_operations(before), lambda payment: operations.finish_operation(payment, actor="reconcile"))
    _each(report, _open_refunds(before), _settle_refund)
    _process_events(report, before)
    _expire(report)
    _compare(report, utcnow() - since)
    _warn_of_authorisations()
    report.discrepancies += [f"{found.rule}: {found.subject}" for found in ledger_check.verify()]
    return report


@periodic("*/5 * * * *")
def reconcile_regularly() -> None:
    """Resolve what waits, every five minutes."""
    report = reconcile()
    for found in report.discrepancies:
        logger.error("payments_discrepancy", extra={"reason": found})


def _each(report: Report, rows: Iterator[Payment] | Iterator[Refund], settle: Callable[..., object]) -> None:
    """Settle each row by itself: what fails for one says nothing of the others."""
    for row in rows:
        try:
            settle(row)
            report.resolved += 1
        except (AppError, GatewayError) as error:
            report.unavailable += 1
            logger.warning("not_reconciled", extra={"kind": type(row).__name__, "error": type(error).__name__})


def _settle_create(payment: Payment) -> None:
    """Find what became of a payment that nobody knows to be at the provider."""
    if payment.created_at > utcnow() - KEYS_LIVE:
        service.ask_to_create(payment, actor="reconcile")
        return
    give_back()
    snapshot = current_gateway().find_payment(payment.id, since=payment.created_at)
    if snapshot is not None:
        apply_payment(payment.id, snapshot, actor="reconcile")
    else:
        service.give_up(payment, actor="reconcile")


def _settle_refund(refund: Refund) -> None:
    payment = service.get_payment(refund.payment_id, reader_id=None)
    give_back()
    for snapshot in current_gateway().list_refunds(str(payment.provider_ref)):
        if snapshot.refund_id == refund.id:
            apply_refund(snapshot, actor="reconcile")
            return
    if refund.created_at > utcnow() - KEYS_LIVE:
        ask_to_refund(refund, payment, actor="reconcile")
    else:
        release_refund(refund.id, reason="never_arrived", actor="reconcile")


def _process_events(report: Report, before: datetime) -> None:
    waiting = WebhookEvent.status.in_([EventStatus.RECEIVED, EventStatus.FAILED])
    statement = select(WebhookEvent.id).where(waiting, WebhookEvent.updated_at < before).limit(BATCH)
    for event_id in db.session.scalars(statement).all():
        try:
            inbox.process(event_id=str(event_id))
            report.events += 1
        except GatewayError:
            report.unavailable += 1


def _expire(report: Report) -> None:
    """Cancel what nobody has paid in time, and what was tried too often (card testing)."""
    stale = Payment.created_at < utcnow() - settings.payments.expire_after
    tried = Payment.attempts >= settings.payments.max_attempts
    waits = Payment.status == PaymentStatus.REQUIRES_PAYMENT_METHOD
    for payment in _payments(waits, stale | tried, Payment.pending_operation.is_(None)):
        mine = update(Payment).where(Payment.id == payment.id, waits, Payment.pending_operation.is_(None))
        with transaction():
            ended = db.session.scalar(
                mine.values(pending_operation=Operation.CANCEL).returning(Payment),
                execution_options={"populate_existing": True},
            )
        if ended is not None:
            _each(report, iter([ended]), lambda row: operations.finish_operation(row, actor="reconcile"))
            report.expired += 1


def _compare(report: Report, since: datetime) -> None:
    """Hold what the provider has of the last time against what we have."""
    give_back()
    try:
        for snapshot in current_gateway().list_payments(since=since):
            report.discrepancies += _difference(snapshot)
    except GatewayError:
        report.unavailable += 1


def _difference(snapshot: PaymentSnapshot) -> list[str]:
    if snapshot.payment_id is None:
        return []
    payment = db.session.scalar(select(Payment).where(Payment.id == snapshot.payment_id))
    if payment is None:
        return [f"orphan_at_provider: {snapshot.ref}"]
    apply_payment(payment.id, snapshot, actor="reconcile")
    return [f"needs_review: {payment.id}"] if payment.needs_review else []


def _warn_of_authorisations() -> None:
    late = Payment.authorized_at < utcnow() - CAPTURE_BY
    for payment in _payments(Payment.status == PaymentStatus.REQUIRES_CAPTURE, late):
        logger.error("authorisation_lapses", extra={"payment_id": str(payment.id)})


def _lost_creates(before: datetime) -> Iterator[Payment]:
    return _payments(Payment.status == PaymentStatus.CREATED, Payment.created_at < before)


def _open_payments(before: datetime) -> Iterator[Payment]:
    moving = [PaymentStatus.REQUIRES_ACTION, PaymentStatus.PROCESSING, PaymentStatus.REQUIRES_PAYMENT_METHOD]
    return _payments(Payment.status.in_(moving), Payment.synced_at < before)


def _open_operations(before: datetime) -> Iterator[Payment]:
    return _payments(Payment.pending_operation.is_not(None), Payment.updated_at < before)


def _open_refunds(before: datetime) -> Iterator[Refund]:
    waiting = Refund.status.in_([RefundStatus.PENDING, RefundStatus.REQUIRES_ACTION])
    statement = select(Refund).where(waiting, Refund.updated_at < before).order_by(Refund.id).limit(BATCH)
    return iter(db.session.scalars(statement).all())


def _payments(*conditions: ColumnElement[bool]) -> Iterator[Payment]:
    return iter(db.session.scalars(select(Payment).where(*conditions).order_by(Payment.id).limit(BATCH)).all())
