"""Payments over HTTP: what the owner and staff may ask, what is refused, and that a repetition changes nothing."""

import pytest
from sqlalchemy import func, select

from project.database import db, utcnow
from project.idempotency_keys import IdempotencyKey
from project.payments import ledger_check
from project.payments.models import Payment
from project.payments.sandbox.faults import Fault, set_fault
from project.payments.sandbox.models import SandboxIntent
from project.payments.schemas import MAX_QUANTITY, NewPaymentOut, PaymentOut, RefundOut
from tests.payments import paying
from tests.payments.asking import buy, code, confirm, data, key, purchase, refund


def count(model):
    return db.session.scalar(select(func.count()).select_from(model))


# --- making ----------------------------------------------------------------------------------------------------------


def test_a_purchase_from_the_price_to_the_receipt(client, as_user, price_id, run_jobs):
    ann = as_user()
    made = buy(client, ann, price_id, quantity=3, reference="order-1", metadata={"cart": "7"})
    assert confirm(client, made).json == {"data": {"status": "succeeded", "next_action": None}}
    run_jobs()  # the webhook, and what follows from it

    payment = data(client.get(f"/v1/payments/{made['id']}", headers=ann))
    expected = {
        "status": "succeeded",
        "amount": 3000,
        "currency": "USD",
        "amount_captured": 3000,
        "amount_refundable": 3000,
        "refund_status": "none",
        "quantity": 3,
        "reference": "order-1",
        "metadata": {"cart": "7"},
        "method": {"type": "card", "brand": "visa", "last4": "4242"},
        "failure": None,
        "receipt_number": f"R-{utcnow().year}-000001",
        "provider": "sandbox",
        "livemode": False,
        "needs_review": False,
    }
    assert payment | expected == payment
    assert set(payment) == set(PaymentOut().fields)
    assert payment["succeeded_at"]


def test_only_the_answers_to_who_pays_carry_the_client_secret(client, as_user, as_staff, price_id):
    ann = as_user()
    made = buy(client, ann, price_id)
    assert set(made) == set(NewPaymentOut().fields)
    asked = client.get(f"/v1/payments/{made['id']}/client-secret", headers=ann)
    assert data(asked) == {"client_secret": made["client_secret"]}
    assert asked.headers["Cache-Control"] == "no-store"

    answers = [
        client.get(path, headers=caller).text
        for caller in (ann, as_staff)
        for path in (f"/v1/payments/{made['id']}", f"/v1/payments/{made['id']}?sync=true", "/v1/payments?scope=mine")
    ]
    answers += [client.get(f"/v1/payments/{made['id']}/{part}", headers=as_staff).text for part in ("timeline",)]
    assert not [answer for answer in answers if "_secret_" in answer]
    assert client.get(f"/v1/payments/{made['id']}/client-secret", headers=as_staff).status_code == 404


def test_the_client_secret_is_in_no_row_of_ours(client, as_user, price_id, in_app):
    made = buy(client, as_user(), price_id)

    def rows():
        return list(db.session.scalars(select(IdempotencyKey.response_body)))

    [stored] = in_app(rows)
    assert made["id"].encode() in (stored or b"")
    assert b"_secret_" not in (stored or b"")


def test_a_payment_that_is_finished_has_no_client_secret_to_give(client, as_user, price_id):
    ann = as_user()
    paid = purchase(client, ann, price_id)
    refused = client.get(f"/v1/payments/{paid['id']}/client-secret", headers=ann)
    assert (refused.status_code, code(refused)) == (409, "payment_final")


@pytest.mark.parametrize("operation", ["", "/cancel", "/capture", "/refunds"])
def test_what_moves_money_needs_a_key(client, as_staff, price_id, operation):
    path = "/v1/payments" + (operation and f"/{buy(client, as_staff, price_id)['id']}{operation}")
    refused = client.post(path, json={"price_id": str(price_id)} if not operation else {}, headers=as_staff)
    assert (refused.status_code, code(refused)) == (400, "idempotency_key_required")


def test_the_same_key_is_one_payment_and_one_answer(client, as_user, price_id, in_app):
    ann, once = as_user(), key()
    made = buy(client, ann, price_id, headers=once)
    again = client.post(
        "/v1/payments", data=f'{{ "price_id":"{price_id}" }}', content_type="application/json", headers=ann | once
    )

    assert data(again) == made
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (201, "true")
    assert again.headers["Location"] == f"/v1/payments/{made['id']}"
    assert (in_app(count, Payment), in_app(count, SandboxIntent)) == (1, 1)


def test_a_key_stands_for_one_request_of_one_user(client, as_user, price_id):
    ann, ben, once = as_user(), as_user(), key()
    first = buy(client, ann, price_id, headers=once)
    for body in ({"quantity": 2}, {"capture_method": "manual"}, {"reference": "x"}):
        reused = client.post("/v1/payments", json={"price_id": str(price_id)} | body, headers=ann | once)
        assert (reused.status_code, code(reused)) == (422, "idempotency_key_reused")
    elsewhere = client.post(f"/v1/payments/{first['id']}/cancel", json={}, headers=ann | once)
    assert code(elsewhere) == "idempotency_key_reused"
    assert buy(client, ben, price_id, headers=once)["id"] != first["id"]


@pytest.mark.parametrize("body", [{"quantity": 0}, {"amount": 5}, {"price_id": "0190f8e2-5a3b-7c4d-8e9f-0a1b2c3d4e5f"}])
def test_a_refusal_leaves_the_key_free_for_the_corrected_request(client, as_user, price_id, body):
    ann, once = as_user(), key()
    refused = client.post("/v1/payments", json={"price_id": str(price_id)} | body, headers=ann | once)
    assert refused.status_code in {404, 422}
    assert buy(client, ann, price_id, headers=once)["status"] == "requires_payment_method"


def test_a_second_press_on_pay_finds_the_first_payment(client, as_user, price_id):
    ann = as_user()
    first = buy(client, ann, price_id, reference="order-1")
    second = client.post("/v1/payments", json={"price_id": str(price_id), "reference": "order-1"}, headers=ann | key())
    assert (second.status_code, code(second), second.json["payment_id"]) == (409, "payment_exists", first["id"])
    buy(client, as_user(), price_id, reference="order-1")  # somebody else's order has the name too

    client.post(f"/v1/payments/{first['id']}/cancel", headers=ann | key())
    assert buy(client, ann, price_id, reference="order-1")["id"] != first["id"]


def test_nothing_is_sold_at_a_retired_price(client, as_user, as_admin, price_id):
    client.patch(f"/v1/prices/{price_id}", json={"active": False}, headers=as_admin)
    refused = client.post("/v1/payments", json={"price_id": str(price_id)}, headers=as_user() | key())
    assert (refused.status_code, code(refused)) == (422, "price_inactive")


# --- amounts ---------------------------------------------------------------------------------------------------------

WRONG_AMOUNTS = ["0", "-1", "0.1", "10.0", '"10"', "1e2", "true", "null", "100000000", "2147483648", "9007199254740993"]
WRONG_AMOUNTS += ["9223372036854775808"]


@pytest.fixture
def donation(in_app):
    return in_app(paying.make_price, min_amount=1, max_amount=99_999_999).id


@pytest.mark.parametrize("amount", WRONG_AMOUNTS)
@pytest.mark.parametrize("operation", ["", "/capture", "/refunds"])
def test_what_is_no_amount_is_refused(client, as_staff, donation, operation, amount):
    path, body = "/v1/payments", f'{{"price_id": "{donation}", "amount": {amount}}}'
    if operation:
        made = buy(client, as_staff, donation, amount=5000)
        path, body = f"{path}/{made['id']}{operation}", f'{{"amount": {amount}}}'
    refused = client.post(path, data=body, content_type="application/json", headers=as_staff | key())
    assert refused.status_code == 422
    assert refused.json["errors"][0]["pointer"] == "/amount"


@pytest.mark.parametrize("digits", [20, 400])
def test_a_number_that_no_database_can_hold_is_no_json_of_ours(client, as_user, donation, digits):
    body = f'{{"price_id": "{donation}", "amount": {"9" * digits}}}'
    refused = client.post("/v1/payments", data=body, content_type="application/json", headers=as_user() | key())
    assert (refused.status_code, code(refused)) == (400, "invalid_json")


def test_an_amount_of_ones_own_has_the_bounds_of_its_price(client, as_user, in_app):
    bounded = in_app(paying.make_price, min_amount=100, max_amount=200).id
    for amount, status in ((99, 422), (100, 201), (200, 201), (201, 422), (None, 422)):
        body = {"price_id": str(bounded)} | ({"amount": amount} if amount else {})
        assert client.post("/v1/payments", json=body, headers=as_user() | key()).status_code == status, amount


def test_what_the_provider_finds_too_little_is_the_clients_to_mend(client, as_user, donation):
    refused = client.post("/v1/payments", json={"price_id": str(donation), "amount": 1}, headers=as_user() | key())
    assert (refused.status_code, code(refused)) == (422, "invalid_amount")


def test_the_largest_amount_is_paid(client, as_user, donation):
    assert purchase(client, as_user(), donation, amount=99_999_999)["amount_captured"] == 99_999_999


def test_more_pieces_than_can_be_paid_at_once_are_refused(client, as_user, in_app):
    dear = in_app(paying.make_price, unit_amount=99_999_999).id
    refused = client.post("/v1/payments", json={"price_id": str(dear), "quantity": 2}, headers=as_user() | key())
    assert (refused.status_code, code(refused)) == (422, "invalid_amount")
    body = {"price_id": str(dear), "quantity": MAX_QUANTITY + 1}
    assert code(client.post("/v1/payments", json=body, headers=as_user() | key())) == "out_of_range"


def test_five_hundred_yen_are_five_hundred(client, as_user, as_staff, in_app):
    yen = in_app(paying.make_price, currency="JPY", unit_amount=500).id
    paid = purchase(client, as_user(), yen)
    assert (paid["amount"], paid["amount_captured"], paid["currency"]) == (500, 500, "JPY")
    [entry] = data(client.get("/v1/ledger/entries", headers=as_staff))
    assert (entry["amount"], entry["currency"]) == (500, "JPY")
    assert in_app(lambda: db.session.scalars(select(SandboxIntent)).one().wire["amount_received"]) == 500


# --- canceling and capturing -----------------------------------------------------------------------------------------


def test_the_owner_cancels_what_was_not_paid(client, as_user, price_id):
    ann, once = as_user(), key()
    made = buy(client, ann, price_id)
    path = f"/v1/payments/{made['id']}/cancel"
    first, again = (client.post(path, json={"reason": "Too dear"}, headers=ann | once) for _ in range(2))
    assert (first.status_code, data(first)["status"], data(again)) == (200, "canceled", data(first))
    assert again.headers["Idempotent-Replayed"] == "true"
    late = client.post(path, headers=ann | key())
    assert (late.status_code, code(late)) == (409, "invalid_state")


def test_only_staff_cancel_what_was_authorised(client, as_user, as_staff, price_id):
    ann = as_user()
    held = purchase(client, ann, price_id, capture_method="manual")
    path = f"/v1/payments/{held['id']}/cancel"
    assert held["status"] == "requires_capture"
    refused = client.post(path, headers=ann | key())
    assert (refused.status_code, code(refused)) == (409, "invalid_state")
    assert data(client.post(path, headers=as_staff | key()))["status"] == "canceled"


def test_staff_capture_a_part_and_the_rest_is_released(client, as_user, as_staff, price_id):
    ann = as_user()
    held = purchase(client, ann, price_id, capture_method="manual")
    path = f"/v1/payments/{held['id']}/capture"
    assert client.post(path, headers=ann | key()).status_code == 403
    too_much = client.post(path, json={"amount": 1001}, headers=as_staff | key())
    assert (too_much.status_code, code(too_much)) == (422, "amount_exceeds_capturable")

    captured = data(client.post(path, json={"amount": 600}, headers=as_staff | key()))
    amounts = {"status": "succeeded", "amount": 1000, "amount_captured": 600, "amount_capturable": 0}
    assert captured | amounts == captured
    again = client.post(path, headers=as_staff | key())
    assert (again.status_code, code(again)) == (409, "invalid_state")


@pytest.mark.parametrize("operation", ["cancel", "capture"])
@pytest.mark.parametrize("fault", [Fault.TIMEOUT_BEFORE, Fault.TIMEOUT_AFTER, Fault.HTTP_500, Fault.RATE_LIMIT])
def test_while_the_outcome_is_unknown_the_answer_is_202_and_the_same_key_goes_on(
    client, as_user, as_staff, price_id, in_app, operation, fault
):
    held = purchase(client, as_user(), price_id, capture_method="manual")
    path, once = f"/v1/payments/{held['id']}/{operation}", key()
    in_app(set_fault, fault, count=1)

    unknown = client.post(path, headers=as_staff | once)
    assert (unknown.status_code, data(unknown)["pending_operation"]) == (202, operation)
    other = client.post(path, headers=as_staff | key())
    assert (other.status_code, code(other)) == (409, "invalid_state")
    known = client.post(path, headers=as_staff | once)
    assert (known.status_code, data(known)["pending_operation"]) == (200, None)
    assert data(known)["status"] == {"cancel": "canceled", "capture": "succeeded"}[operation]


@pytest.mark.parametrize("fault", [Fault.TIMEOUT_BEFORE, Fault.TIMEOUT_AFTER, Fault.HTTP_500, Fault.RATE_LIMIT])
def test_a_create_whose_outcome_is_unknown_is_503_and_the_same_key_makes_one_payment(
    client, as_user, price_id, in_app, fault
):
    ann, once = as_user(), key()
    in_app(set_fault, fault, count=1)
    unknown = client.post("/v1/payments", json={"price_id": str(price_id)}, headers=ann | once)
    assert (unknown.status_code, code(unknown)) == (503, "provider_unavailable")
    assert unknown.headers["Retry-After"]

    assert buy(client, ann, price_id, headers=once)["status"] == "requires_payment_method"
    assert (in_app(count, Payment), in_app(count, SandboxIntent)) == (1, 1)


# --- refunds ---------------------------------------------------------------------------------------------------------


def test_staff_give_money_back_until_nothing_is_left(client, as_user, as_staff, price_id, in_app):
    ann = as_user()
    paid = purchase(client, ann, price_id)
    assert refund(client, ann, paid).status_code == 403
    part = refund(client, as_staff, paid, amount=400, reason="duplicate", note="Twice")
    assert (part.status_code, part.headers["Location"]) == (201, f"/v1/payments/{paid['id']}/refunds")
    assert set(data(part)) == set(RefundOut().fields)
    expected = {"amount": 400, "status": "succeeded", "reason": "duplicate", "note": "Twice", "currency": "USD"}
    assert data(part) | expected == data(part)
    assert data(client.get(f"/v1/payments/{paid['id']}", headers=ann))["refund_status"] == "partial"

    too_much = refund(client, as_staff, paid, amount=601)
    assert (too_much.status_code, code(too_much)) == (422, "refund_exceeds_available")
    assert data(refund(client, as_staff, paid))["amount"] == 600
    assert refund(client, as_staff, paid).status_code == 422
    after = data(client.get(f"/v1/payments/{paid['id']}", headers=ann))
    amounts = {"status": "succeeded", "refund_status": "full", "amount_refunded": 1000, "amount_refundable": 0}
    assert after | amounts == after
    assert [one["amount"] for one in data(client.get(f"/v1/payments/{paid['id']}/refunds", headers=ann))] == [600, 400]
    assert list(in_app(ledger_check.verify)) == []


def test_what_was_not_paid_is_not_refunded(client, as_user, as_staff, price_id):
    ann = as_user()
    for made in (buy(client, ann, price_id), purchase(client, ann, price_id, capture_method="manual")):
        refused = refund(client, as_staff, made)
        assert (refused.status_code, code(refused)) == (409, "invalid_state")


def test_a_currency_or_anything_else_of_ones_own_is_not_refunded(client, as_user, as_staff, price_id):
    paid = purchase(client, as_user(), price_id)
    for body in ({"currency": "EUR"}, {"reason": "because"}, {"payment_id": paid["id"]}, {"amount": None}):
        assert refund(client, as_staff, paid, **body).status_code == 422


def test_a_refund_whose_outcome_is_unknown_is_202_and_keeps_its_amount_until_the_same_key_goes_on(
    client, as_user, as_staff, price_id, in_app
):
    paid, once = purchase(client, as_user(), price_id), key()
    path = f"/v1/payments/{paid['id']}/refunds"
    in_app(set_fault, Fault.TIMEOUT_AFTER, count=1)
    unknown = client.post(path, json={"amount": 700}, headers=as_staff | once)
    assert (unknown.status_code, data(unknown)["status"]) == (202, "pending")
    assert refund(client, as_staff, paid, amount=301).status_code == 422
    assert client.post(path, json={"amount": 700}, headers=as_staff | once).status_code == 201
    assert [one["amount"] for one in data(client.get(path, headers=as_staff))] == [700]


def test_money_that_the_bank_decides_about_is_not_given_back_as_well(
    client, as_user, as_staff, as_admin, price_id, run_jobs
):
    paid = purchase(client, as_user(), price_id, "pm_card_createDispute")
    client.post("/v1/sandbox/advance", headers=as_admin)
    run_jobs()
    refused = refund(client, as_staff, paid)
    assert (refused.status_code, code(refused)) == (409, "payment_disputed")
    [dispute] = data(client.get("/v1/payments/disputes", headers=as_staff))
    assert (dispute["payment_id"], dispute["amount"], dispute["funds_withdrawn"]) == (paid["id"], 1000, True)
    assert data(client.get(f"/v1/payments/{paid['id']}", headers=as_staff))["dispute_status"] == "open"


# --- reading ---------------------------------------------------------------------------------------------------------


def test_nobody_sees_anothers_payments_but_staff(client, as_user, as_staff, price_id):
    ann, ben = as_user(), as_user()
    made = buy(client, ann, price_id)
    for part in ("", "/client-secret", "/refunds", "/receipt"):
        assert client.get(f"/v1/payments/{made['id']}{part}", headers=ben).status_code == 404
    assert client.post(f"/v1/payments/{made['id']}/cancel", headers=ben | key()).status_code == 404
    assert data(client.get("/v1/payments", headers=ben)) == []
    for query in ("scope=all", f"user_id={ann.user.id}"):
        assert client.get(f"/v1/payments?{query}", headers=ben).status_code == 403
        assert [one["id"] for one in data(client.get(f"/v1/payments?{query}", headers=as_staff))] == [made["id"]]


def test_payments_are_found_by_status_reference_and_time(client, as_user, price_id):
    ann = as_user()
    first = purchase(client, ann, price_id, reference="a")
    second = buy(client, ann, price_id, reference="b")
    found = {
        query: [one["id"] for one in data(client.get(f"/v1/payments?{query}", headers=ann))]
        for query in ("status=succeeded", "reference=b", f"created_after={first['created_at']}", "sort=created_at")
    }
    assert list(found.values()) == [[first["id"]], [second["id"]], [second["id"]], [first["id"], second["id"]]]


def test_asking_the_provider_is_limited_to_once_in_five_seconds_for_each_payment(client, as_user, price_id):
    ann = as_user()
    made, other = buy(client, ann, price_id), buy(client, ann, price_id)
    path = f"/v1/payments/{made['id']}?sync=true"
    assert client.get(path, headers=ann).status_code == 200
    soon = client.get(path, headers=ann)
    assert (soon.status_code, code(soon)) == (429, "rate_limited")
    assert 1 <= int(soon.headers["Retry-After"]) <= 6
    assert client.get(f"/v1/payments/{made['id']}", headers=ann).status_code == 200
    assert client.get(f"/v1/payments/{other['id']}?sync=true", headers=ann).status_code == 200


def test_the_configuration_tells_a_browser_how_to_pay(client, as_user):
    found = data(client.get("/v1/payments/config", headers=as_user()))
    currencies = ["USD", "EUR", "GBP", "JPY"]
    assert found == {
        "provider": "sandbox",
        "publishable_key": "pk_sandbox",
        "livemode": False,
        "currencies": currencies,
    }


@pytest.mark.parametrize(
    "metadata",
    [
        {"a": 1},
        {"a": None},
        {"": "x"},
        {"x" * 41: "y"},
        {"a": "x" * 501},
        {str(n): "x" for n in range(21)},
        ["a"],
        "a",
        {"a": "\0"},
        {"a": {"b": "c"}},
    ],
)
def test_metadata_is_a_few_texts(client, as_user, price_id, metadata):
    body = {"price_id": str(price_id), "metadata": metadata}
    refused = client.post("/v1/payments", json=body, headers=as_user() | key())
    assert (refused.status_code, refused.json["errors"][0]["pointer"]) == (422, "/metadata")


def test_metadata_may_be_as_long_as_is_documented(client, as_user, price_id):
    metadata = {f"{n:040}": "ü" * 500 for n in range(20)}
    assert buy(client, as_user(), price_id, metadata=metadata)["metadata"] == metadata
