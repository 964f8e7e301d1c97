"""The sandbox's side of the wire: parameters, idempotency keys, lists, and what is made to go wrong."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import stripe
from sqlalchemy import select, update

from project.database import db, transaction
from project.payments.gateway import current_gateway
from project.payments.gateway_types import (
    InOtherState,
    Intent,
    Misconfigured,
    OutcomeUnknown,
    Rejected,
    TooManyRequests,
)
from project.payments.models import CaptureMethod, PaymentStatus
from project.payments.sandbox import keys
from project.payments.sandbox.errors import Answer, WireError
from project.payments.sandbox.faults import Fault, set_fault
from project.payments.sandbox.models import SandboxEvent, SandboxFault, SandboxIntent, SandboxKey, SandboxRefund
from project.payments.sandbox.transport import SandboxTransport
from project.payments.sandbox.wire import API_KEY
from project.payments.stripe_gateway import StripeGateway
from tests.files.uploading import at_once
from tests.payments.sandboxing import confirm, give_back, look, make_payment, paid

pytestmark = pytest.mark.usefixtures("session")


def client(key: str = API_KEY) -> stripe.StripeClient:
    """The real SDK, to ask for what our adapter would not."""
    return stripe.StripeClient(key, http_client=SandboxTransport(), max_network_retries=0)


def ask(method: str, path: str, **params: Any) -> dict[str, Any]:
    """Send any request through the SDK and return what the sandbox says."""
    try:
        answer = client().raw_request(method, path, **params)
    except stripe.StripeError as error:
        body: Any = error.json_body
        return {"status": error.http_status, **body["error"]}
    shown: dict[str, Any] = answer.data
    return shown


def count(model: Any) -> int:
    return int(db.session.query(model).count())


# --- Parameters -------------------------------------------------------------------------------------------------------

GOOD = {"amount": 1000, "currency": "usd"}


@pytest.mark.parametrize(
    ("params", "code", "param"),
    [
        ({**GOOD, "colour": "red"}, "parameter_unknown", "colour"),
        ({**GOOD, "metadata": {"a": {"b": "c"}}}, None, "metadata"),
        ({**GOOD, "metadata": "x"}, None, "metadata"),
        ({**GOOD, "metadata": {f"k{n}": "v" for n in range(51)}}, None, "metadata"),
        ({**GOOD, "metadata": {"k" * 41: "v"}}, None, "metadata"),
        ({**GOOD, "metadata": {"k": "v" * 501}}, None, "metadata"),
        ({**GOOD, "automatic_payment_methods": {"on": True}}, "parameter_unknown", "automatic_payment_methods[on]"),
        ({**GOOD, "automatic_payment_methods": {"enabled": "yes"}}, None, "automatic_payment_methods[enabled]"),
        ({**GOOD, "capture_method": "later"}, None, "capture_method"),
        ({**GOOD, "expand": ["customer"]}, None, "expand"),
        ({**GOOD, "expand": "latest_charge"}, None, "expand"),
        ({**GOOD, "amount": "10.5"}, "parameter_invalid_integer", "amount"),
        ({**GOOD, "amount": "9" * 19}, "parameter_invalid_integer", "amount"),
        ({**GOOD, "amount": {"x": 1}}, None, "amount"),
        ({"currency": "usd"}, "parameter_missing", "amount"),
        ({"amount": 1000}, "parameter_missing", "currency"),
    ],
)
def test_a_parameter_that_stripe_would_refuse_is_refused(params, code, param):
    told = ask("post", "/v1/payment_intents", **params)

    assert (told["status"], told["type"], told.get("code"), told["param"]) == (
        400,
        "invalid_request_error",
        code,
        param,
    )
    assert count(SandboxIntent) == 0
    assert count(SandboxKey) == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("get", "/v1/nothing"),
        ("post", "/v1/payment_intents/pi_1"),
        ("post", "/v1/payment_intents/pi_1/confirm"),
        ("get", "/v1/payment_intents/pi_1/x/y"),
        ("delete", "/v1/customers/cus_1"),
    ],
)
def test_a_call_that_we_do_not_use_is_unknown(method, path):
    told = ask(method, path)

    assert (told["status"], told["type"]) == (404, "invalid_request_error")
    assert told["message"] == f"Unrecognized request URL ({method.upper()}: {path})."


def test_another_key_is_not_let_in():
    gateway = StripeGateway(client("sk_test_x"), livemode=False)

    with pytest.raises(Misconfigured):
        gateway.retrieve_payment("pi_sbx_1")


def test_a_charge_is_shown_where_it_is_asked_for():
    payment = paid()

    assert str(ask("get", f"/v1/payment_intents/{payment.ref}")["latest_charge"]).startswith("ch_sbx_")
    shown = ask("get", f"/v1/payment_intents/{payment.ref}", expand=["latest_charge"])["latest_charge"]
    assert (shown["captured"], shown["amount_captured"], shown["paid"]) == (True, 1000, True)


def test_a_charge_tells_what_was_given_back():
    payment = paid()
    for amount, expected in ((400, (400, False)), (600, (1000, True))):
        give_back(payment, amount)
        shown = ask("get", f"/v1/payment_intents/{payment.ref}", expand=["latest_charge"])["latest_charge"]
        assert (shown["amount_refunded"], shown["refunded"]) == expected


def test_a_gateway_is_not_called_inside_a_transaction():
    with pytest.raises(RuntimeError, match="transaction"), transaction():
        current_gateway().retrieve_payment("pi_sbx_1")


# --- Lists ------------------------------------------------------------------------------------------------------------


def test_payments_are_listed_the_newest_first_over_many_pages(monkeypatch):
    monkeypatch.setattr("project.payments.stripe_gateway.PAGE", 2)
    made = [make_payment().ref for _ in range(5)]

    assert [one.ref for one in current_gateway().list_payments(since=datetime(2020, 1, 1, tzinfo=UTC))] == made[::-1]


def test_a_list_begins_at_a_time(time_machine):
    time_machine.move_to("2030-01-31T12:00:00Z", tick=False)
    make_payment()
    time_machine.shift(timedelta(minutes=10))
    since = datetime(2030, 1, 31, 12, 10, tzinfo=UTC)
    made = make_payment()

    assert [one.ref for one in current_gateway().list_payments(since=since)] == [made.ref]


def test_a_payment_is_found_by_our_id():
    make_payment()
    made, later = make_payment(), make_payment()
    since = datetime(2020, 1, 1, tzinfo=UTC)

    assert made.payment_id is not None
    assert current_gateway().find_payment(made.payment_id, since=since) == made
    assert current_gateway().find_payment(uuid4(), since=since) is None
    assert later.payment_id != made.payment_id


def test_refunds_of_others_are_not_listed(monkeypatch):
    monkeypatch.setattr("project.payments.stripe_gateway.PAGE", 1)
    payment, other = paid(), paid()
    give_back(other, 5)
    made = [give_back(payment, amount).ref for amount in (1, 2, 3)]

    assert [one.ref for one in current_gateway().list_refunds(payment.ref)] == made[::-1]
    assert len(ask("get", "/v1/refunds")["data"]) == 4


# --- Idempotency keys -------------------------------------------------------------------------------------------------


def intent(**changes: Any) -> Intent:
    values: dict[str, Any] = {
        "payment_id": uuid4(),
        "amount": 1000,
        "currency": "USD",
        "capture_method": CaptureMethod.MANUAL,
        "description": None,
    }
    return Intent(**{**values, **changes})


def test_what_is_asked_twice_is_done_once():
    wanted = intent()

    first, second = (current_gateway().create_payment(wanted, key="k") for _ in range(2))

    assert first == second
    assert count(SandboxIntent) == count(SandboxEvent) == 1


def test_what_is_given_back_twice_is_given_back_once():
    payment = paid()
    asked: dict[str, Any] = {"amount": 400, "reason": None, "refund_id": uuid4(), "key": "k"}

    first, second = (current_gateway().create_refund(payment.ref, **asked) for _ in range(2))

    assert first == second
    assert count(SandboxRefund) == 1


def test_what_is_asked_again_is_told_as_it_is_now():
    wanted = intent()
    payment = current_gateway().create_payment(wanted, key="k")
    confirm(payment)

    assert current_gateway().create_payment(wanted, key="k").status is PaymentStatus.REQUIRES_CAPTURE


def test_the_kept_answer_is_marked():
    form: Any = {"amount": 1000, "currency": "usd"}
    options: Any = {"idempotency_key": "k"}

    first, second = (client().v1.payment_intents.create(form, options) for _ in range(2))

    assert first.last_response is not None
    assert second.last_response is not None
    assert first.last_response.headers == {}
    assert second.last_response.headers == {"Idempotent-Replayed": "true"}
    assert first.last_response.body == second.last_response.body


def test_a_key_is_for_one_request():
    wanted = intent()
    payment = current_gateway().create_payment(wanted, key="k")

    for other in (intent(), intent(payment_id=wanted.payment_id, amount=2000)):
        with pytest.raises(Rejected, match="idempotency_error"):
            current_gateway().create_payment(other, key="k")
    with pytest.raises(Rejected, match="idempotency_error"):
        current_gateway().cancel(payment.ref, key="k")
    assert count(SandboxIntent) == 1


def test_a_refusal_is_kept_too():
    payment = make_payment(manual=True)
    with pytest.raises(InOtherState):
        current_gateway().capture(payment.ref, amount=None, key="k")
    confirm(payment)

    with pytest.raises(InOtherState):
        current_gateway().capture(payment.ref, amount=None, key="k")
    assert current_gateway().capture(payment.ref, amount=None, key="k2").status is PaymentStatus.SUCCEEDED


def test_of_20_requests_with_one_key_at_once_one_is_done(app):
    wanted = intent()

    ended = at_once(app, [lambda: current_gateway().create_payment(wanted, key="k")] * 20)

    outcomes = Counter(type(one).__name__ for one in ended)
    assert set(outcomes) <= {"PaymentSnapshot", "OutcomeUnknown"}
    assert len({one.ref for one in ended if not isinstance(one, Exception)}) == 1
    assert count(SandboxIntent) == count(SandboxEvent) == 1


def _die() -> dict[str, Any]:
    db.session.add(SandboxFault(kind="made"))
    raise KeyboardInterrupt


def test_a_request_that_fails_gives_its_key_back():
    with pytest.raises(KeyboardInterrupt):
        keys.once("k", "f", _die)

    assert count(SandboxFault) == 0
    assert not keys.once("k", "f", dict).replayed


def test_a_key_whose_request_was_killed_is_taken_over_after_a_while(time_machine):
    time_machine.move_to("2030-01-31T12:00:00Z", tick=False)
    keys._claim("k", "f")

    with pytest.raises(WireError, match="idempotency_key_in_use"):
        keys.once("k", "f", dict)
    time_machine.shift(timedelta(seconds=30))
    assert keys.once("k", "f", lambda: {"x": 1}).body == '{"x": 1}'
    assert keys.once("k", "f", dict).replayed


def test_whoever_has_lost_the_key_undoes_what_it_did(time_machine):
    time_machine.move_to("2030-01-31T12:00:00Z", tick=False)
    claimed_at = keys._claim("k", "f")
    assert isinstance(claimed_at, datetime)

    def finish_late() -> None:
        with transaction():
            db.session.add(SandboxFault(kind="made"))
            keys._keep("k", claimed_at, Answer.of({}))

    time_machine.shift(timedelta(seconds=30))
    keys.once("k", "f", lambda: {"x": 1})
    with pytest.raises(WireError, match="idempotency_key_in_use"):
        finish_late()

    assert count(SandboxFault) == 0
    assert keys.once("k", "f", dict).body == '{"x": 1}'


def test_a_key_that_is_in_use_leaves_the_outcome_open():
    wanted = intent()
    current_gateway().create_payment(wanted, key="k")
    with transaction():
        db.session.execute(update(SandboxKey).values(status=None, body=None))

    with pytest.raises(OutcomeUnknown):
        StripeGateway(client(), livemode=False).create_payment(wanted, key="k")


def test_old_keys_are_forgotten(time_machine):
    time_machine.move_to("2030-01-31T12:00:00Z", tick=False)
    wanted = intent()
    current_gateway().create_payment(wanted, key="k")
    time_machine.shift(timedelta(hours=24))
    keys.purge()
    assert count(SandboxKey) == 1
    time_machine.shift(timedelta(seconds=1))
    keys.purge()

    assert count(SandboxKey) == 0


# --- What is made to go wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "error", "done"),
    [
        (Fault.TIMEOUT_BEFORE, OutcomeUnknown, 0),
        (Fault.TIMEOUT_AFTER, OutcomeUnknown, 1),
        (Fault.HTTP_500, OutcomeUnknown, 0),
        (Fault.RATE_LIMIT, TooManyRequests, 0),
    ],
)
def test_a_call_goes_wrong_as_often_as_was_asked(fault, error, done):
    set_fault(fault, count=2)
    wanted = intent()

    for _ in range(2):
        with pytest.raises(error):
            current_gateway().create_payment(wanted, key="k")
        assert count(SandboxIntent) == done

    assert current_gateway().create_payment(wanted, key="k").payment_id == wanted.payment_id
    assert count(SandboxIntent) == 1


def test_money_that_moved_without_an_answer_moves_once():
    payment = paid(manual=True)
    set_fault(Fault.TIMEOUT_AFTER, count=1)
    with pytest.raises(OutcomeUnknown):
        current_gateway().capture(payment.ref, amount=700, key="c")
    assert current_gateway().capture(payment.ref, amount=700, key="c").amount_received == 700

    set_fault(Fault.TIMEOUT_AFTER, count=1)
    refund_id = uuid4()
    refund: dict[str, Any] = {"amount": 500, "reason": None, "refund_id": refund_id, "key": "r"}
    with pytest.raises(OutcomeUnknown):
        current_gateway().create_refund(payment.ref, **refund)
    [found] = current_gateway().list_refunds(payment.ref)
    assert current_gateway().create_refund(payment.ref, **refund) == found
    assert found.refund_id == refund_id


def test_who_only_looks_is_spared():
    payment = make_payment()
    set_fault(Fault.TIMEOUT_BEFORE, count=1)

    assert look(payment) == payment
    with pytest.raises(OutcomeUnknown):
        current_gateway().cancel(payment.ref, key="k")
    assert current_gateway().cancel(payment.ref, key="k").status is PaymentStatus.CANCELED


def test_a_fault_can_be_called_off():
    set_fault(Fault.HTTP_500, count=5)
    set_fault(Fault.HTTP_500, count=0)

    assert make_payment().ref


def test_of_many_calls_at_once_as_many_go_wrong_as_was_asked(app):
    set_fault(Fault.RATE_LIMIT, count=4)

    ended = at_once(app, [make_payment] * 10)

    assert Counter(type(one).__name__ for one in ended) == {"TooManyRequests": 4, "PaymentSnapshot": 6}
    assert db.session.scalars(select(SandboxFault.remaining)).all() == [0]


def test_events_are_json_of_the_object_as_it_was():
    payment = make_payment()
    confirm(payment)

    payloads = [json.loads(text) for text in db.session.scalars(select(SandboxEvent.payload).order_by(SandboxEvent.id))]

    assert [one["data"]["object"]["status"] for one in payloads] == ["requires_payment_method", "succeeded"]
    assert {one["data"]["object"]["id"] for one in payloads} == {payment.ref}
