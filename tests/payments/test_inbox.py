"""What becomes of webhook events: whose they are, what they do, and what is tried again."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from typing import Any, NoReturn
from uuid import UUID, uuid4

import pytest
from flask import Flask
from sqlalchemy import select, update

from project.config import settings
from project.database import db, transaction, uuid7
from project.errors import NotFound
from project.pagination import PageRequest
from project.payments import inbox
from project.payments.gateway import current_gateway
from project.payments.gateway_types import Event, OutcomeUnknown
from project.payments.inbox import AlreadyProcessed, UnknownPayment
from project.payments.journal import EventStatus, WebhookEvent
from project.payments.models import DisputeState, Payment, PaymentStatus, Refund, RefundOrigin
from project.payments.sandbox.models import SandboxEvent, SandboxIntent
from tests.factories import make_user
from tests.payments import paying, sandboxing

DECLINED = "pm_card_visa_chargeDeclined"


def take(payload: str | dict[str, Any], *, provider: str = "sandbox") -> UUID:
    """Take an event as the webhook's route does, and return its row's id."""
    text = payload if isinstance(payload, str) else json.dumps(payload)
    said = json.loads(text)
    about = said["data"]["object"]
    ref = about.get("payment_intent") or about["id"] if about["object"] == "charge" else about["id"]
    inbox.receive(Event(said["id"], said["type"], said["livemode"], about["object"], ref), text, provider=provider)
    known = (WebhookEvent.event_id == said["id"], WebhookEvent.provider == provider)
    return db.session.scalars(select(WebhookEvent.id).where(*known)).one()


def process(event_id: UUID) -> WebhookEvent:
    """Act on an event and return it."""
    inbox.process(event_id=str(event_id))
    return get(event_id)


def get(event_id: UUID) -> WebhookEvent:
    found = select(WebhookEvent).where(WebhookEvent.id == event_id)
    return db.session.scalars(found, execution_options={"populate_existing": True}).one()


def payloads(kind: str = "payment_intent") -> list[str]:
    """Return the events of a kind that the sandbox would deliver, the oldest first."""
    made = select(SandboxEvent.payload).where(SandboxEvent.type.startswith(kind)).order_by(SandboxEvent.id)
    return list(db.session.scalars(made))


def about(object_type: str, ref: str, **values: Any) -> dict[str, Any]:
    """Return an event about an object."""
    said = {"id": f"evt_{uuid4().hex}", "type": f"{object_type}.updated", "livemode": False, "pending_webhooks": 1}
    return {**said, "data": {"object": {"id": ref, "object": object_type}}, **values}


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.ERROR]


# --- what is stored ---------------------------------------------------------------------------------------------------


def test_an_event_that_comes_again_is_stored_once(session, caplog):
    paying.paid()
    [_, succeeded] = payloads()

    first, again = take(succeeded), take(json.loads(succeeded) | {"pending_webhooks": 0})

    assert first == again
    assert errors(caplog) == []


def test_an_event_that_says_otherwise_the_second_time_has_no_effect_and_is_told_of(session, caplog):
    payment, other = paying.make_payment(), paying.make_payment()
    paying.pay(payment)
    said = json.loads(payloads("payment_intent.succeeded")[0])
    process(take(said))

    said["data"]["object"]["id"] = other.provider_ref
    take(said)

    assert errors(caplog) == ["webhook_event_differs"]
    assert paying.get(payment).status is PaymentStatus.SUCCEEDED
    assert paying.get(other).status is PaymentStatus.REQUIRES_PAYMENT_METHOD


@pytest.mark.parametrize(
    "change", [{"type": "payment_intent.canceled"}, {"livemode": True}, {"data": {"object": {"amount": 1}}}]
)
def test_whatever_differs_is_told_of(session, caplog, change):
    said = about("payment_intent", "pi_1")
    take(said)
    event = json.loads(json.dumps(said))
    event["data"]["object"] |= change.get("data", {}).get("object", {})
    take(event | {name: value for name, value in change.items() if name != "data"})

    assert errors(caplog) == ["webhook_event_differs"]


def test_what_was_purged_is_compared_by_what_is_left(session, caplog):
    event_id = take(about("payment_intent", "pi_1", id="evt_1"))
    with transaction():
        session.execute(update(WebhookEvent).values(payload=None))

    take(about("payment_intent", "pi_1", id="evt_1"))
    assert errors(caplog) == []
    take(about("payment_intent", "pi_2", id="evt_1"))
    assert errors(caplog) == ["webhook_event_differs"]
    assert get(event_id).object_ref == "pi_1"


def test_two_providers_may_name_their_events_alike(session):
    said = about("payment_intent", "pi_1")

    assert take(said) != take(said, provider="stripe")


# --- what they do -----------------------------------------------------------------------------------------------------


def test_an_event_makes_the_payment_what_the_provider_says_now_and_not_what_it_said_then(session):
    payment = paying.make_payment(manual=True)
    [created] = payloads()
    paying.pay(payment)

    event = process(take(created))

    assert (event.status, event.attempts, event.last_error) == (EventStatus.PROCESSED, 1, None)
    assert event.processed_at is not None
    assert paying.get(payment).status is PaymentStatus.REQUIRES_CAPTURE


def test_an_event_is_acted_on_once(session):
    paying.pay(paying.make_payment())
    event_id = take(payloads()[-1])
    process(event_id)

    assert process(event_id).attempts == 1


@pytest.mark.parametrize("order", list(permutations(range(4)))[::5])
def test_four_events_in_any_order_and_each_twice_end_the_same(session, order):
    payment = paying.make_payment(manual=True)
    paying.pay(payment)
    paying.sync(payment)
    ref, key = payment.provider_ref or "", str(uuid4())
    current_gateway().capture(ref, amount=600, key=f"{key}:capture")
    current_gateway().create_refund(ref, amount=200, reason=None, refund_id=uuid4(), key=key)
    kinds = [
        "payment_intent.amount_capturable_updated",
        "payment_intent.succeeded",
        "refund.created",
        "charge.refunded",
    ]
    said = [payloads(kind)[0] for kind in kinds]

    for index in [*order, *reversed(order)]:
        event = process(take(said[index]))
        assert event.status is EventStatus.PROCESSED
        process(event.id)

    found = paying.get(payment)
    assert (found.status, found.amount_captured, found.amount_refunded) == (PaymentStatus.SUCCEEDED, 600, 200)
    assert found.amount_refund_reserved == 0
    assert paying.booked(payment) == {"capture": 600, "refund": 200}


def test_a_refund_made_at_the_provider_is_adopted(session):
    payment = paying.paid()
    sandboxing.give_back(current_gateway().retrieve_payment(payment.provider_ref or ""), 300)

    process(take(payloads("charge.refunded")[0]))

    [refund] = session.scalars(select(Refund)).all()
    assert (refund.payment_id, refund.amount, refund.origin) == (payment.id, 300, RefundOrigin.PROVIDER)
    assert paying.booked(payment) == {"capture": 1000, "refund": 300}


@pytest.mark.parametrize("kind", ["charge.refunded", "refund.created"])
def test_a_refund_of_a_payment_whose_success_was_not_heard_of_brings_both(session, kind):
    payment = paying.make_payment()
    paying.pay(payment)
    sandboxing.give_back(current_gateway().retrieve_payment(payment.provider_ref or ""), 300)
    with transaction():  # as after a create whose answer was lost
        session.execute(update(Payment).values(provider_ref=None, status=PaymentStatus.CREATED))

    assert process(take(payloads(kind)[0])).status is EventStatus.PROCESSED

    found = paying.get(payment)
    assert (found.status, found.amount_refunded) == (PaymentStatus.SUCCEEDED, 300)


def test_a_dispute_is_mirrored(session):
    payment = paying.paid(method="pm_card_createDispute")
    paying.advance()

    assert process(take(payloads("charge.dispute.created")[0])).status is EventStatus.PROCESSED
    assert paying.get(payment).dispute_status is DisputeState.OPEN


def test_declined_attempts_are_counted_once_each(session):
    payment = paying.make_payment()
    for _ in range(3):
        with pytest.raises(Exception, match="card_declined"):
            paying.pay(payment, DECLINED)

    for said in payloads("payment_intent.payment_failed") * 2:
        process(take(said))

    assert paying.get(payment).attempts == 3


def test_a_payment_on_which_cards_are_tried_is_canceled_at_once(session, run_jobs):
    payment = paying.make_payment()
    for _ in range(settings.payments.max_attempts):
        with pytest.raises(Exception, match="card_declined"):
            paying.pay(payment, DECLINED)

    run_jobs()

    found = paying.get(payment)
    assert (found.status, found.attempts, found.pending_operation) == (PaymentStatus.CANCELED, 10, None)
    with pytest.raises(Exception, match="unexpected_state"):
        paying.pay(payment)


def test_one_attempt_less_leaves_it(session, run_jobs):
    payment = paying.make_payment()
    for _ in range(settings.payments.max_attempts - 1):
        with pytest.raises(Exception, match="card_declined"):
            paying.pay(payment, DECLINED)
    run_jobs()

    paying.pay(payment)
    run_jobs()

    assert paying.get(payment).status is PaymentStatus.SUCCEEDED


def test_many_jobs_of_one_event_have_one_effect(app: Flask, in_app):
    def prepare() -> tuple[Payment, UUID]:
        payment = paying.make_payment()
        paying.pay(payment)
        return payment, take(payloads()[-1])

    payment, event_id = in_app(prepare)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: in_app(inbox.process, event_id=str(event_id)), range(24)))

    assert in_app(get, event_id).status is EventStatus.PROCESSED
    assert in_app(paying.booked, payment) == {"capture": 1000}
    assert in_app(paying.get, payment).receipt_number.endswith("-000001")


# --- whose they are ---------------------------------------------------------------------------------------------------


def test_a_payment_that_is_not_ours_is_ignored(session):
    made = sandboxing.make_payment()
    intent = session.scalars(select(SandboxIntent)).one()
    with transaction():
        intent.wire = intent.wire | {"metadata": {"order": "7"}}

    event = process(take(payloads()[0]))

    assert (event.status, event.last_error, event.object_ref) == (EventStatus.IGNORED, None, made.ref)


@pytest.mark.parametrize("object_type", ["refund", "charge", "dispute", "payment_intent"])
def test_what_the_provider_does_not_know_is_ignored(session, object_type):
    assert process(take(about(object_type, "xx_unknown"))).status is EventStatus.IGNORED


@pytest.mark.parametrize("object_type", ["customer", "balance", "payout"])
def test_what_we_know_nothing_of_is_ignored(session, object_type):
    assert process(take(about(object_type, "xx_1"))).status is EventStatus.IGNORED


def test_a_refund_of_a_payment_that_is_not_ours_is_ignored(session):
    made = sandboxing.paid()
    sandboxing.give_back(made, 100)
    intent = session.scalars(select(SandboxIntent)).one()
    with transaction():
        intent.wire = intent.wire | {"metadata": {}}

    assert process(take(payloads("refund.created")[0])).status is EventStatus.IGNORED
    assert process(take(payloads("charge.refunded")[0])).status is EventStatus.IGNORED


@pytest.mark.parametrize("kind", ["payment_intent.succeeded", "refund.created", "charge.refunded"])
def test_what_says_that_it_is_ours_and_is_unknown_is_tried_again_until_it_is_known(session, kind):
    made = sandboxing.paid()
    sandboxing.give_back(made, 100)
    event_id = take(payloads(kind)[0])
    for attempt in (1, 2):
        with pytest.raises(UnknownPayment):
            process(event_id)
        event = get(event_id)
        assert (event.status, event.attempts) == (EventStatus.FAILED, attempt)
        assert (event.last_error, event.processed_at) == ("UnknownPayment", None)

    price = paying.make_price()
    with transaction():
        payment = Payment(
            id=made.payment_id, user_id=make_user().id, price_id=price.id, quantity=1, provider="sandbox",
            amount=1000, currency="USD", labels={},
        )  # fmt: skip
        session.add(payment)

    assert process(event_id).status is EventStatus.PROCESSED
    assert paying.get(payment).status is PaymentStatus.SUCCEEDED


def test_an_event_of_the_other_mode_is_ignored_and_told_of(session, caplog):
    payment = paying.make_payment()
    paying.pay(payment)

    event = process(take(json.loads(payloads()[-1]) | {"livemode": True}))

    assert (event.status, event.last_error) == (EventStatus.IGNORED, "other_mode")
    assert errors(caplog) == ["webhook_event_of_another_mode"]
    assert paying.get(payment).status is PaymentStatus.REQUIRES_PAYMENT_METHOD


def test_an_event_of_the_provider_before_this_one_is_ignored_and_told_of(session, caplog):
    assert process(take(about("payment_intent", "pi_1"), provider="stripe")).status is EventStatus.IGNORED
    assert errors(caplog) == ["webhook_event_of_another_mode"]


# --- what is tried again ----------------------------------------------------------------------------------------------


class Silent:
    """A provider that does not answer."""

    livemode = False

    def __getattr__(self, name: str) -> Any:
        def silent(*_: Any, **__: Any) -> NoReturn:
            raise OutcomeUnknown(name)

        return silent


def test_while_the_provider_is_away_an_event_waits(session, monkeypatch):
    payment = paying.make_payment()
    paying.pay(payment)
    event_id = take(payloads()[-1])
    with monkeypatch.context() as patch:
        patch.setattr(inbox, "current_gateway", Silent)
        with pytest.raises(OutcomeUnknown):
            process(event_id)
    assert (get(event_id).status, get(event_id).last_error) == (EventStatus.FAILED, "OutcomeUnknown")

    assert process(event_id).status is EventStatus.PROCESSED


def test_staff_have_a_failed_event_tried_again(session, run_jobs, monkeypatch):
    payment = paying.make_payment()
    paying.pay(payment)
    event_id = take(payloads()[-1])
    with monkeypatch.context() as patch:
        patch.setattr(inbox, "current_gateway", Silent)
        with pytest.raises(OutcomeUnknown):
            process(event_id)

    assert inbox.retry(event_id).status is EventStatus.RECEIVED
    run_jobs()

    assert get(event_id).status is EventStatus.PROCESSED
    with pytest.raises(AlreadyProcessed):
        inbox.retry(event_id)


def test_an_unknown_event_cannot_be_tried_again(session):
    with pytest.raises(NotFound):
        inbox.retry(uuid7())


# --- lists ------------------------------------------------------------------------------------------------------------


def test_events_are_listed_by_what_became_of_them(session):
    ignored, received = take(about("customer", "cus_1")), take(about("customer", "cus_2"))
    process(ignored)
    page = PageRequest(limit=10)

    assert [event.id for event in inbox.list_events(caller_id=uuid7(), page=page)] == [received, ignored]
    listed = inbox.list_events(caller_id=uuid7(), page=page, status=EventStatus.IGNORED)
    assert [event.id for event in listed] == [ignored]
