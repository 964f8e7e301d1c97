"""Receipts: what a customer gets to see of a payment that was made, on paper and by mail."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from iso4217 import Currency
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from sqlalchemy import select

from project.config import settings
from project.database import db
from project.errors import Conflict
from project.jobs import task
from project.mail import send
from project.payments.models import Payment, PaymentStatus, Refund, RefundStatus
from project.users import service as users

_templates = Environment(
    loader=PackageLoader("project", "templates/receipts"),
    autoescape=select_autoescape(),
    undefined=StrictUndefined,
)


class NotPaid(Conflict):
    """409: there is no receipt for what was not paid."""

    code = "not_paid"
    message = "This payment has not been made."
    cure = "Ask again when its status is succeeded."


@dataclass(frozen=True)
class Receipt:
    """A payment that was made, as its receipt shows it. Not an invoice: nothing is said of taxes."""

    number: str
    payment_id: UUID
    description: str | None
    quantity: int
    amount: int
    amount_refunded: int
    currency: str
    method: str | None
    livemode: bool
    paid_at: datetime
    refunds: list[Refund]

    @property
    def total(self) -> int:
        """What was paid and kept."""
        return self.amount - self.amount_refunded
