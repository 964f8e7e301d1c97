"""Finding out what became of everything whose outcome is not known: the other half of every call to the provider.

Each step may run any number of times, and beside requests, webhooks and itself; runs are kept apart only because two
of them would ask the provider everything twice.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

from sqlalchemy import exists, select, update
from sqlalchemy.exc import OperationalError

from project import metrics
from project.database import db, give_back, transaction, utcnow
from project.jobs import periodic
from project.locks import AlreadyRunning, alone
from project.payments import expiry, inbox, ledger_check, operations, service, waiting
from project.payments.comparing import compare
from project.payments.failures import InvalidState, PaymentDeclined, PaymentsMisconfigured, ProviderUnavailable
from project.payments.gateway import current_gateway
from project.payments.gateway_types import KEYS_LIVE, GatewayError, Misconfigured, OutcomeUnknown, TooManyRequests
from project.payments.journal import WebhookEvent
from project.payments.models import Payment, Refund
from project.payments.refunds import ask_to_refund
from project.payments.snapshots import apply_payment, apply_refund, release_refund

logger = logging.getLogger(__name__)

# A request is younger than this while it is still being worked on.
SETTLED = timedelta(minutes=2)
# How far back the provider's payments are held against ours.
SINCE = timedelta(hours=48)
# A provider that has not answered this often is down, and each of its silences takes seconds.
ENOUGH = 5

_DOWN = (ProviderUnavailable, PaymentsMisconfigured, OutcomeUnknown, TooManyRequests, Misconfigured)

Row = TypeVar("Row", Payment, Refund, WebhookEvent)


@dataclass
class Report:
    """What a run found and did, and what it could not cure. Of a dry run: what it would have looked at."""

    payments: int = 0
    operations: int = 0
    refunds: int = 0
    events: int = 0
    expired: int = 0
    repaired: list[str] = field(default_factory=list)
    lapsing: list[str] = field(default_factory=list)
    unavailable: int = 0
    discrepancies: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """What the command ends with: 2 the provider gave no answer, 1 something needs a person, 0 all is well."""
        return 2 if self.unavailable else int(bool(self.discrepancies))


def reconcile(*, since: timedelta = SINCE, settled: timedelta = SETTLED, dry_run: bool = False) -> Report:
    """Resolve every payment, refund and event that waits, and compare the provider's payments with ours.

    `settled` is how long something has to be left alone before it counts as waiting.

    Raises:
        AlreadyRunning: another process does this.
    """
    if dry_run:
        return _run(Report(), since, settled, dry_run=True)
    with alone("reconcile"):
        return _run(Report(), since, settled, dry_run=False)


@periodic("*/5 * * * *")
def reconcile_regularly() -> None:
    """Resolve what waits, every five minutes."""
    if not db.session.scalar(select(exists(select(Payment.id)))):
        return  # Not even the provider's library needs to be loaded.
    try:
        report = reconcile()
    except AlreadyRunning:
        return
    for found in report.discrepancies:
        metrics.DISCREPANCIES.inc()
        logger.error("payments_discrepancy", extra={"reason": found})
    if report.unavailable:
        metrics.UNANSWERED.inc(report.unavailable)
        logger.error("payments_provider_unavailable", extra={"count": report.unavailable})


def process_events() -> Report:
    """Act on every event that was not acted on yet, however young or old; on each once."""
    report, began = Report(), utcnow()
    while report.unavailable < ENOUGH and (events := waiting.events_untouched_since(began)):
        report.events += _each(report, events, _process, dry_run=False)
    return report


def _run(report: Report, since: timedelta, settled: timedelta, *, dry_run: bool) -> Report:
    def each(rows: Sequence[Row], settle: Callable[[Row], object]) -> int:
        return _each(report, rows, settle, dry_run=dry_run)

    report.payments += each(waiting.lost_creates(settled), _settle_create)
    report.payments += each(waiting.open_payments(settled), _look)
    report.operations += each(waiting.open_operations(settled), _finish_operation)
    report.refunds += each(waiting.open_refunds(settled), _settle_refund)
    report.events += each(waiting.unprocessed_events(settled), _process)
    report.expired += each(waiting.overdue_payments(), _expire)
    try:
        compared = compare(since=since, settled=settled, dry_run=dry_run)
    except GatewayError:
        report.unavailable += 1
    else:
        report.repaired += compared.repaired
        report.discrepancies += compared.left
    for payment in waiting.lapsing_authorisations():
        report.lapsing.append(str(payment.id))
        logger.error("authorisation_lapses", extra={"payment_id": str(payment.id)})
    changed_since = utcnow() - since
    report.discrepancies += [str(violation) for violation in ledger_check.verify(changed_since=changed_since)]
    return report


def _each(report: Report, rows: Sequence[Row], settle: Callable[[Row], object], *, dry_run: bool) -> int:
    """Settle each row by itself: what fails for one says nothing of the others. Return how many were."""
    settled = 0
    for row in rows:
        if report.unavailable >= ENOUGH:
            break
        settled += dry_run or _settle(report, row, settle)
    return settled


def _settle(report: Report, row: Row, settle: Callable[[Row], object]) -> bool:
    subject, fields = f"{type(row).__name__} {row.id}", {"kind": type(row).__name__, "target_id": str(row.id)}
    try:
        settle(row)
    except (InvalidState, PaymentDeclined):
        return True  # It is known now that it cannot be done.
    except _DOWN as error:
        report.unavailable += 1
        logger.warning("not_reconciled", extra={**fields, "error": type(error).__name__})
        return False
    except OperationalError:
        raise  # Without the database nothing can be settled.
    except Exception as error:
        report.discrepancies.append(f"{subject}: {type(error).__name__}")
        logger.exception("not_reconciled", extra=fields)
        return False
    return True


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


def _look(payment: Payment) -> None:
    service.update_from_provider(payment, actor="reconcile")


def _finish_operation(payment: Payment) -> None:
    if operations.finish_operation(payment, actor="reconcile").pending_operation is not None:
        raise OutcomeUnknown("still")


def _settle_refund(refund: Refund) -> None:
    """Find what became of a refund: by its reference, or among those of its payment while it has none."""
    with transaction():  # So that it is looked at less often from now on.
        db.session.execute(update(Refund).where(Refund.id == refund.id).values(updated_at=utcnow()))
    if refund.provider_ref is not None:
        give_back()
        apply_refund(current_gateway().retrieve_refund(refund.provider_ref), actor="reconcile")
        return
    payment = service.get_payment(refund.payment_id, reader_id=None)
    give_back()
    for snapshot in current_gateway().list_refunds(str(payment.provider_ref)):
        if snapshot.refund_id == refund.id:
            apply_refund(snapshot, actor="reconcile")
            return
    if refund.created_at < utcnow() - KEYS_LIVE:
        release_refund(refund.id, reason="never_arrived", actor="reconcile")
    elif ask_to_refund(refund, payment, actor="reconcile").provider_ref is None:
        raise OutcomeUnknown("still")


def _process(event: WebhookEvent) -> None:
    inbox.process(event_id=str(event.id))


def _expire(payment: Payment) -> None:
    canceled = expiry.cancel_if_over(payment.id, reason="expired")
    if canceled is not None and canceled.pending_operation is not None:
        raise OutcomeUnknown("still")
