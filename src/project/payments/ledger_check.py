"""The nine things that are always true of the books; `flask ledger verify` looks whether they are."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Select, String, and_, case, cast, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute

from project.database import db
from project.payments.journal import LedgerEntry
from project.payments.ledger import TRANSFERS
from project.payments.models import Dispute, Payment, PaymentStatus, Refund, RefundStatus


@dataclass(frozen=True)
class Violation:
    """A row that should not be: which rule it breaks, and what it is about."""

    rule: str
    subject: str


def verify() -> list[Violation]:
    """Return every violation; none is what is wanted. Run it beside a running server: each rule is one statement."""
    return [Violation(rule, str(subject)) for rule, query in _rules() for subject in db.session.scalars(query)]


def _rules() -> Iterator[tuple[str, Select[str]]]:
    yield "an entry moves a positive amount between two accounts of its kind", _odd_entries()
    yield "an event is posted once", _posted_twice()
    yield "captured is what was posted as captured", _differs(Payment.amount_captured, {"capture": 1})
    yield (
        "refunded is what was posted as refunded",
        _differs(Payment.amount_refunded, {"refund": 1, "refund_reversal": -1}),
    )
    yield (
        "refunds never exceed what was captured",
        _text(Payment.id).where(Payment.amount_refunded + Payment.amount_refund_reserved > Payment.amount_captured),
    )
    yield "what is reserved is what pending refunds ask", _reserved_otherwise()
    yield "what disputes hold is what was withdrawn and not decided", _held_otherwise()
    yield "a payment that succeeded has one capture and a receipt", _without_receipt()
    yield (
        "an entry has its payment's currency and mode",
        _text(LedgerEntry.id)
        .join(Payment, Payment.id == LedgerEntry.payment_id)
        .where(or_(LedgerEntry.currency != Payment.currency, LedgerEntry.livemode != Payment.livemode)),
    )


def _text(column: object) -> Select[str]:
    return select(cast(column, String))


def _odd_entries() -> Select[str]:
    """Find entries whose accounts are not those of their kind."""
    expected = or_(
        *(
            and_(
                LedgerEntry.kind == kind,
                LedgerEntry.debit_account.like(debit.format("%")),
                LedgerEntry.credit_account.like(credit.format("%")),
            )
            for kind, (debit, credit) in TRANSFERS.items()
        )
    )
    return _text(LedgerEntry.id).where(or_(~expected, LedgerEntry.amount <= 0))


def _posted_twice() -> Select[str]:
    source = (LedgerEntry.kind, LedgerEntry.source_type, LedgerEntry.source_id)
    return _text(func.min(cast(LedgerEntry.id, String))).group_by(*source).having(func.count() > 1)


def _differs(column: InstrumentedAttribute[int], signs: dict[str, int]) -> Select[str]:
    """Find payments whose column is not the sum of their entries of these kinds."""
    signed = case({kind: sign * LedgerEntry.amount for kind, sign in signs.items()}, value=LedgerEntry.kind, else_=0)
    posted = select(func.coalesce(func.sum(signed), 0)).where(LedgerEntry.payment_id == Payment.id).scalar_subquery()
    return _text(Payment.id).where(column != posted)


def _reserved_otherwise() -> Select[str]:
    pending = Refund.status.in_([RefundStatus.PENDING, RefundStatus.REQUIRES_ACTION])
    asked = (
        select(func.coalesce(func.sum(Refund.amount), 0))
        .where(Refund.payment_id == Payment.id, pending)
        .scalar_subquery()
    )
    return _text(Payment.id).where(Payment.amount_refund_reserved != asked)


def _held_otherwise() -> Select[str]:
    """Find disputes whose entries do not hold their amount while the money is away, and nothing otherwise."""
    signs = {"dispute_hold": 1, "dispute_won": -1, "dispute_lost": -1}
    signed = case({kind: sign * LedgerEntry.amount for kind, sign in signs.items()}, value=LedgerEntry.kind, else_=0)
    of_dispute = and_(LedgerEntry.source_type == "dispute", LedgerEntry.source_id == Dispute.id)
    held = select(func.coalesce(func.sum(signed), 0)).where(of_dispute).scalar_subquery()
    is_open = and_(Dispute.funds_withdrawn, Dispute.closed_at.is_(None))
    return _text(Dispute.id).where(held != case((is_open, Dispute.amount), else_=0))


def _without_receipt() -> Select[str]:
    captures = (
        select(func.count())
        .where(LedgerEntry.payment_id == Payment.id, LedgerEntry.kind == "capture")
        .scalar_subquery()
    )
    succeeded = Payment.status == PaymentStatus.SUCCEEDED
    return _text(Payment.id).where(
        or_(
            and_(succeeded, or_(captures != 1, Payment.receipt_number.is_(None))),
            and_(~succeeded, captures != 0),
        )
    )
