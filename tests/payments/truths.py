"""What is always true of payments, and what is true once everything is settled; for tests that do much at random."""

from collections import Counter, defaultdict
from typing import Any

from sqlalchemy import select

from project.database import db
from project.payments import ledger_check
from project.payments.journal import LedgerEntry, TimelineEntry
from project.payments.models import Dispute, Payment, PaymentStatus, Refund, RefundStatus
from project.payments.sandbox.models import SandboxDispute, SandboxIntent, SandboxRefund

OPEN = {
    "requires_payment_method",
    "requires_action",
    "processing",
    "requires_capture",
    "succeeded",
    "canceled",
}
# From what a payment may become what: of an attempt whose events were lost, only the end is seen.
ALLOWED = {
    "created": OPEN | {"failed"},
    "requires_payment_method": OPEN,
    "requires_action": OPEN,
    "processing": OPEN,
    # What is authorised is taken or released, and nothing else.
    "requires_capture": {"succeeded", "canceled"},
    "succeeded": set(),
    # Money that arrives after all; such a payment is held for review.
    "canceled": {"succeeded"},
    "failed": {"succeeded"},
}


def check_always() -> None:
    """Check what holds after every commit, whatever is under way."""
    assert ledger_check.verify() == []
    payments = db.session.scalars(select(Payment).order_by(Payment.id)).all()
    moved, captured = _moved(), Counter[Any]()
    for payment in payments:
        _check_amounts(payment)
        captured[payment.currency] += payment.amount_captured
    _check_entries(moved)
    _check_transitions({payment.id: payment for payment in payments})
    _check_references(payments)
    numbers = sorted(payment.receipt_number for payment in payments if payment.receipt_number)
    assert [int(number.rpartition("-")[2]) for number in numbers] == list(range(1, len(numbers) + 1))


def _check_amounts(payment: Payment) -> None:
    given = payment.amount_refunded + payment.amount_refund_reserved
    assert 0 <= payment.amount_refunded <= given <= payment.amount_captured <= payment.amount
    assert 0 <= payment.amount_capturable <= payment.amount
    assert (payment.status is PaymentStatus.REQUIRES_CAPTURE) == (payment.amount_capturable > 0)
    assert (payment.status is PaymentStatus.SUCCEEDED) == (payment.amount_captured > 0)
    assert (payment.status is PaymentStatus.SUCCEEDED) == (payment.receipt_number is not None)
    assert not (payment.status.final and payment.pending_operation), "an operation waits on a payment that is over"
    assert (payment.pending_amount is not None) == (payment.pending_operation == "capture")


def _moved() -> dict[str, Counter[str]]:
    """Return debits less credits of each account, by currency."""
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in db.session.scalars(select(LedgerEntry)).all():
        sums[entry.currency][entry.debit_account] += entry.amount
        sums[entry.currency][entry.credit_account] -= entry.amount
    return sums


def _check_entries(moved: dict[str, Counter[str]]) -> None:
    for currency, accounts in moved.items():
        assert sum(accounts.values()) == 0, currency


def _check_transitions(payments: dict[Any, Payment]) -> None:
    """Check that each status follows from the one before, and that the last is that of the row."""
    at: dict[Any, str] = defaultdict(lambda: "created")
    capturing = set()
    entries = select(TimelineEntry).where(TimelineEntry.type.in_(["status", "capture"]))
    for entry in db.session.scalars(entries.order_by(TimelineEntry.at, TimelineEntry.id)).all():
        if entry.type == "capture":
            capturing.add(entry.payment_id)
            continue
        before, after = entry.data["before"], entry.data["after"]
        assert before == at[entry.payment_id]
        # A capture that is under way may take time, or fail.
        allowed = OPEN if before == "requires_capture" and entry.payment_id in capturing else ALLOWED[before]
        assert after in allowed, f"{before} became {after} by {entry.actor}"
        if before in {"canceled", "failed"}:
            assert payments[entry.payment_id].needs_review
        at[entry.payment_id] = after
    for payment in payments.values():
        assert payment.status == at[payment.id]


def _check_references(payments: Any) -> None:
    alive = Counter(
        (payment.user_id, payment.reference)
        for payment in payments
        if payment.reference and payment.user_id and payment.status not in {"canceled", "failed"}
    )
    assert all(count == 1 for count in alive.values())


def check_against_provider() -> None:
    """Check that nothing waits, and that the provider has exactly what we have."""
    intents: dict[str, list[SandboxIntent]] = defaultdict(list)
    for intent in db.session.scalars(select(SandboxIntent)).all():
        intents[intent.wire["metadata"]["payment_id"]].append(intent)
    for payment in db.session.scalars(select(Payment)).all():
        found = intents.pop(str(payment.id), [])
        assert payment.pending_operation is None
        assert payment.status is not PaymentStatus.CREATED
        if payment.status is PaymentStatus.FAILED:
            assert not found
            continue
        (intent,) = found
        _check_payment(payment, intent)
    assert intents == {}


def _check_payment(payment: Payment, intent: SandboxIntent) -> None:
    wire = intent.wire
    assert payment.provider_ref == intent.id
    assert payment.status == wire["status"]
    assert (payment.amount, payment.currency) == (wire["amount"], wire["currency"].upper())
    assert (payment.amount_captured, payment.amount_capturable) == (wire["amount_received"], wire["amount_capturable"])
    assert payment.amount_refundable == intent.refundable
    _check_refunds(payment)
    _check_disputes(payment)


def _check_refunds(payment: Payment) -> None:
    theirs = db.session.scalars(select(SandboxRefund).where(SandboxRefund.intent_id == payment.provider_ref)).all()
    ours = db.session.scalars(select(Refund).where(Refund.payment_id == payment.id)).all()
    assert not [refund for refund in ours if refund.status is RefundStatus.PENDING]
    known = {refund.provider_ref: (refund.status.value, refund.amount) for refund in ours if refund.provider_ref}
    assert known == {refund.id: (refund.wire["status"], refund.wire["amount"]) for refund in theirs}


def _check_disputes(payment: Payment) -> None:
    theirs = db.session.scalars(select(SandboxDispute).where(SandboxDispute.intent_id == payment.provider_ref)).all()
    ours = db.session.scalars(select(Dispute).where(Dispute.payment_id == payment.id)).all()
    assert {one.provider_ref: one.status for one in ours} == {one.id: one.wire["status"] for one in theirs}
