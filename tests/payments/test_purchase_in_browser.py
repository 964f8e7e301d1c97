"""The shop of docs/examples in a real browser: buying, being refused, approving, and everything done twice."""

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from flask import Flask
from playwright.sync_api import Browser, Locator, Page, Route, expect
from sqlalchemy import select

from project.database import db
from project.payments.models import Payment
from project.payments.sandbox import clock
from project.payments.sandbox.delivery import post
from project.payments.sandbox.faults import Fault, set_fault
from project.payments.sandbox.models import SandboxIntent
from project.users.models import User
from tests.browser import complaints, needs_chromium, run_browser
from tests.conftest import migrated
from tests.factories import PASSWORD, make_user
from tests.payments.paying import VISA, make_price
from tests.servers import run_server
from tests.servers.app import ROOT
from tests.servers.process import free_port

pytestmark = [pytest.mark.browser, pytest.mark.server, needs_chromium]

EXAMPLE = ROOT / "docs" / "examples"
API_OF_EXAMPLE = "http://127.0.0.1:8000"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
THREE_D_SECURE = "pm_card_authenticationRequired"
NO_MONEY = "pm_card_visa_chargeDeclinedInsufficientFunds"
# What a browser says by itself of a refusal, whatever the page makes of it.
REFUSED = re.compile(r"Failed to load resource: the server responded with a status of (402|409|503)")

# Stands in for Stripe's script: it refuses the first attempt, and pays at the sandbox with the second.
STRIPE = """
let attempts = 0;
globalThis.Stripe = (key) => ({
  elements: ({ clientSecret }) => ({
    clientSecret,
    create: (kind) => ({ mount: (place) => place.append(`${kind} with ${key}`) }),
  }),
  async confirmPayment({ elements: { clientSecret }, confirmParams, redirect }) {
    if (redirect !== "if_required" || !confirmParams.return_url.startsWith(location.origin)) throw new Error("wrong");
    if (++attempts === 1) return { error: { type: "card_error", message: "Your card has expired." } };
    if (attempts === 2) return { error: { type: "api_error", message: "An internal matter." } };
    const [intent] = clientSecret.split("_secret_");
    await fetch(`API/v1/sandbox/payment-intents/${intent}/confirm`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ client_secret: clientSecret, payment_method: "pm_card_visa" }),
    });
    return { paymentIntent: { status: "succeeded" } };
  },
});
"""


class Shelf(ThreadingHTTPServer):
    """Serves the example as `python -m http.server` would, but for the address of the API in it."""

    def __init__(self, api: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.api = api
        self.url = f"http://localhost:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Shelf

    def do_GET(self) -> None:
        path = EXAMPLE / (self.path.partition("?")[0].strip("/") or "index.html")
        content = path.read_text().replace(API_OF_EXAMPLE, self.server.api).encode()
        self.send_response(200)
        self.send_header("Content-Type", TYPES[path.suffix])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_args: object) -> None:
        """Print nothing."""


@dataclass(frozen=True)
class Site:
    """The shop's address, that of the API, and the application to look into."""

    url: str
    api: str
    app: Flask

    def payments(self, user: User) -> list[Payment]:
        """The payments of an account."""
        with self.app.app_context():
            return list(db.session.scalars(select(Payment).where(Payment.user_id == user.id)))

    def intents(self) -> int:
        """How many payments the provider has."""
        with self.app.app_context():
            return len(db.session.scalars(select(SandboxIntent.id)).all())

    def breaks(self, fault: Fault) -> None:
        """Let the next call of the provider, or the next webhook, go wrong."""
        with self.app.app_context():
            set_fault(fault, count=1)

    def advance(self) -> None:
        """Let banks answer."""
        with self.app.app_context():
            clock.advance(post)


class Customer:
    """Somebody with an account who looks at the shop in a tab."""

    def __init__(self, page: Page, site: Site, user: User | None = None) -> None:
        self.page = page
        self.site = site
        self.complaints = complaints(page)
        if user is None:
            with site.app.app_context():
                user = make_user()
        self.user = user
        page.goto(site.url)
        self.sign_in()

    def sign_in(self) -> None:
        self.page.get_by_label("E-mail").fill(str(self.user.email))
        self.page.get_by_label("Password").fill(PASSWORD)
        self.press("Sign in")
        expect(self.button("Sign out")).to_be_visible()

    def press(self, name: str) -> None:
        self.button(name).click()

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name)

    def choose(self, price: str = "Lesson", *, order: str | None = None) -> None:
        """Say what to buy, and let the page make the order's number if none is given."""
        self.page.get_by_label(price).check()
        if order:
            self.page.get_by_label("Order number").fill(order)

    def buy(self, price: str = "Lesson", *, order: str | None = None) -> None:
        """Buy, as far as the question how to pay."""
        self.choose(price, order=order)
        self.press("Buy")
        expect(self.button("Pay")).to_be_visible()

    def pay(self, method: str = VISA) -> None:
        self.page.get_by_label("Payment method").select_option(method)
        self.press("Pay")

    def sees(self, heading: str) -> None:
        expect(self.page.get_by_role("heading", name=heading)).to_be_visible()

    def is_told(self, text: str) -> None:
        expect(self.page.get_by_role("alert")).to_contain_text(text)

    @property
    def payment(self) -> Payment:
        """The only payment of this account."""
        (payment,) = self.site.payments(self.user)
        return payment

    @property
    def stored(self) -> str:
        """What the browser keeps beyond this page."""
        return str(self.page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    port = free_port()
    with Shelf(f"http://127.0.0.1:{port}") as shelf:
        threading.Thread(target=shelf.serve_forever, daemon=True).start()
        env = {"APP_ENV": "testing", "DATA_DIR": str(tmp_path_factory.mktemp("data")), "RATE_LIMITS": "off"}
        env |= {"CORS_ORIGINS": shelf.url.rstrip("/"), "PUBLIC_URL": shelf.api}
        app = migrated(env)
        with app.app_context():
            make_price(name="Lesson", currency="EUR", unit_amount=1250)
            make_price(name="Tea", currency="JPY", unit_amount=500)
            make_price(name="Donation", min_amount=100, max_amount=100_000)
            db.engine.dispose()
        with run_server(env, port):
            yield Site(shelf.url, shelf.api, app)
        shelf.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with run_browser() as running:
        yield running


@pytest.fixture
def new_customer(browser: Browser, site: Site) -> Iterator[Callable[..., Customer]]:
    """Open the shop in a browser that remembers nothing, and sign in: with a new account if none is given."""
    contexts = []

    def make(user: User | None = None) -> Customer:
        contexts.append(browser.new_context(viewport={"width": 420, "height": 800}, locale="en-GB"))
        return Customer(contexts[-1].new_page(), site, user)

    yield make
    for context in contexts:
        context.close()


@pytest.fixture
def customer(new_customer: Callable[..., Customer]) -> Customer:
    return new_customer()


# --- Buying -----------------------------------------------------------------------------------------------------------


def test_somebody_buys_and_pays(customer, site, tmp_path):
    customer.buy()
    expect(customer.button("Pay")).to_have_text("Pay €12.50")
    customer.page.screenshot(path=tmp_path / "checkout.png")
    customer.pay()

    customer.sees("Paid")
    expect(customer.page.get_by_text(f"Your receipt is {customer.payment.receipt_number}")).to_be_visible()
    assert (customer.payment.status, customer.payment.amount) == ("succeeded", 1250)
    assert "_secret_" not in customer.stored
    assert customer.complaints == []

    customer.press("Buy something else")
    customer.sees("What would you like?")
    customer.buy("Tea")
    expect(customer.button("Pay")).to_have_text("Pay JP¥500")
    assert len(site.payments(customer.user)) == 2


def test_a_price_with_bounds_asks_for_an_amount_and_says_what_is_wrong_with_it(customer):
    customer.choose("Donation")
    expect(customer.page.get_by_text("US$1.00 to US$1,000.00")).to_be_visible()
    amount = customer.page.get_by_label("Amount")
    for text, told in (("a lot", "Type an amount"), ("1.005", "Type an amount"), ("0.99", "amount")):
        amount.fill(text)
        customer.press("Buy")
        customer.is_told(told)
    amount.fill("19,9")
    customer.press("Buy")

    expect(customer.button("Pay")).to_have_text("Pay US$19.90")
    assert customer.payment.amount == 1990


def test_a_bank_that_answers_later_is_waited_for(customer, site):
    customer.buy()
    customer.pay("pm_usBankAccount_success")
    customer.sees("On its way")

    site.advance()
    customer.press("Look again")
    customer.sees("Paid")


def test_an_order_can_be_canceled(customer):
    customer.buy()
    customer.press("Cancel this order")

    customer.sees("Canceled")
    assert customer.payment.status == "canceled"
    customer.press("Buy something else")
    customer.sees("What would you like?")


# --- Refusals and the bank's page -------------------------------------------------------------------------------------


def test_after_a_refusal_the_same_payment_is_paid_in_another_way(customer, site):
    before = site.intents()
    customer.buy()
    customer.pay(NO_MONEY)
    customer.is_told("There is not enough money on your card.")
    customer.pay()

    customer.sees("Paid")
    expect(customer.page.get_by_role("alert")).to_be_hidden()
    assert customer.payment.status == "succeeded"
    assert site.intents() == before + 1
    assert [text for text in customer.complaints if not REFUSED.match(text)] == []


def test_a_reload_after_a_refusal_still_says_why(customer):
    customer.buy()
    customer.pay(NO_MONEY)
    customer.is_told("There is not enough money on your card.")
    customer.page.reload()

    customer.is_told("There is not enough money on your card.")
    customer.pay()
    customer.sees("Paid")


def test_a_payment_is_approved_on_the_page_of_the_bank(customer, site, tmp_path):
    customer.buy()
    customer.pay(THREE_D_SECURE)
    customer.sees("Approve this payment?")
    expect(customer.page.get_by_text("12.50 EUR")).to_be_visible()
    customer.page.screenshot(path=tmp_path / "approve.png")
    customer.press("Approve")

    customer.sees("Paid")
    assert customer.page.url == site.url
    assert "_secret_" not in customer.stored
    assert customer.payment.status == "succeeded"
    assert customer.complaints == []


def test_a_payment_that_the_customer_fails_to_approve_is_tried_again(customer, site):
    customer.buy()
    customer.pay(THREE_D_SECURE)
    customer.press("Fail")

    customer.is_told("The payment was not approved.")
    assert customer.page.url == site.url
    customer.pay(THREE_D_SECURE)
    customer.press("Approve")
    customer.sees("Paid")
    assert customer.payment.status == "succeeded"


def test_who_comes_back_from_the_bank_undecided_can_go_there_again(customer):
    customer.buy()
    customer.pay(THREE_D_SECURE)
    customer.sees("Approve this payment?")
    customer.page.go_back()

    customer.is_told("Your bank has not heard from you.")
    customer.pay(THREE_D_SECURE)
    customer.press("Approve")
    customer.sees("Paid")


def test_two_clicks_on_approve_come_back_to_the_shop(customer):
    customer.buy()
    customer.pay(THREE_D_SECURE)
    customer.button("Approve").dblclick()
    customer.sees("Paid")


def test_the_page_of_the_bank_says_what_was_decided_to_who_goes_back_to_it(customer):
    customer.buy()
    customer.pay(THREE_D_SECURE)
    customer.press("Approve")
    customer.sees("Paid")
    customer.page.go_back()

    customer.sees("Approved")
    customer.page.get_by_role("link", name="Back to the shop").click()
    customer.sees("Paid")


def test_the_address_is_not_believed(customer, site):
    customer.buy()
    customer.page.goto(f"{site.url}?payment_intent=pi_sbx_0&redirect_status=succeeded")

    expect(customer.button("Pay")).to_be_visible()
    assert customer.page.url == site.url
    assert customer.payment.status == "requires_payment_method"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_the_bank_follows_the_colour_scheme(customer, scheme):
    customer.page.emulate_media(color_scheme=scheme)
    customer.buy()
    customer.pay(THREE_D_SECURE)
    customer.sees("Approve this payment?")
    card = customer.page.get_by_role("main")
    shades = card.evaluate("element => getComputedStyle(element).backgroundColor")

    assert (sum(map(int, re.findall(r"\d+", shades)[:3])) > 3 * 128) == (scheme == "light")


# --- With Stripe ------------------------------------------------------------------------------------------------------


def test_with_stripe_its_fields_are_shown_and_its_refusals_told(customer, site):
    def pretend(route: Route) -> None:
        config = route.fetch().json()
        config["data"] |= {"provider": "stripe", "publishable_key": "pk_test_x"}
        route.fulfill(json=config, headers={"Access-Control-Allow-Origin": site.url.rstrip("/")})

    customer.page.route("**/v1/payments/config", pretend)
    script = STRIPE.replace("API", site.api)
    customer.page.route("https://js.stripe.com/**", lambda route: route.fulfill(body=script, content_type=TYPES[".js"]))
    customer.page.reload()
    customer.buy()
    expect(customer.page.get_by_text("payment with pk_test_x")).to_be_visible()

    for told in ("Your card has expired.", "The payment could not be made. Try again"):
        customer.press("Pay")
        customer.is_told(told)
    customer.press("Pay")
    customer.sees("Paid")
    assert customer.payment.status == "succeeded"
    assert customer.complaints == []


# --- Everything twice, and answers that are lost ----------------------------------------------------------------------


def test_double_clicks_buy_and_pay_once(customer, site):
    before = site.intents()
    customer.choose()
    customer.button("Buy").dblclick()
    expect(customer.button("Pay")).to_be_visible()
    confirmed = []
    customer.page.on("request", lambda request: confirmed.append(request.method) if "/confirm" in request.url else None)
    customer.button("Pay").dblclick()

    customer.sees("Paid")
    assert confirmed.count("POST") == 1
    assert customer.payment.status == "succeeded"
    assert site.intents() == before + 1


def test_two_requests_with_one_key_are_one_payment(customer, site):
    """What the page would do if it did not hold back the second click."""
    before = site.intents()

    def twice(route: Route) -> None:
        route.fetch()
        route.continue_()

    customer.page.route("**/v1/payments", twice)
    customer.buy()

    assert customer.payment.status == "requires_payment_method"
    assert site.intents() == before + 1


def test_a_lost_answer_is_asked_for_again_with_the_same_key(customer, site):
    before = site.intents()
    keys = []

    def lose_the_first(route: Route) -> None:
        keys.append(route.request.headers["idempotency-key"])
        if len(keys) > 1:
            route.continue_()
            return
        route.fetch()
        route.abort()

    customer.page.route("**/v1/payments", lose_the_first)
    customer.buy()

    assert keys == [keys[0], keys[0]]
    assert customer.payment.status == "requires_payment_method"
    assert site.intents() == before + 1


def test_a_reload_while_the_answer_is_on_its_way_finds_the_same_payment(customer, site):
    before = site.intents()
    made = threading.Event()

    def keep_the_answer(route: Route) -> None:
        route.fetch()
        made.set()

    customer.page.route("**/v1/payments", keep_the_answer)
    customer.choose(order="order-of-a-reload")
    with customer.page.expect_request("**/v1/payments"):
        customer.press("Buy")
    customer.page.wait_for_function("JSON.parse(sessionStorage.purchase).key")
    while not made.is_set():
        customer.page.wait_for_timeout(20)
    customer.page.unroute("**/v1/payments")
    customer.page.reload()

    expect(customer.button("Pay")).to_be_visible()
    customer.pay()
    customer.sees("Paid")
    assert customer.payment.reference == "order-of-a-reload"
    assert site.intents() == before + 1


def test_a_reload_before_paying_goes_on_with_the_payment(customer):
    customer.buy()
    customer.page.reload()
    expect(customer.button("Pay")).to_have_text("Pay €12.50")
    customer.pay()

    customer.sees("Paid")
    customer.page.reload()
    customer.sees("Paid")
    assert customer.payment.status == "succeeded"


def test_a_payment_whose_confirmation_had_no_answer_is_looked_at(customer):
    def lose(route: Route) -> None:
        route.fetch()
        route.abort()

    customer.buy()
    customer.page.route("**/confirm", lose)
    customer.pay()
    customer.sees("Paid")


def test_a_shop_that_cannot_be_reached_says_so_and_then_goes_on(customer):
    customer.buy()
    customer.page.route("**/v1/**", lambda route: route.abort())
    customer.page.reload()
    customer.is_told("The shop cannot be reached right now.")
    customer.page.unroute("**/v1/**")
    customer.press("Try again")

    expect(customer.button("Pay")).to_be_visible()
    assert customer.payment.status == "requires_payment_method"


@pytest.mark.parametrize("fault", [Fault.TIMEOUT_BEFORE, Fault.TIMEOUT_AFTER, Fault.HTTP_500])
def test_a_provider_that_does_not_answer_is_asked_again(customer, site, fault):
    before = site.intents()
    site.breaks(fault)
    customer.buy()
    customer.pay()

    customer.sees("Paid")
    assert customer.payment.status == "succeeded"
    assert site.intents() == before + 1


def test_an_order_that_is_bought_in_two_tabs_is_one_payment(customer, new_customer, site):
    other = new_customer(customer.user)
    customer.buy(order="order-of-two-tabs")
    other.buy(order="order-of-two-tabs")
    other.pay()
    other.sees("Paid")

    customer.pay()  # which is not possible any more
    customer.sees("Paid")
    assert customer.payment.status == "succeeded"


def test_an_order_that_is_paid_is_shown_as_paid(customer, new_customer):
    customer.buy(order="order-of-today")
    customer.pay()
    customer.sees("Paid")

    again = new_customer(customer.user)
    again.choose(order="order-of-today")
    again.press("Buy")
    again.sees("Paid")
    assert customer.payment.status == "succeeded"


def test_who_has_to_sign_in_again_goes_on_with_the_payment(customer):
    customer.buy()
    customer.page.evaluate("sessionStorage.access = JSON.stringify('expired')")
    customer.press("Pay")
    # The sandbox confirms without a token; looking at the payment needs one.
    customer.is_told("Sign in again to go on.")
    customer.sign_in()

    customer.sees("Paid")
    assert customer.payment.status == "succeeded"


def test_who_signs_out_leaves_nothing_behind(customer):
    customer.buy()
    customer.press("Sign out")

    customer.sees("Sign in")
    assert customer.stored == '[{},{},""]'
