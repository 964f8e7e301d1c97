"""What an attempt to pay does to a PaymentIntent and its charge; the caller holds its lock and the transaction."""

from typing import Any

from project.database import utcnow
from project.payments.sandbox.events import emit
from project.payments.sandbox.methods import DELAY, Behaviour, Decline, TestMethod, find_method
from project.payments.sandbox.models import SandboxIntent, new_id


def change(intent: SandboxIntent, **values: Any) -> None:
    """Change the object as the API shows it. It is replaced, since changes inside of it would not be seen."""
    intent.wire = intent.wire | values


def attempt(intent: SandboxIntent, method: TestMethod, *, action: dict[str, Any]) -> None:
    """Try to pay with a method; `action` is what the customer has to do where it has to be approved."""
    match method.behaviour:
        case Behaviour.SUCCEED:
            accept(intent, method)
        case Behaviour.DECLINE:
            refuse(intent, method, method.decline)
        case Behaviour.AUTHENTICATE:
            change(intent, status="requires_action", payment_method=method.name, next_action=action)
            emit("payment_intent.requires_action", intent.wire)
        case Behaviour.PROCESS:
            _process(intent, method)


def accept(intent: SandboxIntent, method: TestMethod) -> None:
    """Let the bank say yes: the money is taken, or only authorised when it is to be captured."""
    amount = intent.wire["amount"]
    _charge(intent, method, status="succeeded")
    change(intent, payment_method=method.name, next_action=None, last_payment_error=None)
    if intent.wire["capture_method"] == "manual":
        change(intent, status="requires_capture", amount_capturable=amount)
        emit("payment_intent.amount_capturable_updated", intent.wire)
    else:
        take(intent, amount)


def take(intent: SandboxIntent, amount: int) -> None:
    """Take the money, or a part of what was authorised; the rest is released."""
    method = method_of(intent)
    change(intent, status="succeeded", amount_received=amount, amount_capturable=0)
    intent.charge = (intent.charge or {}) | {"amount_captured": amount, "captured": True}
    intent.refundable = amount
    intent.due_at = utcnow() + DELAY if method.dispute else None
    emit("payment_intent.succeeded", intent.wire)


def refuse(intent: SandboxIntent, method: TestMethod, decline: Decline | None) -> None:
    """Let the bank say no; the customer may try again."""
    if decline is None:
        raise ValueError(f"{method.name} has no reason to be declined")
    told = {"code": decline.code, "message": decline.message, "type": "card_error"}
    if decline.decline_code:
        told["decline_code"] = decline.decline_code
    _charge(intent, method, status="failed", failure_code=decline.code, failure_message=decline.message)
    payment_method = {"id": method.name, "object": "payment_method", "type": method.type}
    change(
        intent,
        status="requires_payment_method",
        payment_method=None,
        next_action=None,
        last_payment_error=told | {"charge": intent.wire["latest_charge"], "payment_method": payment_method},
    )
    intent.due_at = None
    emit("payment_intent.payment_failed", intent.wire)


def settle(intent: SandboxIntent) -> None:
    """Let the bank answer that had still to."""
    method = method_of(intent)
    intent.due_at = None
    if method.decline:
        refuse(intent, method, method.decline)
    else:
        accept(intent, method)


def method_of(intent: SandboxIntent) -> TestMethod:
    """Return the method that the intent is paid with."""
    method = find_method(intent.wire["payment_method"])
    if method is None:
        raise ValueError("an unknown payment method was confirmed")
    return method


def _process(intent: SandboxIntent, method: TestMethod) -> None:
    _charge(intent, method, status="pending")
    change(intent, status="processing", payment_method=method.name, next_action=None, last_payment_error=None)
    intent.due_at = None if method.hangs else utcnow() + DELAY
    emit("payment_intent.processing", intent.wire)


def _charge(intent: SandboxIntent, method: TestMethod, *, status: str, **values: str) -> None:
    """Make the charge of this attempt, or let the one that the bank had to decide about become this."""
    waiting = intent.charge if intent.charge and intent.charge["status"] == "pending" else None
    intent.charge = (waiting or _new_charge(intent, method)) | {
        "status": status,
        "paid": status == "succeeded",
        **values,
    }
    change(intent, latest_charge=intent.charge["id"])


def _new_charge(intent: SandboxIntent, method: TestMethod) -> dict[str, Any]:
    return {
        "id": new_id("ch"),
        "object": "charge",
        "amount": intent.wire["amount"],
        "amount_captured": 0,
        "amount_refunded": 0,
        "captured": False,
        "created": int(utcnow().timestamp()),
        "currency": intent.wire["currency"],
        "customer": intent.wire["customer"],
        "disputed": False,
        "failure_code": None,
        "failure_message": None,
        "livemode": False,
        "metadata": intent.wire["metadata"],
        "payment_intent": intent.id,
        "payment_method": method.name,
        "payment_method_details": method.details,
        "refunded": False,
    }
