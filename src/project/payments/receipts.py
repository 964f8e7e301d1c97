"""Receipts: what a customer gets to see of a payment that was made, on paper and by mail."""

from dataclasses import dataclass
from datetime import datetime
from typing import cast
from uuid import UUID

from sqlalchemy import select

from project import mail
from project.database import db, give_back
from project.errors import Conflict
from project.jobs import task
from project.payments.models import Payment, PaymentStatus, Refund, RefundStatus
from project.payments.money import display
from project.users.service import find_user

# As the companies write themselves; the provider has keywords for them. Any other is shown as a plain word.
_NAMES = {
    "amex": "American Express",
    "diners": "Diners Club",
    "jcb": "JCB",
    "mastercard": "Mastercard",
    "sepa_debit": "SEPA Direct Debit",
    "unionpay": "UnionPay",
    "us_bank_account": "Bank account",
}


class NotPaid(Conflict):
    """409: there is no receipt for what was not paid."""

    code = "not_paid"
    message = "This payment has not been made."
    cure = "Ask again when its status is succeeded."


@dataclass(frozen=True)
class Receipt:
    """A payment that was made, as its receipt shows it. Not an invoice: nothing is said of taxes.

    `amount` is what was taken, which may be less than what was authorised. `refunds` are those that succeeded, the
    earliest first; the sums are made of them, so that what is shown always adds up.
    """

    number: str
    payment_id: UUID
    description: str | None
    quantity: int
    amount: int
    currency: str
    method: dict[str, str | None] | None
    livemode: bool
    paid_at: datetime
    refunds: list[Refund]

    @property
    def amount_refunded(self) -> int:
        """What was given back."""
        return sum(refund.amount for refund in self.refunds)

    @property
    def total(self) -> int:
        """What was paid and kept."""
        return self.amount - self.amount_refunded

    @property
    def paid_with(self) -> str | None:
        """What was paid with, for people: Visa •••• 4242."""
        if self.method is None:
            return None
        name = self.method["brand"] or self.method["type"] or ""
        last4 = self.method["last4"]
        shown = _NAMES.get(name, name.replace("_", " ").capitalize())
        return f"{shown} •••• {last4}" if last4 else shown


def get_receipt(payment: Payment) -> Receipt:
    """Return the receipt of a payment; whose it is was asked when it was read.

    Raises:
        NotPaid.
    """
    if payment.status is not PaymentStatus.SUCCEEDED:
        raise NotPaid()
    given_back = (Refund.payment_id == payment.id, Refund.status == RefundStatus.SUCCEEDED)
    refunds = db.session.scalars(select(Refund).where(*given_back).order_by(Refund.succeeded_at, Refund.id)).all()
    return Receipt(
        number=str(payment.receipt_number),
        payment_id=payment.id,
        description=payment.description,
        quantity=payment.quantity,
        amount=payment.amount_captured,
        currency=payment.currency,
        method=payment.method,
        livemode=payment.livemode,
        paid_at=cast(datetime, payment.succeeded_at),
        refunds=list(refunds),
    )


def show_time(time: datetime) -> str:
    """Return a time as a receipt shows it, such as 7 January 2030, 16:05 UTC."""
    return f"{time.day} {time:%B %Y, %H:%M} UTC"


@task
def send_receipt(*, payment_id: str) -> None:
    """Mail the customer the receipt of a payment, to the address that the account has now; to nobody once it is erased.

    The payment's success defers it, and happens once. Like every job it may run twice, if its process dies between
    the mail and the note that it was sent: then there are two mails with the same number.
    """
    payment = db.session.scalars(select(Payment).where(Payment.id == UUID(payment_id))).one()
    user = find_user(payment.user_id) if payment.user_id is not None else None
    if user is None or user.email is None:
        return
    receipt = get_receipt(payment)
    give_back()
    mail.send(
        "receipt",
        to=user.email,
        number=receipt.number,
        description=receipt.description or "Payment",
        quantity=receipt.quantity,
        amount=display(receipt.amount, receipt.currency),
        paid_at=show_time(receipt.paid_at),
        paid_with=receipt.paid_with,
        livemode=receipt.livemode,
    )
