import logging
import uuid
from pathlib import Path

import pytest
from flask import Flask

from project.observability import Origin, origin
from tests.observed_app import ID, lines, make_app


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    return make_app(tmp_path)


@pytest.fixture
def client(app):
    return app.test_client()


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
