"""The commands of payments and the books: what they do, print, and end with."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, NoReturn
from urllib.parse import parse_qsl
from uuid import uuid4

import pytest
import stripe
from click.testing import Result
from flask import Flask
from sqlalchemy import select, update

from project import create_app
from project.database import db, transaction
from project.locks import alone
from project.payments import gateway, ledger, stripe_setup
from project.payments.failures import ProviderUnavailable
from project.payments.gateway_types import OutcomeUnknown
from project.payments.journal import EventStatus, WebhookEvent
from project.payments.models import Payment, PaymentStatus
from project.payments.sandbox.faults import Fault, set_fault
from tests.conftest import ENV
from tests.payments import paying, sandboxing
from tests.test_cli import refused

COUNTS = ("payments", "operations", "refunds", "events", "expired", "unavailable")


@pytest.fixture
def run(app: Flask) -> Callable[..., Result]:
    """Run a command in the application of the test."""
    return lambda *arguments: app.test_cli_runner().invoke(args=arguments)


@pytest.fixture
def silent(monkeypatch) -> None:
    """Let the provider be away."""

    class Silent:
        livemode = False

        def __getattr__(self, name: str) -> Any:
            def answer(*_: Any, **__: Any) -> NoReturn:
                raise OutcomeUnknown(name)

            return answer

    monkeypatch.setattr(gateway, "_gateway", lambda *_: Silent())


def told(result: Result) -> Any:
    """Return the JSON that a command printed, and nothing else."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return json.loads(result.stdout)


def pay() -> Payment:
    payment = paying.make_payment()
    paying.pay(payment)
    return payment


def lose() -> Payment:
    set_fault(Fault.TIMEOUT_AFTER, count=1)
    with pytest.raises(ProviderUnavailable):
        paying.make_payment()
    return db.session.scalars(select(Payment)).one()


def status(payment: Payment) -> PaymentStatus:
    return paying.get(payment).status


# --- reconcile --------------------------------------------------------------------------------------------------------


def test_reconcile_ends_with_0_when_all_is_well(run):
    result = run("payments", "reconcile")

    assert (result.exit_code, result.stderr) == (0, "")
    assert "0  payments that waited" in result.stdout


def test_reconcile_resolves_what_waits_longer_than_it_is_told(run, in_app):
    payment = in_app(lose)

    assert told(run("payments", "reconcile", "--json"))["payments"] == 0
    assert in_app(status, payment) is PaymentStatus.CREATED

    result = run("payments", "reconcile", "--settled", "0", "--json")
    assert (told(result)["payments"], result.exit_code) == (2, 0)
    assert in_app(status, payment) is PaymentStatus.REQUIRES_PAYMENT_METHOD


def test_reconcile_tells_a_script_everything(run):
    found = told(run("payments", "reconcile", "--json"))

    assert found == {**dict.fromkeys(COUNTS, 0), "repaired": [], "lapsing": [], "discrepancies": []}


def test_reconcile_ends_with_1_when_something_is_left_and_names_it(run, in_app):
    orphan = in_app(sandboxing.paid)

    result = run("payments", "reconcile", "--settled", "0")

    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout.splitlines()[-2:] == ["Left for you:", f"  orphan_at_provider: {orphan.ref}"]
    as_json = run("payments", "reconcile", "--settled", "0", "--json")
    assert (as_json.exit_code, told(as_json)["discrepancies"]) == (1, [f"orphan_at_provider: {orphan.ref}"])


def test_reconcile_ends_with_0_when_it_could_cure_what_differed(run, in_app):
    def refund_at_the_provider() -> Payment:
        payment = paying.paid()
        sandboxing.give_back(gateway.current_gateway().retrieve_payment(str(payment.provider_ref)), 300)
        return payment

    payment = in_app(refund_at_the_provider)

    result = run("payments", "reconcile", "--settled", "0")
    assert result.exit_code == 0
    assert f"  Payment {payment.id}: amount_refunded" in result.stdout.splitlines()


def test_reconcile_ends_with_2_when_the_provider_is_down(run, in_app, silent):
    result = run("payments", "reconcile", "--json")

    assert (result.exit_code, told(result)["unavailable"]) == (2, 1)


def test_reconcile_looks_back_as_far_as_it_is_told(run, in_app):
    in_app(sandboxing.paid)

    for since, code in [("1min", 1), ("48h", 1), ("2 d", 1)]:
        assert run("payments", "reconcile", "--settled", "0", "--since", since).exit_code == code


@pytest.mark.parametrize("since", ["48", "h", "-1h", "0h", "1.5h", "soon", ""])
def test_reconcile_refuses_what_is_no_span_of_time(run, since):
    assert "this is not a span of time" in refused(run("payments", "reconcile", "--since", since), 2)


@pytest.mark.parametrize("settled", ["-1", "1.5", "x"])
def test_reconcile_refuses_what_is_no_number_of_seconds(run, settled):
    refused(run("payments", "reconcile", "--settled", settled), 2)


def test_a_dry_run_says_what_it_would_look_at_and_leaves_it(run, in_app):
    payment = in_app(lose)

    result = run("payments", "reconcile", "--settled", "0", "--dry-run")

    assert "Found, and left as it is:" in result.stdout
    assert "1  payments that waited" in result.stdout
    assert in_app(status, payment) is PaymentStatus.CREATED


def test_reconcile_does_not_run_twice_at_once(run, session):
    with alone("reconcile"):
        assert "Another process is doing this right now" in refused(run("payments", "reconcile"))


# --- process-events ---------------------------------------------------------------------------------------------------


def test_process_events_delivers_and_acts_without_a_worker(run, in_app):
    payment = in_app(pay)

    result = run("payments", "process-events")

    assert (result.exit_code, result.stdout.splitlines()) == (
        0,
        ["Acted on:", "      2  webhook events", "      0  times the provider gave no answer"],
    )
    assert in_app(status, payment) is PaymentStatus.SUCCEEDED
    assert told(run("payments", "process-events", "--json")) == {"events": 0, "unavailable": 0, "discrepancies": []}


def test_process_events_tells_which_could_not_be_acted_on(run, in_app):
    in_app(sandboxing.make_payment)

    result = run("payments", "process-events", "--json")

    [event_id] = in_app(lambda: db.session.scalars(select(WebhookEvent.id)).all())
    assert result.exit_code == 1
    assert told(result) == {
        "events": 0,
        "unavailable": 0,
        "discrepancies": [f"WebhookEvent {event_id}: UnknownPayment"],
    }


def test_process_events_leaves_a_forged_event_out(run, in_app):
    def forge() -> Payment:
        set_fault(Fault.BAD_SIGNATURE, count=2)
        return pay()

    payment = in_app(forge)

    assert told(run("payments", "process-events", "--json"))["events"] == 0
    assert in_app(status, payment) is PaymentStatus.REQUIRES_PAYMENT_METHOD


def test_process_events_delivers_nothing_of_the_sandbox_to_stripe(run, in_app, app, monkeypatch):
    in_app(pay)
    settings = app.extensions["settings"]
    stripe_payments = replace(settings.payments, provider="stripe")
    monkeypatch.setitem(app.extensions, "settings", replace(settings, payments=stripe_payments))

    assert told(run("payments", "process-events", "--json"))["events"] == 0
    assert in_app(lambda: db.session.scalars(select(WebhookEvent)).all()) == []


def test_process_events_tries_again_what_failed(run, in_app):
    payment = in_app(pay)
    run("payments", "process-events")

    def fail() -> None:
        with transaction():
            db.session.execute(update(WebhookEvent).values(status=EventStatus.FAILED))

    in_app(fail)
    assert told(run("payments", "process-events", "--json"))["events"] == 2
    assert in_app(paying.booked, payment) == {"capture": 1000}


# --- ledger verify ----------------------------------------------------------------------------------------------------


def test_verify_ends_with_0_when_the_books_agree(run, in_app):
    in_app(paying.paid)

    result = run("ledger", "verify")
    assert (result.exit_code, result.stdout) == (0, "The books agree with the payments.\n")
    assert told(run("ledger", "verify", "--json")) == []


def test_verify_names_what_does_not_agree_and_fails(run, in_app):
    def break_them() -> Payment:
        payment = paying.paid()
        with transaction():
            ledger.post("refund", payment, source_type="refund", source_id=uuid4(), amount=1)
        return payment

    payment = in_app(break_them)
    rule = "refunded is what was posted as refunded"

    result = run("ledger", "verify")
    assert result.stdout == f"{rule}: {payment.id}\n"
    assert refused(result).startswith("Error: Violations: 1.")
    as_json = run("ledger", "verify", "--json")
    assert (as_json.exit_code, told(as_json)) == (1, [{"rule": rule, "subject": str(payment.id)}])


@pytest.mark.parametrize(
    "command", [["payments", "reconcile"], ["payments", "process-events"], ["ledger", "verify"]], ids=" ".join
)
def test_a_database_without_tables_is_one_line(command, tmp_path):
    app = create_app({**ENV, "DATA_DIR": str(tmp_path)})
    message = refused(app.test_cli_runner().invoke(args=command))
    with app.app_context():
        db.engine.dispose()

    assert "flask db upgrade" in message


# --- setup-webhook ----------------------------------------------------------------------------------------------------


class Stripe:
    """Stripe's side of webhook endpoints, over HTTP, which writes down what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, list[tuple[str, str]]]] = []
        self.endpoints: list[dict[str, Any]] = []
        self.refusal: tuple[int, dict[str, Any]] | None = None
        self.headers: Any = None

    def answer(self, method: str, path: str, form: list[tuple[str, str]]) -> tuple[int, dict[str, Any]]:
        self.asked.append((method, path, form))
        if self.refusal is not None:
            return self.refusal
        if method == "GET":
            return 200, {"object": "list", "data": self.endpoints, "has_more": False, "url": "/v1/webhook_endpoints"}
        if method == "DELETE":
            endpoint_id = path.rpartition("/")[2]
            self.endpoints = [endpoint for endpoint in self.endpoints if endpoint["id"] != endpoint_id]
            return 200, {"id": endpoint_id, "object": "webhook_endpoint", "deleted": True}
        made = {"id": "we_new", "object": "webhook_endpoint", "url": dict(form)["url"]}
        self.endpoints.append(made)
        return 200, made | {"secret": "whsec_told_only_once"}


@pytest.fixture
def at_stripe(monkeypatch) -> Iterator[Stripe]:
    """A server in the place of Stripe's, which the SDK talks to over HTTP."""
    played = Stripe()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            played.headers = self.headers
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            code, body = played.answer(self.command, self.path.partition("?")[0], parse_qsl(sent))
            written = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(written)))
            self.end_headers()
            self.wfile.write(written)

        do_GET = do_POST = do_DELETE = handle_any  # noqa: N815 - what the server calls

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        base: Any = {"api": f"http://127.0.0.1:{server.server_port}"}
        monkeypatch.setattr(
            stripe_setup, "connect", lambda key: stripe.StripeClient(key, base_addresses=base, max_network_retries=0)
        )
        yield played
        server.shutdown()
        thread.join()


URL = "https://api.example.com/v1/payments/webhooks/stripe"
KEY = "sk_test_0123456789abcdef"


@pytest.fixture
def set_up(tmp_path) -> Callable[..., Result]:
    """Run the command as somebody does who sets Stripe up: there is a key, and neither a secret nor a database."""

    def run(*arguments: str, **env: str) -> Result:
        settings = {**ENV, "DATA_DIR": str(tmp_path), "STRIPE_SECRET_KEY": KEY, "PUBLIC_URL": "https://api.example.com"}
        app = create_app(settings | env)
        return app.test_cli_runner().invoke(args=["payments", "setup-webhook", *arguments])

    return run


def test_setup_webhook_makes_the_endpoint_and_shows_its_secret_with_what_to_do(set_up, at_stripe):
    result = set_up()

    assert result.exit_code == 0, result.stderr
    assert result.stdout.endswith("\n\nwhsec_told_only_once\n")
    assert "STRIPE_WEBHOOK_SECRETS" in result.stdout
    assert [(method, path) for method, path, _ in at_stripe.asked] == [
        ("GET", "/v1/webhook_endpoints"),
        ("POST", "/v1/webhook_endpoints"),
    ]
    assert at_stripe.headers["Authorization"] == f"Bearer {KEY}"


def test_setup_webhook_asks_for_the_events_we_act_on_in_the_version_our_sdk_reads(set_up, at_stripe):
    set_up()

    form = at_stripe.asked[-1][2]
    assert (dict(form)["url"], dict(form)["api_version"]) == (URL, stripe.api_version)
    assert at_stripe.headers["Stripe-Version"] == stripe.api_version
    assert sorted(value for name, value in form if name.startswith("enabled_events")) == sorted(
        [f"payment_intent.{kind}" for kind in INTENTS]
        + [f"refund.{kind}" for kind in ("created", "updated", "failed")]
        + [f"charge.{kind}" for kind in ("refunded", "refund.updated")]
        + [f"charge.dispute.{kind}" for kind in DISPUTES]
    )


INTENTS = (
    "created",
    "requires_action",
    "processing",
    "amount_capturable_updated",
    "payment_failed",
    "succeeded",
    "canceled",
)
DISPUTES = ("created", "updated", "closed", "funds_withdrawn", "funds_reinstated")


def test_setup_webhook_tells_a_script(set_up, at_stripe):
    assert json.loads(set_up("--json").stdout) == {
        "id": "we_new",
        "url": URL,
        "api_version": stripe.api_version,
        "secret": "whsec_told_only_once",
        "replaced": [],
    }


def test_setup_webhook_leaves_an_endpoint_that_is_there(set_up, at_stripe):
    at_stripe.endpoints = [{"id": "we_old", "object": "webhook_endpoint", "url": URL}]

    assert "--replace" in refused(set_up())
    assert [method for method, _, _ in at_stripe.asked] == ["GET"]


def test_setup_webhook_replaces_it_when_told_to_after_the_new_one_is_there(set_up, at_stripe):
    at_stripe.endpoints = [
        {"id": "we_old", "object": "webhook_endpoint", "url": URL},
        {"id": "we_of_another", "object": "webhook_endpoint", "url": "https://other.example.com"},
    ]

    result = set_up("--replace")

    assert result.exit_code == 0, result.stderr
    assert "Deleted the endpoint we_old." in result.stdout
    assert [(method, path) for method, path, _ in at_stripe.asked[1:]] == [
        ("POST", "/v1/webhook_endpoints"),
        ("DELETE", "/v1/webhook_endpoints/we_old"),
    ]
    assert [endpoint["id"] for endpoint in at_stripe.endpoints] == ["we_of_another", "we_new"]


def test_setup_webhook_works_where_stripe_is_the_provider_already(set_up, at_stripe):
    keys = {"STRIPE_PUBLISHABLE_KEY": "pk_test_0123456789abcdef", "STRIPE_WEBHOOK_SECRETS": "whsec_0123456789abcdef"}

    assert set_up(PAYMENTS_PROVIDER="stripe", **keys).exit_code == 0


def test_setup_webhook_is_nothing_for_the_sandbox(set_up, at_stripe):
    assert "The sandbox needs no webhook endpoint" in refused(set_up(STRIPE_SECRET_KEY=""))
    assert at_stripe.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com",
        "http://localhost:8000",
        "https://localhost",
        "https://127.0.0.1",
        "https://[::1]:8000",
        "https://10.0.0.7",
        "https://192.168.1.2",
        "https://169.254.169.254",
        "https://machine",
        "https://api.localhost",
        "https://nas.local",
    ],
)
def test_setup_webhook_refuses_an_address_that_stripe_cannot_reach(set_up, at_stripe, url):
    assert "PUBLIC_URL" in refused(set_up(PUBLIC_URL=url))
    assert at_stripe.asked == []


def test_setup_webhook_takes_a_public_address(set_up, at_stripe):
    assert set_up(PUBLIC_URL="https://8.8.8.8:8443").exit_code == 0


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        ((401, {"error": {"message": "Invalid API Key", "type": "invalid_request_error"}}), "STRIPE_SECRET_KEY"),
        ((403, {"error": {"message": "restricted", "type": "invalid_request_error"}}), "STRIPE_SECRET_KEY"),
        ((400, {"error": {"message": "Invalid URL", "code": "url_invalid"}}), "url_invalid"),
        ((500, {"error": {"message": "oops", "type": "api_error"}}), "Try again"),
        ((429, {"error": {"message": "slow down", "type": "rate_limit"}}), "Try again"),
    ],
)
def test_setup_webhook_tells_in_one_line_what_stripe_says(set_up, at_stripe, refusal, told):
    at_stripe.refusal = refusal

    message = refused(set_up())

    assert told in message
    assert KEY not in message
