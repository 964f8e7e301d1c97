"""PaymentIntents: made, read, listed, captured and canceled as Stripe's API does it."""

import secrets
from typing import Any

from sqlalchemy import select

from project.currencies import check_amount, check_currency
from project.database import db, utcnow
from project.payments.sandbox.attempts import change, take
from project.payments.sandbox.errors import WireError, missing, unexpected_state
from project.payments.sandbox.events import emit
from project.payments.sandbox.lists import show_page
from project.payments.sandbox.models import FRESH, SandboxIntent, new_id

# https://docs.stripe.com/currencies#minimum-and-maximum-charge-amounts
MINIMUM = {"GBP": 30}
MINIMUM_ELSEWHERE = 50
MAXIMUM = 99_999_999

CANCELABLE = {
    "requires_payment_method",
    "requires_confirmation",
    "requires_action",
    "requires_capture",
    "processing",
}


def create(params: dict[str, Any]) -> dict[str, Any]:
    """Make an intent that waits for a payment method."""
    _check_money(params["amount"], params["currency"])
    ref, now = new_id("pi"), utcnow()
    wire = {
        "id": ref,
        "object": "payment_intent",
        "amount": params["amount"],
        "amount_capturable": 0,
        "amount_received": 0,
        "automatic_payment_methods": params.get("automatic_payment_methods"),
        "canceled_at": None,
        "cancellation_reason": None,
        "capture_method": params.get("capture_method", "automatic_async"),
        "client_secret": f"{ref}_secret_{secrets.token_hex(16)}",
        "confirmation_method": "automatic",
        "created": int(now.timestamp()),
        "currency": params["currency"].lower(),
        "customer": None,
        "description": params.get("description"),
        "last_payment_error": None,
        "latest_charge": None,
        "livemode": False,
        "metadata": params.get("metadata", {}),
        "next_action": None,
        "payment_method": None,
        "payment_method_types": ["card", "us_bank_account"],
        "status": "requires_payment_method",
    }
    intent = SandboxIntent(id=ref, created_at=now, wire=wire)
    db.session.add(intent)
    emit("payment_intent.created", wire)
    return _shown(intent, params)


def _check_money(amount: int, currency: str) -> None:
    try:
        code = check_currency(currency)
    except ValueError as error:
        raise WireError(f"Invalid currency: {currency}", param="currency") from error
    least = MINIMUM.get(code, MINIMUM_ELSEWHERE)
    if amount < least:
        raise WireError(f"Amount must be at least {least}", code="amount_too_small", param="amount")
    if amount > MAXIMUM:
        raise WireError(f"Amount must be no more than {MAXIMUM}", code="amount_too_large", param="amount")
    try:
        check_amount(amount, code)
    except ValueError as error:
        raise WireError(str(error), param="amount") from error


def retrieve(ref: str, params: dict[str, Any]) -> dict[str, Any]:
    """Show an intent."""
    intent = db.session.scalar(select(SandboxIntent).where(SandboxIntent.id == ref), execution_options=FRESH)
    if intent is None:
        raise missing("payment_intent", ref, param="id")
    return _shown(intent, params)


def lock(ref: str, *, param: str = "id") -> SandboxIntent:
    """Return an intent that nobody else changes until the transaction ends; on SQLite nobody else writes anyway.

    Raises:
        WireError: there is none; `param` named it.
    """
    intent = db.session.scalar(
        select(SandboxIntent).where(SandboxIntent.id == ref).with_for_update(), execution_options=FRESH
    )
    if intent is None:
        raise missing("payment_intent", ref, param=param)
    return intent


def list_all(params: dict[str, Any]) -> dict[str, Any]:
    """Show a page of the intents, the newest first."""
    expand = {"expand": [name.removeprefix("data.") for name in params.get("expand", [])]}
    return show_page(
        SandboxIntent,
        select(SandboxIntent),
        params,
        url="/v1/payment_intents",
        show=lambda intent: _shown(intent, expand),
    )


def capture(ref: str, params: dict[str, Any]) -> dict[str, Any]:
    """Take what was authorised, or a part of it."""
    intent = lock(ref)
    if intent.wire["status"] != "requires_capture":
        raise unexpected_state("captured", intent.wire["status"], {"requires_capture"})
    available = intent.wire["amount_capturable"]
    amount = params.get("amount_to_capture", available)
    if amount < 1:
        raise WireError("This value must be greater than or equal to 1.", param="amount_to_capture")
    if amount > available:
        message = f"The amount to capture must not be more than {available}."
        raise WireError(message, code="amount_too_large", param="amount_to_capture")
    take(intent, amount)
    return _shown(intent, params)


def cancel(ref: str, params: dict[str, Any]) -> dict[str, Any]:
    """Give an intent up; what was authorised is released."""
    intent = lock(ref)
    if intent.wire["status"] not in CANCELABLE:
        raise unexpected_state("canceled", intent.wire["status"], CANCELABLE)
    change(
        intent,
        status="canceled",
        amount_capturable=0,
        canceled_at=int(utcnow().timestamp()),
        cancellation_reason=params.get("cancellation_reason"),
        next_action=None,
    )
    intent.due_at = None
    emit("payment_intent.canceled", intent.wire)
    return _shown(intent, params)


def _shown(intent: SandboxIntent, params: dict[str, Any]) -> dict[str, Any]:
    if "latest_charge" in params.get("expand", []):
        return intent.wire | {"latest_charge": intent.charge}
    return intent.wire
