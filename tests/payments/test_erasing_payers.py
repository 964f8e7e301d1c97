"""What becomes of payments when the account of their customer is erased."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, select

from project import jobs
from project.database import db, transaction
from project.errors import Conflict, NotFound
from project.pagination import PageRequest
from project.payments import ledger_check, operations, receipts, service
from project.payments.erasure import cancel_orphan, forget_payments
from project.payments.failures import InvalidState, ProviderUnavailable
from project.payments.gateway import current_gateway
from project.payments.journal import TimelineEntry, WebhookEvent
from project.payments.models import Operation, Payment, PaymentStatus, RefundStatus
from project.payments.sandbox.faults import Fault, set_fault
from project.security import Role, SessionRevoked
from project.users import service as users
from project.users.models import User
from tests.factories import PASSWORD, make_user
from tests.payments import paying
from tests.payments.asking import buy, data, purchase, refund
from tests.payments.paying import get, make_payment, make_price, paid, pay, sync

BANK = "pm_usBankAccount_success"
WORDS = "Ann Example, ann@example.com"
SECONDS = 30

MAKE: dict[str, Callable[[User], Payment]] = {
    "requires_payment_method": make_payment,
    "requires_action": lambda user: paid(user, "pm_card_authenticationRequired"),
    "processing": lambda user: paid(user, BANK),
    "requires_capture": lambda user: paid(user, manual=True),
}


def erase(user: User) -> None:
    """Erase an account."""
    users.erase_user(user.id, actor_id=None)


def at_provider(payment: Payment) -> PaymentStatus:
    """What the provider says of a payment."""
    return current_gateway().retrieve_payment(str(get(payment).provider_ref)).status


def make_unanswered(user: User, fault: Fault = Fault.TIMEOUT_BEFORE) -> Payment:
    """Make a payment for which the provider gives no answer."""
    set_fault(fault, count=1)
    with pytest.raises(ProviderUnavailable):
        make_payment(user)
    return db.session.scalars(select(Payment).where(Payment.user_id == user.id)).one()


def side_by_side(app: Any, *calls: Callable[[], object]) -> list[BaseException]:
    """Make calls at once, each in a thread and an application context of its own; return what they raised."""
    barrier = threading.Barrier(len(calls))
    raised: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        with app.app_context():
            barrier.wait(SECONDS)
            try:
                call()
            except Exception as error:  # noqa: BLE001 - told to the test
                raised.append(error)

    threads = [threading.Thread(target=run, args=[call]) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    return raised


@pytest.mark.parametrize("state", MAKE)
def test_an_open_payment_loses_its_customer_and_is_canceled(session, run_jobs, state):
    customer = make_user()
    payment = MAKE[state](customer)
    assert payment.status == state

    erase(customer)

    left = get(payment)
    assert (left.user_id, left.status, left.pending_operation) == (None, state, Operation.CANCEL)
    run_jobs()
    canceled = get(payment)
    assert (canceled.status, canceled.pending_operation) == (PaymentStatus.CANCELED, None)
    assert at_provider(payment) is PaymentStatus.CANCELED
    assert ledger_check.verify() == []


@pytest.mark.parametrize("fault", [Fault.TIMEOUT_BEFORE, Fault.TIMEOUT_AFTER])
def test_a_payment_that_the_provider_has_not_answered_for_is_canceled_there_too(session, run_jobs, fault):
    customer = make_user()
    payment = make_unanswered(customer, fault)

    erase(customer)
    run_jobs()

    assert (get(payment).user_id, get(payment).status) == (None, PaymentStatus.CANCELED)
    assert at_provider(payment) is PaymentStatus.CANCELED


def test_a_payment_that_was_made_keeps_what_the_books_need(session, run_jobs):
    customer = make_user()
    payment = paid(customer, price=make_price(name="Ten lessons"), quantity=2)
    run_jobs()
    payment = get(payment)
    before = {
        column.key: getattr(payment, column.key) for column in Payment.__table__.columns if column.key != "metadata"
    }

    erase(customer)

    after = get(payment)
    changed = {key for key, value in before.items() if getattr(after, key) != value}
    assert changed == {"user_id", "version", "updated_at"}
    assert receipts.get_receipt(after).paid_with == "Visa •••• 4242"
    assert paying.booked(payment) == {"capture": 2000}
    run_jobs()
    assert (at_provider(payment), get(payment).status) == (PaymentStatus.SUCCEEDED, PaymentStatus.SUCCEEDED)
    assert ledger_check.verify() == []


@pytest.mark.parametrize("status", ["canceled", "failed"])
def test_a_payment_that_has_ended_stays_as_it_is(session, run_jobs, status):
    customer = make_user()
    if status == "canceled":
        payment = operations.cancel_payment(make_payment(customer).id, caller=paying.caller(customer))
    else:
        payment = make_unanswered(customer)
        service.give_up(payment, actor="reconcile")

    erase(customer)
    run_jobs()

    assert (get(payment).user_id, get(payment).status, get(payment).pending_operation) == (None, status, None)


@pytest.mark.parametrize("status", ["requires_payment_method", "succeeded"])
def test_nothing_is_left_that_somebody_has_written(session, run_jobs, status):
    customer = make_user()
    make = paid if status == "succeeded" else make_payment
    payment = make(customer, reference="ann@example.com", metadata={"name": WORDS})

    erase(customer)

    left = get(payment)
    assert (left.reference, left.labels, left.status) == (None, {}, status)


def test_reasons_of_cancellations_and_notes_of_refunds_go(session, run_jobs):
    customer = make_user()
    canceled = make_payment(customer)
    operations.cancel_payment(canceled.id, caller=paying.caller(customer), reason=WORDS)
    by_staff = make_payment(customer)
    operations.cancel_payment(by_staff.id, caller=paying.caller(make_user(role=Role.STAFF)), reason=WORDS)
    given_back = paying.refund(paid(customer), 300, note=WORDS)

    erase(customer)

    written = db.session.scalars(select(TimelineEntry.data), execution_options={"populate_existing": True})
    assert WORDS not in str(written.all())
    left = paying.get_refund(given_back)
    assert (left.note, left.amount, left.status) == (None, 300, RefundStatus.SUCCEEDED)


def test_what_others_have_written_stays(session):
    other, customer = make_user(), make_user()
    payment = paid(other, reference="order-1", metadata={"name": "Bob"})
    given_back = paying.refund(payment, 300, note="Bob was ill")
    canceled = make_payment(other)
    operations.cancel_payment(canceled.id, caller=paying.caller(other), reason="Changed my mind")
    waiting = make_payment(other)
    make_payment(customer)

    erase(customer)

    kept = get(payment)
    assert (kept.user_id, kept.reference, kept.labels) == (other.id, "order-1", {"name": "Bob"})
    assert paying.get_refund(given_back).note == "Bob was ill"
    assert "Changed my mind" in str(db.session.scalars(select(TimelineEntry.data)).all())
    assert get(waiting).pending_operation is None


def test_what_events_have_said_goes_and_that_they_came_stays(session, run_jobs):
    customer, other = make_user(), make_user()
    payment, kept = paid(customer, "pm_card_createDispute"), paid(other)
    run_jobs()
    paying.refund(paid(customer), 300)
    paying.advance()
    run_jobs()
    said = select(WebhookEvent.object_type, func.count(), func.count(WebhookEvent.payload))
    said = said.group_by(WebhookEvent.object_type)
    before = {kind: total for kind, total, _ in session.execute(said)}
    assert {"payment_intent", "dispute", "refund"} <= set(before)

    erase(customer)

    after = {kind: (total, told) for kind, total, told in session.execute(said)}
    assert {kind: total for kind, (total, _) in after.items()} == before
    about_other = session.scalar(select(func.count()).where(WebhookEvent.object_ref == kept.provider_ref))
    assert sum(told for _, told in after.values()) == about_other > 0
    assert payment.provider_ref != kept.provider_ref


def test_a_refund_that_is_under_way_goes_on(session, run_jobs):
    customer = make_user()
    payment = paid(customer, "pm_card_pendingRefund")
    given_back = paying.refund(payment, 300)
    assert given_back.status is RefundStatus.PENDING

    erase(customer)
    paying.advance()
    run_jobs()

    assert paying.get_refund(given_back).status is RefundStatus.SUCCEEDED
    assert (get(payment).amount_refunded, get(payment).user_id) == (300, None)
    assert ledger_check.verify() == []


def test_what_is_left_can_still_be_refunded_and_disputed(session, run_jobs):
    customer = make_user()
    payment, disputed = paid(customer), paid(customer, "pm_card_createDispute")

    erase(customer)
    run_jobs()
    paying.advance()
    run_jobs()
    paying.refund(payment)

    assert (get(payment).refund_status, get(disputed).dispute_status) == ("full", "open")
    assert ledger_check.verify() == []


def test_an_account_is_erased_once_and_its_eraser_runs_as_often_as_it_may(session, run_jobs):
    customer = make_user()
    payment = make_payment(customer)
    erase(customer)
    version = get(payment).version

    with pytest.raises(NotFound):
        erase(customer)
    with transaction():
        forget_payments(customer.id)

    assert get(payment).version == version
    run_jobs()
    cancel_orphan(payment_id=str(payment.id))
    assert get(payment).status is PaymentStatus.CANCELED


def test_an_account_that_cannot_be_erased_keeps_its_payments(session, run_jobs):
    admin = make_user(role=Role.ADMIN)
    payment = make_payment(admin, reference="order-1")

    with pytest.raises(Conflict):
        erase(admin)

    run_jobs()
    kept = get(payment)
    assert (kept.user_id, kept.reference, kept.status) == (admin.id, "order-1", "requires_payment_method")


def test_while_the_provider_is_away_the_payment_waits_to_be_canceled(session, run_jobs):
    customer = make_user()
    payment = make_payment(customer)
    erase(customer)
    set_fault(Fault.TIMEOUT_BEFORE, count=1)

    run_jobs()

    waiting = get(payment)
    assert (waiting.status, waiting.pending_operation) == ("requires_payment_method", Operation.CANCEL)
    operations.finish_operation(waiting, actor="reconcile")
    assert get(payment).status is PaymentStatus.CANCELED


def test_the_job_asks_anew_for_what_was_given_up(session, run_jobs):
    customer = make_user()
    payment = make_payment(customer)
    erase(customer)
    with transaction():
        get(payment).pending_operation = None

    run_jobs()

    assert at_provider(payment) is get(payment).status is PaymentStatus.CANCELED


def test_a_capture_under_way_is_not_stopped(session, run_jobs):
    customer, staff = make_user(), make_user(role=Role.STAFF)
    payment = paid(customer, manual=True)
    set_fault(Fault.TIMEOUT_BEFORE, count=1)
    operations.capture_payment(payment.id, staff_id=staff.id, amount=300)

    erase(customer)
    run_jobs()

    captured = get(payment)
    assert (captured.status, captured.amount_captured, captured.user_id) == ("succeeded", 300, None)
    assert ledger_check.verify() == []


def test_nobody_captures_a_payment_whose_customer_is_gone(session):
    customer, staff = make_user(), make_user(role=Role.STAFF)
    payment = paid(customer, manual=True)
    erase(customer)

    with pytest.raises(InvalidState):
        operations.capture_payment(payment.id, staff_id=staff.id)


def test_money_that_arrives_at_the_last_moment_is_booked_and_nobody_is_written_to(session, run_jobs, outbox):
    customer = make_user()
    payment = make_payment(customer)
    pay(payment)

    erase(customer)
    run_jobs()

    made = get(payment)
    assert (made.status, made.user_id, made.pending_operation) == ("succeeded", None, None)
    assert made.receipt_number is not None
    assert [message for message in outbox if message.template == "receipt"] == []
    assert ledger_check.verify() == []


@pytest.mark.parametrize("round_", range(3))
def test_an_erasure_and_a_success_at_once_both_happen(app, session, run_jobs, outbox, round_):
    customer = make_user()
    payment = make_payment(customer, reference="order-1")
    pay(payment)
    session.remove()

    raised = side_by_side(app, lambda: erase(customer), lambda: jobs.run_pending(app), lambda: sync(payment))

    assert raised == []
    run_jobs()
    made = get(payment)
    assert (made.status, made.user_id, made.reference, made.pending_operation) == ("succeeded", None, None, None)
    assert paying.booked(payment) == {"capture": 1000}
    assert len([message for message in outbox if message.template == "receipt"]) <= 1
    assert ledger_check.verify() == []


@pytest.mark.parametrize("round_", range(3))
def test_whatever_happens_beside_an_erasure_the_books_are_right(app, session, run_jobs, round_):
    customer, staff = make_user(), make_user(role=Role.STAFF)
    made, left, held = paid(customer, "pm_card_createDispute"), make_payment(customer), paid(customer, manual=True)
    other = paid(customer)
    me = paying.caller(customer)
    session.remove()

    raised = side_by_side(
        app,
        lambda: erase(customer),
        lambda: paying.refund(other, 300, staff=staff, note="Given back"),
        lambda: operations.cancel_payment(left.id, caller=me, reason=WORDS),
        lambda: operations.capture_payment(held.id, staff_id=staff.id, amount=500),
        lambda: jobs.run_pending(app),
    )

    assert {type(error) for error in raised} <= {NotFound, InvalidState}
    run_jobs()
    paying.advance()
    run_jobs()
    assert ledger_check.verify() == []
    assert set(session.scalars(select(Payment.user_id))) == {None}
    assert get(left).status is at_provider(left) is PaymentStatus.CANCELED
    assert get(held).status is at_provider(held) is not PaymentStatus.REQUIRES_CAPTURE
    assert (get(made).status, get(other).amount_refunded) == ("succeeded", 300)
    assert WORDS not in str(session.scalars(select(TimelineEntry.data)).all())


def test_an_erased_account_buys_nothing_more(session):
    customer, price = make_user(), make_price()
    erase(customer)

    with pytest.raises(SessionRevoked):
        make_payment(customer, price=price)

    assert session.scalar(select(func.count()).select_from(Payment)) == 0


def test_no_payment_slips_through_that_is_made_while_its_customer_is_erased(app, session, run_jobs):
    customer, price = make_user(), make_price()
    session.remove()

    def purchases() -> None:
        for _ in range(5):
            make_payment(customer, price=price)

    raised = side_by_side(app, *[purchases] * 4, lambda: erase(customer))

    assert {type(error) for error in raised} <= {SessionRevoked}
    run_jobs()
    owners_and_states = session.execute(select(Payment.user_id, Payment.status).distinct()).all()
    assert {tuple(row) for row in owners_and_states} <= {(None, PaymentStatus.CANCELED)}


def test_staff_see_payments_of_nobody(client, as_user, as_staff, price_id, run_jobs):
    customer = as_user()
    payment = purchase(client, customer, price_id, reference="order-1")
    refund(client, as_staff, payment, amount=300, note=WORDS)

    assert client.post("/v1/users/me/erase", json={"password": PASSWORD}, headers=customer).status_code == 204
    run_jobs()

    seen = data(client.get(f"/v1/payments/{payment['id']}", headers=as_staff))
    assert (seen["status"], seen["reference"], seen["metadata"]) == ("succeeded", None, {})
    assert [row["id"] for row in data(client.get("/v1/payments?scope=all", headers=as_staff))] == [payment["id"]]
    assert data(client.get(f"/v1/payments?user_id={customer.user.id}", headers=as_staff)) == []
    assert data(client.get("/v1/payments?reference=order-1&scope=all", headers=as_staff)) == []
    assert data(client.get(f"/v1/payments/{payment['id']}/receipt", headers=as_staff))["total"] == 700
    [given_back] = data(client.get(f"/v1/payments/{payment['id']}/refunds", headers=as_staff))
    assert (given_back["amount"], given_back["note"]) == (300, None)
    assert WORDS not in client.get(f"/v1/payments/{payment['id']}/timeline", headers=as_staff).text


def test_who_is_gone_sees_nothing_and_others_see_no_more(client, as_user, price_id):
    customer, other = as_user(), as_user()
    payment = buy(client, customer, price_id)
    assert client.post("/v1/users/me/erase", json={"password": PASSWORD}, headers=customer).status_code == 204

    assert client.get(f"/v1/payments/{payment['id']}", headers=customer).status_code == 401
    assert client.get(f"/v1/payments/{payment['id']}", headers=other).status_code == 404
    assert data(client.get("/v1/payments", headers=other)) == []


def test_a_page_of_the_list_survives_an_erasure(session):
    customer, staff = make_user(), make_user(role=Role.STAFF)
    made = [make_payment(customer) for _ in range(3)]

    first = service.list_payments(caller_id=staff.id, user_id=None, page=PageRequest(limit=2))
    erase(customer)
    cursor = PageRequest(limit=2, cursor=first.next_cursor)
    second = service.list_payments(caller_id=staff.id, user_id=None, page=cursor)

    assert [row.id for row in (*first, *second)] == [payment.id for payment in reversed(made)]
