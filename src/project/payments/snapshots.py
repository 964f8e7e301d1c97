"""The one writer of a payment's status: it makes our rows what the provider says, in any order and any number of times.

Each function takes a snapshot of an object as the provider has it now. What it changes, it changes in one transaction
together with the books, the receipt number and the mails, guarded by what the row was; so of several that bring the
same news one acts, and old news change nothing.
"""

import logging
from datetime import datetime
from uuid import UUID

from sqlalchemy import or_, select, update

from project.database import db, insert, transaction, utcnow, uuid7
from project.jobs import defer
from project.payments import ledger
from project.payments.gateway_types import DisputeSnapshot, OutcomeUnknown, PaymentSnapshot, RefundSnapshot
from project.payments.journal import ReceiptCounter
from project.payments.models import Dispute, DisputeState, Payment, PaymentStatus, Refund, RefundOrigin, RefundStatus
from project.payments.receipts import send_receipt
from project.payments.timeline import note

logger = logging.getLogger(__name__)

_CLOSED_DISPUTES = {"won", "lost", "warning_closed", "prevented"}


def apply_payment(payment_id: UUID, snapshot: PaymentSnapshot, *, actor: str) -> Payment:
    """Make a payment what the snapshot says; return it as it is then.

    `actor` is who brought the news, for the timeline: user, staff:<id>, webhook:<id>, reconcile or system.
    """
    with transaction():
        payment = _locked(payment_id)
        before = payment.status
        if (snapshot.amount, snapshot.currency) != (payment.amount, payment.currency):
            _review(payment, "amount_differs")
        elif before.final and not _money_arrived(before, snapshot):
            if snapshot.status is not before:
                logger.warning("stale_snapshot", extra={"payment_id": str(payment_id), "status": snapshot.status})
            payment.synced_at = utcnow()
        else:
            _take_over(payment, snapshot)
            if before.final:
                _review(payment, "succeeded_late")
            if payment.status is PaymentStatus.SUCCEEDED:
                _book_capture(payment)
        if payment.status is not before:
            payment.version += 1
            note(payment_id, actor, "status", before=before, after=payment.status)
    return payment


def _money_arrived(before: PaymentStatus, snapshot: PaymentSnapshot) -> bool:
    """Tell whether a payment that we had given up was paid after all."""
    return before is not PaymentStatus.SUCCEEDED and snapshot.status is PaymentStatus.SUCCEEDED


def _locked(payment_id: UUID) -> Payment:
    """Return a payment that nobody else changes until the transaction ends; on SQLite nobody else writes anyway."""
    statement = select(Payment).where(Payment.id == payment_id).with_for_update()
    return db.session.scalars(statement, execution_options={"populate_existing": True}).one()


def _take_over(payment: Payment, snapshot: PaymentSnapshot) -> None:
    now = utcnow()
    # Before anything is set: the statement would write the rest first, and half of a success is refused.
    if snapshot.status is PaymentStatus.SUCCEEDED:
        payment.receipt_number = _next_receipt_number(now, livemode=payment.livemode)
    payment.provider_ref = snapshot.ref
    payment.status = snapshot.status
    payment.amount_capturable = snapshot.amount_capturable
    payment.synced_at = now
    failure = snapshot.failure
    payment.failure_code = failure.code if failure else None
    payment.decline_code = failure.decline_code if failure else None
    payment.failure_message = failure.message if failure else None
    if snapshot.method is not None:
        payment.method_type, payment.method_brand = snapshot.method.type, snapshot.method.brand
        payment.method_last4 = snapshot.method.last4
    if snapshot.status is PaymentStatus.REQUIRES_CAPTURE:
        payment.authorized_at = payment.authorized_at or now
    if snapshot.status is PaymentStatus.CANCELED:
        payment.canceled_at = now
    if snapshot.status.final:
        payment.pending_operation = payment.pending_amount = None
    if snapshot.status is PaymentStatus.SUCCEEDED:
        payment.amount_captured = snapshot.amount_received
        payment.succeeded_at = now


def _book_capture(payment: Payment) -> None:
    """Post the money and mail the receipt; a payment gets here once, since nothing leads out of `succeeded`."""
    db.session.flush()
    ledger.post("capture", payment, source_type="payment", source_id=payment.id, amount=payment.amount_captured)
    defer(send_receipt, payment_id=payment.id)


def _next_receipt_number(now: datetime, *, livemode: bool) -> str:
    """Return R-<year>-<number>; the counter grows with the transaction, so there are no gaps."""
    counter = insert(ReceiptCounter).values(year=now.year, livemode=livemode, last=1)
    grown = counter.on_conflict_do_update(
        index_elements=["year", "livemode"], set_={"last": ReceiptCounter.last + 1}
    ).returning(ReceiptCounter.last)
    return f"R-{now.year}-{db.session.scalar(grown):06}"


def apply_refund(snapshot: RefundSnapshot, *, actor: str) -> Refund | None:
    """Make a refund what the snapshot says, also one that somebody made at the provider; None if it is not ours.

    Raises:
        OutcomeUnknown: a refund made at the provider collides with one of ours whose outcome is not known yet; once
            that is known, this can be applied.
    """
    with transaction():
        payment = _find_by_ref(snapshot.payment_ref)
        if payment is None:
            return None
        refund = _find_refund(snapshot)
        if refund is None:
            refund = _adopt_refund(payment, snapshot)
        before = refund.status
        refund.provider_ref = snapshot.ref
        if before is not snapshot.status:
            _move_refund(payment, refund, snapshot, actor)
    return refund


def _find_by_ref(ref: str) -> Payment | None:
    found = select(Payment).where(Payment.provider_ref == ref).with_for_update()
    return db.session.scalar(found, execution_options={"populate_existing": True})


def _find_refund(snapshot: RefundSnapshot) -> Refund | None:
    is_it = Refund.provider_ref == snapshot.ref
    if snapshot.refund_id is not None:
        is_it = or_(is_it, Refund.id == snapshot.refund_id)
    return db.session.scalar(select(Refund).where(is_it), execution_options={"populate_existing": True})


def _adopt_refund(payment: Payment, snapshot: RefundSnapshot) -> Refund:
    """Take in a refund that somebody made at the provider: reserved first, as ours are."""
    if snapshot.amount > payment.amount_refundable:
        if payment.amount_refund_reserved:
            raise OutcomeUnknown("one of our refunds is under way")
        raise RuntimeError("the provider refunded more than it took")
    refund = Refund(
        id=uuid7(),
        payment_id=payment.id,
        amount=snapshot.amount,
        currency=snapshot.currency,
        status=RefundStatus.PENDING,
        origin=RefundOrigin.PROVIDER,
    )
    payment.amount_refund_reserved += snapshot.amount
    db.session.add(refund)
    db.session.flush()
    return refund


# A refund holds its amount while it may still succeed, and has given it once it did.
_HOLDS = {RefundStatus.PENDING, RefundStatus.REQUIRES_ACTION}
_NEVER = {RefundStatus.FAILED, RefundStatus.CANCELED}


def _move_refund(payment: Payment, refund: Refund, snapshot: RefundSnapshot, actor: str) -> None:
    before, after = refund.status, snapshot.status
    if before in _NEVER or (before is RefundStatus.SUCCEEDED and after not in _NEVER):
        logger.warning("stale_snapshot", extra={"payment_id": str(payment.id), "status": after})
        return
    if before in _HOLDS and after not in _HOLDS:
        payment.amount_refund_reserved -= refund.amount
    source = {"source_type": "refund", "source_id": refund.id, "amount": refund.amount}
    refund.status, refund.failure_reason = after, snapshot.failure_reason
    if after is RefundStatus.SUCCEEDED:
        payment.amount_refunded += refund.amount
        refund.succeeded_at = utcnow()
        ledger.post("refund", payment, **source)
    elif before is RefundStatus.SUCCEEDED:
        payment.amount_refunded -= refund.amount
        ledger.post("refund_reversal", payment, **source)
        logger.error("refund_reversed", extra={"payment_id": str(payment.id), "amount": refund.amount})
    payment.version += 1
    note(payment.id, actor, "refund", refund_id=str(refund.id), before=before, after=after)


def release_refund(refund_id: UUID, *, reason: str, actor: str) -> None:
    """End a refund that the provider does not know, and give its reservation back; again is no change."""
    with transaction():
        waiting = (Refund.id == refund_id, Refund.status == RefundStatus.PENDING, Refund.provider_ref.is_(None))
        ended = update(Refund).where(*waiting).values(status=RefundStatus.FAILED, failure_reason=reason[:64])
        refund = db.session.scalar(ended.returning(Refund), execution_options={"populate_existing": True})
        if refund is not None:
            payment = _locked(refund.payment_id)
            payment.amount_refund_reserved -= refund.amount
            payment.version += 1
            note(payment.id, actor, "refund", refund_id=str(refund_id), after=RefundStatus.FAILED)


def apply_dispute(snapshot: DisputeSnapshot, *, actor: str) -> Dispute | None:
    """Mirror a dispute; money moves in the books only when the provider has moved it. None if it is not ours."""
    with transaction():
        payment = _find_by_ref(snapshot.payment_ref)
        if payment is None:
            return None
        known = select(Dispute).where(Dispute.provider_ref == snapshot.ref)
        dispute = db.session.scalar(known, execution_options={"populate_existing": True})
        if dispute is None:
            dispute = Dispute(
                id=uuid7(),
                payment_id=payment.id,
                provider_ref=snapshot.ref,
                amount=snapshot.amount,
                currency=snapshot.currency,
            )
            db.session.add(dispute)
        _mirror(payment, dispute, snapshot, actor)
    return dispute


def _mirror(payment: Payment, dispute: Dispute, snapshot: DisputeSnapshot, actor: str) -> None:
    if dispute.status != snapshot.status:
        note(payment.id, actor, "dispute", dispute_id=str(dispute.id), status=snapshot.status)
        payment.version += 1
    dispute.status, dispute.reason = snapshot.status, snapshot.reason
    dispute.evidence_due_by = snapshot.evidence_due_by
    dispute.funds_withdrawn = snapshot.withdrawn > 0
    if snapshot.status in _CLOSED_DISPUTES:
        dispute.closed_at = dispute.closed_at or utcnow()
    payment.dispute_status = _dispute_state(snapshot.status)
    db.session.flush()
    source = {"source_type": "dispute", "source_id": dispute.id}
    if snapshot.withdrawn:
        ledger.post("dispute_hold", payment, amount=snapshot.withdrawn, **source)
    if snapshot.fee:
        ledger.post("dispute_fee", payment, amount=snapshot.fee, **source)
    if snapshot.reinstated:
        ledger.post("dispute_won", payment, amount=snapshot.reinstated, **source)
    elif snapshot.withdrawn and snapshot.status == "lost":
        ledger.post("dispute_lost", payment, amount=snapshot.withdrawn, **source)


def _dispute_state(status: str) -> DisputeState:
    if status.startswith("warning_") or status == "prevented":
        return DisputeState.NONE if status in _CLOSED_DISPUTES else DisputeState.INQUIRY
    return {"won": DisputeState.WON, "lost": DisputeState.LOST}.get(status, DisputeState.OPEN)


def _review(payment: Payment, reason: str) -> None:
    """Hold a payment up until somebody has looked at it."""
    if not payment.needs_review:
        payment.needs_review, payment.review_reason = True, reason
        payment.version += 1
        logger.error("payment_needs_review", extra={"payment_id": str(payment.id), "reason": reason})
