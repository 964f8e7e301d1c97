"""The books: transfers between accounts, posted with what they tell of, and the check that they agree with it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, literal, select, union_all

from project.config import settings
from project.database import db, give_back, insert, utcnow, uuid7
from project.pagination import Page, PageRequest, paginate
from project.payments.journal import ENTRY_SORTS, LedgerEntry
from project.payments.models import Payment

INCOME = "income:payments"
REFUNDS = "contra:refunds"
DISPUTES_HELD = "assets:disputes_held"
DISPUTE_FEES = "expenses:dispute_fees"
DISPUTE_LOSSES = "expenses:dispute_losses"
# Where the provider holds our money; its name is put in.
PROVIDER = "assets:provider:{}"

EXPORT_BATCH = 1000

# kind: (debit, credit). What the provider holds grows by debits, what we have earned by credits.
TRANSFERS = {
    "capture": (PROVIDER, INCOME),
    "refund": (REFUNDS, PROVIDER),
    "refund_reversal": (PROVIDER, REFUNDS),
    "dispute_hold": (DISPUTES_HELD, PROVIDER),
    "dispute_fee": (DISPUTE_FEES, PROVIDER),
    "dispute_won": (PROVIDER, DISPUTES_HELD),
    "dispute_lost": (DISPUTE_LOSSES, DISPUTES_HELD),
}


@dataclass(frozen=True)
class Balance:
    """Debits less credits of an account in one currency."""

    account: str
    currency: str
    balance: int


def post(kind: str, payment: Payment, *, source_type: str, source_id: UUID, amount: int) -> bool:
    """Post a transfer in the caller's transaction, once for each kind and source; tell whether it was the first."""
    debit, credit = (account.format(payment.provider) for account in TRANSFERS[kind])
    entry = {
        "id": uuid7(),
        "kind": kind,
        "debit_account": debit,
        "credit_account": credit,
        "amount": amount,
        "currency": payment.currency,
        "livemode": payment.livemode,
        "payment_id": payment.id,
        "source_type": source_type,
        "source_id": source_id,
        "created_at": utcnow(),
    }
    once = insert(LedgerEntry).values(entry).on_conflict_do_nothing().returning(LedgerEntry.id)
    return db.session.scalar(once) is not None


def list_entries(
    *, caller_id: UUID, page: PageRequest, account: str | None = None, **filters: Any
) -> Page[LedgerEntry]:
    """Return a page of entries; see `_entries` for the filters."""
    return paginate(
        _entries(account=account, **filters), page, sorts=ENTRY_SORTS, tiebreaker=LedgerEntry.id, owner=caller_id
    )


def all_entries(**filters: Any) -> Iterator[Page[LedgerEntry]]:
    """Walk over the entries in the order of their times, in batches, of which the first may be empty.

    Between two of them no connection is held: whoever takes the entries may be slow. What is posted meanwhile may
    come along or not.
    """
    page = PageRequest(limit=EXPORT_BATCH, sort="created_at")
    while True:
        entries = paginate(_entries(**filters), page, sorts=ENTRY_SORTS, tiebreaker=LedgerEntry.id)
        give_back()
        yield entries
        if entries.next_cursor is None:
            return
        page = replace(page, cursor=entries.next_cursor)


def balances(**filters: Any) -> list[Balance]:
    """Return what each account holds of each currency, counting the entries that the filters let through."""
    entries = _entries(**filters).subquery()
    sides = union_all(
        select(entries.c.debit_account.label("account"), entries.c.currency, entries.c.amount),
        select(entries.c.credit_account.label("account"), entries.c.currency, -entries.c.amount),
    ).subquery()
    total = func.sum(sides.c.amount)
    statement = select(sides.c.account, sides.c.currency, total).group_by(sides.c.account, sides.c.currency)
    account = filters.get("account")
    if account is not None:
        statement = statement.where(sides.c.account == account)
    rows = db.session.execute(statement.order_by(sides.c.account, sides.c.currency))
    return [Balance(account, currency, int(balance)) for account, currency, balance in rows]


def _entries(
    *,
    account: str | None = None,
    payment_id: UUID | None = None,
    after: datetime | None = None,
    before: datetime | None = None,
) -> Select[LedgerEntry]:
    """Select entries of an account or a payment, from `after` on and before `before`.

    Money of tests and real money are never shown together: the mode that is set decides.
    """
    statement = select(LedgerEntry).where(LedgerEntry.livemode == settings.payments.livemode)
    if account is not None:
        statement = statement.where(literal(account).in_([LedgerEntry.debit_account, LedgerEntry.credit_account]))
    if payment_id is not None:
        statement = statement.where(LedgerEntry.payment_id == payment_id)
    if after is not None:
        statement = statement.where(LedgerEntry.created_at >= after)
    if before is not None:
        statement = statement.where(LedgerEntry.created_at < before)
    return statement
