"""The sandbox's webhooks: made with what they tell, signed, delivered in order and again, and made to go wrong."""

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from project.database import db, transaction, utcnow
from project.payments.gateway import current_gateway
from project.payments.gateway_types import BadSignature, Declined, Event, OutcomeUnknown, Rejected
from project.payments.sandbox import clock, delivery, events
from project.payments.sandbox.delivery import MAX_ATTEMPTS, deliver_due
from project.payments.sandbox.faults import Fault, set_fault
from project.payments.sandbox.models import SandboxEvent
from tests.files.uploading import at_once
from tests.payments.sandboxing import Listener, authenticate, confirm, give_back, make_payment, paid

pytestmark = pytest.mark.usefixtures("session")

BEGUN = "2030-01-31T12:00:00Z"


@pytest.fixture
def listener() -> Listener:
    """Whoever is told of what happens."""
    return Listener()


def told(listener: Listener) -> list[str]:
    """Deliver what is due, and return all that was delivered so far."""
    deliver_due(listener)
    return listener.types


# --- What is told -----------------------------------------------------------------------------------------------------


def test_a_payment_is_told_of_in_order(listener):
    payment = paid(manual=True)
    current_gateway().capture(payment.ref, amount=None, key="k")

    assert told(listener) == [
        "payment_intent.created",
        "payment_intent.amount_capturable_updated",
        "payment_intent.succeeded",
    ]
    [found] = {(event.object_type, event.object_ref, event.livemode) for event in listener.events}
    assert found == ("payment_intent", payment.ref, False)
    assert len({event.id for event in listener.events}) == 3


@pytest.mark.parametrize(
    ("method", "kinds"),
    [
        ("pm_usBankAccount_success", ["processing", "succeeded"]),
        ("pm_usBankAccount_insufficientFunds", ["processing", "payment_failed"]),
        ("pm_usBankAccount_processing", ["processing"]),
        ("pm_card_authenticationRequired", ["requires_action"]),
    ],
)
def test_each_step_of_a_payment_is_told_of(listener, method, kinds):
    paid(method)

    clock.advance(listener)

    assert listener.types == [f"payment_intent.{kind}" for kind in ("created", *kinds)]


def test_declines_and_cancels_are_told_of(listener):
    payment = make_payment()
    with pytest.raises(Declined):
        confirm(payment, "pm_card_visa_chargeDeclined")
    confirm(payment, "pm_card_authenticationRequired")
    authenticate(payment, "fail")
    current_gateway().cancel(payment.ref, key="k")

    assert told(listener)[1:] == [
        "payment_intent.payment_failed",
        "payment_intent.requires_action",
        "payment_intent.payment_failed",
        "payment_intent.canceled",
    ]


def test_refunds_are_told_of(listener):
    payment = paid("pm_card_refundFail")
    refund = give_back(payment, 1)

    clock.advance(listener)

    assert listener.types[2:] == ["refund.created", "charge.refunded", "refund.failed", "charge.refund.updated"]
    about = [(event.object_type, event.object_ref) for event in listener.events[2:]]
    assert about == [("refund", refund.ref), ("charge", payment.ref), ("refund", refund.ref), ("refund", refund.ref)]


def test_a_refund_that_was_pending_is_told_of(listener):
    give_back(paid("pm_card_pendingRefund"), 1)

    clock.advance(listener)

    assert listener.types[2:] == ["refund.created", "charge.refunded", "refund.updated", "charge.refund.updated"]


def test_disputes_are_told_of(listener):
    paid("pm_card_createDispute")

    clock.advance(listener)

    assert listener.types[2:] == ["charge.dispute.created", "charge.dispute.funds_withdrawn"]
    assert {(event.object_type, event.object_ref[:7]) for event in listener.events[2:]} == {("dispute", "dp_sbx_")}


def test_what_was_refused_is_not_told_of(listener):
    payment = paid()
    with pytest.raises(Rejected):
        give_back(payment, 1001)
    with pytest.raises(Rejected):
        make_payment(amount=1)

    assert told(listener) == ["payment_intent.created", "payment_intent.succeeded"]


def test_what_was_done_without_an_answer_is_told_of(listener):
    set_fault(Fault.TIMEOUT_AFTER, count=1)
    with pytest.raises(OutcomeUnknown):
        make_payment()

    assert told(listener) == ["payment_intent.created"]


# --- Delivery ---------------------------------------------------------------------------------------------------------


def test_what_was_delivered_is_not_delivered_again(listener):
    paid()

    assert deliver_due(listener) == 2
    assert deliver_due(listener) == 0
    assert clock.advance(listener) == 0


def test_the_number_of_what_was_taken_is_told(listener):
    make_payment()
    listener.statuses = [500]

    assert clock.advance(listener) == 0
    assert clock.advance(listener) == 1


@pytest.mark.parametrize("status", [301, 400, 404, 500, 503])
def test_what_was_not_taken_comes_again_ever_later(listener, time_machine, status):
    time_machine.move_to(BEGUN, tick=False)
    make_payment()
    listener.statuses = [status] * 3

    for seconds in (5, 10, 20):
        assert deliver_due(listener) == 0
        time_machine.shift(timedelta(seconds=seconds - 1))
        before = len(listener.statuses)
        deliver_due(listener)
        assert len(listener.statuses) == before
        time_machine.shift(timedelta(seconds=1))

    assert told(listener) == ["payment_intent.created"]


def test_what_nobody_takes_is_given_up(listener, time_machine):
    time_machine.move_to(BEGUN, tick=False)
    make_payment()
    listener.statuses = [500] * MAX_ATTEMPTS

    for _ in range(MAX_ATTEMPTS + 1):
        assert deliver_due(listener) == 0
        time_machine.shift(timedelta(hours=1))

    assert listener.statuses == []


def test_one_that_is_not_taken_holds_up_no_other(listener):
    paid()
    listener.statuses = [500]

    assert told(listener) == ["payment_intent.succeeded"]


def test_a_delivery_that_dies_is_made_up_for(listener, time_machine):
    time_machine.move_to(BEGUN, tick=False)
    make_payment()

    def die(_raw: bytes, _header: str) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deliver_due(die)
    assert told(listener) == []
    time_machine.shift(timedelta(seconds=5))
    assert told(listener) == ["payment_intent.created"]


def test_no_transaction_is_open_while_an_event_is_sent():
    make_payment()

    def send(_raw: bytes, _header: str) -> int:
        with transaction():
            assert db.session().info["transaction"]
        return 200

    assert deliver_due(send) == 1


def test_nothing_is_sent_inside_a_transaction(listener):
    make_payment()

    with pytest.raises(RuntimeError, match="transaction"), transaction():
        deliver_due(listener)
    assert listener.types == []


def test_what_an_event_leads_to_is_left_to_the_next_delivery():
    payment = make_payment()

    def send(raw: bytes, _header: str) -> int:
        if b"payment_intent.created" in raw:
            confirm(payment)
        return 200

    assert deliver_due(send) == 1
    assert deliver_due(send) == 1
    assert deliver_due(send) == 0


def test_several_that_deliver_at_once_deliver_each_event_once(app, listener):
    for _ in range(10):
        make_payment()

    ended = at_once(app, [lambda: deliver_due(listener)] * 6)

    assert sum(one for one in ended if isinstance(one, int)) == 10
    assert len({event.id for event in listener.events}) == len(listener.events) == 10


def test_old_events_are_deleted(listener, time_machine):
    time_machine.move_to(BEGUN, tick=False)
    make_payment()
    time_machine.shift(timedelta(days=31))
    events.purge()
    assert told(listener) == ["payment_intent.created"]
    time_machine.shift(timedelta(days=31))
    events.purge()

    assert db.session.query(SandboxEvent).count() == 0


def test_a_signature_belongs_to_one_installation(app, monkeypatch):
    ours = delivery.signing_secret()
    settings = app.extensions["settings"]
    monkeypatch.setattr("project.signing.settings", type("", (), {"secret_key": settings.secret_key + "x"}))

    assert ours.startswith("whsec_sbx_")
    assert delivery.signing_secret() != ours


# --- What is made to go wrong -----------------------------------------------------------------------------------------


def test_an_event_can_get_lost(listener):
    set_fault(Fault.DROP_WEBHOOK, count=1)
    paid()

    assert deliver_due(listener) == 1
    assert clock.advance(listener) == 0
    assert listener.types == ["payment_intent.succeeded"]


def test_an_event_can_come_twice(listener):
    set_fault(Fault.DUPLICATE_WEBHOOK, count=1)
    paid()

    assert told(listener) == ["payment_intent.created"] * 2 + ["payment_intent.succeeded"]
    assert listener.events[0] == listener.events[1]
    assert listener.payloads[0] == listener.payloads[1]


def test_an_event_can_be_signed_wrongly_and_comes_again(listener, time_machine):
    time_machine.move_to(BEGUN, tick=False)
    set_fault(Fault.BAD_SIGNATURE, count=1)
    make_payment()
    refused: list[int] = []

    def route(raw: bytes, header: str) -> int:
        try:
            return listener(raw, header)
        except BadSignature:
            refused.append(400)
            return 400

    assert (deliver_due(route), refused) == (0, [400])
    time_machine.shift(timedelta(seconds=5))
    assert deliver_due(route) == 1
    assert listener.types == ["payment_intent.created"]


@pytest.mark.parametrize("count", [2, 3, 10])
def test_events_can_come_in_the_wrong_order(listener, time_machine, count):
    time_machine.move_to(BEGUN, tick=False)
    set_fault(Fault.REORDER_WEBHOOKS, count=count)
    paid()

    assert told(listener) == []
    time_machine.shift(timedelta(seconds=count))
    assert told(listener) == ["payment_intent.succeeded", "payment_intent.created"]


def test_events_in_the_wrong_order_are_delivered_at_once_when_asked(listener):
    set_fault(Fault.REORDER_WEBHOOKS, count=2)
    paid(manual=True)
    confirm(make_payment())

    clock.advance(listener)

    assert Counter(listener.types)["payment_intent.created"] == 2
    assert listener.types[-2:] == ["payment_intent.amount_capturable_updated", "payment_intent.created"]


def test_nobody_waits_long_for_the_wrong_order(listener, time_machine):
    time_machine.move_to(BEGUN, tick=False)
    set_fault(Fault.REORDER_WEBHOOKS, count=1000)
    make_payment()
    time_machine.shift(timedelta(seconds=events.MAX_SECONDS_LATE))

    assert told(listener) == ["payment_intent.created"]


def test_a_fault_befalls_the_events_of_what_comes_and_not_of_what_was(listener):
    make_payment()
    set_fault(Fault.DROP_WEBHOOK, count=5)
    make_payment()

    assert told(listener) == ["payment_intent.created"]
    left: list[Any] = list(db.session.scalars(select(SandboxEvent.fault).order_by(SandboxEvent.id)))
    assert left == [None, "drop_webhook"]


def test_an_event_that_is_signed_late_is_still_fresh(listener, time_machine):
    time_machine.move_to(BEGUN, tick=False)
    make_payment()
    time_machine.shift(timedelta(hours=5))

    assert told(listener) == ["payment_intent.created"]
    assert isinstance(listener.events[0], Event)
    assert utcnow().hour == 17
