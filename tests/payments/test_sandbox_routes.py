"""The sandbox over HTTP: what a customer's browser does at the provider, and what admins let go wrong or happen."""

import re
from urllib.parse import parse_qs, urlsplit

import pytest

from project import create_app
from project.payments.sandbox.methods import METHODS, Behaviour
from project.security import Role
from tests.conftest import ENV
from tests.payments.paying import VISA, make_price

THREE_D_SECURE = "pm_card_authenticationRequired"
SHOP = "http://localhost:5173/thanks?order=1#done"
DECLINES = {
    name: method.decline for name, method in METHODS.items() if method.decline and method.behaviour is Behaviour.DECLINE
}
NOT_TOLD = {"lost_card", "stolen_card", "fraudulent"}
DISCREET = "The payment was declined. Try again, or pay in another way."
# What a browser would like to see when somebody sends a form.
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
UNKNOWN = "/v1/sandbox/payment-intents/pi_sbx_0190f8e25a3b7c4d"


class Customer:
    """The customer of one payment, at the provider: all they know is its client secret."""

    def __init__(self, client, payment, headers):
        self._client = client
        self.payment = payment
        self.headers = headers
        self.secret = payment["client_secret"]
        self.url = f"/v1/sandbox/payment-intents/{self.secret.partition('_secret_')[0]}"

    def confirm(self, method=VISA, **values):
        body = {"client_secret": self.secret, "payment_method": method, **values}
        return self._client.post(f"{self.url}/confirm", json=body)

    def authenticate(self, outcome="approve", **options):
        return self._client.post(f"{self.url}/authenticate", json=self.answer(outcome), **options)

    def send_form(self, outcome="approve", **options):
        return self._client.post(f"{self.url}/authenticate", data=self.answer(outcome), **options)

    def answer(self, outcome="approve"):
        return {"client_secret": self.secret, "outcome": outcome}

    def page(self):
        return self._client.get(f"{self.url}/authenticate", query_string={"client_secret": self.secret})


@pytest.fixture
def new_customer(client, in_app, as_user):
    """Make somebody who is to pay 12.50 EUR and has not confirmed it."""

    def make(**values):
        price = in_app(make_price, name="Tea & <b>cake</b>", currency="EUR", unit_amount=1250)
        headers = as_user()
        body = {"price_id": str(price.id), **values}
        made = client.post("/v1/payments", json=body, headers={**headers, "Idempotency-Key": "k"})
        return Customer(client, made.json["data"], headers)

    return make


@pytest.fixture
def customer(new_customer):
    return new_customer()


@pytest.fixture
def asked(customer):
    """A customer who came from a shop, and whose bank asks them to approve the payment."""
    customer.confirm(THREE_D_SECURE, return_url=SHOP)
    return customer


def outcome(response):
    return response.status_code, response.json["data"]["status"], response.json["data"]["next_action"]


def refusal(response):
    return response.status_code, response.json["code"]


def wrong_fields(response):
    assert refusal(response) == (422, "validation_error")
    return [(error["pointer"], error["code"]) for error in response.json["errors"]]


def returned(response):
    """Where a customer is sent, and with which parameters."""
    assert response.status_code == 303
    address, _, rest = response.headers["Location"].partition("?")
    query, _, fragment = rest.partition("#")
    return address, parse_qs(query, strict_parsing=True), fragment


# --- Payment methods --------------------------------------------------------------------------------------------------


def test_anybody_sees_the_payment_methods_and_what_each_does(client):
    listed = client.get("/v1/sandbox/payment-methods").json["data"]

    assert [method["name"] for method in listed] == list(METHODS)
    assert listed[0] == {"name": VISA, "type": "card", "description": "Succeeds."}
    assert all(method["description"].endswith(".") for method in listed)


# --- Confirming -------------------------------------------------------------------------------------------------------


def test_a_good_card_pays_at_once(customer):
    assert outcome(customer.confirm()) == (200, "succeeded", None)


def test_a_payment_to_be_captured_is_authorised(new_customer):
    assert outcome(new_customer(capture_method="manual").confirm()) == (200, "requires_capture", None)


def test_a_bank_answers_later(customer):
    assert outcome(customer.confirm("pm_usBankAccount_success")) == (200, "processing", None)


def test_the_bank_of_a_card_asks_on_a_page(customer):
    status, state, action = outcome(customer.confirm(THREE_D_SECURE, return_url=SHOP))

    assert (status, state, action["type"]) == (200, "requires_action", "redirect_to_url")
    page = urlsplit(action["redirect_to_url"]["url"])
    assert f"{page.scheme}://{page.netloc}" == ENV["PUBLIC_URL"]
    assert (page.path, parse_qs(page.query)) == (f"{customer.url}/authenticate", {"client_secret": [customer.secret]})
    assert action["redirect_to_url"]["return_url"] == SHOP


@pytest.mark.parametrize("name", DECLINES)
def test_a_decline_says_why_and_the_same_payment_can_be_paid_after_it(customer, name):
    declined = customer.confirm(name)

    assert refusal(declined) == (402, "payment_declined")
    assert declined.json["decline_code"] == DECLINES[name].decline_code
    # Whoever pays with a stolen card is not told that it is known to be one.
    told = DISCREET if declined.json["decline_code"] in NOT_TOLD else DECLINES[name].message
    assert declined.json["detail"] == told
    assert outcome(customer.confirm()) == (200, "succeeded", None)


def test_an_attempt_that_waits_for_approval_can_be_replaced_by_another(asked):
    assert outcome(asked.confirm()) == (200, "succeeded", None)


@pytest.mark.parametrize("method", [VISA, "pm_usBankAccount_processing"])
def test_what_was_confirmed_is_not_confirmed_again(customer, method):
    customer.confirm(method)
    assert refusal(customer.confirm()) == (409, "invalid_state")


def test_a_canceled_payment_is_not_confirmed(customer, client):
    headers = {**customer.headers, "Idempotency-Key": "cancel"}
    assert client.post(f"/v1/payments/{customer.payment['id']}/cancel", headers=headers).status_code == 200
    assert refusal(customer.confirm()) == (409, "invalid_state")


@pytest.mark.parametrize("name", ["pm_card_gold", "PM_CARD_VISA", " pm_card_visa"])
def test_only_payment_methods_of_the_list_are_taken(customer, name):
    assert wrong_fields(customer.confirm(name)) == [("/payment_method", "invalid_payment_method")]


def test_a_bank_account_cannot_be_authorised_first(new_customer):
    answer = new_customer(capture_method="manual").confirm("pm_usBankAccount_success")
    assert wrong_fields(answer) == [("/payment_method", "invalid_payment_method")]


def test_what_is_missing_or_unknown_is_told(customer, client):
    answer = client.post(f"{customer.url}/confirm", json={"payment_method": 1, "amount": 1})
    told = {("/client_secret", "required"), ("/payment_method", "invalid_type"), ("/amount", "unknown_field")}
    assert set(wrong_fields(answer)) == told


# --- The client secret ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["confirm", "authenticate"])
def test_a_wrong_secret_and_an_unknown_payment_are_the_same_refusal(asked, new_customer, client, operation):
    rest = {"payment_method": VISA} if operation == "confirm" else {"outcome": "approve"}
    secrets = [f"{asked.secret}x", asked.secret[:-1], new_customer().secret, "é"]
    tries = [(asked.url, secret) for secret in secrets] + [(UNKNOWN, asked.secret)]
    answers = [client.post(f"{url}/{operation}", json={"client_secret": secret, **rest}) for url, secret in tries]

    assert {refusal(answer) for answer in answers} == {(401, "invalid_client_secret")}
    told = [{k: v for k, v in answer.json.items() if k not in {"instance", "request_id"}} for answer in answers]
    assert told == len(tries) * [told[0]]
    assert all(answer.headers["WWW-Authenticate"].startswith("Bearer") for answer in answers)
    assert outcome(asked.confirm(THREE_D_SECURE))[1] == "requires_action"


def test_the_page_needs_the_secret_too(asked, client):
    page = f"{asked.url}/authenticate"
    assert refusal(client.get(page, query_string={"client_secret": f"{asked.secret}x"})) == (
        401,
        "invalid_client_secret",
    )
    assert wrong_fields(client.get(page)) == [("/query/client_secret", "required")]


# --- The page for approval --------------------------------------------------------------------------------------------


def test_the_page_asks_for_what_is_to_be_paid(asked):
    page = asked.page()

    assert page.content_type == "text/html; charset=utf-8"
    for text in ("12.50 EUR", "Tea &amp; &lt;b&gt;cake&lt;/b&gt;", "Approve</button>", "Fail</button>"):
        assert text in page.text
    # Nothing of the address: its query would be one of the form's operation.
    assert f'action="{asked.url}/authenticate"' in page.text


def test_the_page_runs_nothing_and_is_kept_by_nobody(asked):
    page = asked.page()

    assert re.findall(r"<script|javascript:|\son\w+=|style=", page.text) == []
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'; base-uri 'none'; frame-ancestors")
    assert "script" not in page.headers["Content-Security-Policy"]
    assert page.headers["Cache-Control"] == "no-store"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert page.headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_says_when_there_is_nothing_to_approve(customer):
    assert "Nothing to approve" in customer.page().text
    assert "<form" not in customer.page().text


@pytest.mark.parametrize(("decision", "heading"), [("approve", "<h1>Approved"), ("fail", "<h1>Not approved")])
def test_the_page_says_what_was_decided_and_leads_back(asked, decision, heading):
    decided = asked.authenticate(decision)
    page = asked.page().text

    assert heading in page
    assert "<form" not in page
    assert f'href="{decided.headers["Location"].replace("&", "&amp;")}"' in page


# --- Approving --------------------------------------------------------------------------------------------------------


def test_without_an_address_to_return_to_the_answer_is_the_outcome(customer):
    customer.confirm(THREE_D_SECURE)
    assert outcome(customer.authenticate()) == (200, "succeeded", None)


def test_failing_is_no_error_and_the_payment_can_be_confirmed_again(customer):
    customer.confirm(THREE_D_SECURE)
    assert outcome(customer.authenticate("fail")) == (200, "requires_payment_method", None)
    assert outcome(customer.confirm()) == (200, "succeeded", None)


@pytest.mark.parametrize(("decision", "status"), [("approve", "succeeded"), ("fail", "failed")])
@pytest.mark.parametrize("send", [Customer.authenticate, Customer.send_form])
def test_the_customer_returns_with_what_stripe_adds(asked, send, decision, status):
    added = {
        "payment_intent": [asked.secret.partition("_secret_")[0]],
        "payment_intent_client_secret": [asked.secret],
        "redirect_status": [status],
    }
    response = send(asked, decision)

    assert returned(response) == ("http://localhost:5173/thanks", {"order": ["1"], **added}, "done")
    assert response.headers["Cache-Control"] == "no-store"


def test_an_authorised_payment_returns_as_one_that_succeeded(new_customer):
    manual = new_customer(capture_method="manual")
    manual.confirm(THREE_D_SECURE, return_url=SHOP)
    assert returned(manual.authenticate())[1]["redirect_status"] == ["succeeded"]


def test_an_app_is_returned_to_by_its_own_scheme(customer):
    customer.confirm(THREE_D_SECURE, return_url="shop.example:thanks")
    assert returned(customer.authenticate())[0] == "shop.example:thanks"


def test_a_program_that_sends_a_form_gets_json(customer):
    customer.confirm(THREE_D_SECURE)
    assert outcome(customer.send_form()) == (200, "succeeded", None)


def test_a_browser_with_nowhere_to_go_is_shown_the_page(customer):
    customer.confirm(THREE_D_SECURE)
    page = customer.send_form(headers=BROWSER)

    assert (page.status_code, page.content_type) == (200, "text/html; charset=utf-8")
    assert "<h1>Approved" in page.text


def test_what_was_decided_is_not_decided_again(asked):
    asked.authenticate("fail")
    assert refusal(asked.authenticate()) == (409, "invalid_state")
    assert refusal(asked.send_form()) == (409, "invalid_state")


def test_a_payment_that_nobody_confirmed_is_not_approved(customer):
    assert refusal(customer.authenticate()) == (409, "invalid_state")


def test_a_double_click_returns_to_the_shop_with_the_first_decision(asked):
    first = returned(asked.send_form("approve", headers=BROWSER))
    assert returned(asked.send_form("fail", headers=BROWSER)) == first
    assert first[1]["redirect_status"] == ["succeeded"]


@pytest.mark.parametrize(
    ("body", "content_type", "told"),
    [
        ("outcome=maybe&client_secret=x", "application/x-www-form-urlencoded", (422, "validation_error")),
        ("outcome=approve", "application/x-www-form-urlencoded", (422, "validation_error")),
        ("outcome=approve&client_secret=x&next=/", "application/x-www-form-urlencoded", (422, "validation_error")),
        ("outcome=approve&client_secret=%00", "application/x-www-form-urlencoded", (422, "validation_error")),
        ("outcome=approve&client_secret=%ff", "application/x-www-form-urlencoded", (401, "invalid_client_secret")),
        ("{", "application/json", (400, "invalid_json")),
        ("outcome=approve", "text/plain", (415, "unsupported_media_type")),
        ("--x--", "multipart/form-data; boundary=x", (415, "unsupported_media_type")),
    ],
)
def test_bodies_that_are_no_decision_are_refused(asked, client, body, content_type, told):
    assert refusal(client.post(f"{asked.url}/authenticate", data=body, content_type=content_type)) == told
    assert asked.authenticate().status_code == 303


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "JavaScript:alert(1)",
        "java\tscript:alert(1)",
        " javascript:alert(1)",
        "data:text/html,<script>alert(1)</script>",
        "vbscript:x",
        "blob:http://localhost/0",
        "file:///etc/passwd",
        "about:blank",
        "http://localhost/\r\nSet-Cookie: a=b",
        "http://localhost/\nx",
        "http://localhost/ x",
        "http://localhost/\r\n",
        " http://localhost/",
        "http://localhost/\x7f",
        "http://localhost/\x1b[2J",
        "http://localhost/é",
        "//localhost/thanks",
        "/thanks",
        "http:///thanks",
        "http://localhost:port/",
        "thanks",
        "",
        "http://localhost/" + 2000 * "a",
    ],
)
def test_an_address_that_nobody_should_be_sent_to_is_refused(customer, url):
    pointers = [pointer for pointer, _ in wrong_fields(customer.confirm(THREE_D_SECURE, return_url=url))]
    assert pointers == ["/return_url"]
    assert "Nothing to approve" in customer.page().text


def test_an_address_is_text_on_the_page_and_in_the_header(customer):
    address = "https://shop.example/\"'><b>%0d%0aSet-Cookie:a=b"
    customer.confirm(THREE_D_SECURE, return_url=address)
    location = customer.authenticate().headers["Location"]

    assert "\r" not in location
    assert "\n" not in location
    assert "<b>" not in customer.page().text


# --- For admins -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["faults", "advance"])
def test_only_admins_let_things_go_wrong_or_happen(client, as_user, operation):
    url = f"/v1/sandbox/{operation}"
    body = {"json": {"fault": "http_500", "count": 1}} if operation == "faults" else {}

    assert refusal(client.post(url, **body)) == (401, "token_required")
    for role in (Role.USER, Role.STAFF):
        assert refusal(client.post(url, headers=as_user(role=role), **body)) == (403, "forbidden")
    assert client.post(url, headers=as_user(role=Role.ADMIN), **body).status_code in {200, 204}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"fault": "meteor", "count": 1}, ("/fault", "invalid_choice")),
        ({"fault": "http_500", "count": -1}, ("/count", "out_of_range")),
        ({"fault": "http_500", "count": 1001}, ("/count", "out_of_range")),
        ({"fault": "http_500", "count": True}, ("/count", "invalid_type")),
        ({"fault": "http_500"}, ("/count", "required")),
    ],
)
def test_faults_that_there_are_not_are_refused(client, as_admin, body, told):
    assert wrong_fields(client.post("/v1/sandbox/faults", json=body, headers=as_admin)) == [told]


def test_a_fault_can_be_taken_back(client, as_admin, new_customer):
    for count in (3, 0):
        answer = client.post("/v1/sandbox/faults", json={"fault": "http_500", "count": count}, headers=as_admin)
        assert (answer.status_code, answer.data) == (204, b"")
    assert new_customer().payment["status"] == "requires_payment_method"


def test_advancing_lets_the_bank_answer_and_says_how_much_was_delivered(client, as_admin, customer, run_jobs):
    customer.confirm("pm_usBankAccount_success")
    advanced = client.post("/v1/sandbox/advance", headers=as_admin)
    run_jobs()

    # Created, processing, succeeded.
    assert (advanced.status_code, advanced.json) == (200, {"data": {"delivered": 3}})
    assert client.post("/v1/sandbox/advance", headers=as_admin).json == {"data": {"delivered": 0}}
    paid = client.get(f"/v1/payments/{customer.payment['id']}", headers=customer.headers).json["data"]
    assert (paid["status"], paid["method"]["type"]) == ("succeeded", "us_bank_account")


# --- With another provider --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("get", "/v1/sandbox/payment-methods"),
        ("post", f"{UNKNOWN}/confirm"),
        ("get", f"{UNKNOWN}/authenticate?client_secret=x"),
        ("post", f"{UNKNOWN}/authenticate"),
        ("post", "/v1/sandbox/faults"),
        ("post", "/v1/sandbox/advance"),
        ("post", "/v1/payments/webhooks/sandbox"),
    ],
)
def test_nothing_of_it_is_there_with_another_provider(tmp_path, method, path):
    keys = {
        "STRIPE_SECRET_KEY": "sk_test_" + 24 * "x",
        "STRIPE_PUBLISHABLE_KEY": "pk_test_" + 24 * "x",
        "STRIPE_WEBHOOK_SECRETS": "whsec_" + 32 * "x",
    }
    stripe = create_app({**ENV, **keys, "DATA_DIR": str(tmp_path), "PAYMENTS_PROVIDER": "stripe"})
    assert refusal(getattr(stripe.test_client(), method)(path)) == (404, "not_found")
