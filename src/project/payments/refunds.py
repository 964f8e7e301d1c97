"""Refunds: reserved by a guarded UPDATE before the provider is asked, so no more is given back than was taken."""

from uuid import UUID

from sqlalchemy import literal, select, update

from project import audit
from project.database import db, give_back, transaction, uuid7
from project.errors import Conflict, Invalid, field_code
from project.idempotency_keys import attach
from project.pagination import Page, PageRequest, paginate
from project.payments import timeline
from project.payments.failures import InvalidState, refusal
from project.payments.gateway import current_gateway
from project.payments.gateway_types import GatewayError, OutcomeUnknown, Rejected, TooManyRequests
from project.payments.models import (
    REFUND_SORTS,
    DisputeState,
    Payment,
    PaymentStatus,
    Refund,
    RefundReason,
    RefundStatus,
)
from project.payments.service import get_payment, reader_of
from project.payments.snapshots import apply_refund, release_refund
from project.security import Principal

REFUND_EXCEEDS_AVAILABLE = field_code(
    "refund_exceeds_available", "This is more than can be given back.", "Refund at most `amount_refundable`."
)


class PaymentDisputed(Conflict):
    """409: the customer's bank is deciding about the money; giving it back as well would lose it twice."""

    code = "payment_disputed"
    message = "The payment is disputed; its money cannot be refunded now."
    cure = "Answer the dispute at the provider; refund when it is won."


def create_refund(
    payment_id: UUID,
    *,
    staff_id: UUID,
    amount: int | None = None,
    reason: RefundReason | None = None,
    note: str | None = None,
) -> Refund:
    """Give back a part of what was captured, or all that is left; pending while the provider's answer is unknown.

    Raises:
        NotFound, InvalidState, PaymentDisputed. Invalid: refund_exceeds_available.
    """
    with transaction():
        amount = _all_that_is_left(payment_id) if amount is None else amount
        payment = _reserve(payment_id, amount)
        refund = Refund(
            id=uuid7(),
            payment_id=payment_id,
            amount=amount,
            currency=payment.currency,
            reason=reason,
            note=note,
            requested_by=staff_id,
        )
        db.session.add(refund)
        timeline.note(payment_id, f"staff:{staff_id}", "refund_asked", refund_id=str(refund.id), amount=amount)
        audit.record("payment_refunded", actor_id=staff_id, target_type="payment", target_id=payment_id)
        attach(refund.id)
    return ask_to_refund(refund, payment, actor=f"staff:{staff_id}")


def ask_to_refund(refund: Refund, payment: Payment, *, actor: str) -> Refund:
    """Ask the provider for a refund that is reserved, and apply its answer; asked again it refunds once.

    Without a clear answer the refund stays pending, and reconciliation goes on with it.

    Raises:
        InvalidState, ProviderRejected, PaymentsMisconfigured: it was refused; the reservation is given back. Invalid:
            less is left at the provider than we know.
    """
    give_back()
    try:
        snapshot = current_gateway().create_refund(
            str(payment.provider_ref),
            amount=refund.amount,
            reason=refund.reason,
            refund_id=refund.id,
            key=str(refund.id),
        )
    except (OutcomeUnknown, TooManyRequests):
        return refund
    except GatewayError as error:
        release_refund(refund.id, reason=str(error), actor=actor)
        raise refusal(error, too_much=REFUND_EXCEEDS_AVAILABLE) from error
    return apply_refund(snapshot, actor=actor) or refund


def resume_refund(refund_id: UUID) -> Refund:
    """Go on with a refund whose request died or failed: ask again, if the answer is not known.

    Raises:
        InvalidState, ProviderRejected, Invalid: it was refused, as the first request was told.
    """
    found = select(Refund).where(Refund.id == refund_id)
    refund = db.session.scalars(found, execution_options={"populate_existing": True}).one()
    if refund.provider_ref is not None:
        return refund
    if refund.status is RefundStatus.FAILED:
        raise refusal(Rejected(str(refund.failure_reason)), too_much=REFUND_EXCEEDS_AVAILABLE)
    return ask_to_refund(refund, get_payment(refund.payment_id, reader_id=None), actor="system")


def list_refunds(payment_id: UUID, *, caller: Principal, page: PageRequest) -> Page[Refund]:
    """Return a page of the refunds of one's own payment, or of anybody's for staff.

    Raises:
        NotFound.
    """
    get_payment(payment_id, reader_id=reader_of(caller))
    statement = select(Refund).where(Refund.payment_id == payment_id)
    return paginate(statement, page, sorts=REFUND_SORTS, tiebreaker=Refund.id, owner=(caller.id, payment_id))


_LEFT = Payment.amount_captured - Payment.amount_refunded - Payment.amount_refund_reserved


def _all_that_is_left(payment_id: UUID) -> int:
    """Return what can be given back, and keep it so until the transaction ends."""
    return db.session.scalar(select(_LEFT).where(Payment.id == payment_id).with_for_update()) or 0


def _reserve(payment_id: UUID, amount: int) -> Payment:
    may = (
        Payment.status == PaymentStatus.SUCCEEDED,
        Payment.pending_operation.is_(None),
        Payment.dispute_status != DisputeState.OPEN,
        literal(amount).between(1, _LEFT),
    )
    values = {"amount_refund_reserved": Payment.amount_refund_reserved + amount, "version": Payment.version + 1}
    reserve = update(Payment).where(Payment.id == payment_id, *may).values(values).returning(Payment)
    payment: Payment | None = db.session.scalar(reserve, execution_options={"populate_existing": True})
    if payment is None:
        raise _refused(payment_id)
    return payment


def _refused(payment_id: UUID) -> InvalidState | PaymentDisputed | Invalid:
    payment = get_payment(payment_id, reader_id=None)
    if payment.status is not PaymentStatus.SUCCEEDED or payment.pending_operation is not None:
        return InvalidState()
    if payment.dispute_status is DisputeState.OPEN:
        return PaymentDisputed()
    return Invalid.field("/amount", REFUND_EXCEEDS_AVAILABLE)
