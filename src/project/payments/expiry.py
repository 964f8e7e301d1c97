"""Payments that are given up: nobody has paid them in time, or somebody tries cards on them."""

from typing import Literal
from uuid import UUID

from sqlalchemy import ColumnElement, or_, update

from project.config import settings
from project.database import db, transaction, utcnow
from project.jobs import task
from project.payments.models import Operation, Payment, PaymentStatus
from project.payments.operations import finish_operation
from project.payments.timeline import note

Reason = Literal["expired", "too_many_attempts"]


def waits_for_customer() -> ColumnElement[bool]:
    """Tell which payments wait for their customer alone."""
    waiting = [PaymentStatus.REQUIRES_PAYMENT_METHOD, PaymentStatus.REQUIRES_ACTION]
    return Payment.status.in_(waiting) & Payment.pending_operation.is_(None)


def is_over() -> ColumnElement[bool]:
    """Tell which payments have waited too long, or have been declined too often."""
    return or_(
        Payment.created_at < utcnow() - settings.payments.expire_after,
        Payment.attempts >= settings.payments.max_attempts,
    )


def cancel_if_over(payment_id: UUID, *, reason: Reason) -> Payment | None:
    """Cancel a payment that has waited too long or was declined too often; None if it was not canceled by this.

    While the provider's answer is unknown its `pending_operation` is set, and reconciliation goes on with it.

    Raises:
        InvalidState: it was paid at the last moment.
    """
    over = update(Payment).where(Payment.id == payment_id, waits_for_customer(), is_over())
    asked = over.values(pending_operation=Operation.CANCEL, version=Payment.version + 1).returning(Payment)
    with transaction():
        payment: Payment | None = db.session.scalar(asked, execution_options={"populate_existing": True})
        if payment is None:
            return None
        note(payment_id, "system", "cancel", reason=reason)
    return finish_operation(payment, actor="system")


@task
def cancel_tried(*, payment_id: str) -> None:
    """Cancel a payment on which cards are tried."""
    cancel_if_over(UUID(payment_id), reason="too_many_attempts")
