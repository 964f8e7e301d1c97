"""Refunds: made, read and listed as Stripe's API does it; never more is given back than was captured."""

from typing import Any

from sqlalchemy import select, update

from project.database import db, utcnow
from project.payments.sandbox import disputes, intents
from project.payments.sandbox.attempts import method_of
from project.payments.sandbox.errors import WireError, missing, unexpected_state
from project.payments.sandbox.events import emit
from project.payments.sandbox.lists import show_page
from project.payments.sandbox.methods import DELAY, RefundBehaviour
from project.payments.sandbox.models import FRESH, SandboxIntent, SandboxRefund, new_id


def create(params: dict[str, Any]) -> dict[str, Any]:
    """Give back a part of what was captured, or all that is left."""
    intent = intents.lock(params["payment_intent"], param="payment_intent")
    if intent.wire["status"] != "succeeded":
        raise unexpected_state("refunded", intent.wire["status"], {"succeeded"})
    if disputes.is_open(intent):
        raise WireError("The customer's bank has the money of this charge.", code="charge_disputed")
    amount = params.get("amount", intent.refundable)
    _give(intent, amount)
    behaviour = method_of(intent).refund
    refund = _new_refund(intent, params, amount, pending=behaviour is RefundBehaviour.PEND)
    refund.due_at = None if behaviour is RefundBehaviour.SUCCEED else utcnow() + DELAY
    db.session.add(refund)
    emit("refund.created", refund.wire)
    emit("charge.refunded", intent.charge or {})
    return refund.wire


def _give(intent: SandboxIntent, amount: int) -> None:
    """Take an amount from what can be given back, if it is there."""
    if intent.refundable == 0:
        raise WireError("This charge has been refunded already.", code="charge_already_refunded")
    if amount < 1:
        raise WireError("This value must be greater than or equal to 1.", param="amount")
    enough = update(SandboxIntent).where(SandboxIntent.id == intent.id, SandboxIntent.refundable >= amount)
    given = enough.values(refundable=SandboxIntent.refundable - amount).returning(SandboxIntent.id)
    if db.session.scalar(given) is None:
        message = f"The refund is greater than what is left of the charge, {intent.refundable}."
        raise WireError(message, code="amount_too_large", param="amount")
    db.session.refresh(intent, ["refundable"])
    _show_refunded(intent)


def _show_refunded(intent: SandboxIntent) -> None:
    refunded = intent.wire["amount_received"] - intent.refundable
    intent.charge = (intent.charge or {}) | {"amount_refunded": refunded, "refunded": intent.refundable == 0}


def _new_refund(intent: SandboxIntent, params: dict[str, Any], amount: int, *, pending: bool) -> SandboxRefund:
    ref, now = new_id("re"), utcnow()
    wire = {
        "id": ref,
        "object": "refund",
        "amount": amount,
        "charge": intent.wire["latest_charge"],
        "created": int(now.timestamp()),
        "currency": intent.wire["currency"],
        "metadata": params.get("metadata", {}),
        "payment_intent": intent.id,
        "reason": params.get("reason"),
        "status": "pending" if pending else "succeeded",
    }
    return SandboxRefund(id=ref, created_at=now, intent_id=intent.id, wire=wire)


def retrieve(ref: str, _params: dict[str, Any]) -> dict[str, Any]:
    """Show a refund."""
    found = select(SandboxRefund).where(SandboxRefund.id == ref)
    refund = db.session.scalar(found, execution_options=FRESH)
    if refund is None:
        raise missing("refund", ref, param="id")
    return refund.wire


def list_all(params: dict[str, Any]) -> dict[str, Any]:
    """Show a page of the refunds of an intent, or of all, the newest first."""
    statement = select(SandboxRefund)
    if "payment_intent" in params:
        ref = params["payment_intent"]
        if db.session.scalar(select(SandboxIntent.id).where(SandboxIntent.id == ref)) is None:
            raise missing("payment_intent", ref, param="payment_intent")
        statement = statement.where(SandboxRefund.intent_id == ref)
    return show_page(SandboxRefund, statement, params, url="/v1/refunds", show=lambda refund: refund.wire)


def settle(refund: SandboxRefund) -> None:
    """Let the bank take a refund that was pending, or send back one that had succeeded; the caller holds its lock."""
    refund.due_at = None
    if refund.wire["status"] == "pending":
        refund.wire = refund.wire | {"status": "succeeded"}
        emit("refund.updated", refund.wire)
    else:
        intent = intents.lock(refund.intent_id)
        intent.refundable += refund.wire["amount"]
        _show_refunded(intent)
        refund.wire = refund.wire | {"status": "failed", "failure_reason": "expired_or_canceled_card"}
        emit("refund.failed", refund.wire)
    emit("charge.refund.updated", refund.wire)
