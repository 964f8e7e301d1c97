"""The one writer of a payment's status: it makes our rows what the provider says, in any order and any number of times.

Each function takes a snapshot of an object as the provider has it now. What it changes, it changes in one transaction
together with the books, the receipt number and the mails, guarded by what the row was; so of several that bring the
same news one acts, and old news change nothing.
"""

import logging
from datetime import datetime
from uuid import UUID

from sqlalchemy import or_, select

from project.database import db, insert, transaction, utcnow, uuid7
from project.jobs import defer
from project.payments import disputes, ledger
from project.payments.gateway_types import DisputeSnapshot, OutcomeUnknown, PaymentSnapshot, RefundSnapshot
from project.payments.journal import ReceiptCounter
from project.payments.models import (
    Dispute,
    Operation,
    Payment,
    PaymentStatus,
    Refund,
    RefundOrigin,
    RefundStatus,
)
from project.payments.receipts import send_receipt
from project.payments.timeline import note

logger = logging.getLogger(__name__)

# The end of a payment that was not made; its reference is free again.
DEAD = (PaymentStatus.CANCELED, PaymentStatus.FAILED)
# What waits for its customer.
WAITING = (PaymentStatus.REQUIRES_PAYMENT_METHOD, PaymentStatus.REQUIRES_ACTION)


def apply_payment(payment_id: UUID, snapshot: PaymentSnapshot, *, actor: str) -> Payment:
    """Make a payment what the snapshot says; return it as it is then.

    `actor` is who brought the news, for the timeline: user, staff:<id>, webhook:<id>, reconcile or system.
    """
    with transaction():
        payment = _locked(payment_id)
        before = payment.status
        if payment.provider_ref not in {None, snapshot.ref}:
            _review(payment, "another_at_provider", actor)
        elif (snapshot.amount, snapshot.currency) != (payment.amount, payment.currency):
            _review(payment, "amount_differs", actor)
        elif _is_old(payment, snapshot):
            if snapshot.status is not before:
                logger.warning("stale_snapshot", extra={"payment_id": str(payment_id), "status": snapshot.status})
            payment.synced_at = utcnow()
        else:
            if before.final:
                _review(payment, "succeeded_late", actor)
                _leave_reference(payment, actor)
            _take_over(payment, snapshot)
            if payment.status is PaymentStatus.SUCCEEDED:
                _book_capture(payment)
        if payment.status is not before:
            payment.version += 1
            note(payment_id, actor, "status", before=before, after=payment.status)
    return payment


def _is_old(payment: Payment, snapshot: PaymentSnapshot) -> bool:
    """Tell whether it was so earlier: what is over stays so, and what is authorised waits for no customer again.

    https://docs.stripe.com/payments/paymentintents/lifecycle: a capture that is under way may take time, or fail.
    """
    if payment.status in DEAD:
        return snapshot.status is not PaymentStatus.SUCCEEDED  # which is money that arrives after all
    if payment.status is PaymentStatus.REQUIRES_CAPTURE:
        return snapshot.status in WAITING and payment.pending_operation is not Operation.CAPTURE
    return payment.status.final


def _leave_reference(payment: Payment, actor: str) -> None:
    """Leave the reference to the payment that was made instead of this one: of two that live, only one may have it."""
    same = (Payment.user_id == payment.user_id, Payment.reference == payment.reference, Payment.reference.is_not(None))
    if db.session.scalar(select(Payment.id).where(*same, Payment.status.not_in(DEAD))) is not None:
        note(payment.id, actor, "reference_left", reference=payment.reference)
        payment.reference = None


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
        OutcomeUnknown: more was given back than is left: refunds of ours are under way, or the payment is not known
            to have succeeded. Once that is known, this can be applied.
    """
    with transaction():
        payment = _find_by_ref(snapshot.payment_ref)
        if payment is None:
            return None
        refund = _find_refund(snapshot) or _adopt_refund(payment, snapshot)
        if refund.provider_ref is None and refund.status in _NEVER and snapshot.status not in _NEVER:
            # We had taken it for one that never arrived.
            refund.status = _hold(payment, refund.amount)
        refund.provider_ref = snapshot.ref
        if refund.status is not snapshot.status:
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


# A refund holds its amount while it may still succeed, and has given it once it did.
_HOLDS = {RefundStatus.PENDING, RefundStatus.REQUIRES_ACTION}
_NEVER = {RefundStatus.FAILED, RefundStatus.CANCELED}


def _adopt_refund(payment: Payment, snapshot: RefundSnapshot) -> Refund:
    """Take in a refund that somebody made at the provider: reserved first, as ours are, if it may have succeeded."""
    gone = snapshot.status in _NEVER
    refund = Refund(
        id=uuid7(),
        payment_id=payment.id,
        provider_ref=snapshot.ref,
        amount=snapshot.amount,
        currency=snapshot.currency,
        status=snapshot.status if gone else _hold(payment, snapshot.amount),
        failure_reason=snapshot.failure_reason,
        origin=RefundOrigin.PROVIDER,
    )
    db.session.add(refund)
    db.session.flush()
    return refund


def _hold(payment: Payment, amount: int) -> RefundStatus:
    """Reserve what somebody has given back at the provider."""
    if amount > payment.amount_refundable:
        raise OutcomeUnknown("more than is left")
    payment.amount_refund_reserved += amount
    return RefundStatus.PENDING


def _move_refund(payment: Payment, refund: Refund, snapshot: RefundSnapshot, actor: str) -> None:
    before, after = refund.status, snapshot.status
    if before in _NEVER or (before is RefundStatus.SUCCEEDED and after not in _NEVER):
        logger.warning("stale_snapshot", extra={"payment_id": str(payment.id), "status": after})
        return
    if before in _HOLDS and after not in _HOLDS:
        payment.amount_refund_reserved -= refund.amount
    refund.status, refund.failure_reason = after, snapshot.failure_reason
    if after is RefundStatus.SUCCEEDED:
        payment.amount_refunded += refund.amount
        refund.succeeded_at = utcnow()
        _book_refund("refund", payment, refund)
    elif before is RefundStatus.SUCCEEDED:
        payment.amount_refunded -= refund.amount
        _book_refund("refund_reversal", payment, refund)
        logger.error("refund_reversed", extra={"payment_id": str(payment.id), "amount": refund.amount})
    payment.version += 1
    note(payment.id, actor, "refund", refund_id=str(refund.id), before=before, after=after)


def _book_refund(kind: str, payment: Payment, refund: Refund) -> None:
    ledger.post(kind, payment, source_type="refund", source_id=refund.id, amount=refund.amount)


def release_refund(refund_id: UUID, *, reason: str, actor: str) -> Refund:
    """End a refund that the provider does not know, and give its reservation back; again is no change."""
    with transaction():
        # The payment before the refund, as everywhere: two that lock them in different orders wait for each other.
        owner = select(Refund.payment_id).where(Refund.id == refund_id)
        payment = _locked(db.session.scalars(owner).one())
        found = select(Refund).where(Refund.id == refund_id)
        refund = db.session.scalars(found, execution_options={"populate_existing": True}).one()
        if refund.status is RefundStatus.PENDING and refund.provider_ref is None:
            refund.status, refund.failure_reason = RefundStatus.FAILED, reason[:64]
            payment.amount_refund_reserved -= refund.amount
            payment.version += 1
            note(payment.id, actor, "refund", refund_id=str(refund_id), after=RefundStatus.FAILED)
    return refund


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
        elif disputes.is_older(dispute.status, snapshot.status):
            logger.warning("stale_snapshot", extra={"payment_id": str(payment.id), "status": snapshot.status})
            return dispute
        _mirror(payment, dispute, snapshot, actor)
    return dispute


def _mirror(payment: Payment, dispute: Dispute, snapshot: DisputeSnapshot, actor: str) -> None:
    if dispute.status != snapshot.status:
        note(payment.id, actor, "dispute", dispute_id=str(dispute.id), status=snapshot.status)
        payment.version += 1
    dispute.status, dispute.reason = snapshot.status, snapshot.reason
    dispute.evidence_due_by = snapshot.evidence_due_by
    dispute.funds_withdrawn = snapshot.withdrawn > 0
    if snapshot.status in disputes.CLOSED:
        dispute.closed_at = dispute.closed_at or utcnow()
    db.session.flush()
    statuses = db.session.scalars(select(Dispute.status).where(Dispute.payment_id == payment.id))
    payment.dispute_status = disputes.gravest(statuses)
    _book_dispute(payment, dispute, snapshot)


def _book_dispute(payment: Payment, dispute: Dispute, snapshot: DisputeSnapshot) -> None:
    amounts = {
        "dispute_hold": snapshot.withdrawn,
        "dispute_fee": snapshot.fee,
        "dispute_won": snapshot.reinstated,
        "dispute_lost": snapshot.withdrawn if snapshot.status == "lost" and not snapshot.reinstated else 0,
    }
    for kind, amount in amounts.items():
        if amount:
            ledger.post(kind, payment, source_type="dispute", source_id=dispute.id, amount=amount)


def _review(payment: Payment, reason: str, actor: str) -> None:
    """Hold a payment up until somebody has looked at it."""
    if payment.review_reason != reason:
        payment.needs_review, payment.review_reason = True, reason
        payment.version += 1
        note(payment.id, actor, "review", reason=reason)
        logger.error("payment_needs_review", extra={"payment_id": str(payment.id), "reason": reason})
