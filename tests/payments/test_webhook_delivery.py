"""Webhooks over HTTP: who is believed and who is not, what a repeated one does, and how the sandbox sends its own."""

import hashlib
import hmac
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, select

from project import create_app
from project.database import db, utcnow
from project.payments.journal import EventStatus, LedgerEntry, WebhookEvent
from project.payments.models import PaymentStatus
from project.payments.sandbox.delivery import signing_secret
from project.payments.sandbox.faults import Fault, set_fault
from project.payments.sandbox.models import SandboxEvent
from tests.conftest import ENV
from tests.payments import paying

PATH = "/v1/payments/webhooks/sandbox"
NOON = datetime(2030, 5, 1, 12, tzinfo=UTC)


def sign(body: bytes, secret: str, *, at: float | None = None, scheme: str = "v1") -> str:
    """Return the header for a body, made as Stripe's documentation says: not by the SDK that reads it."""
    time = int(utcnow().timestamp() if at is None else at)
    digest = hmac.new(secret.encode(), f"{time}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={time},{scheme}={digest}"


@pytest.fixture
def secret(in_app) -> str:
    """What the sandbox signs with."""
    return str(in_app(signing_secret))


@pytest.fixture
def payment(in_app) -> Any:
    """A payment that its customer has paid; we have not heard of it."""

    def make() -> Any:
        made = paying.make_payment()
        paying.pay(made)
        return made

    return in_app(make)


@pytest.fixture
def body(in_app, payment) -> bytes:
    """The event that tells of its success."""
    return str(in_app(lambda: payload("payment_intent.succeeded"))).encode()


def payload(kind: str) -> str:
    """Return the event of this kind."""
    return db.session.scalars(select(SandboxEvent.payload).where(SandboxEvent.type == kind)).one()


def post(client: FlaskClient, body: bytes, header: str | None, path: str = PATH) -> Any:
    """Post a webhook as a provider does."""
    headers = {} if header is None else {"Stripe-Signature": header}
    return client.post(path, data=body, content_type="application/json", headers=headers)


def stored() -> list[tuple[str, EventStatus]]:
    """Return the events that we have, and what became of them."""
    return [(event.event_id, event.status) for event in db.session.scalars(select(WebhookEvent))]


def status_of(payment: Any) -> PaymentStatus:
    return paying.get(payment).status


# --- who is not believed ----------------------------------------------------------------------------------------------

Forgery = Callable[[bytes, str], tuple[bytes, str | None]]
FORGERIES: dict[str, Forgery] = {
    "unsigned": lambda body, _: (body, None),
    "empty": lambda body, _: (body, ""),
    "garbage": lambda body, _: (body, "garbage"),
    "only a time": lambda body, _: (body, f"t={int(utcnow().timestamp())}"),
    "only a signature": lambda body, secret: (body, sign(body, secret).partition(",")[2]),
    "a time that is none": lambda body, secret: (body, sign(body, secret).replace("t=", "t=x")),
    "another secret": lambda body, secret: (body, sign(body, f"{secret}x")),
    "no secret": lambda body, _: (body, sign(body, "")),
    "a scheme for tests": lambda body, secret: (body, sign(body, secret, scheme="v0")),
    "stale": lambda body, secret: (body, sign(body, secret, at=utcnow().timestamp() - 400)),
    "of the future": lambda body, secret: (body, sign(body, secret, at=utcnow().timestamp() + 400)),
    "made fresh": lambda body, secret: (body, _with_time_of_now(sign(body, secret, at=1))),
    "altered": lambda body, secret: (body.replace(b'"amount": 1000', b'"amount": 1001'), sign(body, secret)),
    "one byte more": lambda body, secret: (body + b" ", sign(body, secret)),
    "written anew": lambda body, secret: (json.dumps(json.loads(body), indent=1).encode(), sign(body, secret)),
    "signed in capitals": lambda body, secret: (body, sign(body, secret).upper().replace("T=", "t=", 1)),
    "cut": lambda body, secret: (body, sign(body, secret)[:-1]),
    "letters beyond ASCII": lambda body, secret: (body, sign(body, secret)[:-1] + "é"),
    "not UTF-8": lambda body, secret: (body + b"\xff", sign(body + b"\xff", secret)),
    "malformed, by nobody": lambda _, __: (b'{"id": ', sign(b'{"id": ', "somebody else")),
    "malformed": lambda _, secret: (b'{"id": ', sign(b'{"id": ', secret)),
    "no event": lambda _, secret: (b"{}", sign(b"{}", secret)),
    "a list": lambda _, secret: (b"[]", sign(b"[]", secret)),
    "nothing": lambda _, secret: (b"", sign(b"", secret)),
}


def _with_time_of_now(header: str) -> str:
    return f"t={int(utcnow().timestamp())},{header.partition(',')[2]}"


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
def test_what_nobody_with_the_secret_has_signed_now_is_refused_and_changes_nothing(
    client, in_app, secret, payment, body, forge
):
    sent, header = forge(body, secret)
    response = post(client, sent, header)

    assert (response.status_code, response.json["code"]) == (400, "invalid_signature")
    assert in_app(stored) == []
    assert in_app(status_of, payment) is PaymentStatus.REQUIRES_PAYMENT_METHOD
    assert in_app(paying.booked, payment) == {}


@pytest.mark.parametrize(("seconds", "status"), [(-301, 400), (-300, 200), (300, 200), (301, 400)])
def test_a_signature_is_good_for_five_minutes(client, in_app, secret, body, seconds, status, time_machine):
    time_machine.move_to(NOON, tick=False)

    assert post(client, body, sign(body, secret, at=NOON.timestamp() + seconds)).status_code == status
    assert len(in_app(stored)) == (status == 200)


def test_the_log_tells_the_operator_why(client, secret, body, caplog):
    post(client, body, sign(body, "another"))
    post(client, body, sign(body, secret, at=1))

    told = [vars(record)["reason"] for record in caplog.records if record.message == "webhook_refused"]
    assert told == ["the signature is of none of our secrets", "the signature is too old, or of the future"]
    assert secret not in caplog.text


def test_one_good_signature_among_several_is_enough(client, in_app, secret, body):
    header = f"{sign(body, 'the old secret')},{sign(body, secret).partition(',')[2]},v0=00,v2=00"

    assert post(client, body, header).status_code == 200
    assert len(in_app(stored)) == 1


def test_a_secret_that_comes_with_the_request_counts_for_nothing(client, in_app, body):
    headers = {"Stripe-Signature": sign(body, "mine"), "Stripe-Secret": "mine", "X-Webhook-Secret": "mine"}

    assert client.post(f"{PATH}?x=mine", data=body, headers=headers).status_code in {400, 422}
    assert client.post(PATH, data=body, headers=headers).status_code == 400
    assert in_app(stored) == []


def test_a_webhook_of_another_provider_is_not_found(client, in_app, secret, body):
    response = post(client, body, sign(body, secret), "/v1/payments/webhooks/stripe")

    assert (response.status_code, response.json["code"]) == (404, "not_found")
    assert in_app(stored) == []


@pytest.mark.parametrize(("size", "status"), [(256 * 1024, 400), (256 * 1024 + 1, 413)])
def test_a_body_has_a_bound(client, in_app, size, status):
    body = b" " * size

    assert post(client, body, sign(body, "x")).status_code == status
    assert in_app(stored) == []


# --- who is believed --------------------------------------------------------------------------------------------------


def test_an_event_is_stored_at_once_and_acted_on_by_a_job(client, in_app, secret, payment, body, run_jobs):
    response = post(client, body, sign(body, secret))

    assert (response.status_code, response.json) == (200, {"data": {"received": True}})
    event_id = json.loads(body)["id"]
    assert in_app(stored) == [(event_id, EventStatus.RECEIVED)]
    assert in_app(status_of, payment) is PaymentStatus.REQUIRES_PAYMENT_METHOD

    run_jobs()

    assert (event_id, EventStatus.PROCESSED) in in_app(stored)
    assert in_app(status_of, payment) is PaymentStatus.SUCCEEDED


def test_the_payload_is_kept_to_the_byte(client, in_app, secret, body):
    written = json.dumps(json.loads(body) | {"é": "\u2028"}, ensure_ascii=False, indent=3).encode()
    post(client, written, sign(written, secret))

    assert in_app(lambda: db.session.scalars(select(WebhookEvent.payload)).one()).encode() == written


def test_neither_the_type_of_the_body_nor_a_token_matters(client, in_app, secret, body):
    headers = {"Stripe-Signature": sign(body, secret), "Authorization": "Bearer x.y.z"}

    assert client.post(PATH, data=body, content_type="text/plain", headers=headers).status_code == 200


def test_a_thousand_deliveries_of_one_event_at_once_have_one_effect(app, in_app, secret, payment, body, run_jobs):
    header = sign(body, secret)

    def deliver(_: int) -> int:
        return int(post(app.test_client(), body, header).status_code)

    with ThreadPoolExecutor(32) as pool:
        statuses = set(pool.map(deliver, range(1000)))
    run_jobs()

    assert statuses == {200}
    event_id = json.loads(body)["id"]
    assert [found for found in in_app(stored) if found[0] == event_id] == [(event_id, EventStatus.PROCESSED)]
    assert in_app(paying.booked, payment) == {"capture": 1000}
    assert in_app(lambda: db.session.scalar(select(func.count()).select_from(LedgerEntry))) == 1


def test_a_forgery_among_them_does_not_get_in(app, in_app, secret, body):
    headers = [sign(body, secret), sign(body, "another")] * 50

    def deliver(header: str) -> int:
        return int(post(app.test_client(), body, header).status_code)

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(deliver, headers))

    assert statuses == [200, 400] * 50
    assert len(in_app(stored)) == 1


@pytest.fixture
def stripe_app(tmp_path) -> Flask:
    """An application whose provider is Stripe, with two secrets. It has no tables: nobody gets as far as that."""
    env = {
        **ENV,
        "DATA_DIR": str(tmp_path),
        "PAYMENTS_PROVIDER": "stripe",
        "STRIPE_SECRET_KEY": "sk_test_0123456789abcdef",
        "STRIPE_PUBLISHABLE_KEY": "pk_test_0123456789abcdef",
        "STRIPE_WEBHOOK_SECRETS": "whsec_the_new_one_0123,whsec_the_old_one_0123",
    }
    return create_app(env)


def test_with_stripe_the_secret_of_the_sandbox_opens_nothing(stripe_app):
    with stripe_app.app_context():
        secret = signing_secret()
    client = stripe_app.test_client()

    assert post(client, b"{}", sign(b"{}", secret), PATH).status_code == 404
    answer = post(client, b"{}", sign(b"{}", secret), "/v1/payments/webhooks/stripe")
    assert (answer.status_code, answer.json["code"]) == (400, "invalid_signature")


# --- how the sandbox delivers -----------------------------------------------------------------------------------------


def test_the_sandbox_tells_of_a_payment_by_itself(in_app, payment, run_jobs):
    run_jobs()

    assert in_app(status_of, payment) is PaymentStatus.SUCCEEDED
    assert {status for _, status in in_app(stored)} == {EventStatus.PROCESSED}


def pay_with(fault: Fault, count: int) -> Any:
    """Make a payment and pay it, while something goes wrong with the events of that."""
    set_fault(fault, count=count)
    made = paying.make_payment()
    paying.pay(made)
    return made


def test_an_event_that_is_delivered_twice_has_one_effect(in_app, run_jobs):
    payment = in_app(pay_with, Fault.DUPLICATE_WEBHOOK, 2)
    run_jobs()

    assert len(in_app(stored)) == 2  # created, succeeded
    assert in_app(paying.booked, payment) == {"capture": 1000}


def test_an_event_that_is_lost_is_lost(in_app, run_jobs):
    payment = in_app(pay_with, Fault.DROP_WEBHOOK, 2)
    run_jobs()

    assert in_app(status_of, payment) is PaymentStatus.REQUIRES_PAYMENT_METHOD


def test_an_event_with_a_bad_signature_is_refused_and_comes_again(in_app, run_jobs):
    payment = in_app(pay_with, Fault.BAD_SIGNATURE, 2)
    run_jobs()
    assert in_app(status_of, payment) is PaymentStatus.REQUIRES_PAYMENT_METHOD

    in_app(paying.advance)
    run_jobs()

    assert in_app(status_of, payment) is PaymentStatus.SUCCEEDED


def test_events_in_the_wrong_order_end_in_the_right_state(in_app, run_jobs):
    def authorize() -> Any:
        set_fault(Fault.REORDER_WEBHOOKS, count=5)
        made = paying.make_payment(manual=True)
        paying.pay(made)
        return made

    payment = in_app(authorize)
    in_app(paying.advance)
    run_jobs()

    kinds = in_app(lambda: db.session.scalars(select(WebhookEvent.type).order_by(WebhookEvent.id)).all())
    assert kinds == ["payment_intent.amount_capturable_updated", "payment_intent.created"]
    assert in_app(status_of, payment) is PaymentStatus.REQUIRES_CAPTURE
