import ast
import json
import logging
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
import structlog
from flask import Flask, g
from flask_limiter import ExemptionScope
from flask_migrate import Migrate
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from sqlalchemy import text

from project import errors, logs, observability
from project.config import load_config
from project.database import db, transaction
from project.extensions import limiter
from project.json import OrjsonProvider
from project.observability import Origin, origin, readiness_check
from tests.small_app import small_app

SOURCE = Path(observability.__file__).parent
ID = "0123abcd-EF"


def make_app(data_dir: Path, environment: str = "testing", **env: str) -> Flask:
    """An application that has settings, errors and what is tested here, and nothing else."""
    app = Flask("project", static_folder=None)
    app.json = OrjsonProvider(app)
    app.extensions["settings"] = load_config({"APP_ENV": environment, "DATA_DIR": str(data_dir), **env})
    observability.init_app(app)
    errors.register_error_handlers(app)
    _add_routes(app)
    return app


def _add_routes(app: Flask) -> None:
    @app.get("/things/<name>")
    def thing(name: str) -> dict[str, Any]:
        where = origin()
        return {"ip": where.ip, "user_agent": where.user_agent, "request_id": where.request_id}

    @app.get("/user")
    def user() -> str:
        g.user_id = uuid.UUID(int=7)
        return ""

    @app.get("/boom")
    def boom() -> str:
        secret = "hunter2"
        raise RuntimeError(f"ann@example.com knows {secret}\nforged")

    @app.post("/unserialisable")
    def unserialisable() -> dict[str, Any]:
        return {"value": object()}


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    return make_app(tmp_path)


@pytest.fixture
def client(app):
    return app.test_client()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The log lines so far, each parsed alone."""
    return [json.loads(line) for line in capsys.readouterr().out.split("\n")[:-1]]


# --- request ids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given_id",
    [
        "",
        "1234567",
        "x" * 65,
        "abcd_efgh",
        "abcd efgh",
        "abcdefgh\n",
        "abcdefgh\r\nX-Evil: 1",
        "äbcdefgh",
        "\uff11" * 8,
    ],
)
def test_a_malformed_request_id_is_replaced(client, given_id):
    response = client.get("/things/1", environ_overrides={"HTTP_X_REQUEST_ID": given_id})
    assert str(uuid.UUID(response.headers["X-Request-ID"])) == response.headers["X-Request-ID"]
    assert response.json["request_id"] == response.headers["X-Request-ID"]


@pytest.mark.parametrize("given_id", ["abcdEF-1", "x" * 64])
def test_a_well_formed_request_id_is_kept(client, given_id):
    response = client.get("/things/1", headers={"X-Request-ID": given_id})
    assert response.headers["X-Request-ID"] == given_id
    assert response.json["request_id"] == given_id


def test_each_request_has_an_id_of_its_own(client):
    assert len({client.get("/things/1").headers["X-Request-ID"] for _ in range(20)}) == 20


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nope", 404), ("POST", "/things/1", 405), ("GET", "/boom", 500)],
)
def test_refusals_carry_the_request_id_in_header_and_body(client, method, path, status):
    response = client.open(path, method=method, headers={"X-Request-ID": ID})
    assert response.status_code == status
    assert response.headers["X-Request-ID"] == response.json["request_id"] == ID


# --- origin -----------------------------------------------------------------------------------------------


def test_outside_a_request_there_is_no_origin():
    assert origin() == Origin(None, None, None)


def test_a_service_sees_where_the_request_came_from(client):
    response = client.get("/things/1", headers={"User-Agent": "curl/8"}, environ_base={"REMOTE_ADDR": "2001:DB8::1"})
    assert response.json["ip"] == "2001:db8::1"
    assert response.json["user_agent"] == "curl/8"


def test_the_origin_ends_with_the_request(client):
    client.get("/things/1")
    client.get("/boom")
    assert origin() == Origin(None, None, None)


@pytest.mark.parametrize("address", ["", "unknown", "127.0.0.1\n", "unix:/run/x"])
def test_what_is_not_an_address_is_no_ip(client, address):
    assert client.get("/things/1", environ_base={"REMOTE_ADDR": address}).json["ip"] is None


def test_a_user_agent_is_cut_to_255_printable_characters(client):
    value = "a\x1b[31m\x85" + "b" * 300
    response = client.get("/things/1", environ_overrides={"HTTP_USER_AGENT": value})
    assert response.json["user_agent"] == "a[31m" + "b" * 250


def test_a_missing_user_agent_is_none(client):
    assert client.get("/things/1", headers={"User-Agent": ""}).json["user_agent"] is None


# --- the request log --------------------------------------------------------------------------------------


def test_each_request_writes_one_line(client, capsys):
    client.get("/things/secret-token?token=x", headers={"X-Request-ID": ID})
    (line,) = lines(capsys)
    assert line.pop("duration_ms") >= 0
    assert line.pop("time").endswith("Z")
    assert line == {
        "event": "request",
        "level": "info",
        "logger": "project.observability",
        "method": "GET",
        "route": "/things/<name>",
        "status": 200,
        "user_id": None,
        "ip": "127.0.0.1",
        "request_id": ID,
    }


def test_an_unknown_path_has_no_route(client, capsys):
    client.get("/secret-token")
    (line,) = lines(capsys)
    assert (line["route"], line["status"]) == (None, 404)


def test_the_line_names_the_user(client, capsys):
    client.get("/user")
    assert lines(capsys)[0]["user_id"] == str(uuid.UUID(int=7))


def test_a_line_outside_a_request_has_no_request_id(app, capsys):
    logging.getLogger("project.jobs").info("job_done", extra={"job_id": 5})
    (line,) = lines(capsys)
    assert "request_id" not in line
    assert line["job_id"] == 5


# --- what may be logged -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["project.auth", "stripe", "root"])
def test_fields_that_are_not_allowed_are_dropped(app, capsys, name):
    extra = {"password": "hunter2", "email": "ann@example.com", "user_id": 7, "status": "active"}
    logging.getLogger(name).warning("signed_in", extra=extra)
    (line,) = lines(capsys)
    assert {"event": "signed_in", "user_id": 7, "status": "active"}.items() <= line.items()
    assert not {"password", "email"} & line.keys()


def test_fields_bound_with_structlog_are_dropped_too(app, capsys):
    structlog.get_logger("project.auth").bind(password="hunter2").info("signed_in", token="abc", user_id=7)
    (line,) = lines(capsys)
    assert (line["event"], line["user_id"], line["level"]) == ("signed_in", 7, "info")
    assert not {"password", "token"} & line.keys()


def test_objects_are_named_by_their_type_and_never_shown(app, capsys):
    class User:
        def __repr__(self) -> str:
            return "ann@example.com"

    logging.getLogger("project").info("x", extra={"user_id": User(), "checks": [{"a": 1}, "b"], "reason": b"x"})
    (line,) = lines(capsys)
    assert (line["user_id"], line["checks"], line["reason"]) == ("<User>", ["<dict>", "b"], "<bytes>")


def test_of_a_library_message_only_numbers_are_filled_in(app, capsys):
    library = logging.getLogger("library")
    library.warning("user %s failed %d times in %.1f s", "ann@example.com", 3, 0.5)
    library.warning("%(user)s: %(count)d", {"user": "ann@example.com", "count": 2})
    assert [line["event"] for line in lines(capsys)] == [
        "user … failed 3 times in 0.5 s",
        "…: 2",
    ]


@pytest.mark.parametrize(("template", "arguments"), [("%d items", ("many",)), ("none", (1,)), ("%(x)s", {"y": 1})])
def test_a_library_message_that_does_not_fit_its_arguments_is_shown_bare(template, arguments):
    assert logs._hide_arguments(template, arguments) == template


def test_arguments_of_jobs_are_not_shown(app, capsys):
    job = {"id": 9, "task_name": "send_mail", "task_kwargs": {"to": "ann@example.com"}, "call_string": "send(ann)"}
    logging.getLogger("procrastinate.worker").error(
        "Job send(to='ann@example.com') failed", extra={"action": "job_error", "job": job}
    )
    (line,) = lines(capsys)
    assert (line["event"], line["job_id"], line["task"]) == ("job_error", 9, "send_mail")
    assert "ann" not in str(line)


def test_an_exception_is_logged_without_its_text_and_without_locals(client, capsys):
    client.get("/boom")
    error = next(line for line in lines(capsys) if line["event"] == "unhandled_error")
    assert "in boom\n    raise RuntimeError(f" in error["exception"]
    assert error["exception"].endswith("builtins.RuntimeError")
    assert "ann@example.com knows hunter2" not in error["exception"]
    assert 'secret = "hunter2"' not in error["exception"]


def test_the_causes_of_an_exception_are_logged(app, capsys):
    try:
        try:
            raise KeyError("ann@example.com")
        except KeyError as error:
            raise errors.NotFound("no") from error
    except errors.NotFound:
        logging.getLogger("project").exception("x")
    (line,) = lines(capsys)
    assert "project.errors.NotFound\n\nafter\n\n" in line["exception"]
    assert line["exception"].endswith("builtins.KeyError")


def test_every_field_that_the_code_logs_is_allowed():
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "extra" and isinstance(node.value, ast.Dict):
                names = {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
                assert names <= logs.FIELDS, f"{path.name}:{node.value.lineno}"


# --- one event is one line --------------------------------------------------------------------------------

NASTY = {
    "line break": 'a\r\n{"event": "forged"}',
    "terminal": "\x1b[31mred\x1b[0m",
    "separators": "a\u2028b\u2029c\x85d\x0be",
    "quotes": '","level":"critical',
    "null": "\0",
}
nasty = pytest.mark.parametrize("value", NASTY.values(), ids=NASTY)


@contextmanager
def logging_to(capsys: pytest.CaptureFixture[str], *, readable: bool) -> Iterator[None]:
    logs.configure(level="INFO", readable=readable, request_id=lambda: None)
    capsys.readouterr()
    yield


@pytest.mark.parametrize("readable", [False, True])
@nasty
def test_nobody_can_forge_a_line(capsys, readable, value):
    with logging_to(capsys, readable=readable):
        logging.getLogger("library").warning(value, extra={"reason": value, "checks": [value]})
        structlog.get_logger("project").info(value, reason=value)
    output = capsys.readouterr().out
    assert len(output.splitlines()) == 2
    assert output.replace("\n", "").isprintable()
    if not readable:
        assert [json.loads(line)["level"] for line in output.splitlines()] == ["warning", "info"]


@pytest.mark.parametrize("readable", [False, True])
def test_half_a_character_can_be_written_down(readable):
    # Not through a logger: the test runner cannot send what it captures to another process.
    record = logging.makeLogRecord({"name": "project", "msg": "a\ud800", "reason": "\udfff"})
    line = logs._formatter(readable=readable, request_id=lambda: None).format(record)
    assert line.encode()
    assert line.isprintable()


@pytest.mark.parametrize("readable", [False, True])
@examples(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.text())
def test_no_text_can_forge_a_line(capsys, readable, value):
    with logging_to(capsys, readable=readable):
        logging.getLogger("project").info(value, extra={"reason": value})
    output = capsys.readouterr().out
    assert len(output.splitlines()) == 1
    assert output[:-1].isprintable()


@pytest.mark.parametrize("environment", ["testing", "development"])
@nasty
def test_a_request_cannot_forge_a_line(tmp_path, capsys, environment, value):
    client = make_app(tmp_path, environment).test_client()
    forged = {
        "PATH_INFO": "/" + value.encode("utf-8", "surrogatepass").decode("latin-1"),
        "HTTP_USER_AGENT": value,
        "HTTP_X_REQUEST_ID": value,
        "REQUEST_METHOD": value,
    }
    client.get("/", environ_overrides=forged)
    output = capsys.readouterr().out
    assert len(output.splitlines()) == 1
    assert output[:-1].isprintable()


def test_in_a_terminal_an_exception_is_whole_and_marked_on_each_line(tmp_path, capsys):
    make_app(tmp_path, "development").test_client().get("/boom")
    first, *trace, last = capsys.readouterr().out.splitlines()
    assert "unhandled_error" in first
    assert "request" in last
    assert all(line.startswith("    | ") for line in trace)
    assert trace[-2:] == ["    | RuntimeError: ann@example.com knows hunter2", "    | forged"]


# --- where lines go ---------------------------------------------------------------------------------------


def test_a_second_application_does_not_double_the_lines(tmp_path, capsys):
    apps = [make_app(tmp_path) for _ in range(3)]
    apps[-1].test_client().get("/healthz")
    assert len(lines(capsys)) == 1


def test_events_below_the_level_are_left_out(tmp_path, capsys):
    make_app(tmp_path, LOG_LEVEL="warning").test_client().get("/healthz")
    logging.getLogger("library").info("x")
    assert lines(capsys) == []


def test_gunicorn_speaks_in_the_same_form(tmp_path, capsys):
    gunicorn = logging.getLogger("gunicorn.error")
    gunicorn.addHandler(logging.StreamHandler())
    gunicorn.propagate = False
    make_app(tmp_path)
    gunicorn.info("Booting worker with pid: %s", 12)
    (line,) = lines(capsys)
    assert (line["event"], line["logger"]) == ("Booting worker with pid: 12", "gunicorn.error")


@pytest.mark.parametrize("name", ["werkzeug", "gunicorn.access", "alembic", "sqlalchemy.engine"])
def test_libraries_that_chat_are_quiet(app, capsys, name):
    logging.getLogger(name).info("GET /secret-token")
    assert lines(capsys) == []


@pytest.mark.parametrize(("command", "stdout", "stderr"), [("list", [], ["bad"]), ("worker", ["good", "bad"], [])])
def test_commands_print_for_people_and_servers_log(app: Flask, command: str, stdout, stderr):
    @click.command(command)
    def run() -> None:
        logging.getLogger("project").info("good")
        logging.getLogger("project").warning("bad")
        click.echo("printed")

    app.cli.add_command(run)
    result = app.test_cli_runner().invoke(args=[command])
    *logged, printed = result.stdout.splitlines()
    assert printed == "printed"
    assert [json.loads(line)["event"] for line in logged] == stdout
    assert [json.loads(line)["event"] for line in result.stderr.splitlines()] == stderr


# --- failures outside the handlers ------------------------------------------------------------------------


def test_a_failing_teardown_is_a_problem_too(app: Flask, client, capsys):
    @app.teardown_request
    def fail(_error: BaseException | None) -> None:
        raise RuntimeError("/usr/lib/secret")

    response = client.get("/things/1", headers={"X-Request-ID": ID})
    assert response.status_code == 500
    assert response.content_type == "application/problem+json"
    assert response.headers["X-Request-ID"] == response.json["request_id"] == ID
    assert (response.json["code"], response.json["instance"]) == ("internal_error", "/things/1")
    assert "request_failed_outside_handlers" in [line["event"] for line in lines(capsys)]
    assert origin() == Origin(None, None, None)


@pytest.mark.parametrize(("method", "path"), [("GET", "/nope"), ("POST", "/unserialisable")])
def test_a_failure_after_the_view_is_a_problem_too(app: Flask, client, method, path):
    @app.errorhandler(404)
    def fail(_error: Exception) -> str:
        raise RuntimeError("/usr/lib/secret")

    response = client.open(path, method=method)
    assert (response.status_code, response.json["code"]) == (500, "internal_error")
    assert response.headers["X-Request-ID"] == response.json["request_id"]
    assert "secret" not in response.text


# --- health -----------------------------------------------------------------------------------------------


@pytest.fixture
def ready_app(tmp_path: Path) -> Iterator[Flask]:
    """An application that is ready: a database, one migration that was applied, limits in memory."""
    with small_app(tmp_path) as app:
        app.config["RATELIMIT_STORAGE_URI"] = "memory://"
        observability.init_app(app)
        Migrate().init_app(app, db, directory=str(tmp_path / "migrations"))
        limiter.init_app(app)
        versions = tmp_path / "migrations" / "versions"
        versions.mkdir(parents=True)
        (versions / "a1.py").write_text("revision = 'a1'\ndown_revision = None\n")
        with app.app_context(), transaction():
            db.session.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
            db.session.execute(text("INSERT INTO alembic_version VALUES ('a1')"))
        yield app


def test_healthz_answers_without_touching_anything(client):
    response = client.get("/healthz")
    assert (response.status_code, response.json) == (200, {"data": {"status": "ok"}})


def test_readyz_says_what_it_checked(ready_app):
    response = ready_app.test_client().get("/readyz")
    assert response.status_code == 200
    assert response.json == {
        "data": {"status": "ready", "checks": {"database": "ok", "migrations": "ok", "rate_limits": "ok"}}
    }


def test_a_process_without_its_database_is_not_ready(ready_app):
    with ready_app.app_context():
        db.engine.dispose()
        path = Path(str(db.engine.url.database))
        path.rename(path.with_suffix(".away"))
        path.mkdir()
    response = ready_app.test_client().get("/readyz")
    assert response.status_code == 503
    assert response.content_type == "application/problem+json"
    assert response.json["code"] == "not_ready"
    assert response.json["detail"] == "Not ready: database, migrations."
    assert response.json["checks"] == {"database": "failed", "migrations": "failed", "rate_limits": "ok"}
    assert response.headers["Retry-After"]


@pytest.mark.parametrize("statement", ["UPDATE alembic_version SET version_num = 'a0'", "DROP TABLE alembic_version"])
def test_a_process_whose_database_is_not_migrated_is_not_ready(ready_app, statement):
    with ready_app.app_context(), transaction():
        db.session.execute(text(statement))
    response = ready_app.test_client().get("/readyz")
    assert (response.status_code, response.json["detail"]) == (503, "Not ready: migrations.")


def test_a_newer_migration_on_disk_does_not_unready_a_running_process(ready_app, tmp_path):
    client = ready_app.test_client()
    assert client.get("/readyz").status_code == 200
    (tmp_path / "migrations/versions/b2.py").write_text("revision = 'b2'\ndown_revision = 'a1'\n")
    assert client.get("/readyz").status_code == 200


def test_limits_that_are_not_shared_degrade_but_do_not_unready(ready_app):
    ready_app.config["RATELIMIT_STORAGE_URI"] = "redis://127.0.0.1:1"
    limiter.init_app(ready_app)
    response = ready_app.test_client().get("/readyz")
    assert response.status_code == 200
    assert response.json["data"]["checks"]["rate_limits"] == "degraded"


def test_a_registered_check_counts(ready_app):
    def fail() -> None:
        raise OSError("/var/secret")

    readiness_check(ready_app, "disk", fail)
    response = ready_app.test_client().get("/readyz")
    assert (response.status_code, response.json["detail"]) == (503, "Not ready: disk.")
    assert "secret" not in response.text


def test_a_check_that_hangs_is_cut_off_and_not_started_twice(ready_app, monkeypatch):
    monkeypatch.setattr(observability, "CHECK_SECONDS", 0.5)
    starts, release = [], threading.Event()

    def hang() -> None:
        starts.append(1)
        release.wait(30)

    readiness_check(ready_app, "slow", hang)
    client = ready_app.test_client()
    assert [client.get("/readyz").json["detail"] for _ in range(2)] == ["Not ready: slow."] * 2
    assert starts == [1]
    release.set()


@pytest.mark.parametrize("endpoint", ["healthz", "readyz"])
def test_health_is_not_rate_limited(app, endpoint):
    scope = limiter.limit_manager.exemption_scope(app, endpoint, None)
    assert scope & ExemptionScope.DEFAULT
    assert scope & ExemptionScope.APPLICATION
