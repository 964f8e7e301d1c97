"""Receipts: what they say, when there is one, and the mail that brings it."""

from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from project.database import db, transaction
from project.jobs import defer
from project.payments import operations
from project.payments.models import RefundStatus
from project.payments.receipts import NotPaid, Receipt, get_receipt, send_receipt, show_time
from project.security import Role
from project.users import service as users
from project.users.models import User
from tests.factories import make_user
from tests.payments import paying
from tests.payments.paying import make_payment, make_price, paid, refund

YEAR = datetime.now(UTC).year


def receipt(**values) -> Receipt:
    """A receipt that nobody has paid for."""
    method = {"type": "card", "brand": "visa", "last4": "4242"}
    usual = {
        "number": "R-2030-000001",
        "payment_id": uuid4(),
        "description": "Lessons",
        "quantity": 1,
        "amount": 1000,
        "currency": "USD",
        "method": method,
        "livemode": False,
        "paid_at": datetime(2030, 1, 7, 16, 5, tzinfo=UTC),
        "refunds": [],
    }
    return Receipt(**{**usual, **values})


def sent(outbox):
    """The receipts that were mailed."""
    return [message for message in outbox if message.template == "receipt"]


@pytest.mark.parametrize("state", ["created", "requires_capture", "canceled"])
def test_there_is_no_receipt_for_what_was_not_paid(session, state):
    payment = paid(manual=True) if state == "requires_capture" else make_payment()
    if state == "canceled":
        operations.cancel_payment(payment.id, caller=paying.caller(make_user(role=Role.STAFF)))

    with pytest.raises(NotPaid):
        get_receipt(paying.get(payment))


def test_a_receipt_says_what_was_paid_and_how(session):
    payment = paid(price=make_price(name="Ten lessons", unit_amount=12500, currency="EUR"), quantity=2)

    found = get_receipt(payment)

    assert found.number == f"R-{YEAR}-000001"
    assert (found.payment_id, found.paid_at) == (payment.id, payment.succeeded_at)
    assert (found.description, found.quantity, found.currency) == ("Ten lessons", 2, "EUR")
    assert (found.amount, found.amount_refunded, found.total) == (25000, 0, 25000)
    assert (found.paid_with, found.livemode) == ("Visa •••• 4242", False)


def test_a_receipt_is_of_what_was_taken_not_of_what_was_authorised(session):
    staff = make_user(role=Role.STAFF)
    payment = operations.capture_payment(paid(manual=True).id, staff_id=staff.id, amount=300)

    found = get_receipt(payment)

    assert (found.amount, found.total) == (300, 300)


def test_a_receipt_shows_the_refunds_that_succeeded(session):
    payment = paid()
    first, second = refund(payment, 300), refund(payment, 200)

    found = get_receipt(paying.get(payment))

    assert [shown.id for shown in found.refunds] == [first.id, second.id]
    assert (found.amount, found.amount_refunded, found.total) == (1000, 500, 500)


def test_a_refund_that_is_not_made_yet_or_was_taken_back_is_not_on_the_receipt(session, run_jobs):
    waits = paid(method="pm_card_pendingRefund")
    fails = paid(method="pm_card_refundFail")
    pending, failing = refund(waits, 300), refund(fails, 300)
    paying.advance()
    run_jobs()
    # The one that waited has succeeded by now, so the other way round: it is asked for again.
    again = refund(waits, 200)

    assert (paying.get_refund(pending).status, again.status) == (RefundStatus.SUCCEEDED, RefundStatus.PENDING)
    assert paying.get_refund(failing).status is RefundStatus.FAILED
    assert [shown.id for shown in get_receipt(paying.get(waits)).refunds] == [pending.id]
    assert get_receipt(paying.get(fails)).refunds == []


@pytest.mark.parametrize(
    ("method", "shown"),
    [
        ({"type": "card", "brand": "visa", "last4": "4242"}, "Visa •••• 4242"),
        ({"type": "card", "brand": "amex", "last4": "8431"}, "American Express •••• 8431"),
        ({"type": "card", "brand": "cartes_bancaires", "last4": "0001"}, "Cartes bancaires •••• 0001"),
        ({"type": "us_bank_account", "brand": None, "last4": "6789"}, "Bank account •••• 6789"),
        ({"type": "link", "brand": None, "last4": None}, "Link"),
        (None, None),
    ],
)
def test_a_receipt_names_the_method_as_people_know_it(method, shown):
    assert receipt(method=method).paid_with == shown


def test_a_receipt_shows_times_with_their_zone():
    assert show_time(datetime(2030, 1, 7, 16, 5, tzinfo=UTC)) == "7 January 2030, 16:05 UTC"


def test_the_customer_gets_the_receipt_when_the_payment_succeeds(session, run_jobs, outbox):
    customer = make_user(email="ann@example.com")
    payment = make_payment(customer, price=make_price(name="Ten lessons", unit_amount=1250, currency="EUR"))
    paying.pay(payment)
    run_jobs()

    [message] = sent(outbox)

    assert message.to == "ann@example.com"
    assert message.subject == f"[Test] Your receipt R-{YEAR}-000001 from Project"
    for part in (message.text, message.html):
        shown = (f"R-{YEAR}-000001", "Ten lessons", "12.50 EUR", "Visa •••• 4242", "not a tax invoice", "TEST")
        assert [text for text in shown if text not in part] == []


def test_one_receipt_is_mailed_however_often_the_success_is_heard_of(session, run_jobs, outbox):
    payment = paid()
    for _ in range(3):
        paying.sync(payment)
    run_jobs()
    paying.advance()
    run_jobs()

    assert len(sent(outbox)) == 1


def test_no_receipt_is_mailed_for_an_authorisation(session, run_jobs, outbox):
    paid(manual=True)
    run_jobs()

    assert sent(outbox) == []


def test_the_receipt_goes_to_the_address_that_the_account_has_now(session, run_jobs, outbox):
    customer = make_user(email="old@example.com")
    paid(customer)
    with transaction():
        db.session.get_one(User, customer.id).email = "new@example.com"
    run_jobs()

    assert [message.to for message in sent(outbox)] == ["new@example.com"]


def test_no_receipt_is_mailed_to_who_is_gone(session, run_jobs, outbox):
    customer = make_user()
    paid(customer)
    users.erase_user(customer.id, actor_id=None)
    run_jobs()

    assert sent(outbox) == []


def test_a_job_that_runs_twice_mails_the_same_receipt_again(session, run_jobs, outbox):
    payment = paid()
    run_jobs()
    with transaction():
        defer(send_receipt, payment_id=payment.id)
    run_jobs()

    first, second = sent(outbox)
    assert replace(first, id="") == replace(second, id="")


def test_the_mail_of_a_real_payment_speaks_of_no_test(session, run_jobs, outbox):
    payment = paid()
    with transaction():
        paying.get(payment).livemode = True
    run_jobs()

    [message] = sent(outbox)
    assert message.subject == f"Your receipt R-{YEAR}-000001 from Project"
    assert "test" not in (message.text + message.html).lower()


def test_what_a_price_is_called_stays_text_in_the_mail(session, run_jobs, outbox):
    paid(price=make_price(name="<b>Lessons</b> & more"))
    run_jobs()

    [message] = sent(outbox)
    assert "<b>Lessons</b> & more" in message.text
    assert "&lt;b&gt;Lessons&lt;/b&gt; &amp; more" in message.html
