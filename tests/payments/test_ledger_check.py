"""The check of the books: silent after everything that may happen, and each rule noticed when it is broken."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, text, update

from project.database import db, insert, transaction, utcnow, uuid7
from project.payments import ledger, ledger_check, operations
from project.payments.journal import LedgerEntry
from project.payments.ledger_check import Violation
from project.payments.models import Dispute, Payment, PaymentStatus, Refund
from project.payments.sandbox import disputes as sandbox_disputes
from project.payments.sandbox.models import SandboxDispute
from project.security import Role
from tests.factories import make_user
from tests.payments import paying

ACCOUNTS = "an entry moves a positive amount between the accounts of its kind"
TWICE = "what was posted once is not posted again"
CAPTURED = "captured is what was posted as captured"
REFUNDED = "refunded is what was posted as refunded"
EXCEEDS = "refunds never exceed what was captured"
RESERVED = "what is reserved is what pending refunds ask"
HELD = "what disputes hold is what was withdrawn and not decided"
OF_DISPUTE = "what disputes hold is of a dispute"
RECEIPT = "a payment that succeeded has one capture and a receipt"
CURRENCY = "an entry has its payment's currency"
REFUND_CURRENCY = "a refund has its payment's currency"
MODE = "live and test money are never mixed"


@pytest.fixture
def payment(session) -> Payment:
    """A payment of 10.00 USD that was made."""
    return paying.paid()


@pytest.fixture
def disputed(session, run_jobs) -> Payment:
    """A payment whose money the customer's bank has taken back for now."""
    made = paying.paid(method="pm_card_createDispute")
    paying.advance()
    run_jobs()
    return made


def broken(**options: Any) -> dict[str, set[str]]:
    """Return what breaks each rule."""
    found: dict[str, set[str]] = {}
    for violation in ledger_check.verify(**options):
        found.setdefault(violation.rule, set()).add(violation.subject)
    return found


def change(model: type[Any], **values: Any) -> None:
    """Change all rows of a kind behind the back of the services."""
    with transaction():
        db.session.execute(update(model).values(**values))


def enter(payment: Payment, **values: Any) -> UUID:
    """Put an entry into the books that nobody would post."""
    usual = {"kind": "refund", "debit_account": "contra:refunds", "credit_account": "assets:provider:sandbox"}
    source = {"payment_id": payment.id, "source_type": "refund", "source_id": uuid4()}
    entry_id = uuid7()
    row = {"id": entry_id, "amount": 100, "currency": "USD", "livemode": False, **usual, **source, **values}
    with transaction():
        db.session.execute(insert(LedgerEntry).values(row))
    return entry_id


# --- what is right ----------------------------------------------------------------------------------------------------


def test_an_empty_ledger_is_right(session):
    assert ledger_check.verify() == []


def capture_a_part() -> None:
    operations.capture_payment(paying.paid(manual=True).id, staff_id=make_user(role=Role.STAFF).id, amount=600)


def refund_twice() -> None:
    payment = paying.paid()
    paying.refund(payment, 300)
    paying.refund(payment)


HISTORIES: dict[str, Callable[[], object]] = {
    "made": paying.make_payment,
    "paid": paying.paid,
    "authorised": lambda: paying.paid(manual=True),
    "captured in part": capture_a_part,
    "refunded twice": refund_twice,
    "refund pending": lambda: paying.refund(paying.paid(method="pm_card_pendingRefund"), 300),
    "refund that fails": lambda: paying.refund(paying.paid(method="pm_card_refundFail"), 300),
    "disputed": lambda: paying.paid(method="pm_card_createDispute"),
    "inquiry": lambda: paying.paid(method="pm_card_createDisputeInquiry"),
    "refunded in part, then disputed": lambda: paying.refund(paying.paid(method="pm_card_createDispute"), 300),
    "another currency": lambda: paying.paid(price=paying.make_price(currency="JPY")),
}


@pytest.mark.parametrize("hours", [0, 1, 24 * 8], ids=["at once", "after an hour", "after a week"])
def test_whatever_happens_the_books_agree(session, run_jobs, hours):
    for history in HISTORIES.values():
        history()
    if hours:
        paying.advance(timedelta(hours=hours))
    run_jobs()
    paying.advance(timedelta(hours=hours))
    run_jobs()

    assert ledger_check.verify() == []


@pytest.mark.parametrize("won", [True, False])
def test_a_dispute_that_is_decided_holds_nothing(session, disputed, run_jobs, won):
    assert paying.booked(disputed)["dispute_hold"] == 1000
    assert ledger_check.verify() == []

    sandbox_disputes.decide(session.scalars(select(SandboxDispute.id)).one(), won=won)
    run_jobs()

    assert paying.booked(disputed)["dispute_won" if won else "dispute_lost"] == 1000
    assert ledger_check.verify() == []


def test_a_dispute_may_be_won_before_the_money_is_back(session, disputed):
    change(Dispute, status="won", closed_at=utcnow())

    assert ledger_check.verify() == []


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "accounts",
    [
        {"debit_account": "assets:provider:sandbox", "credit_account": "contra:refunds"},
        {"debit_account": "contra:refund"},
        {"credit_account": "assets:provider:stripe"},
        {"kind": "gift"},
    ],
)
def test_an_entry_with_the_wrong_accounts_is_noticed(session, payment, accounts):
    entry = enter(payment, **accounts)

    assert broken()[ACCOUNTS] == {str(entry)}


def test_a_capture_that_was_not_posted_is_noticed(session, payment):
    change(Payment, amount_captured=999)

    assert broken() == {CAPTURED: {str(payment.id)}}


def test_a_second_capture_is_noticed(session, payment):
    with transaction():
        ledger.post("capture", payment, source_type="payment", source_id=uuid4(), amount=1)

    assert broken() == {CAPTURED: {str(payment.id)}, RECEIPT: {str(payment.id)}}


def test_a_refund_that_nobody_made_is_noticed(session, payment):
    enter(payment)

    assert broken() == {REFUNDED: {str(payment.id)}}


def test_a_refund_that_was_not_posted_is_noticed(session, payment):
    change(Payment, amount_refunded=1)

    assert broken() == {REFUNDED: {str(payment.id)}}


def test_a_reservation_without_a_refund_is_noticed(session, payment):
    change(Payment, amount_refund_reserved=1)

    assert broken() == {RESERVED: {str(payment.id)}}


def test_a_pending_refund_without_a_reservation_is_noticed(session):
    payment = paying.paid(method="pm_card_pendingRefund")
    paying.refund(payment, 300)
    change(Payment, amount_refund_reserved=0)

    assert broken() == {RESERVED: {str(payment.id)}}


def test_held_money_of_a_dispute_that_took_none_is_noticed(session, disputed):
    change(Dispute, funds_withdrawn=False)

    assert broken() == {HELD: {str(session.scalars(select(Dispute.id)).one())}}


@pytest.mark.parametrize("status", ["lost", "prevented"])
def test_held_money_of_a_dispute_that_is_decided_is_noticed(session, disputed, status):
    change(Dispute, status=status, closed_at=utcnow())

    assert set(broken()) == {HELD}


def test_held_money_of_another_amount_is_noticed(session, disputed):
    change(Dispute, amount=999)

    assert set(broken()) == {HELD}


def test_held_money_of_no_dispute_is_noticed(session, payment):
    with transaction():
        ledger.post("dispute_hold", payment, source_type="dispute", source_id=uuid4(), amount=1)

    assert set(broken()) == {OF_DISPUTE}


def test_a_success_without_a_capture_is_noticed(session):
    payment = paying.make_payment()
    change(Payment, status=PaymentStatus.SUCCEEDED, receipt_number="R-2026-000007", amount_captured=1000)

    assert broken() == {CAPTURED: {str(payment.id)}, RECEIPT: {str(payment.id)}}


def test_a_capture_without_a_success_is_noticed(session, payment):
    change(Payment, status=PaymentStatus.CANCELED, receipt_number=None)

    assert broken() == {RECEIPT: {str(payment.id)}}


def test_an_entry_in_another_currency_is_noticed(session, payment):
    entry = enter(payment, currency="EUR")

    assert broken()[CURRENCY] == {str(entry)}


def test_a_refund_in_another_currency_is_noticed(session, payment):
    refund = paying.refund(payment, 300)
    change(Refund, currency="EUR")

    assert broken() == {REFUND_CURRENCY: {str(refund.id)}}


def test_a_payment_that_changed_its_mode_is_noticed(session, payment):
    change(Payment, livemode=True)

    assert set(broken()) == {MODE}


# What the constraints of the database forbid can be tried only without them.


class UndoneError(Exception):
    """Ends a transaction that is not to be kept."""


def without(constraint: str, table: str, *statements: str) -> dict[str, set[str]]:
    """Return what is broken once a constraint is gone and the statements are done; all of it is undone."""
    found: dict[str, set[str]] = {}

    def attempt() -> None:
        with transaction():
            for statement in (f"ALTER TABLE {table} DROP CONSTRAINT {constraint}", *statements):
                db.session.execute(text(statement))
            found.update(broken())
            raise UndoneError

    with pytest.raises(UndoneError):
        attempt()
    return found


@pytest.mark.parametrize("app", ["postgresql"], indirect=True)
def test_an_entry_that_is_there_twice_is_noticed(session, payment):
    columns = [column.name for column in LedgerEntry.__table__.columns]
    copied = ", ".join("gen_random_uuid()" if name == "id" else name for name in columns)
    copy = f"INSERT INTO ledger_entries ({', '.join(columns)}) SELECT {copied} FROM ledger_entries"

    found = without("uq_ledger_entries_kind_source_type_source_id", "ledger_entries", copy)

    assert set(found) == {TWICE, CAPTURED, RECEIPT}
    assert len(found[TWICE]) == 1


@pytest.mark.parametrize("app", ["postgresql"], indirect=True)
def test_refunds_of_more_than_was_captured_are_noticed(session, payment):
    found = without("ck_payments_refunds", "payments", "UPDATE payments SET amount_refund_reserved = 1001")

    assert found == {EXCEEDS: {str(payment.id)}, RESERVED: {str(payment.id)}}


# --- how it is told ---------------------------------------------------------------------------------------------------


def test_a_violation_says_what_it_is_about(session, payment):
    change(Payment, amount_captured=999)

    [violation] = ledger_check.verify()

    assert violation == Violation(CAPTURED, str(payment.id))
    assert str(violation) == f"{CAPTURED}: {payment.id}"


def test_only_what_was_made_or_booked_lately_may_be_looked_at(session, payment):
    waits = paying.paid(method="pm_card_pendingRefund")
    paying.refund(waits, 300)
    change(Payment, amount_captured=999)
    since = utcnow()
    assert broken(changed_since=since) == {CAPTURED: {str(waits.id)}}

    made = paying.paid()
    enter(payment)

    assert broken(changed_since=since) == {
        CAPTURED: {str(waits.id), str(payment.id)},
        REFUNDED: {str(payment.id)},
    }
    assert str(made.id) not in str(broken())


def test_every_rule_is_broken_by_a_test_above(session):
    told = {value for name, value in globals().items() if name.isupper() and isinstance(value, str)}

    assert {rule for rule, _ in ledger_check._rules(None)} == told
