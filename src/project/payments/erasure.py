"""What is left of payments when the account of their customer is erased: what the books need, and nobody's name."""

from contextlib import suppress
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, CompoundSelect, Select, select, union_all, update

from project.database import db, transaction
from project.jobs import defer, task
from project.payments.failures import InvalidState
from project.payments.journal import TimelineEntry, WebhookEvent
from project.payments.models import Dispute, Operation, Payment, Refund
from project.payments.operations import CANCELABLE, finish_operation
from project.payments.service import get_payment
from project.payments.timeline import note
from project.users.service import on_erase


@on_erase
def forget_payments(user_id: UUID) -> None:
    """Take the person out of an account's payments, in the erasing transaction, and have the open ones canceled.

    What goes: the account, what the client has written (`reference`, `metadata`), what people have written (reasons
    of cancellations, notes of refunds), and what webhook events said. `reference` goes although it often is the
    number of an order: it may as well be an address, and the books find a payment by its receipt number, its id and
    the provider's. What stays is no name: amounts, times, what the price was called, and of a card its brand and last
    four digits, by which banks ask. An event that comes later is kept as long as any other.

    A capture that staff have asked for is not stopped.
    """
    mine = select(Payment.id).where(Payment.user_id == user_id)
    # First, as who counts declined attempts has the event before the payment; later nobody waits for the other.
    db.session.execute(update(WebhookEvent).where(_is_about(mine)).values(payload=None))
    # Whoever writes about a payment locks it: what they have begun is there when this goes on.
    db.session.execute(mine.with_for_update()).all()
    _ask_to_cancel(Payment.user_id == user_id)
    for payment_id in db.session.scalars(mine.where(Payment.status.in_(CANCELABLE))).all():
        defer(cancel_orphan, payment_id=payment_id)
    db.session.execute(update(Refund).where(Refund.payment_id.in_(mine)).values(note=None))
    told = (TimelineEntry.type == "cancel", TimelineEntry.actor != "system")
    db.session.execute(update(TimelineEntry).where(TimelineEntry.payment_id.in_(mine), *told).values(data={}))
    anonymous: dict[str, Any] = {"user_id": None, "reference": None, "labels": {}, "version": Payment.version + 1}
    db.session.execute(update(Payment).where(Payment.user_id == user_id).values(anonymous))


@task
def cancel_orphan(*, payment_id: str) -> None:
    """Cancel a payment whose customer is gone, an authorised one too; what was paid by then stays paid.

    While the provider's answer is unknown its `pending_operation` is set, and reconciliation goes on with it.

    Raises:
        AppError: it was refused; the job comes again.
    """
    with transaction():
        _ask_to_cancel(Payment.id == UUID(payment_id))
    with suppress(InvalidState):
        finish_operation(get_payment(UUID(payment_id), reader_id=None), actor="system")


def _ask_to_cancel(which: ColumnElement[bool]) -> None:
    """Note on payments that they are to be canceled, unless they are final or something is under way."""
    may = (Payment.status.in_(CANCELABLE), Payment.pending_operation.is_(None))
    values = {"pending_operation": Operation.CANCEL, "version": Payment.version + 1}
    asked = update(Payment).where(which, *may).values(values).returning(Payment.id)
    for payment_id in db.session.scalars(asked).all():
        note(payment_id, "system", "cancel", reason="account_erased")


def _is_about(payments: Select[UUID]) -> ColumnElement[bool]:
    """Tell which events are about payments, their refunds or their disputes, and still say something."""
    refs: CompoundSelect[Any] = union_all(
        select(Payment.provider_ref).where(Payment.id.in_(payments)),
        select(Refund.provider_ref).where(Refund.payment_id.in_(payments)),
        select(Dispute.provider_ref).where(Dispute.payment_id.in_(payments)),
    )
    return WebhookEvent.object_ref.in_(refs) & WebhookEvent.payload.is_not(None)
