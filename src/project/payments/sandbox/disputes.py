"""Disputes: a customer's complaint at the bank, which takes the money until it is decided. An inquiry takes nothing."""

from datetime import timedelta
from typing import Any

from sqlalchemy import select

from project.database import db, transaction, utcnow
from project.payments.sandbox.attempts import method_of
from project.payments.sandbox.errors import missing
from project.payments.sandbox.events import emit
from project.payments.sandbox.lists import show_page
from project.payments.sandbox.models import FRESH, SandboxDispute, SandboxIntent, new_id

# Whoever does not answer until then has lost.
ANSWER_WITHIN = timedelta(days=7)
FEE = 1500


def is_open(intent: SandboxIntent) -> bool:
    """Tell whether the bank has the money of this intent, or has given it back to the customer."""
    found = db.session.scalars(select(SandboxDispute).where(SandboxDispute.intent_id == intent.id))
    return any(dispute.wire["status"] in {"needs_response", "under_review", "lost"} for dispute in found)


def open_dispute(intent: SandboxIntent) -> None:
    """Let the customer complain, as the method that was paid with says; the caller holds the intent's lock."""
    method = method_of(intent)
    intent.due_at = None
    if intent.refundable == 0:
        return  # Nothing is left to complain about.
    ref, now = new_id("dp"), utcnow()
    due_at = now + ANSWER_WITHIN
    wire = {
        "id": ref,
        "object": "dispute",
        "amount": intent.refundable,
        "balance_transactions": [],
        "charge": intent.wire["latest_charge"],
        "created": int(now.timestamp()),
        "currency": intent.wire["currency"],
        "evidence_details": {"due_by": int(due_at.timestamp()), "has_evidence": False, "submission_count": 0},
        "is_charge_refundable": method.inquiry,
        "livemode": False,
        "metadata": {},
        "payment_intent": intent.id,
        "reason": method.dispute,
        "status": "warning_needs_response" if method.inquiry else "needs_response",
    }
    if not method.inquiry:
        wire["balance_transactions"] = [_moved(wire, -intent.refundable, fee=FEE)]
    intent.charge = (intent.charge or {}) | {"disputed": True}
    db.session.add(SandboxDispute(id=ref, created_at=now, intent_id=intent.id, wire=wire, due_at=due_at))
    emit("charge.dispute.created", wire)
    if not method.inquiry:
        emit("charge.dispute.funds_withdrawn", wire)


def decide(ref: str, *, won: bool) -> None:
    """Let the bank decide about a dispute: in a transaction of its own.

    Raises:
        WireError: there is no such dispute.
    """
    found = select(SandboxDispute).where(SandboxDispute.id == ref).with_for_update()
    with transaction():
        dispute = db.session.scalar(found, execution_options=FRESH)
        if dispute is None:
            raise missing("dispute", ref, param="id")
        if dispute.due_at is not None:
            _close(dispute, "won" if won else "lost")


def expire(dispute: SandboxDispute) -> None:
    """Close a dispute that nobody has answered; the caller holds its lock."""
    _close(dispute, "lost")


def _close(dispute: SandboxDispute, status: str) -> None:
    wire = dispute.wire
    dispute.due_at = None
    if wire["status"].startswith("warning_"):
        status = "warning_closed"
    if status == "won":
        moved = [*wire["balance_transactions"], _moved(wire, wire["amount"])]
        wire = wire | {"balance_transactions": moved, "is_charge_refundable": True}
    dispute.wire = wire | {"status": status}
    emit("charge.dispute.closed", dispute.wire)
    if status == "won":
        emit("charge.dispute.funds_reinstated", dispute.wire)


def _moved(wire: dict[str, Any], amount: int, *, fee: int = 0) -> dict[str, Any]:
    return {
        "id": new_id("txn"),
        "object": "balance_transaction",
        "amount": amount,
        "currency": wire["currency"],
        "fee": fee,
        "net": amount - fee,
        "reporting_category": "dispute" if amount < 0 else "dispute_reversal",
        "source": wire["id"],
        "type": "adjustment",
    }


def list_all(params: dict[str, Any]) -> dict[str, Any]:
    """Show a page of the disputes, the newest first."""
    return show_page(
        SandboxDispute, select(SandboxDispute), params, url="/v1/disputes", show=lambda dispute: dispute.wire
    )


def retrieve(ref: str, _params: dict[str, Any]) -> dict[str, Any]:
    """Show a dispute."""
    found = select(SandboxDispute).where(SandboxDispute.id == ref)
    dispute = db.session.scalar(found, execution_options=FRESH)
    if dispute is None:
        raise missing("dispute", ref, param="id")
    return dispute.wire
