"""The books: each transfer is posted once, never changed, and counted on both of its sides."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from project.database import db, insert, transaction, utcnow, uuid7
from project.pagination import PageRequest
from project.payments import ledger
from project.payments.journal import LedgerEntry
from project.payments.models import Payment
from tests.payments import paying

PROVIDER = "assets:provider:sandbox"
REFUND: dict[str, Any] = {"source_type": "refund", "source_id": UUID(int=1)}


@pytest.fixture
def payment(session) -> Payment:
    """A payment of 10.00 USD that was made."""
    return paying.paid()


def post(kind: str, payment: Payment, **values: Any) -> bool:
    """Post a transfer in a transaction of its own."""
    with transaction():
        return ledger.post(kind, payment, **{"amount": 100, **REFUND, **values})


def entry(kind: str) -> LedgerEntry:
    return db.session.scalars(select(LedgerEntry).where(LedgerEntry.kind == kind)).one()


def balances(**filters: Any) -> dict[str, int]:
    return {balance.account: balance.balance for balance in ledger.balances(**filters)}


# --- posting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "debit", "credit"),
    [
        ("refund", "contra:refunds", PROVIDER),
        ("refund_reversal", PROVIDER, "contra:refunds"),
        ("dispute_hold", "assets:disputes_held", PROVIDER),
        ("dispute_fee", "expenses:dispute_fees", PROVIDER),
        ("dispute_won", PROVIDER, "assets:disputes_held"),
        ("dispute_lost", "expenses:dispute_losses", "assets:disputes_held"),
    ],
)
def test_each_kind_has_its_accounts(session, payment, kind, debit, credit):
    post(kind, payment)

    posted = entry(kind)
    assert (posted.debit_account, posted.credit_account) == (debit, credit)
    assert (posted.amount, posted.currency, posted.livemode, posted.payment_id) == (100, "USD", False, payment.id)


def test_a_success_is_posted_as_a_capture(session, payment):
    posted = entry("capture")

    assert (posted.debit_account, posted.credit_account) == (PROVIDER, "income:payments")
    assert (posted.amount, posted.source_type, posted.source_id) == (1000, "payment", payment.id)


def test_what_was_authorised_is_not_posted(session):
    assert paying.booked(paying.paid(manual=True)) == {}


def test_a_transfer_is_posted_once_for_its_source(session, payment):
    assert [post("refund", payment), post("refund", payment), post("refund", payment, amount=7)] == [True, False, False]
    assert post("refund", payment, source_id=UUID(int=2))
    assert post("refund_reversal", payment)

    assert paying.booked(payment) == {"capture": 1000, "refund": 200, "refund_reversal": 100}


def test_of_many_at_once_one_posts(app, in_app):
    payment = in_app(paying.paid)

    with ThreadPoolExecutor(8) as pool:
        first = list(pool.map(lambda _: in_app(post, "refund", payment), range(24)))

    assert sorted(first) == [False] * 23 + [True]
    assert in_app(paying.booked, payment) == {"capture": 1000, "refund": 100}


def test_it_is_undone_with_the_transaction_it_tells_of(session, payment):
    def post_and_fail() -> None:
        with transaction():
            assert ledger.post("refund", payment, amount=100, **REFUND)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        post_and_fail()

    assert paying.booked(payment) == {"capture": 1000}


@pytest.mark.parametrize("wrong", [{"amount": 0}, {"amount": -1}, {"credit_account": "a"}])
def test_the_database_refuses_what_moves_no_money(session, payment, wrong):
    row = {"kind": "refund", "debit_account": "a", "credit_account": "b", "amount": 1, "currency": "USD",
           "livemode": False, "payment_id": payment.id, "source_type": "refund", "source_id": uuid4()}  # fmt: skip
    with pytest.raises(IntegrityError), transaction():
        session.execute(insert(LedgerEntry).values({**row, **wrong}))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_entries SET amount = 1",
        "UPDATE ledger_entries SET kind = kind",
        "DELETE FROM ledger_entries",
    ],
)
def test_the_database_refuses_to_change_or_delete_an_entry(session, payment, statement):
    with pytest.raises(DBAPIError, match="append-only"), transaction():
        session.execute(text(statement))

    assert paying.booked(payment) == {"capture": 1000}


@pytest.mark.parametrize("app", ["postgresql"], indirect=True)
def test_the_database_refuses_to_empty_the_books(session, payment):
    with pytest.raises(DBAPIError, match="append-only"), transaction():
        session.execute(text("TRUNCATE ledger_entries"))


@pytest.mark.parametrize("app", ["sqlite"], indirect=True)
def test_the_database_refuses_to_replace_an_entry(session, payment):
    columns = [column.name for column in LedgerEntry.__table__.columns]
    copied = ", ".join("amount + 1" if name == "amount" else name for name in columns)
    statement = f"INSERT OR REPLACE INTO ledger_entries ({', '.join(columns)}) SELECT {copied} FROM ledger_entries"
    with pytest.raises(DBAPIError, match="append-only"), transaction():
        session.execute(text(statement))


# --- balances and lists -----------------------------------------------------------------------------------------------


def test_what_is_debited_is_credited(session):
    payment = paying.paid()
    paying.refund(payment, 300)
    paying.refund(paying.paid(method="pm_card_refundFail"), 400)
    paying.advance()

    found = balances()

    assert sum(found.values()) == 0
    assert found["income:payments"] == -2000
    assert found[PROVIDER] == 2000 - 300 - 400


def test_currencies_are_never_added_up(session):
    paying.paid()
    paying.paid(price=paying.make_price(currency="JPY", unit_amount=500))

    found = {(balance.account, balance.currency): balance.balance for balance in ledger.balances()}

    assert found == {
        (PROVIDER, "USD"): 1000,
        (PROVIDER, "JPY"): 500,
        ("income:payments", "USD"): -1000,
        ("income:payments", "JPY"): -500,
    }


def test_test_money_is_left_out_of_the_live_books_and_live_money_of_those_of_tests(session, payment):
    live = paying.paid()
    with transaction():
        session.execute(update(Payment).where(Payment.id == live.id).values(livemode=True))
    post("refund", paying.get(live), amount=77)

    assert balances() == {PROVIDER: 2000, "income:payments": -2000}
    page = PageRequest(limit=10)
    assert {found.kind for found in ledger.list_entries(caller_id=uuid7(), page=page)} == {"capture"}
    assert {found.kind for batch in ledger.all_entries() for found in batch} == {"capture"}


def test_an_account_is_found_on_both_sides(session, payment):
    paying.refund(payment, 300)
    page = PageRequest(limit=10, sort="created_at")

    def kinds(account: str) -> list[str]:
        return [found.kind for found in ledger.list_entries(caller_id=uuid7(), page=page, account=account)]

    assert kinds(PROVIDER) == ["capture", "refund"]
    assert kinds("contra:refunds") == ["refund"]
    assert kinds("assets:provider:stripe") == []
    assert balances(account="contra:refunds") == {"contra:refunds": 300}


def test_a_time_belongs_to_the_later_of_two_spans(session, payment):
    moment = entry("capture").created_at
    later = moment + timedelta(seconds=1)

    assert balances(after=moment, before=later) != {}
    assert balances(after=moment - timedelta(seconds=1), before=moment) == {}
    assert balances(payment_id=uuid4()) == {}
    assert balances(payment_id=payment.id, before=utcnow())[PROVIDER] == 1000
