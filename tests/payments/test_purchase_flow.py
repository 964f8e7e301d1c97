"""Purchases over HTTP from beginning to end: as they should go, and with everything going wrong that can."""

from uuid import uuid4

import pytest
from sqlalchemy import func, select

from project.database import db
from project.payments.journal import LedgerEntry
from project.payments.models import Payment, Refund
from project.payments.sandbox.models import SandboxIntent, SandboxRefund
from tests.payments.paying import VISA, make_price

LOSSES = ["timeout_before", "timeout_after"]
REFUSALS = ["http_500", "rate_limit"]


class Shop:
    """A client of the API on which somebody buys, staff work and an admin breaks things."""

    def __init__(self, client, price_id, user, staff, admin):
        self._client = client
        self.price_id = price_id
        self.user, self.staff, self.admin = user, staff, admin

    def post(self, path, body=None, *, key=None, caller=None):
        headers = {**(caller or self.user), "Idempotency-Key": key or str(uuid4())}
        return self._client.post(path, json={} if body is None else body, headers=headers)

    def get(self, path, *, caller=None):
        return self._client.get(path, headers=caller or self.user)

    def buy(self, *, key=None, **values):
        return self.post("/v1/payments", {"price_id": self.price_id, **values}, key=key)

    def confirm(self, payment, method=VISA, **values):
        return self.at_provider(payment, "confirm", payment_method=method, **values)

    def approve(self, payment, outcome="approve"):
        return self.at_provider(payment, "authenticate", outcome=outcome)

    def at_provider(self, payment, operation, **values):
        secret = payment["client_secret"]
        url = f"/v1/sandbox/payment-intents/{secret.partition('_secret_')[0]}/{operation}"
        return self._client.post(url, json={"client_secret": secret, **values})

    def paid(self, **values):
        """Buy, pay and look at the provider."""
        payment = self.buy(**values).json["data"]
        self.confirm(payment)
        return self.look(payment, "?sync=true")

    def look(self, payment, query=""):
        return self.get(f"/v1/payments/{payment['id']}{query}").json["data"]

    def breaks(self, fault, count=1):
        body = {"fault": fault, "count": count}
        assert self._client.post("/v1/sandbox/faults", json=body, headers=self.admin).status_code == 204

    def advance(self):
        return self._client.post("/v1/sandbox/advance", headers=self.admin).json["data"]["delivered"]


@pytest.fixture
def shop(client, in_app, as_user, as_staff, as_admin):
    price = in_app(make_price, name="Lesson", unit_amount=1250)
    return Shop(client, str(price.id), as_user(), as_staff, as_admin)


@pytest.fixture
def rows(in_app):
    """Count the rows of a table."""
    return lambda model: in_app(lambda: db.session.scalar(select(func.count()).select_from(model)))


@pytest.fixture
def booked(in_app):
    """The sum of each kind of transfer in the ledger."""

    def read():
        sums = select(LedgerEntry.kind, func.sum(LedgerEntry.amount)).group_by(LedgerEntry.kind)
        return {kind: int(amount) for kind, amount in db.session.execute(sums)}

    return lambda: in_app(read)


def refusal(response):
    return response.status_code, response.json["code"]


# --- As it should go --------------------------------------------------------------------------------------------------


def test_a_purchase_is_paid_booked_and_given_a_receipt(shop, run_jobs, booked):
    made = shop.buy(quantity=2, reference="order-1", metadata={"colour": "blue"})
    payment = made.json["data"]
    assert (made.status_code, made.headers["Location"]) == (201, f"/v1/payments/{payment['id']}")
    assert (payment["status"], payment["amount"], payment["currency"]) == ("requires_payment_method", 2500, "USD")

    assert shop.confirm(payment).json["data"]["status"] == "succeeded"
    assert shop.look(payment)["status"] == "requires_payment_method"  # nobody has told us yet
    run_jobs()

    paid = shop.look(payment)
    assert (paid["status"], paid["amount_captured"], paid["amount_refundable"]) == ("succeeded", 2500, 2500)
    assert paid["method"] == {"type": "card", "brand": "visa", "last4": "4242"}
    assert (paid["reference"], paid["metadata"]) == ("order-1", {"colour": "blue"})
    assert paid["receipt_number"]
    assert paid["succeeded_at"]
    assert "client_secret" not in paid
    assert booked() == {"capture": 2500}


def test_asking_for_the_provider_s_view_needs_no_webhook(shop, run_jobs, booked):
    payment = shop.buy().json["data"]
    shop.confirm(payment)

    assert shop.look(payment, "?sync=true")["status"] == "succeeded"
    assert run_jobs() > 0  # the webhooks, which come to say the same
    assert booked() == {"capture": 1250}


def test_a_declined_payment_says_why_and_is_then_paid(shop, run_jobs, rows):
    payment = shop.buy().json["data"]
    assert shop.confirm(payment, "pm_card_visa_chargeDeclinedInsufficientFunds").status_code == 402
    run_jobs()
    declined = shop.look(payment)
    assert (declined["status"], declined["failure"]["decline_code"]) == (
        "requires_payment_method",
        "insufficient_funds",
    )

    shop.confirm(payment)
    run_jobs()
    assert (shop.look(payment)["status"], shop.look(payment)["failure"]) == ("succeeded", None)
    assert (rows(Payment), rows(SandboxIntent)) == (1, 1)


def test_a_payment_that_is_not_approved_can_be_confirmed_again(shop, run_jobs):
    payment = shop.buy().json["data"]
    shop.confirm(payment, "pm_card_authenticationRequired")
    run_jobs()
    assert shop.look(payment)["status"] == "requires_action"

    shop.approve(payment, "fail")
    run_jobs()
    failed = shop.look(payment)
    assert (failed["status"], failed["failure"]["code"]) == (
        "requires_payment_method",
        "payment_intent_authentication_failure",
    )

    shop.confirm(payment, "pm_card_authenticationRequired")
    shop.approve(payment)
    run_jobs()
    assert shop.look(payment)["status"] == "succeeded"


def test_what_was_authorised_is_captured_in_part_and_the_rest_released(shop, run_jobs, booked):
    payment = shop.buy(capture_method="manual").json["data"]
    shop.confirm(payment)
    run_jobs()
    assert (shop.look(payment)["status"], shop.look(payment)["amount_capturable"]) == ("requires_capture", 1250)
    assert booked() == {}

    captured = shop.post(f"/v1/payments/{payment['id']}/capture", {"amount": 1000}, caller=shop.staff)
    assert (captured.status_code, captured.json["data"]["status"]) == (200, "succeeded")
    run_jobs()
    paid = shop.look(payment)
    assert (paid["amount_captured"], paid["amount_capturable"], paid["amount_refundable"]) == (1000, 0, 1000)
    assert booked() == {"capture": 1000}


def test_refunds_are_booked_and_never_exceed_what_was_paid(shop, run_jobs, booked):
    payment = shop.paid()
    url = f"/v1/payments/{payment['id']}/refunds"
    first = shop.post(url, {"amount": 250, "reason": "requested_by_customer"}, caller=shop.staff)
    assert (first.status_code, first.json["data"]["status"]) == (201, "succeeded")
    assert shop.post(url, {"amount": 1001}, caller=shop.staff).json["errors"][0]["code"] == "refund_exceeds_available"
    assert shop.post(url, caller=shop.staff).json["data"]["amount"] == 1000
    run_jobs()

    refunded = shop.look(payment)
    assert (refunded["refund_status"], refunded["amount_refunded"], refunded["amount_refundable"]) == ("full", 1250, 0)
    assert {refund["amount"] for refund in shop.get(url).json["data"]} == {250, 1000}
    assert booked() == {"capture": 1250, "refund": 1250}


# --- Doing it twice ---------------------------------------------------------------------------------------------------


def test_the_same_key_is_the_same_payment_and_tells_its_secret_again(shop, rows):
    first, second = shop.buy(key="k"), shop.buy(key="k")

    assert (first.status_code, second.status_code) == (201, 201)
    assert second.json["data"] == first.json["data"]
    assert ("Idempotent-Replayed" in first.headers, second.headers["Idempotent-Replayed"]) == (False, "true")
    assert (rows(Payment), rows(SandboxIntent)) == (1, 1)


def test_another_purchase_with_the_key_is_refused(shop):
    shop.buy(key="k")
    assert refusal(shop.buy(key="k", quantity=2)) == (422, "idempotency_key_reused")


def test_a_new_key_for_the_same_order_leads_to_the_payment_that_there_is(shop, rows):
    payment = shop.buy(reference="order-1").json["data"]
    again = shop.buy(reference="order-1")
    assert (*refusal(again), again.json["payment_id"]) == (409, "payment_exists", payment["id"])

    payment_id = again.json["payment_id"]
    secret = shop.get(f"/v1/payments/{payment_id}/client-secret")
    assert secret.json["data"] == {"client_secret": payment["client_secret"]}
    assert secret.headers["Cache-Control"] == "no-store"
    assert shop.confirm(secret.json["data"]).status_code == 200
    assert rows(Payment) == 1


def test_an_order_whose_payment_was_canceled_can_be_paid_by_another(shop):
    payment_id = shop.buy(reference="order-1").json["data"]["id"]
    assert shop.post(f"/v1/payments/{payment_id}/cancel").json["data"]["status"] == "canceled"
    assert refusal(shop.get(f"/v1/payments/{payment_id}/client-secret")) == (409, "payment_final")
    assert shop.buy(reference="order-1").status_code == 201


# --- The provider fails -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", LOSSES + REFUSALS)
def test_a_purchase_that_the_provider_did_not_answer_succeeds_with_the_same_key(shop, run_jobs, rows, booked, fault):
    shop.breaks(fault)
    lost = shop.buy(key="k", reference="order-1")
    assert refusal(lost) == (503, "provider_unavailable")
    assert int(lost.headers["Retry-After"]) > 0

    payment = shop.buy(key="k", reference="order-1")
    assert (payment.status_code, payment.json["data"]["status"]) == (201, "requires_payment_method")
    assert (rows(Payment), rows(SandboxIntent)) == (1, 1)

    shop.confirm(payment.json["data"])
    run_jobs()
    assert shop.look(payment.json["data"])["status"] == "succeeded"
    assert booked() == {"capture": 1250}


def test_a_client_that_lost_its_key_as_well_finds_the_payment_by_its_reference(shop, rows):
    shop.breaks("timeout_after")
    assert shop.buy(reference="order-1").status_code == 503

    found = shop.buy(reference="order-1")
    assert refusal(found) == (409, "payment_exists")
    secret = shop.get(f"/v1/payments/{found.json['payment_id']}/client-secret").json["data"]
    assert shop.confirm(secret).status_code == 200
    assert (rows(Payment), rows(SandboxIntent)) == (1, 1)


@pytest.mark.parametrize("fault", LOSSES + REFUSALS)
def test_a_capture_that_was_not_answered_ends_with_the_same_key(shop, booked, fault):
    payment = shop.paid(capture_method="manual")
    url = f"/v1/payments/{payment['id']}/capture"
    shop.breaks(fault)

    unknown = shop.post(url, key="k", caller=shop.staff)
    assert (unknown.status_code, unknown.json["data"]["pending_operation"]) == (202, "capture")
    known = shop.post(url, key="k", caller=shop.staff)
    assert (known.status_code, known.json["data"]["status"]) == (200, "succeeded")
    assert known.json["data"]["pending_operation"] is None
    assert booked() == {"capture": 1250}


@pytest.mark.parametrize("fault", LOSSES + REFUSALS)
def test_a_cancellation_that_was_not_answered_ends_with_the_same_key(shop, fault):
    payment = shop.buy().json["data"]
    url = f"/v1/payments/{payment['id']}/cancel"
    shop.breaks(fault)

    unknown = shop.post(url, key="k")
    assert (unknown.status_code, unknown.json["data"]["pending_operation"]) == (202, "cancel")
    known = shop.post(url, key="k")
    assert (known.status_code, known.json["data"]["status"]) == (200, "canceled")
    assert known.json["data"]["pending_operation"] is None


@pytest.mark.parametrize("fault", LOSSES + REFUSALS)
def test_a_refund_that_was_not_answered_ends_with_the_same_key(shop, run_jobs, rows, booked, fault):
    payment = shop.paid()
    url = f"/v1/payments/{payment['id']}/refunds"
    shop.breaks(fault)

    unknown = shop.post(url, {"amount": 400}, key="k", caller=shop.staff)
    assert (unknown.status_code, unknown.json["data"]["status"]) == (202, "pending")
    assert shop.look(payment)["amount_refundable"] == 850
    known = shop.post(url, {"amount": 400}, key="k", caller=shop.staff)
    assert (known.status_code, known.json["data"]["status"]) == (201, "succeeded")
    assert known.json["data"]["id"] == unknown.json["data"]["id"]
    run_jobs()

    assert (rows(Refund), rows(SandboxRefund)) == (1, 1)
    assert booked() == {"capture": 1250, "refund": 400}


# --- Webhooks fail ----------------------------------------------------------------------------------------------------


def test_a_lost_webhook_is_made_good_by_asking(shop, run_jobs):
    payment = shop.buy().json["data"]
    run_jobs()
    shop.breaks("drop_webhook")
    shop.confirm(payment)
    run_jobs()
    assert (shop.advance(), shop.look(payment)["status"]) == (0, "requires_payment_method")

    assert shop.look(payment, "?sync=true")["status"] == "succeeded"


@pytest.mark.parametrize("count", [1, 5])
def test_webhooks_that_come_twice_count_once(shop, run_jobs, booked, count):
    shop.breaks("duplicate_webhook", count)
    payment = shop.buy().json["data"]
    shop.confirm(payment)
    run_jobs()

    assert shop.look(payment)["status"] == "succeeded"
    assert booked() == {"capture": 1250}


def test_webhooks_in_the_wrong_order_end_at_the_truth(shop, run_jobs, booked):
    shop.breaks("reorder_webhooks", 4)
    payment = shop.buy().json["data"]
    shop.confirm(payment, "pm_card_visa_chargeDeclined")
    shop.confirm(payment, "pm_card_authenticationRequired")
    shop.approve(payment)
    run_jobs()

    assert shop.advance() == 4
    run_jobs()
    assert (shop.look(payment)["status"], shop.look(payment)["failure"]) == ("succeeded", None)
    assert booked() == {"capture": 1250}


def test_a_webhook_that_nobody_signed_is_refused_and_comes_again(shop, run_jobs):
    payment = shop.buy().json["data"]
    run_jobs()
    shop.breaks("bad_signature")
    shop.confirm(payment)
    run_jobs()
    assert shop.look(payment)["status"] == "requires_payment_method"

    assert shop.advance() == 1
    run_jobs()
    assert shop.look(payment)["status"] == "succeeded"
