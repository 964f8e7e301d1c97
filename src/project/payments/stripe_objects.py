"""Reads the objects of Stripe's API, as plain dictionaries, into our own words."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from project.payments.gateway_types import (
    DisputeSnapshot,
    Event,
    Failure,
    Method,
    NoSuchObject,
    PaymentSnapshot,
    RefundSnapshot,
)
from project.payments.models import PaymentStatus, RefundStatus

# With these the provider's message helps the customer; what else it says may not be for their eyes.
_SHOWN = {
    "authentication_required",
    "card_velocity_exceeded",
    "expired_card",
    "generic_decline",
    "incorrect_cvc",
    "incorrect_number",
    "incorrect_zip",
    "insufficient_funds",
    "invalid_expiry_month",
    "invalid_expiry_year",
    "payment_intent_authentication_failure",
    "processing_error",
}
_DECLINED = "The payment was declined. Try again, or pay in another way."
_MESSAGE_LENGTH = 255


def payment_snapshot(found: dict[str, Any]) -> PaymentSnapshot:
    """Read a PaymentIntent whose latest charge is expanded."""
    error = found["last_payment_error"]
    return PaymentSnapshot(
        ref=found["id"],
        payment_id=_our_id(found, "payment_id"),
        status=_status(found["status"]),
        amount=found["amount"],
        currency=found["currency"].upper(),
        amount_capturable=found["amount_capturable"],
        amount_received=found["amount_received"],
        amount_refunded=_refunded(found["latest_charge"]),
        livemode=found["livemode"],
        client_secret=found["client_secret"],
        method=_method(found["latest_charge"]),
        failure=failure(error) if error else None,
    )


def refund_snapshot(found: dict[str, Any]) -> RefundSnapshot:
    """Read a Refund."""
    return RefundSnapshot(
        ref=found["id"],
        refund_id=_our_id(found, "refund_id"),
        payment_ref=_payment_ref(found),
        status=RefundStatus(found["status"] or RefundStatus.PENDING),
        amount=found["amount"],
        currency=found["currency"].upper(),
        failure_reason=found.get("failure_reason"),
    )


def dispute_snapshot(found: dict[str, Any]) -> DisputeSnapshot:
    """Read a Dispute.

    What was moved for it is told in the currency of our account there; where that is another, the disputed amount
    stands for it and the fee, which cannot be told in the payment's currency, is left out.
    """
    moved = found["balance_transactions"]
    taken = [-one["amount"] for one in moved if one["amount"] < 0]
    given = [one["amount"] for one in moved if one["amount"] > 0]
    same = all(one["currency"] == found["currency"] for one in moved)
    due_by = found["evidence_details"]["due_by"]
    return DisputeSnapshot(
        ref=found["id"],
        payment_ref=_payment_ref(found),
        status=found["status"],
        reason=found["reason"],
        amount=found["amount"],
        currency=found["currency"].upper(),
        livemode=found["livemode"],
        withdrawn=sum(taken) if same else found["amount"] * bool(taken),
        reinstated=sum(given) if same else found["amount"] * bool(given),
        fee=max(0, sum(one["fee"] for one in moved)) if same else 0,
        evidence_due_by=None if due_by is None else datetime.fromtimestamp(due_by, UTC),
    )


def failure(error: dict[str, Any]) -> Failure:
    """Read why a payment method was not accepted."""
    code, decline_code = error.get("code") or error.get("type") or "unknown", error.get("decline_code")
    message = error.get("message") if (decline_code or code) in _SHOWN else None
    return Failure(code, decline_code, (message or _DECLINED)[:_MESSAGE_LENGTH])


def event(found: dict[str, Any]) -> Event:
    """Read an Event.

    Raises:
        KeyError, TypeError: it is none, or one that carries no object.
    """
    about = found["data"]["object"]
    kind: str = about["object"]
    ref: str = (about.get("payment_intent") if kind == "charge" else None) or about["id"]
    return Event(id=found["id"], type=found["type"], livemode=found["livemode"], object_type=kind, object_ref=ref)


def _status(status: str) -> PaymentStatus:
    # It waits for a confirmation without a method, or with one: the customer's next act is the same.
    return PaymentStatus("requires_payment_method" if status == "requires_confirmation" else status)


def _method(charge: Any) -> Method | None:
    """Read what was paid with; None as long as nobody has tried."""
    details = charge["payment_method_details"] if isinstance(charge, dict) else None
    if not details:
        return None
    shown = details.get(details["type"]) or {}
    return Method(details["type"], shown.get("brand"), shown.get("last4"))


def _refunded(charge: Any) -> int:
    return int(charge.get("amount_refunded") or 0) if isinstance(charge, dict) else 0


def _our_id(found: dict[str, Any], name: str) -> UUID | None:
    try:
        return UUID((found["metadata"] or {})[name])
    except (KeyError, ValueError):
        return None


def _payment_ref(found: dict[str, Any]) -> str:
    """Return the payment that a refund or dispute is of.

    Raises:
        NoSuchObject: it is of a charge that belongs to no payment, and so to none of ours.
    """
    ref: str | None = found["payment_intent"]
    if ref is None:
        raise NoSuchObject("no payment")
    return ref
