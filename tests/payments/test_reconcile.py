"""Reconciliation: every unknown outcome ends known, money moves once, and what differs from the provider is told."""

import logging
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

import pytest
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import OperationalError

from project.config import settings
from project.database import Base, db, transaction, utcnow
from project.locks import AlreadyRunning, alone
from project.payments import expiry, gateway, inbox, ledger, operations, reconcile, refunds, service, waiting
from project.payments.comparing import compare
from project.payments.failures import ProviderUnavailable
from project.payments.gateway import current_gateway
from project.payments.gateway_types import Declined, OutcomeUnknown
from project.payments.journal import EventStatus, WebhookEvent
from project.payments.models import Dispute, Operation, Payment, PaymentStatus, Refund, RefundOrigin, RefundStatus
from project.payments.reconcile import Report
from project.payments.sandbox.delivery import deliver_due
from project.payments.sandbox.faults import Fault, set_fault
from project.payments.sandbox.models import SandboxEvent, SandboxIntent, SandboxKey, SandboxRefund
from project.security import Role
from tests.factories import make_user
from tests.payments import paying, sandboxing

ROOT = Path(__file__).parents[2]
NOW = timedelta(0)
UNKNOWN = [Fault.TIMEOUT_BEFORE, Fault.TIMEOUT_AFTER, Fault.HTTP_500, Fault.RATE_LIMIT]
HOURS = timedelta(hours=1)


def run(**options: Any) -> Report:
    """Reconcile what was touched at all, however young."""
    return reconcile.reconcile(**{"settled": NOW, **options})


def lost(fault: Fault = Fault.TIMEOUT_AFTER, **values: Any) -> Payment:
    """Make a payment whose outcome at the provider is not known."""
    set_fault(fault, count=1)
    with pytest.raises(ProviderUnavailable):
        paying.make_payment(**values)
    return db.session.scalars(select(Payment).order_by(Payment.id.desc()).limit(1)).one()


def count(model: type[Base]) -> int:
    return db.session.scalar(select(func.count()).select_from(model)) or 0


def age(model: type[Any], by: timedelta, **columns: Any) -> None:
    """Make rows older, and change what else is said."""
    times = {name: getattr(model, name) for name in ("created_at", "updated_at", "synced_at", "authorized_at")
             if hasattr(model, name)}  # fmt: skip
    with transaction():
        for row in db.session.scalars(select(model), execution_options={"populate_existing": True}):
            aged = {name: getattr(row, name) - by for name in times if getattr(row, name) is not None}
            db.session.execute(update(model).where(model.id == row.id).values(**aged, **columns))
    db.session.expire_all()


class Silent:
    """A provider that does not answer."""

    livemode = False

    def __init__(self) -> None:
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        def silent(*_: Any, **__: Any) -> NoReturn:
            self.asked += 1
            raise OutcomeUnknown(name)

        return silent


@pytest.fixture
def silence(monkeypatch) -> Silent:
    """Let the provider be away."""
    silent = Silent()
    monkeypatch.setattr(gateway, "_gateway", lambda *_: silent)
    return silent


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.ERROR]


# --- unknown outcomes -------------------------------------------------------------------------------------------------


def test_where_nothing_waits_nothing_is_found(session):
    paying.paid()

    report = reconcile.reconcile()

    assert (report, report.exit_code) == (Report(), 0)


@pytest.mark.parametrize("fault", UNKNOWN)
def test_a_payment_whose_making_had_no_answer_is_made_once(session, fault):
    payment = lost(fault)

    report = run()

    assert (report.payments, report.discrepancies, report.exit_code) == (2, [], 0)  # made, and looked at
    assert paying.get(payment).status is PaymentStatus.REQUIRES_PAYMENT_METHOD
    assert count(SandboxIntent) == 1


@pytest.mark.parametrize("fault", UNKNOWN)
def test_a_capture_that_had_no_answer_is_made_once(session, fault):
    payment = paying.paid(manual=True)
    set_fault(fault, count=1)
    captured = operations.capture_payment(payment.id, staff_id=make_user(role=Role.STAFF).id, amount=600)
    assert captured.pending_operation is Operation.CAPTURE

    report = run()

    found = paying.get(payment)
    assert (found.status, found.amount_captured) == (PaymentStatus.SUCCEEDED, 600)
    assert found.pending_operation is None
    assert paying.booked(payment) == {"capture": 600}
    assert (report.unavailable, report.discrepancies) == (0, [])


@pytest.mark.parametrize("fault", UNKNOWN)
def test_a_cancellation_that_had_no_answer_is_made(session, fault):
    payment = paying.make_payment()
    set_fault(fault, count=1)
    operations.cancel_payment(payment.id, caller=paying.caller(make_user(role=Role.STAFF)))

    run()

    assert paying.get(payment).status is PaymentStatus.CANCELED
    assert session.scalars(select(SandboxIntent)).one().wire["status"] == "canceled"


@pytest.mark.parametrize("fault", UNKNOWN)
def test_a_refund_that_had_no_answer_is_given_once(session, fault):
    payment = paying.paid()
    set_fault(fault, count=1)
    refund = paying.refund(payment, 300)
    assert refund.status is RefundStatus.PENDING

    report = run()

    assert (report.refunds, report.exit_code) == (1, 0)
    assert paying.get_refund(refund).status is RefundStatus.SUCCEEDED
    assert (paying.get(payment).amount_refunded, paying.get(payment).amount_refund_reserved) == (300, 0)
    assert count(SandboxRefund) == 1
    assert paying.booked(payment) == {"capture": 1000, "refund": 300}


def test_what_is_young_is_left_alone(session):
    payment = lost()

    assert reconcile.reconcile(settled=timedelta(seconds=60)).payments == 0
    age(Payment, timedelta(seconds=61))
    assert reconcile.reconcile(settled=timedelta(seconds=60)).payments == 1

    assert paying.get(payment).provider_ref is not None


def test_after_a_day_a_payment_is_looked_for_and_not_made_anew(session):
    payment = lost(Fault.TIMEOUT_AFTER)
    age(Payment, 24 * HOURS)
    age_sandbox(24 * HOURS)

    run(since=timedelta(minutes=1))

    assert paying.get(payment).status is PaymentStatus.CANCELED  # found, and nobody had paid it in time
    assert count(SandboxIntent) == 1


def age_sandbox(by: timedelta) -> None:
    """Make the provider's rows older, and let it forget the keys."""
    with transaction():
        db.session.execute(text("DELETE FROM sandbox_keys"))
        for intent in db.session.scalars(select(SandboxIntent)).all():
            intent.created_at -= by
    assert count(SandboxKey) == 0


def test_after_a_day_a_payment_that_never_arrived_has_failed_and_frees_its_reference(session):
    user = make_user()
    payment = lost(Fault.TIMEOUT_BEFORE, user=user, reference="order-1")
    age(Payment, 24 * HOURS)

    assert run().exit_code == 0

    found = paying.get(payment)
    assert (found.status, found.failure_code) == (PaymentStatus.FAILED, "never_arrived")
    assert count(SandboxIntent) == 0
    assert paying.make_payment(user, reference="order-1").id != payment.id


def test_after_a_day_a_refund_that_never_arrived_gives_its_reservation_back(session):
    payment = paying.paid()
    set_fault(Fault.TIMEOUT_BEFORE, count=1)
    refund = paying.refund(payment, 300)
    age(Refund, 24 * HOURS)

    run()

    assert paying.get_refund(refund).status is RefundStatus.FAILED
    assert paying.get(payment).amount_refundable == 1000
    assert count(SandboxRefund) == 0


def test_after_a_day_a_refund_that_did_arrive_is_found(session):
    payment = paying.paid()
    set_fault(Fault.TIMEOUT_AFTER, count=1)
    refund = paying.refund(payment, 300)
    age(Refund, 24 * HOURS)
    age_sandbox(24 * HOURS)

    run(since=timedelta(minutes=1))

    assert paying.get_refund(refund).status is RefundStatus.SUCCEEDED
    assert count(SandboxRefund) == 1


def test_a_refund_that_is_pending_at_the_provider_is_not_given_again(session):
    payment = paying.paid(method="pm_card_pendingRefund")
    refund = paying.refund(payment, 300)

    run()

    assert (paying.get_refund(refund).status, count(SandboxRefund)) == (RefundStatus.PENDING, 1)


def test_a_pending_refund_that_was_made_at_the_provider_is_not_given_again(session):
    payment = paying.paid(method="pm_card_pendingRefund")
    sandboxing.give_back(current_gateway().retrieve_payment(str(payment.provider_ref)), 300)
    run()
    [refund] = session.scalars(select(Refund)).all()
    assert (refund.status, refund.origin) == (RefundStatus.PENDING, RefundOrigin.PROVIDER)

    run()

    assert count(SandboxRefund) == 1
    assert paying.get(payment).amount_refund_reserved == 300


def test_a_refund_whose_end_was_not_heard_of_ends(session):
    payment = paying.paid(method="pm_card_pendingRefund")
    refund = paying.refund(payment, 300)
    set_fault(Fault.DROP_WEBHOOK, count=10)
    paying.advance()

    run()

    assert paying.get_refund(refund).status is RefundStatus.SUCCEEDED
    assert paying.booked(payment) == {"capture": 1000, "refund": 300}


@pytest.mark.parametrize("method", ["pm_card_visa", "pm_usBankAccount_success"])
def test_a_payment_of_which_no_webhook_told_is_found_to_be_paid(session, method):
    payment = paying.make_payment()
    paying.pay(payment, method)
    set_fault(Fault.DROP_WEBHOOK, count=10)
    paying.advance()

    run()
    run()

    found = paying.get(payment)
    assert (found.status, found.receipt_number is not None) == (PaymentStatus.SUCCEEDED, True)
    assert paying.booked(payment) == {"capture": 1000}


def test_an_authorisation_that_was_released_at_the_provider_is_found_to_be_canceled(session):
    payment = paying.paid(manual=True)
    current_gateway().cancel(str(payment.provider_ref), key=str(uuid4()))

    run()

    assert paying.get(payment).status is PaymentStatus.CANCELED


def test_a_capture_that_cannot_be_made_any_more_is_given_up(session):
    payment = paying.paid(manual=True)
    set_fault(Fault.TIMEOUT_BEFORE, count=1)
    operations.capture_payment(payment.id, staff_id=make_user().id)
    current_gateway().cancel(str(payment.provider_ref), key=str(uuid4()))

    report = run()

    assert (paying.get(payment).status, paying.get(payment).pending_operation) == (PaymentStatus.CANCELED, None)
    assert report.exit_code == 0


@pytest.mark.parametrize("times", range(3))
def test_many_unknown_outcomes_all_end_known_and_move_the_money_once(session, times):
    payments = [paying.paid(manual=True) for _ in range(10)]
    staff = make_user(role=Role.STAFF).id
    for index, payment in enumerate(payments):
        set_fault(UNKNOWN[(index + times) % 4], count=1)
        operations.capture_payment(payment.id, staff_id=staff)

    for _ in range(2):
        run()

    assert [paying.booked(payment) for payment in payments] == [{"capture": 1000}] * 10


def test_what_has_no_answer_again_waits_for_the_next_run(session):
    captured, refunded = paying.paid(manual=True), paying.paid()
    set_fault(Fault.TIMEOUT_BEFORE, count=4)
    operations.capture_payment(captured.id, staff_id=make_user().id)
    refund = paying.refund(refunded, 300)

    first = run()
    assert (first.operations, first.refunds, first.unavailable, first.exit_code) == (0, 0, 2, 2)
    assert paying.get(captured).pending_operation is Operation.CAPTURE

    second = run()
    assert (second.operations, second.refunds, second.exit_code) == (1, 1, 0)
    assert paying.get(captured).status is PaymentStatus.SUCCEEDED
    assert paying.get_refund(refund).status is RefundStatus.SUCCEEDED


def test_a_lost_refund_is_told_from_another_of_the_same_payment(session):
    payment = paying.paid()
    set_fault(Fault.TIMEOUT_AFTER, count=1)
    lost_refund = paying.refund(payment, 300)
    known = paying.refund(payment, 300)
    age_sandbox(timedelta())

    run()

    assert paying.get_refund(lost_refund).status is RefundStatus.SUCCEEDED
    assert paying.get_refund(lost_refund).provider_ref != known.provider_ref
    assert count(SandboxRefund) == 2


# --- less and less haste ----------------------------------------------------------------------------------------------

MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("old", "looked", "due"),
    [
        (10 * MINUTE, 1 * MINUTE, False),
        (10 * MINUTE, 3 * MINUTE, True),
        (2 * HOURS, 3 * MINUTE, False),
        (2 * HOURS, 11 * MINUTE, True),
        (20 * HOURS, 11 * MINUTE, False),
        (20 * HOURS, 59 * MINUTE, False),
        (20 * HOURS, 61 * MINUTE, True),
    ],
)
def test_the_longer_a_payment_waits_the_less_often_it_is_looked_at(session, old, looked, due):
    payment = paying.make_payment()
    with transaction():
        session.execute(update(Payment).values(created_at=utcnow() - old, synced_at=utcnow() - looked))

    assert [found.id for found in waiting.open_payments(reconcile.SETTLED)] == [payment.id] * due


def test_what_was_looked_at_the_longest_ago_comes_first(session, monkeypatch):
    monkeypatch.setattr(waiting, "BATCH", 2)
    payments = [paying.make_payment() for _ in range(3)]
    with transaction():
        for index, payment in enumerate(payments):
            moment = utcnow() - timedelta(minutes=[30, 50, 40][index])
            session.execute(update(Payment).where(Payment.id == payment.id).values(synced_at=moment))

    assert [found.id for found in waiting.open_payments(NOW)] == [payments[1].id, payments[2].id]


def test_a_refund_that_stays_pending_is_looked_at_less_often(session):
    paying.refund(paying.paid(method="pm_card_pendingRefund"), 300)
    age(Refund, 7 * HOURS)
    assert reconcile.reconcile().refunds == 1

    age(Refund, timedelta())
    assert reconcile.reconcile().refunds == 0


# --- expiry -----------------------------------------------------------------------------------------------------------


def test_a_payment_that_nobody_makes_is_canceled_after_a_day(session):
    payment, young = paying.make_payment(), paying.make_payment()
    with transaction():
        session.execute(
            update(Payment).where(Payment.id == payment.id).values(created_at=utcnow() - timedelta(hours=25))
        )

    report = reconcile.reconcile()

    assert (report.expired, report.exit_code) == (1, 0)
    assert paying.get(payment).status is PaymentStatus.CANCELED
    assert paying.get(young).status is PaymentStatus.REQUIRES_PAYMENT_METHOD
    with pytest.raises(Exception, match="unexpected_state"):
        paying.pay(payment)


def test_a_payment_that_nobody_approves_is_canceled_after_a_day(session):
    payment = paying.paid(method="pm_card_authenticationRequired")
    assert payment.status is PaymentStatus.REQUIRES_ACTION
    age(Payment, 25 * HOURS)

    run()

    assert paying.get(payment).status is PaymentStatus.CANCELED


def test_a_payment_that_the_bank_still_works_on_is_not_canceled(session):
    payment = paying.paid(method="pm_usBankAccount_processing")
    age(Payment, 25 * HOURS)

    run()

    assert paying.get(payment).status is PaymentStatus.PROCESSING


def test_a_payment_that_was_made_at_the_last_moment_is_not_canceled(session):
    payment = paying.make_payment()
    paying.pay(payment)
    age(Payment, 25 * HOURS)

    run()

    assert paying.get(payment).status is PaymentStatus.SUCCEEDED


def test_a_payment_that_was_declined_too_often_is_canceled(session):
    payment = paying.make_payment()
    with pytest.raises(Declined):
        paying.pay(payment, "pm_card_visa_chargeDeclined")
    with transaction():
        session.execute(update(Payment).values(attempts=settings.payments.max_attempts))

    assert run().expired == 1
    assert paying.get(payment).status is PaymentStatus.CANCELED


def test_an_expiry_that_had_no_answer_is_finished_by_the_next_run(session):
    payment = paying.make_payment()
    age(Payment, 25 * HOURS)
    set_fault(Fault.TIMEOUT_BEFORE, count=1)

    first = run()
    assert (first.expired, first.unavailable, first.exit_code) == (0, 1, 2)
    assert paying.get(payment).pending_operation is Operation.CANCEL

    assert run().exit_code == 0
    assert paying.get(payment).status is PaymentStatus.CANCELED


# --- events -----------------------------------------------------------------------------------------------------------


def deliver() -> None:
    """Let the events come, without the jobs that act on them."""
    deliver_due(inbox.take)


def test_events_that_nobody_acted_on_are_acted_on(session):
    payment = paying.make_payment()
    paying.pay(payment)
    deliver()
    with transaction():
        session.execute(update(WebhookEvent).values(status=EventStatus.FAILED))

    assert reconcile.reconcile().events == 0
    assert run().events == 2
    assert set(session.scalars(select(WebhookEvent.status))) == {EventStatus.PROCESSED}


def test_an_event_of_a_payment_that_is_missing_is_told_of(session):
    sandboxing.paid()
    deliver()

    report = run()

    assert (report.events, report.exit_code) == (0, 1)
    events = session.scalars(select(WebhookEvent)).all()
    assert {f"WebhookEvent {event.id}: UnknownPayment" for event in events} < set(report.discrepancies)


def test_after_three_days_an_event_is_left_to_people(session):
    sandboxing.paid()
    deliver()
    age(WebhookEvent, timedelta(days=4))

    run()
    assert set(session.scalars(select(WebhookEvent.attempts))) == {0}
    assert len(reconcile.process_events().discrepancies) == 2


def test_all_events_are_acted_on_however_many(session, monkeypatch):
    monkeypatch.setattr(waiting, "BATCH", 2)
    payments = [paying.make_payment() for _ in range(4)]
    for payment in payments:
        paying.pay(payment)
    sandboxing.make_payment()  # is not known to us
    deliver()

    report = reconcile.process_events()

    assert (report.events, len(report.discrepancies)) == (8, 1)
    assert {paying.get(payment).status for payment in payments} == {PaymentStatus.SUCCEEDED}


# --- comparing --------------------------------------------------------------------------------------------------------


def test_a_payment_that_only_the_provider_has_is_told_of(session):
    orphan = sandboxing.paid()

    report = run()

    assert (report.discrepancies, report.exit_code) == ([f"orphan_at_provider: {orphan.ref}"], 1)


def test_a_payment_of_somebody_else_with_the_same_account_is_not(session):
    sandboxing.paid()
    intent = session.scalars(select(SandboxIntent)).one()
    with transaction():
        intent.wire = intent.wire | {"metadata": {"order": "7"}}

    assert run() == Report()


def test_a_second_payment_at_the_provider_is_told_of_and_not_believed(session):
    payment = paying.paid()
    sandboxing.make_payment()
    intent = session.scalars(select(SandboxIntent).order_by(SandboxIntent.id.desc()).limit(1)).one()
    with transaction():
        intent.wire = intent.wire | {"metadata": {"payment_id": str(payment.id)}}

    assert run().discrepancies == [f"orphan_at_provider: {intent.id}"]
    assert paying.get(payment).status is PaymentStatus.SUCCEEDED


def test_a_refund_made_at_the_provider_is_taken_in_and_told_of(session):
    payment = paying.paid()
    sandboxing.give_back(current_gateway().retrieve_payment(str(payment.provider_ref)), 300)

    report = run()

    assert (report.repaired, report.exit_code) == ([f"Payment {payment.id}: amount_refunded"], 0)
    assert paying.booked(payment) == {"capture": 1000, "refund": 300}
    assert run() == Report()


def test_a_refund_at_the_provider_that_collides_with_one_of_ours_waits_until_that_is_known(session):
    payment = paying.paid()
    set_fault(Fault.TIMEOUT_BEFORE, count=1)
    ours = paying.refund(payment, 900)
    sandboxing.give_back(current_gateway().retrieve_payment(str(payment.provider_ref)), 950)

    compared = compare(since=HOURS, settled=NOW)
    assert compared.left == [f"Payment {payment.id}: more than is left"]

    run()
    assert paying.get_refund(ours).status is RefundStatus.FAILED
    assert paying.get(payment).amount_refunded == 950


def test_another_amount_is_told_of_and_not_believed(session):
    payment = paying.make_payment()
    paying.pay(payment)
    intent = session.scalars(select(SandboxIntent)).one()
    with transaction():
        intent.wire = intent.wire | {"amount": 1, "amount_received": 1}

    report = run()

    assert report.exit_code == 1
    assert f"Payment {payment.id}: status, amount, amount_captured" in report.discrepancies
    found = paying.get(payment)
    assert (found.needs_review, found.status) == (True, PaymentStatus.REQUIRES_PAYMENT_METHOD)


def test_a_payment_we_had_given_up_and_that_was_paid_is_taken_in_and_told_of(session):
    payment = lost(Fault.TIMEOUT_AFTER)
    intent = session.scalars(select(SandboxIntent)).one()
    with transaction():
        session.execute(update(Payment).values(status=PaymentStatus.FAILED, updated_at=utcnow() - HOURS))
        intent.wire = intent.wire | {"status": "succeeded", "amount_received": 1000}

    report = run()

    assert report.repaired == [f"Payment {payment.id}: status, amount_captured"]
    assert (paying.get(payment).status, paying.get(payment).needs_review) == (PaymentStatus.SUCCEEDED, True)


def test_a_payment_we_had_given_up_and_that_could_still_be_paid_is_told_of(session):
    payment = lost(Fault.TIMEOUT_AFTER)
    with transaction():
        session.execute(update(Payment).values(status=PaymentStatus.FAILED))

    assert run().discrepancies == [f"Payment {payment.id}: status"]


def test_what_is_older_than_the_window_is_not_compared(session):
    sandboxing.paid()
    age_sandbox(49 * HOURS)

    assert run() == Report()
    assert len(run(since=timedelta(days=3)).discrepancies) == 1


def test_what_has_just_changed_is_not_compared(session):
    payment = paying.paid()
    sandboxing.give_back(current_gateway().retrieve_payment(str(payment.provider_ref)), 300)

    assert reconcile.reconcile() == Report()


# --- alarms -----------------------------------------------------------------------------------------------------------


def test_an_authorisation_about_to_lapse_is_told_of(session, caplog):
    payment = paying.paid(manual=True)
    assert run().lapsing == []
    with transaction():
        session.execute(update(Payment).values(authorized_at=utcnow() - timedelta(days=6, minutes=1)))

    report = run()

    assert (report.lapsing, report.exit_code) == ([str(payment.id)], 0)
    assert "authorisation_lapses" in errors(caplog)


def test_broken_books_are_told_of(session):
    payment = paying.paid()
    with transaction():
        ledger.post("refund", payment, source_type="refund", source_id=uuid4(), amount=1)

    report = run()

    assert (report.discrepancies, report.exit_code) == (
        [f"refunded is what was posted as refunded: {payment.id}"],
        1,
    )


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_provider_that_is_down_is_not_asked_again_and_again(session, silence):
    price, user = paying.make_price(), make_user()
    rows = [
        {"user_id": user.id, "price_id": price.id, "quantity": 1, "provider": "sandbox", "amount": 1000,
         "currency": "USD", "labels": {}, "created_at": utcnow() - timedelta(minutes=5)}
        for _ in range(20)
    ]  # fmt: skip
    with transaction():
        session.execute(insert(Payment), rows)

    report = run()

    assert silence.asked <= reconcile.ENOUGH + 1
    assert (report.payments, report.exit_code) == (0, 2)
    assert set(session.scalars(select(Payment.status))) == {PaymentStatus.CREATED}


def test_one_that_fails_strangely_does_not_stop_the_others(session, monkeypatch):
    first, second = paying.make_payment(), paying.make_payment()
    paying.pay(second)
    look = service.update_from_provider

    def strange(payment: Payment, *, actor: str) -> Payment:
        if payment.id == first.id:
            raise ValueError("something nobody thought of")
        return look(payment, actor=actor)

    monkeypatch.setattr(service, "update_from_provider", strange)

    report = run()

    assert report.discrepancies == [f"Payment {first.id}: ValueError"]
    assert paying.get(second).status is PaymentStatus.SUCCEEDED


def test_without_the_database_it_ends(session, monkeypatch):
    paying.make_payment()

    def fail(*_: Any, **__: Any) -> NoReturn:
        raise OperationalError("SELECT", {}, ConnectionError())

    monkeypatch.setattr(service, "update_from_provider", fail)

    with pytest.raises(OperationalError):
        run()


def test_a_payment_that_is_not_over_is_not_given_up(session):
    payment = paying.make_payment()
    assert expiry.cancel_if_over(payment.id, reason="expired") is None

    age(Payment, 25 * HOURS)
    paying.pay(payment)
    paying.sync(payment)

    assert expiry.cancel_if_over(payment.id, reason="expired") is None


@pytest.mark.parametrize("other", [{"provider": "stripe"}, {"livemode": True}])
def test_what_another_provider_or_mode_has_is_left_alone(session, other):
    payment = paying.make_payment()
    paying.pay(payment)
    with transaction():
        session.execute(update(Payment).values(**other))

    assert run(since=timedelta(seconds=1), dry_run=True).payments == 0


def test_a_dispute_that_another_provider_has_is_not_asked_for(session, run_jobs):
    payment = paying.paid(method="pm_card_createDispute")
    paying.advance()
    run_jobs()
    with transaction():
        session.execute(update(Payment).values(provider="stripe"))
        session.execute(update(Dispute).values(provider_ref="dp_of_stripe"))
        session.execute(text("DELETE FROM sandbox_disputes"))

    report = run()

    assert report.unavailable == 0
    assert f"orphan_at_provider: {payment.provider_ref}" in report.discrepancies


# --- a dry run --------------------------------------------------------------------------------------------------------


def everything() -> dict[str, list[Any]]:
    """Return all rows there are, but for those of jobs."""
    return {
        table.name: [tuple(row) for row in db.session.execute(select(table))] for table in Base.metadata.sorted_tables
    }


def test_a_dry_run_tells_and_changes_nothing(session):
    lost(Fault.TIMEOUT_BEFORE)
    paying.pay(paying.make_payment())
    deliver()
    refunded = paying.paid()
    set_fault(Fault.TIMEOUT_BEFORE, count=1)
    paying.refund(refunded, 100)
    captured = paying.paid(manual=True)
    set_fault(Fault.TIMEOUT_BEFORE, count=1)
    operations.capture_payment(captured.id, staff_id=make_user().id)
    with transaction():
        session.execute(
            update(Payment)
            .where(Payment.status == PaymentStatus.REQUIRES_PAYMENT_METHOD)
            .values(created_at=utcnow() - timedelta(hours=25))
        )
    before = everything()

    report = run(dry_run=True)

    assert everything() == before
    assert (report.payments, report.operations, report.refunds, report.events, report.expired) == (2, 1, 1, 2, 1)
    assert run().exit_code == 0


def test_a_dry_run_tells_of_differences_without_curing_them(session):
    payment = paying.paid()
    sandboxing.give_back(current_gateway().retrieve_payment(str(payment.provider_ref)), 300)

    report = run(dry_run=True)

    assert report.discrepancies == [f"Payment {payment.id}: amount_refunded"]
    assert paying.get(payment).amount_refunded == 0


# --- one at a time ----------------------------------------------------------------------------------------------------


def test_a_second_run_is_refused_while_one_is_under_way_and_a_dry_one_is_not(session):
    with alone("reconcile"):
        with pytest.raises(AlreadyRunning):
            run()
        run(dry_run=True)

    run()


def test_a_run_that_failed_leaves_no_lock(session):
    with pytest.raises(ZeroDivisionError), alone("reconcile"):
        raise ZeroDivisionError

    with alone("reconcile"), alone("something else"):
        pass


HOLD = """
import os, sys, time
from project import create_app
from project.locks import alone
app = create_app({**os.environ, "APP_ENV": "testing"})
with app.app_context(), alone("reconcile"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_that_was_killed_leaves_no_lock(session, tmp_path):
    url = db.engine.url.render_as_string(hide_password=False)
    secrets = {"SECRET_KEY": "k" * 10 + "0123456789" * 3, "JWT_SECRET_KEYS": "t:" + "abcdefghij" * 4}
    env = {"DATABASE_URL": url, "DATA_DIR": str(tmp_path), "MAIL_URL": "memory://outbox", **secrets}
    with subprocess.Popen([sys.executable, "-c", HOLD], env=env, cwd=ROOT, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyRunning):
            run()
        holder.send_signal(signal.SIGKILL)
        holder.wait()

    free = False
    for _ in range(100):  # PostgreSQL notices the closed connection a moment later
        try:
            run()
        except AlreadyRunning:
            db.session.execute(text("SELECT 1"))
        else:
            free = True
            break
    assert free


def test_of_runs_at_once_each_ends_and_money_moves_once(app, in_app):
    def prepare() -> list[Payment]:
        payments = [paying.paid() for _ in range(4)]
        for payment in payments:
            set_fault(Fault.TIMEOUT_AFTER, count=1)
            refunds.create_refund(payment.id, staff_id=uuid4(), amount=300)
        return payments

    payments = in_app(prepare)

    def attempt(_: int) -> bool:
        try:
            return bool(in_app(run).exit_code == 0)
        except AlreadyRunning:
            return False

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(attempt, range(8)))

    assert any(outcomes)
    assert [in_app(paying.booked, payment) for payment in payments] == [{"capture": 1000, "refund": 300}] * 4
    assert in_app(count, SandboxRefund) == 4


# --- by itself --------------------------------------------------------------------------------------------------------


def test_it_runs_by_itself_and_tells_what_is_left(session, caplog):
    paying.paid()
    orphan = sandboxing.paid()

    reconcile.reconcile_regularly()

    assert errors(caplog) == ["payments_discrepancy"]
    assert [record.reason for record in caplog.records if record.message == "payments_discrepancy"] == [
        f"orphan_at_provider: {orphan.ref}"
    ]


def test_where_nobody_pays_the_provider_is_not_asked(session, silence):
    reconcile.reconcile_regularly()

    assert silence.asked == 0


def test_it_tells_when_the_provider_is_down(session, caplog, monkeypatch):
    paying.paid()
    monkeypatch.setattr(gateway, "_gateway", lambda *_: Silent())

    reconcile.reconcile_regularly()

    assert errors(caplog) == ["payments_provider_unavailable"]


def test_it_leaves_the_work_to_another_that_does_it(session, caplog):
    paying.paid()
    sandboxing.paid()
    with alone("reconcile"):
        reconcile.reconcile_regularly()

    assert errors(caplog) == []


def test_within_a_minute_everything_unknown_is_known(session, time_machine):
    """What an operator sets up who runs it every half minute: all is known 60 seconds after it was asked."""
    payment = lost()
    time_machine.move_to(utcnow() + timedelta(seconds=31))
    reconcile.reconcile(settled=timedelta(seconds=30))

    assert paying.get(payment).provider_ref is not None
    assert count(SandboxEvent) == 1
