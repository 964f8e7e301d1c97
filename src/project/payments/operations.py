"""Captures and cancellations: noted on the payment before the provider is asked, so that one at a time is under way.

`pending_operation` says what was asked while its outcome is unknown; reconciliation asks again.
"""

from typing import Any
from uuid import UUID

from sqlalchemy import Update, func, update

from project import audit
from project.database import db, give_back, transaction
from project.errors import Invalid, field_code
from project.idempotency_keys import attach
from project.payments.failures import InvalidState, refusal
from project.payments.gateway import current_gateway
from project.payments.gateway_types import (
    GatewayError,
    InOtherState,
    OutcomeUnknown,
    PaymentSnapshot,
    TooManyRequests,
)
from project.payments.models import Operation, Payment, PaymentStatus
from project.payments.service import ask_to_create, get_payment, reader_of
from project.payments.snapshots import apply_payment
from project.payments.timeline import note
from project.security import Principal, Role

AMOUNT_EXCEEDS_CAPTURABLE = field_code(
    "amount_exceeds_capturable", "This is more than was authorised.", "Capture at most `amount_capturable`."
)
CANCELABLE_BY_OWNER = (
    PaymentStatus.CREATED,
    PaymentStatus.REQUIRES_PAYMENT_METHOD,
    PaymentStatus.REQUIRES_ACTION,
    PaymentStatus.PROCESSING,
)
CANCELABLE = (*CANCELABLE_BY_OWNER, PaymentStatus.REQUIRES_CAPTURE)
# Where an operation leads; some methods of payment are captured slowly.
_REACHED = {
    Operation.CAPTURE: (PaymentStatus.SUCCEEDED, PaymentStatus.PROCESSING),
    Operation.CANCEL: (PaymentStatus.CANCELED,),
}


def capture_payment(payment_id: UUID, *, staff_id: UUID, amount: int | None = None) -> Payment:
    """Take what was authorised, or a part of it; the rest is released. Its `pending_operation` is set while unknown.

    Raises:
        NotFound, InvalidState, PaymentDeclined. Invalid: amount_exceeds_capturable.
    """
    asked = func.coalesce(amount, Payment.amount_capturable)
    may = (Payment.status == PaymentStatus.REQUIRES_CAPTURE, Payment.pending_operation.is_(None))
    reserve = update(Payment).where(Payment.id == payment_id, *may, asked.between(1, Payment.amount_capturable))
    values = {"pending_operation": Operation.CAPTURE, "pending_amount": asked, "version": Payment.version + 1}
    with transaction():
        payment = _changed(reserve, values)
        if payment is None:
            raise _not_capturable(payment_id)
        note(payment_id, f"staff:{staff_id}", "capture", amount=payment.pending_amount)
        audit.record("payment_captured", actor_id=staff_id, target_type="payment", target_id=payment_id)
        attach(payment_id)
    return finish_operation(payment, actor=f"staff:{staff_id}")


def cancel_payment(payment_id: UUID, *, caller: Principal, reason: str | None = None) -> Payment:
    """Cancel a payment that was not made; what was authorised is released. Only staff cancel an authorised one.

    Raises:
        NotFound, InvalidState.
    """
    is_staff = caller.role.covers(Role.STAFF)
    states = CANCELABLE if is_staff else CANCELABLE_BY_OWNER
    whose = [] if is_staff else [Payment.user_id == caller.id]
    may = (Payment.status.in_(states), Payment.pending_operation.is_(None), *whose)
    values = {"pending_operation": Operation.CANCEL, "version": Payment.version + 1}
    actor = f"staff:{caller.id}" if is_staff else "user"
    with transaction():
        payment = _changed(update(Payment).where(Payment.id == payment_id, *may), values)
        if payment is None:
            get_payment(payment_id, reader_id=reader_of(caller))
            raise InvalidState()
        note(payment_id, actor, "cancel", reason=reason)
        if is_staff:
            audit.record("payment_canceled", actor_id=caller.id, target_type="payment", target_id=payment_id)
        attach(payment_id)
    return finish_operation(payment, actor=actor)


def resume_capture(payment_id: UUID) -> Payment:
    """Go on with a capture whose request died or had no answer.

    Raises:
        PaymentDeclined, InvalidState: it cannot be done any more.
    """
    return _resume(payment_id, Operation.CAPTURE)


def resume_cancel(payment_id: UUID) -> Payment:
    """Go on with a cancellation whose request died or had no answer.

    Raises:
        InvalidState: it cannot be done any more.
    """
    return _resume(payment_id, Operation.CANCEL)


def _resume(payment_id: UUID, operation: Operation) -> Payment:
    payment = get_payment(payment_id, reader_id=None)
    if payment.pending_operation is operation:
        return finish_operation(payment, actor="system")
    if payment.status not in _REACHED[operation]:
        raise InvalidState()
    return payment


def finish_operation(payment: Payment, *, actor: str) -> Payment:
    """Ask the provider for what `pending_operation` says, and apply its answer; asked again it does it once.

    Raises:
        PaymentDeclined, InvalidState, ProviderRejected, PaymentsMisconfigured: it is given up. Invalid: it is more
            than can be captured.
    """
    operation = payment.pending_operation
    if operation is None:
        return payment
    try:
        if payment.provider_ref is None:
            payment = ask_to_create(payment, actor=actor)
        snapshot = _ask(payment, operation)
    except (OutcomeUnknown, TooManyRequests):
        return payment
    except GatewayError as error:
        _give_up_operation(payment, operation)
        raise refusal(error, too_much=AMOUNT_EXCEEDS_CAPTURABLE) from error
    done = apply_payment(payment.id, snapshot, actor=actor)
    if done.status not in _REACHED[operation]:
        _give_up_operation(done, operation)
        raise InvalidState()
    return done


def _ask(payment: Payment, operation: Operation) -> PaymentSnapshot:
    """Ask for a capture or a cancellation; return the payment as it is then, whether it was done or not."""
    if payment.provider_ref is None:
        raise InOtherState("failed")
    # With the version: the provider tells its refusal again to whoever asks with the same key, but each time that
    # somebody asks for an operation is another version.
    key = f"{payment.id}:{operation}:{payment.version}"
    gateway = current_gateway()
    give_back()
    try:
        if operation is Operation.CAPTURE:
            return gateway.capture(payment.provider_ref, amount=payment.pending_amount, key=key)
        return gateway.cancel(payment.provider_ref, key=key)
    except InOtherState:
        # Perhaps because it was done: by the provider's staff, or by us, long ago.
        return gateway.retrieve_payment(payment.provider_ref)


def _changed(statement: Update, values: dict[str, Any]) -> Payment | None:
    found: Payment | None = db.session.scalar(
        statement.values(values).returning(Payment), execution_options={"populate_existing": True}
    )
    return found


def _not_capturable(payment_id: UUID) -> Invalid | InvalidState:
    payment = get_payment(payment_id, reader_id=None)
    if payment.status is not PaymentStatus.REQUIRES_CAPTURE or payment.pending_operation is not None:
        return InvalidState()
    return Invalid.field("/amount", AMOUNT_EXCEEDS_CAPTURABLE)


def _give_up_operation(payment: Payment, operation: Operation) -> None:
    mine = update(Payment).where(Payment.id == payment.id, Payment.pending_operation == operation)
    with transaction():
        if _changed(mine, {"pending_operation": None, "pending_amount": None, "version": Payment.version + 1}):
            note(payment.id, "system", f"{operation}_refused")
