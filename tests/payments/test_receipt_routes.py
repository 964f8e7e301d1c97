"""The receipt over HTTP: who sees it, which of its two forms, and the page in a real browser."""

import base64
import hashlib
import re
from typing import Any
from uuid import uuid4

import pytest

from tests.browser import complaints, needs_chromium, run_browser
from tests.payments import paying
from tests.payments.asking import buy, code, data, purchase, refund

HTML = {"Accept": "text/html"}
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


def path(payment: Any) -> str:
    """Where the receipt of a payment is."""
    return f"/v1/payments/{payment['id']}/receipt"


def test_a_receipt_needs_a_token(client):
    assert client.get(f"/v1/payments/{uuid4()}/receipt").status_code == 401


def test_the_receipt_of_somebody_else_is_not_found(client, as_user, price_id):
    payment = purchase(client, as_user(), price_id)

    answer = client.get(path(payment), headers=as_user())

    assert (answer.status_code, code(answer)) == (404, "not_found")


def test_there_is_no_receipt_of_what_was_not_paid(client, as_user, price_id):
    customer = as_user()
    payment = buy(client, customer, price_id)

    answer = client.get(path(payment), headers=customer | HTML)

    assert (answer.status_code, code(answer)) == (409, "not_paid")
    assert answer.mimetype == "application/problem+json"


def test_the_receipt_as_json(client, as_user, as_staff, price_id):
    customer = as_user()
    payment = purchase(client, customer, price_id, quantity=2)
    given_back = data(refund(client, as_staff, payment, amount=500))

    answer = client.get(path(payment), headers=customer)

    assert answer.status_code == 200
    assert data(answer) == {
        "number": data(client.get(f"/v1/payments/{payment['id']}", headers=customer))["receipt_number"],
        "payment_id": payment["id"],
        "description": "Lessons",
        "quantity": 2,
        "amount": 2000,
        "amount_refunded": 500,
        "total": 1500,
        "currency": "USD",
        "method": {"type": "card", "brand": "visa", "last4": "4242"},
        "livemode": False,
        "paid_at": payment["succeeded_at"],
        "refunds": [given_back],
    }


def test_staff_see_the_receipt_of_anybody(client, as_user, as_staff, price_id):
    payment = purchase(client, as_user(), price_id)

    assert data(client.get(path(payment), headers=as_staff))["payment_id"] == payment["id"]


@pytest.mark.parametrize(
    ("accept", "mimetype"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("application/*", "application/json"),
        ("application/json, text/html", "application/json"),
        ("text/html;q=0.5, application/json;q=0.6", "application/json"),
        ("text/html;q=0, */*", "application/json"),
        ("image/png", "application/json"),
        ("text/html", "text/html"),
        ("text/*", "text/html"),
        ("text/html, application/json;q=0.9", "text/html"),
        (BROWSER["Accept"], "text/html"),
    ],
)
def test_clients_that_prefer_it_get_the_page(client, as_user, price_id, accept, mimetype):
    customer = as_user()
    payment = purchase(client, customer, price_id)

    answer = client.get(path(payment), headers=customer | ({"Accept": accept} if accept else {}))

    assert (answer.status_code, answer.mimetype) == (200, mimetype)
    assert "Accept" in answer.vary
    assert answer.headers["Cache-Control"] == "no-store"


def test_the_page_shows_what_was_paid_and_given_back(client, as_user, as_staff, in_app):
    price: Any = in_app(paying.make_price, name="Ten lessons", unit_amount=62500, currency="EUR")
    customer = as_user()
    payment = purchase(client, customer, price.id, quantity=2)
    refund(client, as_staff, payment, amount=2500)

    html = client.get(path(payment), headers=customer | HTML).text

    number = data(client.get(path(payment), headers=customer))["number"]
    shown = ("Ten lessons", "1,250.00 EUR", "-25.00 EUR", "1,225.00 EUR", "Visa •••• 4242", number, payment["id"])
    assert [text for text in (*shown, "Not a tax invoice", "TEST", "Refunded on") if text not in html] == []


def test_what_a_price_is_called_stays_text_on_the_page(client, as_user, in_app):
    price: Any = in_app(paying.make_price, name='<script>alert("x")</script>')
    customer = as_user()
    payment = purchase(client, customer, price.id)

    html = client.get(path(payment), headers=customer | HTML).text

    assert "&lt;script&gt;" in html
    assert "<script" not in html


def test_the_page_may_load_nothing_and_has_no_other_style_than_its_own(client, as_user, price_id):
    customer = as_user()
    answer = client.get(path(purchase(client, customer, price_id)), headers=customer | HTML)

    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    [style] = re.findall("<style>(.*?)</style>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.pop("style-src") == f"'sha256-{digest}'"
    assert set(policy) == {"default-src", "base-uri", "form-action", "frame-ancestors"}
    assert set(policy.values()) == {"'none'"}
    assert not re.search(r"https?:|\bsrc=|\bhref=|\bstyle=|url\(", answer.text)


def test_a_head_request_names_the_type_of_the_page(client, as_user, price_id):
    customer = as_user()
    payment = purchase(client, customer, price_id)

    answer = client.head(path(payment), headers=customer | HTML)

    assert (answer.status_code, answer.mimetype, answer.data) == (200, "text/html", b"")


def test_a_receipt_takes_no_query(client, as_user, price_id):
    customer = as_user()
    payment = purchase(client, customer, price_id)

    assert client.get(f"{path(payment)}?format=html", headers=customer | HTML).status_code == 422


def test_the_document_tells_of_both_forms(client):
    document = client.get("/openapi.json").json
    found = document["paths"]["/v1/payments/{payment_id}/receipt"]["get"]["responses"]["200"]["content"]

    assert set(found) == {"application/json", "text/html"}


@pytest.mark.browser
@needs_chromium
def test_a_browser_shows_the_page_styled_and_prints_it_black_on_white(client, as_user, price_id):
    customer = as_user()
    answer = client.get(path(purchase(client, customer, price_id)), headers=customer | BROWSER)
    colours = "() => ['body', 'main', '.test'].map(name => getComputedStyle(document.querySelector(name)))"
    with run_browser() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 800})
        found = complaints(page)
        page.route("**/*", lambda route: route.fulfill(body=answer.data, headers=dict(answer.headers)))
        page.goto(f"http://localhost{path({'id': uuid4()})}")
        on_screen = page.evaluate(f"({colours})().map(style => style.maxWidth + style.borderTopWidth)")
        assert on_screen[1].startswith("640px")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.emulate_media(media="print")
        printed = page.evaluate(f"({colours})().map(style => [style.backgroundColor, style.color])")
        assert printed == [["rgba(0, 0, 0, 0)", "rgb(0, 0, 0)"]] * 3
        assert page.pdf(format="A4").count(b"/Type /Page\n") == 1
        assert found == []
