"""What the tests of the sandbox share: paying as a customer, and a listener for its webhooks."""

from typing import Any
from uuid import uuid4

from project.database import utcnow
from project.payments.gateway import current_gateway
from project.payments.gateway_types import Event, Intent, PaymentSnapshot, RefundSnapshot
from project.payments.models import CaptureMethod
from project.payments.sandbox import browser
from project.payments.sandbox.delivery import signing_secret


def make_payment(*, amount: int = 1000, currency: str = "USD", manual: bool = False) -> PaymentSnapshot:
    """Make a payment at the sandbox."""
    capture_method = CaptureMethod.MANUAL if manual else CaptureMethod.AUTOMATIC
    intent = Intent(uuid4(), amount, currency, capture_method, "Lessons")
    return current_gateway().create_payment(intent, key=f"{intent.payment_id}:create")


def confirm(payment: PaymentSnapshot, method: str = "pm_card_visa", **options: Any) -> browser.Outcome:
    """Pay as the customer."""
    secret = payment.client_secret or ""
    return browser.confirm(payment.ref, client_secret=secret, payment_method=method, **options)


def authenticate(payment: PaymentSnapshot, outcome: Any = "approve") -> browser.Outcome:
    """Approve as the customer, or fail to."""
    return browser.authenticate(payment.ref, client_secret=payment.client_secret or "", outcome=outcome)


def paid(method: str = "pm_card_visa", **options: Any) -> PaymentSnapshot:
    """Make a payment and pay it."""
    payment = make_payment(**options)
    confirm(payment, method)
    return look(payment)


def look(payment: PaymentSnapshot) -> PaymentSnapshot:
    """Return a payment as it is now."""
    return current_gateway().retrieve_payment(payment.ref)


def give_back(payment: PaymentSnapshot, amount: int, *, key: str | None = None) -> RefundSnapshot:
    """Refund a part of a payment."""
    refund_id = uuid4()
    return current_gateway().create_refund(
        payment.ref, amount=amount, reason=None, refund_id=refund_id, key=key or str(refund_id)
    )


class Listener:
    """Takes webhooks as the route will: verified by the gateway. It can be told to answer otherwise."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.payloads: list[bytes] = []
        self.statuses: list[int] = []

    def __call__(self, raw: bytes, header: str) -> int:
        """Take an event, or refuse it with the next of the statuses."""
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 200:
            secrets = [signing_secret()]
            self.events.append(current_gateway().parse_webhook(raw, header, secrets=secrets, now=utcnow()))
            self.payloads.append(raw)
        return status

    @property
    def types(self) -> list[str]:
        """The kinds of the events, in the order of their coming."""
        return [event.type for event in self.events]
