"""The `flask` commands: what they do, print and refuse."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result
from flask import Flask
from sqlalchemy import func, select, text

from project import create_app, seeds
from project.audit import AuditEvent
from project.auth.models import KnownNetwork, Link, LinkPurpose, Session
from project.database import db, transaction, utcnow
from project.idempotency_keys import IdempotencyKey, State
from project.security import Role
from project.users.models import User
from tests import factories
from tests.conftest import ENV, migrated
from tests.servers.app import INHERITED
from tests.servers.process import free_port

ROOT = Path(__file__).parents[1]
PASSWORD = "plenty of unrelated words"
HOUR = timedelta(hours=1)
Run = Callable[..., Result]


@pytest.fixture
def run(app) -> Run:
    """Run a command in the application of the test."""
    return lambda *arguments, entered="": app.test_cli_runner().invoke(args=arguments, input=entered)


def refused(result: Result, code: int = 1) -> str:
    """Check that a command failed as commands should, and return what it said."""
    assert result.exit_code == code
    assert isinstance(result.exception, SystemExit), result.exception
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("Error: ")
    assert len(lines) == 1 or code == 2  # click shows the usage as well
    return lines[-1]


def users() -> dict[str | None, User]:
    """All accounts by address."""
    return {user.email: user for user in db.session.scalars(select(User))}


# --- create-admin -----------------------------------------------------------------------------------------------------


def test_create_admin_asks_for_the_password_twice_and_shows_it_never(run, client, in_app):
    result = run("users", "create-admin", "Root@Example.COM", entered=f"{PASSWORD}\n{PASSWORD}\n")

    assert result.exit_code == 0, result.output
    user = in_app(users)["root@example.com"]
    assert f"Created the administrator root@example.com ({user.id})." in result.output
    assert PASSWORD not in result.output
    assert (user.role, user.is_active, user.email_verified) == (Role.ADMIN, True, True)
    answer = client.post("/v1/auth/login", json={"email": "root@example.com", "password": PASSWORD})
    assert answer.json["data"]["user"]["role"] == "admin"


def test_create_admin_reads_one_line_from_a_pipe(run, client):
    result = run("users", "create-admin", "root@example.com", "--password-stdin", entered=f" {PASSWORD} \r\nmore\n")

    assert result.exit_code == 0, result.output
    assert "Password" not in result.output
    login = {"email": "root@example.com", "password": f" {PASSWORD} "}
    assert client.post("/v1/auth/login", json=login).status_code == 200


def test_create_admin_is_written_into_the_audit_log(run, in_app):
    run("users", "create-admin", "root@example.com", "--password-stdin", entered=PASSWORD)

    [event] = in_app(lambda: db.session.scalars(select(AuditEvent)).all())
    assert (event.action, event.actor_id, event.data) == ("user_created", None, {"role": "admin"})


@pytest.mark.parametrize("address", ["root", "root@", "root@example", "a@x.com,b@x.com", ""])
def test_create_admin_refuses_what_is_no_address(run, in_app, address):
    assert "e-mail address" in refused(run("users", "create-admin", address, entered=f"{PASSWORD}\n" * 2), 2)
    assert in_app(users) == {}


@pytest.mark.parametrize(
    ("password", "told"),
    [("short", "too short"), ("", "too short"), ("x" * 257, "too long"), ("password1234", "guess")],
)
def test_create_admin_refuses_a_bad_password_in_one_line(run, in_app, password, told):
    result = run("users", "create-admin", "root@example.com", "--password-stdin", entered=f"{password}\n")

    assert told in refused(result)
    assert in_app(users) == {}


def test_create_admin_refuses_a_taken_address(run, as_user):
    taken = as_user()
    result = run("users", "create-admin", taken.user.email, "--password-stdin", entered=PASSWORD)

    assert "already exists" in refused(result)


def test_create_admin_refuses_a_password_that_is_not_utf_8(run, in_app):
    result = run("users", "create-admin", "root@x.com", "--password-stdin", entered=b"plenty of \xff words\n")

    assert "UTF-8" in refused(result, 2)
    assert in_app(users) == {}


def test_create_admin_takes_no_password_as_an_argument(run):
    assert "unexpected extra argument" in refused(run("users", "create-admin", "root@example.com", PASSWORD), 2)
    assert "No such option" in refused(run("users", "create-admin", "root@example.com", "--password", PASSWORD), 2)


def test_create_admin_can_be_abandoned(run, in_app):
    result = run("users", "create-admin", "root@example.com", entered=f"{PASSWORD}\n")

    assert result.exit_code == 1
    assert in_app(users) == {}


# --- list -------------------------------------------------------------------------------------------------------------


def test_list_shows_one_account_a_line_oldest_first(run, as_user):
    ann, ben = as_user(email="ann@x.com", role=Role.STAFF), as_user(email="ben@x.com", is_active=False)

    lines = run("users", "list").stdout.splitlines()

    assert [line.split() for line in lines] == [
        [str(ann.user.id), "staff", "active", "ann@x.com"],
        [str(ben.user.id), "user", "inactive", "ben@x.com"],
    ]


def test_list_as_json_is_an_array_of_what_the_api_shows(run, client, as_admin, as_user):
    as_user(email="zoë@bücher.example", name="Zoë \u2028")
    of_the_api = client.get("/v1/users?sort=created_at", headers=as_admin).json["data"]

    assert json.loads(run("users", "list", "--json").stdout) == of_the_api


def test_list_of_nothing_is_nothing(run):
    assert run("users", "list").stdout == ""
    assert json.loads(run("users", "list", "--json").stdout) == []


def test_list_goes_through_all_pages(run, in_app):
    def make_many() -> None:
        with transaction():
            db.session.add_all([User(email=f"user{number}@x.com") for number in range(205)])

    in_app(make_many)

    assert len(set(run("users", "list").stdout.splitlines())) == 205
    assert len(json.loads(run("users", "list", "--json").stdout)) == 205


# --- set-role and deactivate ------------------------------------------------------------------------------------------


def test_set_role_acts_on_the_next_request(run, client, as_user):
    caller = as_user(email="ann@x.com")
    assert client.get("/v1/users", headers=caller).status_code == 403

    result = run("users", "set-role", " ANN@x.com ", "staff")

    assert (result.exit_code, result.stdout) == (0, "ann@x.com is now staff.\n")
    assert client.get("/v1/users", headers=caller).status_code == 200


def test_deactivate_ends_the_sessions_at_once(run, client, as_user):
    caller = as_user(email="ann@x.com")
    assert client.get("/v1/users/me", headers=caller).status_code == 200

    result = run("users", "deactivate", "ann@x.com")

    assert (result.exit_code, result.stdout) == (0, "ann@x.com is deactivated.\n")
    assert client.get("/v1/users/me", headers=caller).status_code == 401
    assert client.post("/v1/auth/refresh", headers=caller.refreshing).status_code == 401


@pytest.mark.parametrize("command", [("set-role", "user"), ("deactivate",)])
def test_the_last_administrator_stays(run, client, as_admin, command):
    name, *role = command
    result = run("users", name, as_admin.user.email, *role)

    assert "last active administrator" in refused(result)
    assert client.get("/v1/audit-events", headers=as_admin).status_code == 200


@pytest.mark.parametrize("command", [("set-role", "user"), ("deactivate",)])
def test_an_unknown_account_is_refused(run, command):
    name, *role = command

    assert "no user" in refused(run("users", name, "nobody@x.com", *role))


@pytest.mark.parametrize("role", ["root", "Admin", ""])
def test_set_role_refuses_what_is_no_role(run, as_user, role):
    assert "'user', 'staff', 'admin'" in refused(run("users", "set-role", as_user().user.email, role), 2)


# --- seed -------------------------------------------------------------------------------------------------------------


def test_seed_makes_accounts_that_can_sign_in_and_tells_the_password_once(run, client, in_app):
    first, second = run("seed"), run("seed")

    password = first.stdout.split()[-1]
    assert second.stdout == "The demo data is there already.\n"
    assert set(in_app(users)) == set(seeds.DEMO_ACCOUNTS)
    for email, (name, role) in seeds.DEMO_ACCOUNTS.items():
        assert email in first.stdout
        user = client.post("/v1/auth/login", json={"email": email, "password": password}).json["data"]["user"]
        assert (user["name"], user["role"]) == (name, role)


def test_seed_makes_only_what_is_missing(run, in_app):
    before = in_app(factories.make_user, email="demo@example.com", name="Mine", role=Role.USER)

    assert "Password of the new ones" in run("seed").stdout
    found = in_app(users)
    assert set(found) == set(seeds.DEMO_ACCOUNTS)
    assert (found["demo@example.com"].id, found["demo@example.com"].name) == (before.id, "Mine")


@pytest.fixture
def production_app(tmp_path) -> Iterator[Flask]:
    """The application with the settings of production, on an SQLite database."""
    knowingly = {"ALLOW_SQLITE_IN_PRODUCTION": "1", "PAYMENTS_SANDBOX_IN_PRODUCTION": "1"}
    app = migrated({**ENV, **knowingly, "APP_ENV": "production", "DATA_DIR": str(tmp_path)})
    yield app
    with app.app_context():
        db.engine.dispose()


def test_seed_is_refused_in_production(production_app):
    assert "not for production" in refused(production_app.test_cli_runner().invoke(args=["seed"]))
    with production_app.app_context():
        assert users() == {}


def test_a_new_production_database_has_no_accounts_until_an_admin_is_made(production_app):
    runner = production_app.test_cli_runner()
    assert runner.invoke(args=["users", "list"]).stdout == ""

    runner.invoke(args=["users", "create-admin", "root@x.com", "--password-stdin"], input=PASSWORD)

    assert "root@x.com" in runner.invoke(args=["users", "list"]).stdout


# --- housekeeping -----------------------------------------------------------------------------------------------------

_numbers = count()


def make_link(user: User, expires_in: timedelta) -> None:
    values = {"purpose": LinkPurpose.RESET_PASSWORD, "token_hash": str(next(_numbers))}
    db.session.add(Link(user_id=user.id, expires_at=utcnow() + expires_in, **values))


def make_key(user: User, age: timedelta, state: State) -> None:
    now = utcnow()
    values = {"method": "POST", "path": "/", "fingerprint": "", "locked_at": now, "created_at": now - age}
    db.session.add(IdempotencyKey(user_id=user.id, key=str(next(_numbers)), state=state, **values))


def make_failed_job(age: timedelta) -> None:
    failed_at = utcnow() - age
    if db.engine.dialect.name == "sqlite":
        job = "INSERT INTO local_jobs (task, arguments, run_at, attempts, failed_at) VALUES ('t', '{}', :at, 9, :at)"
        db.session.execute(text(job), {"at": failed_at.replace(tzinfo=None).isoformat(" ")})
        return
    job = "INSERT INTO procrastinate_jobs (queue_name, task_name, status) VALUES ('q', 't', 'failed') RETURNING id"
    event = "INSERT INTO procrastinate_events (job_id, type, at) VALUES (:id, 'failed', :at)"
    db.session.execute(text(event), {"id": db.session.scalar(text(job)), "at": failed_at})


def kept() -> dict[str, int]:
    """How many rows there are of all that can expire, and of what cannot."""
    jobs = "local_jobs" if db.engine.dialect.name == "sqlite" else "procrastinate_jobs"
    failed_jobs = text(f"SELECT count(*) FROM {jobs}")
    counts = {
        model.__tablename__: db.session.scalar(select(func.count()).select_from(model))
        for model in (Session, Link, KnownNetwork, IdempotencyKey, User, AuditEvent)
    }
    return {**counts, "failed jobs": db.session.scalar(failed_jobs)}


def test_housekeeping_deletes_what_has_expired_and_nothing_else(run, in_app):
    def fill() -> None:
        user = factories.make_user()
        for expires_in in (-HOUR, HOUR):
            factories.make_session(user, expires_at=utcnow() + expires_in)
        # A session that was ended stays until its time is over: a token of it must go on being refused by name.
        factories.make_session(user, revoked_at=utcnow() - 80 * 24 * HOUR, revoked_reason="logout")
        with transaction():
            make_link(user, -HOUR)
            make_link(user, HOUR)
            for network, age in (("192.0.2.0/24", 31), ("198.51.100.0/24", 29)):
                seen_at = utcnow() - timedelta(days=age)
                db.session.add(KnownNetwork(user_id=user.id, network=network, last_login_at=seen_at))
            for state in State:
                make_key(user, 25 * HOUR, state)
                make_key(user, 23 * HOUR, state)
            make_failed_job(timedelta(days=8))
            make_failed_job(timedelta(days=6))
            db.session.add(AuditEvent(action="old", actor_id=None, at=utcnow() - timedelta(days=3650)))

    in_app(fill)

    result = run("housekeeping")

    assert (result.exit_code, result.stdout) == (0, "Deleted what had expired.\n")
    assert in_app(kept) == {
        "sessions": 2,
        "links": 1,
        "known_networks": 1,
        "idempotency_keys": 3,
        "users": 1,
        "audit_events": 1,
        "failed jobs": 1,
    }
    assert run("housekeeping").exit_code == 0


# --- all commands -----------------------------------------------------------------------------------------------------


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command below a group, with its words."""
    for name, command in group.commands.items():
        yield " ".join((*path, name)), command
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


def test_every_command_has_a_help_text(app):
    found = dict(commands(app.cli))

    assert {"users create-admin", "users list", "users set-role", "users deactivate", "seed", "worker"} <= set(found)
    assert {"housekeeping", "openapi write", "start", "db upgrade"} <= set(found)
    assert [name for name, command in found.items() if not command.get_short_help_str()] == []


@pytest.mark.parametrize("command", [["users", "list"], ["users", "deactivate", "a@x.com"], ["seed"], ["housekeeping"]])
def test_a_database_without_tables_is_one_line(tmp_path, command):
    app = create_app({**ENV, "DATA_DIR": str(tmp_path)})

    assert "flask db upgrade" in refused(app.test_cli_runner().invoke(args=command))
    with app.app_context():
        db.engine.dispose()


def test_a_database_that_is_down_is_one_line(tmp_path):
    env = {**ENV, "DATA_DIR": str(tmp_path), "DATABASE_URL": f"postgresql://app:sesame@127.0.0.1:{free_port()}/app"}
    message = refused(create_app(env).test_cli_runner().invoke(args=["users", "list"]))

    assert "Is it running" in message
    assert "sesame" not in message


def test_commands_as_real_processes(tmp_path):
    """Make an administrator and read the list as a script would: the output is the JSON and nothing else."""
    env = {name: os.environ[name] for name in INHERITED if name in os.environ} | ENV | {"DATA_DIR": str(tmp_path)}
    with migrated({**ENV, "DATA_DIR": str(tmp_path)}).app_context():
        db.engine.dispose()

    def flask(*arguments: str, entered: str = "") -> Any:
        command = [sys.executable, "-m", "flask", *arguments]
        return subprocess.run(command, input=entered, env=env, cwd=ROOT, check=False, capture_output=True, text=True)

    made = flask("users", "create-admin", "root@x.com", "--password-stdin", entered=f"{PASSWORD}\n")
    assert (made.returncode, made.stderr) == (0, "")
    assert re.fullmatch(r"Created the administrator root@x\.com \([0-9a-f-]{36}\)\.\n", made.stdout)

    listed = flask("users", "list", "--json")
    assert [user["email"] for user in json.loads(listed.stdout)] == ["root@x.com"]
