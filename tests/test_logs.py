import ast
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
import structlog
from flask import Flask
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from project import errors, logs
from tests.conftest import ENV, migrated
from tests.observed_app import lines, make_app
from tests.servers import run_server

SOURCE = Path(logs.__file__).parent


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    return make_app(tmp_path)


@pytest.fixture
def client(app):
    return app.test_client()


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


def test_arguments_of_jobs_are_not_shown(app, capsys, caplog):
    caplog.set_level(logging.ERROR, logger="procrastinate")  # an application with jobs silences it
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
    gunicorn.info("Handling signal: %s", "term")
    gunicorn.error("Error handling request %s", "/v1/shares/secret-token")
    assert [(line["event"], line["logger"]) for line in lines(capsys)] == [
        ("Booting worker with pid: 12", "gunicorn.error"),
        ("Handling signal: term", "gunicorn.error"),
        ("Error handling request …", "gunicorn.error"),
    ]


@pytest.mark.server
def test_every_line_of_a_server_has_the_same_form_from_the_first_on(tmp_path):
    env = {**ENV, "DATA_DIR": str(tmp_path / "data")}
    migrated(env)
    with run_server(env) as server:
        server.process.terminate()
        server.process.wait(40)
        events = [json.loads(line)["event"] for line in server.log.splitlines()]
    assert events[0].startswith("Starting gunicorn")
    assert {"request", "Handling signal: term", "Shutting down: Master"} <= set(events)


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
