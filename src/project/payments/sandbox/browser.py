"""What a customer's browser does at the provider: it confirms a payment, and approves it where that is asked."""

import hmac
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from sqlalchemy import Select, select

from project.config import settings
from project.database import db, transaction
from project.errors import Invalid, Unauthorized, field_code
from project.payments.gateway_types import Declined, InOtherState, PaymentSnapshot
from project.payments.models import PaymentStatus
from project.payments.sandbox.attempts import accept, attempt, method_of, refuse
from project.payments.sandbox.methods import AUTHENTICATION_FAILED, Behaviour, TestMethod, find_method
from project.payments.sandbox.models import FRESH, SandboxIntent
from project.payments.stripe_objects import failure, payment_snapshot

INVALID_METHOD = field_code(
    "invalid_payment_method",
    "There is no such payment method, or this payment cannot be made with it.",
    "Choose one of GET /v1/sandbox/payment-methods.",
)
CONFIRMABLE = {"requires_payment_method", "requires_confirmation", "requires_action"}
PAID = {"processing", "requires_capture", "succeeded"}  # as far as the customer has to do with it


class WrongClientSecret(Unauthorized):
    """401: the client secret is not that of this payment, or there is no such payment."""

    code = "invalid_client_secret"
    message = "The client secret is not valid for this payment."
    cure = "Send the whole `client_secret` of the payment; GET /v1/payments/{id}/client-secret shows it."


@dataclass(frozen=True)
class Outcome:
    """How far a payment is for the browser: what it has to do next, or where the customer is to be sent."""

    status: str
    next_action: dict[str, Any] | None = None
    return_to: str | None = None


@dataclass(frozen=True)
class Approval:
    """What the page for approval shows; `return_to` is where the customer goes on once it is decided."""

    payment: PaymentSnapshot
    description: str | None
    return_to: str | None

    @property
    def is_asked(self) -> bool:
        """Whether the customer has still to decide."""
        return self.payment.status is PaymentStatus.REQUIRES_ACTION


def get_approval(ref: str, *, client_secret: str) -> Approval:
    """Return what a customer is asked to approve, or what came of it.

    Raises:
        WrongClientSecret.
    """
    intent = _find(select(SandboxIntent).where(SandboxIntent.id == ref), client_secret)
    payment = payment_snapshot(intent.wire | {"latest_charge": intent.charge})
    return Approval(payment, intent.wire["description"], _return_to(intent))


def confirm(ref: str, *, client_secret: str, payment_method: str, return_url: str | None = None) -> Outcome:
    """Pay with one of the test methods; `return_url` is where the customer is sent after approving.

    Raises:
        WrongClientSecret, Invalid: invalid_payment_method.
        Declined: the bank said no; the payment can be confirmed again.
        InOtherState: nothing is to be confirmed.
    """
    action = {
        "type": "redirect_to_url",
        "redirect_to_url": {"url": _page(ref, client_secret), "return_url": return_url},
    }
    with transaction():
        intent = _lock(ref, client_secret)
        if intent.wire["status"] not in CONFIRMABLE:
            raise InOtherState("payment_intent_unexpected_state")
        method = find_method(payment_method)
        if method is None or not _fits(intent, method):
            raise Invalid.field("/payment_method", INVALID_METHOD)
        intent.return_url = return_url
        attempt(intent, method, action=action)
    if method.behaviour is Behaviour.DECLINE:
        raise Declined(failure(intent.wire["last_payment_error"]))
    return Outcome(intent.wire["status"], intent.wire["next_action"])


def authenticate(ref: str, *, client_secret: str, outcome: Literal["approve", "fail"]) -> Outcome:
    """Approve a payment as the customer, or fail to; failing is no error, the payment can be confirmed again.

    Raises:
        WrongClientSecret.
        InOtherState: nothing is to be approved.
    """
    with transaction():
        intent = _lock(ref, client_secret)
        if intent.wire["status"] != "requires_action":
            raise InOtherState("payment_intent_unexpected_state")
        if outcome == "approve":
            accept(intent, method_of(intent))
        else:
            refuse(intent, method_of(intent), AUTHENTICATION_FAILED)
    return Outcome(intent.wire["status"], return_to=_return_to(intent))


def _lock(ref: str, client_secret: str) -> SandboxIntent:
    return _find(select(SandboxIntent).where(SandboxIntent.id == ref).with_for_update(), client_secret)


def _find(statement: Select[SandboxIntent], client_secret: str) -> SandboxIntent:
    intent = db.session.scalar(statement, execution_options=FRESH)
    secret: str = intent.wire["client_secret"] if intent else ""
    if intent is None or not hmac.compare_digest(secret.encode(), client_secret.encode()):
        raise WrongClientSecret()
    return intent


def _fits(intent: SandboxIntent, method: TestMethod) -> bool:
    """Tell whether a method can do what is asked: what a bank sends cannot be authorised first."""
    return method.behaviour is not Behaviour.PROCESS or intent.wire["capture_method"] != "manual"


def _page(ref: str, client_secret: str) -> str:
    """Return the address of the page on which the customer approves."""
    query = urlencode({"client_secret": client_secret})
    return f"{settings.public_url}/v1/sandbox/payment-intents/{quote(ref, safe='')}/authenticate?{query}"


def _return_to(intent: SandboxIntent) -> str | None:
    """Return the address to which the customer returns, with what Stripe adds to it; None while it is undecided."""
    status = intent.wire["status"]
    if intent.return_url is None or status == "requires_action":
        return None
    added = {
        "payment_intent": intent.id,
        "payment_intent_client_secret": intent.wire["client_secret"],
        "redirect_status": "succeeded" if status in PAID else "failed",
    }
    parts = urlsplit(intent.return_url)
    query = "&".join(filter(None, (parts.query, urlencode(added))))
    return urlunsplit(parts._replace(query=query))
