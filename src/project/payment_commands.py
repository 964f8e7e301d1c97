"""The `flask payments` and `flask ledger` commands."""

import importlib
import sys
from collections.abc import Callable, Collection
from dataclasses import asdict
from datetime import timedelta
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import click
import orjson
from flask.cli import AppGroup

from project.commands import reports_errors
from project.config import LOCAL_HOSTS, settings
from project.environment import parse_duration
from project.payments import inbox, ledger_check
from project.payments import reconcile as reconciliation
from project.payments.gateway_types import GatewayError, Misconfigured
from project.payments.reconcile import Report
from project.payments.sandbox import delivery

payments_cli = AppGroup("payments", help="Payments and their provider.")
ledger_cli = AppGroup("ledger", help="The books.")

STRIPE_PATH = "/v1/payments/webhooks/stripe"
COUNTED = {
    "payments": "payments that waited",
    "operations": "captures and cancellations",
    "refunds": "refunds",
    "events": "webhook events",
    "expired": "payments that were not made in time, now canceled",
    "unavailable": "times the provider gave no answer",
}
LISTED = {
    "repaired": "Differed from the provider, and are right now:",
    "lapsing": "Authorised, and lapse within a day unless they are captured:",
    "discrepancies": "Left for you:",
}


class DurationType(click.ParamType[timedelta]):
    """A span of time, such as 48h."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return it or say what is wrong."""
        try:
            return value if isinstance(value, timedelta) else parse_duration(value)
        except ValueError:
            self.fail("this is not a span of time such as 48h, 30min or 2d", param, ctx)


def prints_json(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the option that a script uses."""
    return click.option("--json", "as_json", is_flag=True, help=f"Print {what}.")


@payments_cli.command("reconcile")
@click.option("--since", type=DurationType(), default="48h", show_default=True, help="How far back to compare.")
@click.option(
    "--settled",
    type=click.IntRange(min=0),
    default=int(reconciliation.SETTLED.total_seconds()),
    show_default=True,
    metavar="SECONDS",
    help="Leave alone what was touched since.",
)
@click.option("--dry-run", is_flag=True, help="Count and compare, and change nothing.")
@prints_json("a JSON object")
@reports_errors
def reconcile(since: timedelta, settled: int, dry_run: bool, as_json: bool) -> None:
    """Find out what became of all that waits; also runs by itself every five minutes.

    Ends with 1 when something is left that needs a person, with 2 when the provider did not answer.
    """
    report = reconciliation.reconcile(since=since, settled=timedelta(seconds=settled), dry_run=dry_run)
    _print(report, "Found, and left as it is:" if dry_run else "Looked at:", as_json=as_json)


@payments_cli.command("process-events")
@prints_json("a JSON object")
@reports_errors
def process_events(as_json: bool) -> None:
    """Act on every webhook event that was not acted on yet; with the sandbox, after delivering what is due."""
    if settings.payments.provider == "sandbox":
        delivery.deliver_due(inbox.take)
    report = reconciliation.process_events()
    _print(report, "Acted on:", names=("events", "unavailable", "discrepancies"), as_json=as_json)


def _print(report: Report, title: str, *, as_json: bool, names: Collection[str] = (*COUNTED, *LISTED)) -> None:
    """Print what a report says under these names, and end the command as it ended."""
    found = {name: value for name, value in asdict(report).items() if name in names}
    if as_json:
        click.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2))
        sys.exit(report.exit_code)
    click.echo(title)
    for name in [name for name in COUNTED if name in found]:
        click.echo(f"{found[name]:>7}  {COUNTED[name]}")
    for name in [name for name in LISTED if name in found]:
        for line in [LISTED[name], *(f"  {item}" for item in found[name])] if found[name] else []:
            click.echo(line)
    sys.exit(report.exit_code)


@payments_cli.command("setup-webhook")
@click.option("--replace", is_flag=True, help="Delete the endpoint that is there, once the new one is made.")
@prints_json("a JSON object")
@reports_errors
def setup_webhook(replace: bool, as_json: bool) -> None:
    """Let Stripe send its events to PUBLIC_URL; prints the signing secret, once.

    Needs STRIPE_SECRET_KEY and PUBLIC_URL alone. As nothing starts with PAYMENTS_PROVIDER=stripe before it has the
    secret, run this with APP_ENV=development and PAYMENTS_PROVIDER=sandbox, on any machine.
    """
    key = settings.payments.setup_key
    if not key:
        message = "The sandbox needs no webhook endpoint. To make one at Stripe, set STRIPE_SECRET_KEY."
        raise click.ClickException(message)
    url = _public_url() + STRIPE_PATH
    # By name, for the reason that gateway.py gives.
    stripe_setup: Any = importlib.import_module("project.payments.stripe_setup")
    try:
        made = stripe_setup.make_endpoint(stripe_setup.connect(key), url=url, replace=replace)
    except Misconfigured as error:
        raise click.ClickException("Stripe does not accept STRIPE_SECRET_KEY, or not for this.") from error
    except GatewayError as error:
        raise click.ClickException(f"Stripe made no endpoint ({error}). Try again.") from error
    if as_json:
        click.echo(orjson.dumps(asdict(made), option=orjson.OPT_INDENT_2))
        return
    click.echo(f"Made the webhook endpoint {made.id} for {made.url} (API version {made.api_version}).")
    for endpoint_id in made.replaced:
        click.echo(f"Deleted the endpoint {endpoint_id}.")
    click.echo(
        "Put this secret, which is shown only now, into STRIPE_WEBHOOK_SECRETS; if there is another already, separate\n"
        f"the two by a comma for a day. Then set PAYMENTS_PROVIDER=stripe and restart.\n\n{made.secret}"
    )


def _public_url() -> str:
    """Return PUBLIC_URL, if Stripe can reach it.

    Raises:
        ClickException: it cannot.
    """
    parts = urlsplit(settings.public_url)
    if parts.scheme != "https" or _is_local(parts.hostname or ""):
        raise click.ClickException("PUBLIC_URL must begin with https:// and be reachable from outside.")
    return settings.public_url


def _is_local(host: str) -> bool:
    try:
        return not ip_address(host).is_global
    except ValueError:
        return host in LOCAL_HOSTS or "." not in host or host.endswith((".localhost", ".local", ".internal", ".test"))


@ledger_cli.command("verify")
@prints_json("a JSON array of what is wrong")
@reports_errors
def verify_ledger(as_json: bool) -> None:
    """Check that the books agree with the payments; fails if anything is wrong."""
    violations = ledger_check.verify()
    if as_json:
        click.echo(orjson.dumps([asdict(violation) for violation in violations], option=orjson.OPT_INDENT_2))
    for violation in [] if as_json else violations:
        click.echo(str(violation))
    if violations:
        raise click.ClickException(f"Violations: {len(violations)}. The timeline of a payment tells what happened.")
    if not as_json:
        click.echo("The books agree with the payments.")
