"""Receipts: what a customer gets to see of a payment that was made, on paper and by mail."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from project.errors import Conflict
from project.jobs import task
from project.payments.models import Refund
from project.security import Principal

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


def get_receipt(payment_id: UUID, *, reader: Principal) -> Receipt:
    """Return the receipt of one's own payment, or of anybody's for staff."""
    raise NotImplementedError


@task
def send_receipt(*, payment_id: str) -> None:
    """Mail the customer the receipt of a payment."""
