"""The `flask` commands: parse, call the service that the API calls, print."""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import orjson
from flask import Flask, current_app
from flask.cli import AppGroup, ScriptInfo, with_appcontext

from project import doctor, jobs, seeds, server
from project.auth import credentials
from project.commands import reports_errors
from project.email_addresses import normalize_email
from project.environment import ConfigError
from project.files import sweep
from project.housekeeping import clean_up
from project.json import dumps
from project.pagination import PageRequest
from project.payment_commands import ledger_cli, payments_cli
from project.security import Role
from project.users import service as users
from project.users.models import User
from project.users.schemas import UserOut

users_cli = AppGroup("users", help="Accounts.")
files_cli = AppGroup("files", help="Files and their storage.")
openapi_cli = AppGroup("openapi", help="The OpenAPI document.")

SWEPT = {
    "uploads": "uploads that never ended",
    "parts": "parts of uploads",
    "deleted": "deleted files whose bytes were still there",
    "orphans": "objects without a file",
    "missing": "files whose bytes are missing, now marked so",
    "found": "files whose bytes were missing and are back",
    "recounted": "accounts whose counters were wrong",
}
COLOURS = {doctor.State.OK: "green", doctor.State.WARNING: "yellow", doctor.State.FAILED: "red"}
OPENAPI_FILE = Path("docs/openapi.json")


class EmailType(click.ParamType[str]):
    """An address, in its stored form."""

    name = "email"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the stored form or say what is wrong."""
        return normalize_email(value.strip()) or self.fail("this is not an e-mail address", param, ctx)


EMAIL = EmailType()


@users_cli.command("create-admin")
@click.argument("email", type=EMAIL)
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input, one line.")
@reports_errors
def create_admin(email: str, password_stdin: bool) -> None:
    """Create an administrator, whose address counts as confirmed."""
    password = _password(from_stdin=password_stdin)
    user = credentials.create_admin(email=email, password=password)
    click.echo(f"Created the administrator {email} ({user.id}).")


def _password(*, from_stdin: bool) -> str:
    # Never as an argument: those are visible to every process of the machine.
    if from_stdin:
        try:
            password = sys.stdin.readline().rstrip("\r\n")
            password.encode()  # fails where the locale let other bytes in
        except UnicodeError as error:
            raise click.UsageError("The password is not UTF-8.") from error
        return password
    return str(click.prompt("Password", hide_input=True, confirmation_prompt=True))


def _all_users() -> Iterator[User]:
    cursor: str | None = None
    while True:
        page = users.list_users(caller_id=None, page=PageRequest(limit=100, cursor=cursor, sort="created_at"))
        yield from page
        cursor = page.next_cursor
        if cursor is None:
            return


@users_cli.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@reports_errors
def list_users(as_json: bool) -> None:
    """List all accounts, oldest first."""
    if as_json:
        click.echo(dumps(UserOut(many=True).dump(_all_users()), indent=True))
        return
    for user in _all_users():
        state = "active" if user.is_active else "inactive"
        click.echo(f"{user.id}  {user.role:<5}  {state:<8}  {user.email}")


@users_cli.command("set-role")
@click.argument("email", type=EMAIL)
@click.argument("role", type=click.Choice([role.value for role in Role]))
@reports_errors
def set_role(email: str, role: str) -> None:
    """Give an account another role; acts on its very next request."""
    users.update_user(users.get_by_email(email).id, actor_id=None, role=Role(role))
    click.echo(f"{email} is now {role}.")


@users_cli.command("deactivate")
@click.argument("email", type=EMAIL)
@reports_errors
def deactivate(email: str) -> None:
    """Keep an account from signing in and end its sessions at once."""
    users.update_user(users.get_by_email(email).id, actor_id=None, is_active=False)
    click.echo(f"{email} is deactivated.")


@files_cli.command("sweep")
@click.option(
    "--older-than",
    type=click.IntRange(min=0),
    default=sweep.OLDER_THAN,
    show_default=True,
    metavar="SECONDS",
    help="Leave alone what was touched since; 0 only when no server runs.",
)
@click.option("--dry-run", is_flag=True, help="Count, and change nothing.")
@reports_errors
def sweep_files(older_than: int, dry_run: bool) -> None:
    """Clear up what crashed uploads and deletions have left."""
    swept = sweep.sweep(older_than=older_than, dry_run=dry_run)
    click.echo("Found, and left as it is:" if dry_run else "Cleared up:")
    for name, what in SWEPT.items():
        click.echo(f"{getattr(swept, name):>7}  {what}")


@files_cli.command("verify")
@click.option("--sample", type=click.IntRange(min=1), metavar="N", help="Only N files, picked by chance.")
@reports_errors
def verify_files(sample: int | None) -> None:
    """Read every stored file again and compare it with its row; fails if anything is wrong."""
    problems: list[str] = []
    total = sweep.count_files(sample=sample)
    with click.progressbar(sweep.verify(sample=sample), length=total, label="Verifying", file=sys.stderr) as files:
        problems += [f"file {found.file_id}: {found.problem}" for found in files if found.problem]
    problems += [f"object {stored.key}: it belongs to no file" for stored in sweep.find_orphans()]
    problems += [f"account {user_id}: its counters are wrong" for user_id in sweep.wrong_counters()]
    for problem in problems:
        click.echo(problem)
    if problems:
        raise click.ClickException(f"{len(problems)} problems; `flask files sweep` cures all but lost bytes.")
    click.echo(f"{total} files are as they were stored.")


@click.command("seed")
@reports_errors
def seed() -> None:
    """Create the demo data that is missing; prints the password of new accounts, once."""
    password = seeds.seed()
    if password is None:
        click.echo("The demo data is there already.")
    else:
        click.echo(f"Demo accounts: {', '.join(seeds.DEMO_ACCOUNTS)}\nPassword of the new ones: {password}")


@click.command("worker")
@click.pass_obj
def worker(info: ScriptInfo) -> None:
    """Run background jobs until TERM or Ctrl-C."""
    click.echo("Running jobs; Ctrl-C stops.")
    try:
        jobs.run_worker(info.load_app())
    except ConfigError as error:
        raise click.ClickException(f"Refusing to start: {error}.") from error


@click.command("housekeeping")
@reports_errors
def housekeeping() -> None:
    """Delete what has expired: sessions, links, keys, uploads, what old events said, jobs that were given up."""
    clean_up()
    sweep.end_stale()
    click.echo("Deleted what had expired.")


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@with_appcontext
def examine(as_json: bool) -> None:
    """Look at everything that the settings name; fails if something is broken."""
    findings = []
    for finding in doctor.examine():
        findings.append(finding)
        if not as_json:
            mark = click.style(f"{finding.state:<8}", fg=COLOURS[finding.state])
            click.echo(f"{mark} {finding.name}: {finding.text}")
    if as_json:
        click.echo(orjson.dumps([asdict(finding) for finding in findings], option=orjson.OPT_INDENT_2))
    if any(finding.state is doctor.State.FAILED for finding in findings):
        raise click.exceptions.Exit(1)


@click.command("start")
@reports_errors
def start() -> None:
    """Bring the database up to date, seed it on the first run, and serve (what `make run` calls)."""
    server.prepare()
    server.serve()


@openapi_cli.command("write")
@click.option("--check", is_flag=True, help="Fail if the file is not up to date; write nothing.")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False), default=OPENAPI_FILE)
@reports_errors
def write_openapi(path: Path, check: bool) -> None:
    """Write the OpenAPI document to a file (docs/openapi.json)."""
    text = orjson.dumps(current_app.extensions["openapi"], option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    if not check:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
        click.echo(f"Wrote {path}.")
    elif not path.exists() or path.read_bytes() != text:
        raise click.ClickException(f"{path} is not up to date: run `flask openapi write`.")


def init_app(app: Flask) -> None:
    """Register the commands."""
    for command in (
        users_cli,
        files_cli,
        payments_cli,
        ledger_cli,
        openapi_cli,
        seed,
        worker,
        housekeeping,
        examine,
        start,
    ):
        app.cli.add_command(command)
