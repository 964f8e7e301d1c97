"""What is always true of the books; `flask ledger verify` looks whether it is."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVarTuple
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Select,
    String,
    and_,
    case,
    cast,
    exists,
    func,
    literal,
    or_,
    select,
    union,
)
from sqlalchemy.orm import InstrumentedAttribute

from project.database import db
from project.payments.journal import LedgerEntry
from project.payments.ledger import TRANSFERS
from project.payments.models import Dispute, Payment, PaymentStatus, Refund, RefundStatus

Columns = TypeVarTuple("Columns")

_PENDING = [RefundStatus.PENDING, RefundStatus.REQUIRES_ACTION]


@dataclass(frozen=True)
class Violation:
    """A row that should not be: which rule it breaks, and what it is about."""

    rule: str
    subject: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.subject}"


def verify(*, changed_since: datetime | None = None) -> list[Violation]:
    """Return every violation, or those of payments that were made or booked since a time; none is what is wanted.

    Run it beside a running server: each rule is one statement, and so sees one moment.
    """
    return [
        Violation(rule, str(UUID(subject)))  # SQLite shows it without hyphens
        for rule, query in _rules(changed_since)
        for subject in db.session.scalars(query).all()
    ]


def _rules(changed_since: datetime | None) -> Iterator[tuple[str, Select[str]]]:
    def recent(statement: Select[*Columns], payment_id: InstrumentedAttribute[UUID]) -> Select[*Columns]:
        return statement if changed_since is None else statement.where(payment_id.in_(_touched(changed_since)))

    entries = recent(_text(LedgerEntry.id).join(Payment, Payment.id == LedgerEntry.payment_id), Payment.id)
    refunds = recent(_text(Refund.id).join(Payment, Payment.id == Refund.payment_id), Payment.id)
    disputes = recent(_text(Dispute.id), Dispute.payment_id)
    # Added up once, and not for each payment anew: of many payments that would take too long.
    booked = recent(_booked(), LedgerEntry.payment_id).subquery()
    asked = recent(_asked(), Refund.payment_id).subquery()
    payments = recent(_text(Payment.id), Payment.id)
    payments = payments.outerjoin(booked, booked.c.payment_id == Payment.id)
    payments = payments.outerjoin(asked, asked.c.payment_id == Payment.id)

    yield "an entry moves a positive amount between the accounts of its kind", entries.where(_is_odd())
    yield "what was posted once is not posted again", _posted_twice(entries)
    captured = _differs(Payment.amount_captured, booked.c.captured)
    yield "captured is what was posted as captured", payments.where(captured)
    refunded = _differs(Payment.amount_refunded, booked.c.refunded)
    yield "refunded is what was posted as refunded", payments.where(refunded)
    yield "refunds never exceed what was captured", payments.where(_exceeds())
    reserved = _differs(Payment.amount_refund_reserved, asked.c.amount)
    yield "what is reserved is what pending refunds ask", payments.where(reserved)
    yield "what disputes hold is what was withdrawn and not decided", disputes.where(_held_otherwise())
    yield "what disputes hold is of a dispute", entries.where(_of_no_dispute())
    yield "a payment that succeeded has one capture and a receipt", payments.where(_without_receipt(booked.c.captures))
    yield "an entry has its payment's currency", entries.where(LedgerEntry.currency != Payment.currency)
    yield "a refund has its payment's currency", refunds.where(Refund.currency != Payment.currency)
    yield "live and test money are never mixed", entries.where(LedgerEntry.livemode != Payment.livemode)


def _touched(since: datetime) -> CompoundSelect[UUID]:
    """Select the payments that were made or booked since a time, or wait for a refund: there is an index for each."""
    return union(
        select(Payment.id).where(Payment.created_at >= since),
        select(LedgerEntry.payment_id).where(LedgerEntry.created_at >= since),
        select(Refund.payment_id).where(Refund.status.in_(_PENDING)),
    )


def _text(column: object) -> Select[str]:
    return select(cast(column, String))


def _booked() -> Select[UUID, int, int, int]:
    """Add up what was posted for each payment."""
    return select(
        LedgerEntry.payment_id,
        _sum({"capture": 1}).label("captured"),
        _sum({"refund": 1, "refund_reversal": -1}).label("refunded"),
        func.count(case((LedgerEntry.kind == "capture", 1))).label("captures"),
    ).group_by(LedgerEntry.payment_id)


def _asked() -> Select[UUID, int]:
    """Add up the pending refunds of each payment."""
    pending = Refund.status.in_(_PENDING)
    return select(Refund.payment_id, func.sum(Refund.amount).label("amount")).where(pending).group_by(Refund.payment_id)


def _sum(signs: dict[str, int]) -> ColumnElement[int]:
    """Return the sum of the entries of these kinds, each with its sign."""
    signed = {kind: sign * LedgerEntry.amount for kind, sign in signs.items()}
    return func.coalesce(func.sum(case(signed, value=LedgerEntry.kind, else_=0)), 0)


def _differs(column: InstrumentedAttribute[int], total: ColumnElement[int]) -> ColumnElement[bool]:
    return column != func.coalesce(total, 0)


def _is_odd() -> ColumnElement[bool]:
    """Tell which entries have other accounts than those of their kind."""
    expected = [
        and_(
            LedgerEntry.kind == kind,
            LedgerEntry.debit_account == _account(debit),
            LedgerEntry.credit_account == _account(credit),
        )
        for kind, (debit, credit) in TRANSFERS.items()
    ]
    return or_(~or_(*expected), LedgerEntry.amount <= 0)


def _account(name: str) -> ColumnElement[str]:
    """Return an account, that of the payment's provider where the name leaves it open."""
    before, _, after = name.partition("{}")
    return literal(before) + Payment.provider + after if before != name else literal(name)


def _posted_twice(entries: Select[str]) -> Select[str]:
    source = (LedgerEntry.kind, LedgerEntry.source_type, LedgerEntry.source_id)
    first = entries.with_only_columns(func.min(cast(LedgerEntry.id, String)))
    return first.group_by(*source).having(func.count() > 1)


def _exceeds() -> ColumnElement[bool]:
    return Payment.amount_refunded + Payment.amount_refund_reserved > Payment.amount_captured


def _held_otherwise() -> ColumnElement[bool]:
    """Tell which disputes do not hold their amount while the money is away, or hold something otherwise."""
    signs = {"dispute_hold": 1, "dispute_won": -1, "dispute_lost": -1}
    # By the payment as well: that is what there is an index for.
    of_it = (
        LedgerEntry.payment_id == Dispute.payment_id,
        LedgerEntry.source_type == "dispute",
        LedgerEntry.source_id == Dispute.id,
    )
    held = select(_sum(signs)).where(*of_it).scalar_subquery()
    is_open = and_(Dispute.funds_withdrawn, Dispute.closed_at.is_(None))
    # A dispute is won before the money is back.
    on_its_way = and_(Dispute.funds_withdrawn, Dispute.status == "won", held == Dispute.amount)
    return and_(held != case((is_open, Dispute.amount), else_=0), ~on_its_way)


def _of_no_dispute() -> ColumnElement[bool]:
    known = exists().where(Dispute.id == LedgerEntry.source_id, Dispute.payment_id == LedgerEntry.payment_id)
    return and_(LedgerEntry.source_type == "dispute", ~known)


def _without_receipt(captures: ColumnElement[int]) -> ColumnElement[bool]:
    """Tell which payments have succeeded without their one capture and a receipt, or have them without."""
    captures = func.coalesce(captures, 0)
    succeeded = Payment.status == PaymentStatus.SUCCEEDED
    incomplete = or_(captures != 1, Payment.receipt_number.is_(None))
    return or_(and_(succeeded, incomplete), and_(~succeeded, captures != 0))
