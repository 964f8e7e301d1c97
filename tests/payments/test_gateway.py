"""The adapter of Stripe's SDK: what it sends, how it reads answers and refusals, and whose webhooks it believes."""

import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID, uuid4

import pytest
import stripe

from project.payments import stripe_gateway
from project.payments.gateway import current_gateway
from project.payments.gateway_types import (
    BadSignature,
    Declined,
    DisputeSnapshot,
    Event,
    Failure,
    InOtherState,
    Intent,
    Method,
    Misconfigured,
    NoSuchObject,
    OutcomeUnknown,
    Rejected,
    TooManyRequests,
)
from project.payments.models import CaptureMethod, PaymentStatus, RefundReason, RefundStatus
from project.payments.stripe_gateway import StripeGateway

PAYMENT_ID = UUID("0190f8e2-5a3b-7c4d-8e9f-0a1b2c3d4e5f")
REFUND_ID = UUID("0190f8e2-5a3b-7c4d-8e9f-0a1b2c3d4e60")
NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)
SECRET = "whsec_of_the_tests"


class Script(stripe.HTTPClient):
    """A transport that gives the answers it was told, in their order, and keeps what it was asked."""

    name = "script"

    def __init__(self, *answers: Any) -> None:
        super().__init__()
        self.answers = list(answers)
        self.asked: list[tuple[str, str, dict[str, str], Mapping[str, str]]] = []

    def request(self, method, url, headers, post_data=None, *, _usage=None):
        parts = urlsplit(url)
        self.asked.append((method, parts.path, dict(parse_qsl(post_data or parts.query)), headers))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, body, *more = answer if isinstance(answer, tuple) else (200, answer)
        return body if isinstance(body, str) else json.dumps(body), status, more[0] if more else {}

    def close(self):
        pass


def gateway_of(transport: Script, **options: Any) -> StripeGateway:
    return StripeGateway(stripe.StripeClient("sk_test_x", http_client=transport, **options), livemode=False)


def payment(**changes: Any) -> dict[str, Any]:
    """A PaymentIntent as Stripe shows it, as far as we read it."""
    values = {
        "id": "pi_1",
        "object": "payment_intent",
        "amount": 1000,
        "amount_capturable": 0,
        "amount_received": 0,
        "client_secret": "pi_1_secret_x",
        "currency": "usd",
        "last_payment_error": None,
        "latest_charge": None,
        "livemode": False,
        "metadata": {"payment_id": str(PAYMENT_ID)},
        "status": "requires_payment_method",
    }
    return {**values, **changes}


def refund(**changes: Any) -> dict[str, Any]:
    values = {
        "id": "re_1",
        "object": "refund",
        "amount": 300,
        "currency": "usd",
        "metadata": {"refund_id": str(REFUND_ID)},
        "payment_intent": "pi_1",
        "status": "succeeded",
    }
    return {**values, **changes}


def page(*found: dict[str, Any], more: bool = False) -> dict[str, Any]:
    return {"object": "list", "url": "/v1/x", "data": list(found), "has_more": more}


def refused(status: int, **error: Any) -> tuple[int, dict[str, Any]]:
    return status, {"error": {"type": "invalid_request_error", "message": "No.", **error}}


def intent(**changes: Any) -> Intent:
    values: dict[str, Any] = {
        "payment_id": PAYMENT_ID,
        "amount": 1000,
        "currency": "USD",
        "capture_method": CaptureMethod.AUTOMATIC,
        "description": None,
    }
    return Intent(**{**values, **changes})


# --- What is sent -----------------------------------------------------------------------------------------------------


def test_a_payment_is_created_with_what_leads_back_to_us():
    transport = Script(payment())

    gateway_of(transport).create_payment(intent(capture_method=CaptureMethod.MANUAL, description="Lessons"), key="k1")

    [(method, path, form, headers)] = transport.asked
    assert (method, path, headers["Idempotency-Key"]) == ("post", "/v1/payment_intents", "k1")
    assert form == {
        "amount": "1000",
        "automatic_payment_methods[enabled]": "true",
        "capture_method": "manual",
        "currency": "usd",
        "description": "Lessons",
        "expand[0]": "latest_charge",
        "metadata[payment_id]": str(PAYMENT_ID),
    }


def test_a_payment_without_a_description_sends_none():
    transport = Script(payment())

    gateway_of(transport).create_payment(intent(), key="k1")

    assert "description" not in transport.asked[0][2]


@pytest.mark.parametrize(("amount", "sent"), [(400, {"amount_to_capture": "400"}), (None, {})])
def test_a_capture_takes_the_amount_or_all(amount, sent):
    transport = Script(payment(status="succeeded", amount_received=400))

    gateway_of(transport).capture("pi_1", amount=amount, key="k2")

    [(_, path, form, headers)] = transport.asked
    assert (path, headers["Idempotency-Key"]) == ("/v1/payment_intents/pi_1/capture", "k2")
    assert form == {"expand[0]": "latest_charge", **sent}


def test_a_cancel_has_its_key():
    transport = Script(payment(status="canceled"))

    found = gateway_of(transport).cancel("pi_1", key="k3")

    assert (transport.asked[0][1], transport.asked[0][3]["Idempotency-Key"]) == (
        "/v1/payment_intents/pi_1/cancel",
        "k3",
    )
    assert found.status is PaymentStatus.CANCELED


@pytest.mark.parametrize(
    ("reason", "sent"),
    [(RefundReason.DUPLICATE, {"reason": "duplicate"}), (RefundReason.OTHER, {}), (None, {})],
)
def test_a_refund_sends_the_reasons_that_stripe_knows(reason, sent):
    transport = Script(refund())

    found = gateway_of(transport).create_refund("pi_1", amount=300, reason=reason, refund_id=REFUND_ID, key="k4")

    [(method, path, form, headers)] = transport.asked
    assert (method, path, headers["Idempotency-Key"]) == ("post", "/v1/refunds", "k4")
    assert form == {"payment_intent": "pi_1", "amount": "300", "metadata[refund_id]": str(REFUND_ID), **sent}
    assert (found.ref, found.refund_id, found.status) == ("re_1", REFUND_ID, RefundStatus.SUCCEEDED)


def test_payments_are_listed_page_by_page():
    transport = Script(page(payment(id="pi_3"), payment(id="pi_2"), more=True), page(payment(id="pi_1")))

    found = [one.ref for one in gateway_of(transport).list_payments(since=NOW)]

    assert found == ["pi_3", "pi_2", "pi_1"]
    first, second = (asked[2] for asked in transport.asked)
    assert first == {"created[gte]": str(int(NOW.timestamp())), "limit": "100", "expand[0]": "data.latest_charge"}
    assert second == {**first, "starting_after": "pi_2"}


def test_a_payment_is_found_by_our_id_without_reading_on():
    transport = Script(page(payment(metadata={}), payment(id="pi_2"), more=True))

    found = gateway_of(transport).find_payment(PAYMENT_ID, since=NOW)

    assert found is not None
    assert found.ref == "pi_2"
    assert transport.asked[0][2]["created[gte]"] == str(int((NOW - timedelta(minutes=5)).timestamp()))


def test_a_payment_that_never_arrived_is_not_found():
    assert gateway_of(Script(page(payment()))).find_payment(uuid4(), since=NOW) is None


def test_the_refunds_of_a_payment_are_listed():
    transport = Script(page(refund()))

    assert [one.ref for one in gateway_of(transport).list_refunds("pi_1")] == ["re_1"]
    assert transport.asked[0][2] == {"payment_intent": "pi_1", "limit": "100"}


# --- How answers are read ---------------------------------------------------------------------------------------------


def test_a_payment_is_read():
    card = {"type": "card", "card": {"brand": "visa", "last4": "4242", "country": "US"}}
    shown = payment(status="requires_capture", amount_capturable=1000, latest_charge={"payment_method_details": card})

    found = gateway_of(Script(shown)).retrieve_payment("pi_1")

    assert (found.ref, found.payment_id, found.status) == ("pi_1", PAYMENT_ID, PaymentStatus.REQUIRES_CAPTURE)
    assert (found.amount, found.currency, found.amount_capturable, found.amount_received) == (1000, "USD", 1000, 0)
    assert (found.client_secret, found.livemode) == ("pi_1_secret_x", False)
    assert (found.method, found.failure) == (Method("card", "visa", "4242"), None)


@pytest.mark.parametrize(
    "status",
    ["requires_payment_method", "requires_action", "processing", "requires_capture", "succeeded", "canceled"],
)
def test_the_status_of_a_payment_is_stripes(status):
    assert gateway_of(Script(payment(status=status))).retrieve_payment("pi_1").status == status


def test_a_payment_that_waits_for_its_confirmation_waits_for_the_customer():
    found = gateway_of(Script(payment(status="requires_confirmation"))).retrieve_payment("pi_1")

    assert found.status is PaymentStatus.REQUIRES_PAYMENT_METHOD


@pytest.mark.parametrize("metadata", [{}, {"payment_id": "42"}, None])
def test_a_payment_of_others_has_no_id_of_ours(metadata):
    assert gateway_of(Script(payment(metadata=metadata))).retrieve_payment("pi_1").payment_id is None


def test_a_method_without_a_brand_is_read():
    details = {"type": "us_bank_account", "us_bank_account": {"bank_name": "A bank", "last4": "6789"}}
    found = gateway_of(Script(payment(latest_charge={"payment_method_details": details}))).retrieve_payment("pi_1")

    assert found.method == Method("us_bank_account", None, "6789")


@pytest.mark.parametrize("charge", [None, "ch_1", {"payment_method_details": None}])
def test_a_payment_that_nobody_has_tried_has_no_method(charge):
    assert gateway_of(Script(payment(latest_charge=charge))).retrieve_payment("pi_1").method is None


def test_the_reason_of_a_decline_is_shown_where_it_helps():
    error = {
        "code": "card_declined",
        "decline_code": "insufficient_funds",
        "message": "Not enough.",
        "type": "card_error",
    }
    found = gateway_of(Script(payment(last_payment_error=error))).retrieve_payment("pi_1")

    assert found.failure == Failure("card_declined", "insufficient_funds", "Not enough.")


@pytest.mark.parametrize(
    "error",
    [
        {"code": "card_declined", "decline_code": "stolen_card", "message": "Stolen!"},
        {"code": "card_declined", "decline_code": "merchant_blacklist", "message": "You are on our list."},
        {"code": None, "type": "api_error", "message": "Our database is down."},
    ],
)
def test_what_is_not_for_the_customers_eyes_is_not_shown(error):
    found = gateway_of(Script(payment(last_payment_error=error))).retrieve_payment("pi_1")

    assert found.failure is not None
    assert found.failure.message == "The payment was declined. Try again, or pay in another way."
    assert found.failure.code


def test_an_answer_that_was_kept_is_not_taken_for_what_is_now():
    transport = Script((200, payment(), {"Idempotent-Replayed": "true"}), payment(status="succeeded"))

    found = gateway_of(transport).create_payment(intent(), key="k1")

    assert found.status is PaymentStatus.SUCCEEDED
    assert [asked[:2] for asked in transport.asked] == [
        ("post", "/v1/payment_intents"),
        ("get", "/v1/payment_intents/pi_1"),
    ]


def test_a_refund_that_was_kept_is_not_taken_for_what_is_now():
    transport = Script((200, refund(status="pending"), {"Idempotent-Replayed": "true"}), refund(status="failed"))

    found = gateway_of(transport).create_refund("pi_1", amount=300, reason=None, refund_id=REFUND_ID, key="k4")

    assert found.status is RefundStatus.FAILED


def test_a_refund_without_a_status_is_pending():
    assert gateway_of(Script(refund(status=None))).retrieve_refund("re_1").status is RefundStatus.PENDING


def test_a_refund_of_no_payment_is_none_of_ours():
    with pytest.raises(NoSuchObject):
        gateway_of(Script(refund(payment_intent=None))).retrieve_refund("re_1")


def dispute(*moved: dict[str, Any], **changes: Any) -> dict[str, Any]:
    values = {
        "id": "dp_1",
        "object": "dispute",
        "amount": 1000,
        "balance_transactions": list(moved),
        "currency": "usd",
        "evidence_details": {"due_by": int(NOW.timestamp())},
        "livemode": False,
        "payment_intent": "pi_1",
        "reason": "fraudulent",
        "status": "needs_response",
    }
    return {**values, **changes}


def test_a_dispute_tells_what_was_taken_and_given_back():
    taken = {"amount": -1000, "fee": 1500, "currency": "usd"}
    given = {"amount": 1000, "fee": 0, "currency": "usd"}

    found = gateway_of(Script(dispute(taken, given, status="won"))).retrieve_dispute("dp_1")

    assert found == DisputeSnapshot(
        ref="dp_1",
        payment_ref="pi_1",
        status="won",
        reason="fraudulent",
        amount=1000,
        currency="USD",
        livemode=False,
        withdrawn=1000,
        reinstated=1000,
        fee=1500,
        evidence_due_by=NOW,
    )


def test_an_inquiry_has_taken_nothing():
    details = {"due_by": None}
    found = gateway_of(Script(dispute(status="warning_needs_response", evidence_details=details))).retrieve_dispute(
        "dp_1"
    )

    assert (found.withdrawn, found.reinstated, found.fee, found.evidence_due_by) == (0, 0, 0, None)


def test_a_dispute_settled_in_another_currency_is_told_in_that_of_the_payment():
    taken = {"amount": -920, "fee": 1500, "currency": "eur"}
    found = gateway_of(Script(dispute(taken))).retrieve_dispute("dp_1")

    assert (found.withdrawn, found.reinstated, found.fee) == (1000, 0, 0)


# --- How refusals are read --------------------------------------------------------------------------------------------

REFUSALS = [
    (refused(400, code="amount_too_small", param="amount"), Rejected, "amount_too_small"),
    (refused(400, param="currency"), Rejected, "invalid_currency"),
    (refused(400, param="amount"), Rejected, "invalid_request_error"),
    (refused(400, type="idempotency_error"), Rejected, "idempotency_error"),
    (refused(400, code="payment_intent_unexpected_state"), InOtherState, "payment_intent_unexpected_state"),
    (refused(400, code="charge_already_refunded"), InOtherState, "charge_already_refunded"),
    (refused(404, code="resource_missing", param="id"), NoSuchObject, "resource_missing"),
    (refused(400, code="resource_missing", param="payment_intent"), NoSuchObject, "resource_missing"),
    (refused(401), Misconfigured, "AuthenticationError"),
    (refused(403), Misconfigured, "PermissionError"),
    (refused(429), TooManyRequests, ""),
    (refused(429, code="lock_timeout"), TooManyRequests, ""),
    (refused(409, code="idempotency_key_in_use", type="idempotency_error"), OutcomeUnknown, "APIError"),
    (refused(500, type="api_error"), OutcomeUnknown, "APIError"),
    ((503, "<html>we will be back</html>"), OutcomeUnknown, "APIError"),
    ((200, "<html>a captive portal</html>"), OutcomeUnknown, "APIError"),
    (stripe.APIConnectionError("no route to host"), OutcomeUnknown, "APIConnectionError"),
]


@pytest.mark.parametrize(("answer", "error", "text"), REFUSALS, ids=[f"{n}-{one[2]}" for n, one in enumerate(REFUSALS)])
def test_a_refusal_is_one_of_ours(answer, error, text):
    with pytest.raises(error) as caught:
        gateway_of(Script(answer), max_network_retries=0).create_payment(intent(), key="k1")

    assert str(caught.value) == text


def test_a_decline_tells_why():
    declined = refused(
        402, type="card_error", code="card_declined", decline_code="insufficient_funds", message="Not enough."
    )
    with pytest.raises(Declined) as caught:
        gateway_of(Script(declined)).capture("pi_1", amount=None, key="k2")

    assert caught.value.failure == Failure("card_declined", "insufficient_funds", "Not enough.")


def test_a_refusal_in_the_middle_of_a_list_is_one_of_ours_too():
    found = gateway_of(Script(page(payment(), more=True), refused(429))).list_payments(since=NOW)

    assert next(found).ref == "pi_1"
    with pytest.raises(TooManyRequests):
        next(found)


def test_a_lost_connection_is_tried_once_more_with_the_same_key():
    transport = Script(stripe.APIConnectionError("reset", should_retry=True), payment())

    gateway_of(transport, max_network_retries=stripe_gateway.RETRIES).create_payment(intent(), key="k1")

    assert [asked[3]["Idempotency-Key"] for asked in transport.asked] == ["k1", "k1"]


# --- The connection ---------------------------------------------------------------------------------------------------


def test_a_call_ends_before_a_server_gives_up_its_worker():
    gateway = stripe_gateway.connect("sk_test_x")
    requestor = gateway._client._requestor

    assert vars(requestor._get_http_client())["_timeout"] == (3, 8)
    assert requestor._options.max_network_retries == 1


@pytest.mark.parametrize(
    ("key", "livemode"), [("sk_live_x", True), ("rk_live_x", True), ("sk_test_x", False), ("sk_test_live_x", False)]
)
def test_the_key_tells_whether_money_is_real(key, livemode):
    assert stripe_gateway.connect(key).livemode is livemode


def test_the_sdk_says_nothing_of_this_machine():
    transport = Script(payment())

    gateway_of(transport).retrieve_payment("pi_1")

    assert not {"telemetry_id", "platform"} & set(json.loads(transport.asked[0][3]["X-Stripe-Client-User-Agent"]))


def test_the_sdk_writes_no_secrets_into_the_log(caplog):
    caplog.set_level(logging.DEBUG)

    gateway_of(Script(payment())).retrieve_payment("pi_1")

    assert "pi_1_secret_x" not in caplog.text


def test_the_settings_name_the_provider(app, session, monkeypatch):
    settings = app.extensions["settings"]
    sandbox = current_gateway()
    stripe = replace(settings.payments, provider="stripe", secret_key="sk_live_x")
    monkeypatch.setitem(app.extensions, "settings", replace(settings, payments=stripe))

    real = current_gateway()

    assert (sandbox.livemode, real.livemode) == (False, True)
    assert current_gateway() is real


def test_the_sdk_is_not_imported_before_it_is_needed():
    source = (
        "import sys, project, project.payments.gateway, project.payments.sandbox.browser, "
        "project.payments.sandbox.clock; print('stripe' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", source], check=True, capture_output=True, text=True)

    assert done.stdout.strip() == "False"


# --- Webhooks ---------------------------------------------------------------------------------------------------------


def body(**changes: Any) -> bytes:
    about = {"object": "payment_intent", "id": "pi_1"}
    values = {"id": "evt_1", "type": "payment_intent.succeeded", "livemode": False, "data": {"object": about}}
    return json.dumps({**values, **changes}).encode()


def signed(raw: bytes, *, secret: str = SECRET, late: int = 0) -> str:
    header: str = stripe.WebhookSignature.generate_signature_header(
        raw.decode(), secret, timestamp=int(NOW.timestamp()) - late
    )
    return header


def parse(raw: bytes, header: str | None, *secrets: str) -> Event:
    return StripeGateway.parse_webhook(raw, header, secrets=secrets or [SECRET], now=NOW)


def test_a_signed_event_says_which_object_has_changed():
    assert parse(body(), signed(body())) == Event(
        id="evt_1", type="payment_intent.succeeded", livemode=False, object_type="payment_intent", object_ref="pi_1"
    )


@pytest.mark.parametrize(("payment_ref", "ref"), [("pi_1", "pi_1"), (None, "ch_1")])
def test_an_event_of_a_charge_is_one_of_its_payment(payment_ref, ref):
    raw = body(data={"object": {"object": "charge", "id": "ch_1", "payment_intent": payment_ref}})

    found = parse(raw, signed(raw))

    assert (found.object_type, found.object_ref) == ("charge", ref)


@pytest.mark.parametrize("kind", ["refund", "dispute"])
def test_an_event_of_a_refund_or_dispute_names_it(kind):
    raw = body(data={"object": {"object": kind, "id": "x_1", "payment_intent": "pi_1"}})

    assert (parse(raw, signed(raw)).object_type, parse(raw, signed(raw)).object_ref) == (kind, "x_1")


@pytest.mark.parametrize("late", [-300, 0, 300])
def test_a_signature_is_good_for_five_minutes(late):
    assert parse(body(), signed(body(), late=late)).id == "evt_1"


@pytest.mark.parametrize("late", [-301, 301, 10**9])
def test_a_signature_of_another_time_is_refused(late):
    with pytest.raises(BadSignature):
        parse(body(), signed(body(), late=late))


def test_a_secret_can_be_changed_without_losing_events():
    assert parse(body(), signed(body(), secret="old"), "new", "old").id == "evt_1"


def test_one_good_signature_of_several_is_enough():
    first, second = signed(body(), secret="another"), signed(body())

    assert parse(body(), f"{first},{second.partition(',')[2]}").id == "evt_1"


GOOD = signed(body())


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "garbage",
        "t=1,v1=",
        "t=,v1=1",
        "v1=1",
        GOOD.replace("v1=", "v0="),
        GOOD.replace("v1=", "v1=é"),
        GOOD.partition(",")[0],
        GOOD.replace("t=", "t=1"),
        signed(body(), secret="another"),
    ],
)
def test_what_nobody_of_ours_has_signed_is_refused(header):
    with pytest.raises(BadSignature):
        parse(body(), header)


def test_a_second_time_in_the_header_does_not_renew_a_signature():
    old = signed(body(), late=301)

    with pytest.raises(BadSignature):
        parse(body(), f"{old},t={int(NOW.timestamp())}")
    with pytest.raises(BadSignature):
        parse(body(), f"t={int(NOW.timestamp())},{old}")


def test_without_a_secret_nothing_is_believed():
    with pytest.raises(BadSignature):
        StripeGateway.parse_webhook(body(), signed(body()), secrets=[], now=NOW)
    with pytest.raises(BadSignature):
        parse(body(), signed(body(), secret=""), "")


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(body().replace(b"pi_1", b"pi_2"), id="another-object"),
        pytest.param(body() + b" ", id="one-byte-more"),
        pytest.param(json.dumps(json.loads(body()), separators=(",", ":")).encode(), id="written-again"),
        pytest.param(b"\xff", id="not-utf-8"),
        pytest.param(b"{", id="not-json"),
    ],
)
def test_a_body_that_was_changed_is_refused(changed):
    with pytest.raises(BadSignature):
        parse(changed, GOOD)


@pytest.mark.parametrize("raw", [b"{", b"[]", b"1", b"{}", b'{"data": {"object": "x"}}', b'{"data": []}'])
def test_what_is_signed_and_no_event_is_refused(raw):
    with pytest.raises(BadSignature):
        parse(raw, signed(raw))
