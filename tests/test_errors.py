"""Errors: one body for all of them, whatever raised them, and a registry of their codes."""

import re
import sqlite3

import psycopg
import pytest
from flask import Flask, abort, redirect
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError, InterfaceError, InternalError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import HTTPException, RequestTimeout, SecurityError, default_exceptions

from project import errors
from project.errors import (
    REGISTRY,
    AppError,
    BadRequest,
    Conflict,
    FieldError,
    Forbidden,
    IncompleteBody,
    Invalid,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    PreconditionFailed,
    RateLimited,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
    field_code,
    problem_response,
    register_code,
)
from project.security import InvalidToken, SessionRevoked, TokenExpired, TokenRequired
from project.users.service import EmailTaken

MEMBERS = {"type", "title", "status", "detail", "instance", "code", "request_id"}
SECRET = "sesame"


def client_raising(error: Exception) -> FlaskClient:
    """A client of an application whose only route raises an error."""
    app = Flask("errors")
    errors.register_error_handlers(app)

    @app.get("/v1/things")
    def things() -> str:
        raise error

    return app.test_client()


def answer(error: Exception):
    """The answer to a request in which an error was raised."""
    return client_raising(error).get("/v1/things")


# --- the body ---------------------------------------------------------------------------------------------------------

EXPECTED = [
    (BadRequest(), 400, "bad_request"),
    (IncompleteBody(), 400, "incomplete_body"),
    (TokenRequired(), 401, "token_required"),
    (InvalidToken(), 401, "invalid_token"),
    (TokenExpired(), 401, "token_expired"),
    (SessionRevoked(), 401, "session_revoked"),
    (Forbidden(), 403, "forbidden"),
    (NotFound(), 404, "not_found"),
    (MethodNotAllowed(), 405, "method_not_allowed"),
    (EmailTaken(), 409, "email_taken"),
    (PreconditionFailed(), 412, "precondition_failed"),
    (PayloadTooLarge(), 413, "payload_too_large"),
    (UnsupportedMediaType(), 415, "unsupported_media_type"),
    (Invalid(), 422, "validation_error"),
    (RateLimited(), 429, "rate_limited"),
    (errors.InternalError(), 500, "internal_error"),
    (Unavailable(), 503, "service_unavailable"),
]


@pytest.mark.parametrize(("error", "status", "code"), EXPECTED, ids=[code for _, _, code in EXPECTED])
def test_an_expected_error_is_a_problem_with_exactly_these_members(error, status, code):
    response = answer(error)

    assert response.status_code == status
    assert response.content_type == "application/problem+json"
    assert set(response.json) == MEMBERS | ({"errors"} if status == 422 else set())
    assert response.json["status"] == status
    assert response.json["code"] == code
    assert response.json["type"] == f"/errors#{code}"
    assert response.json["title"] == REGISTRY[code].title
    assert response.json["instance"] == "/v1/things"


def test_a_detail_says_more_than_the_title():
    body = answer(NotFound("There is no such user.")).json

    assert (body["title"], body["detail"]) == ("There is nothing here.", "There is no such user.")


def test_headers_and_members_of_an_error_are_sent():
    response = answer(EmailTaken(headers={"Retry-After": "7"}, payment_id="p1"))

    assert response.headers["Retry-After"] == "7"
    assert response.json["payment_id"] == "p1"
    assert set(response.json) == MEMBERS | {"payment_id"}


def test_every_401_has_a_challenge():
    assert answer(TokenExpired()).headers["WWW-Authenticate"] == 'Bearer realm="api", error="token_expired"'


def test_what_is_unavailable_says_when_to_come_back():
    assert answer(Unavailable()).headers["Retry-After"] == "2"
    assert answer(Unavailable(retry_after=30)).headers["Retry-After"] == "30"


def test_fields_are_told_with_pointer_code_and_detail():
    found = [FieldError("/a", "invalid_type", "This must be a string."), FieldError("/query/b", "out_of_range", "No.")]

    assert answer(Invalid(errors=found)).json["errors"] == [
        {"pointer": "/a", "code": "invalid_type", "detail": "This must be a string."},
        {"pointer": "/query/b", "code": "out_of_range", "detail": "No."},
    ]


def test_the_detail_of_a_field_is_the_title_of_its_code_unless_given():
    [field] = Invalid.field("/password", "password_too_short").errors

    assert field == FieldError("/password", "password_too_short", REGISTRY["password_too_short"].title)


@given(st.text(max_size=30))
def test_whatever_the_path_the_body_is_json_and_the_instance_a_uri(path):
    app = Flask("errors")
    with app.test_request_context("/", environ_overrides={"PATH_INFO": "/" + path.encode().decode("latin-1")}):
        body = problem_response(NotFound()).get_json()

    assert body is not None
    assert re.fullmatch(r"/[\x21-\x7e]*", body["instance"])


def test_outside_a_request_there_is_neither_instance_nor_request_id():
    with Flask("errors").app_context():
        assert set(problem_response(NotFound()).get_json() or ()) == MEMBERS - {"instance", "request_id"}


# --- errors of others -------------------------------------------------------------------------------------------------

FOREIGN = {
    400: (400, "bad_request"),
    403: (403, "forbidden"),
    404: (404, "not_found"),
    405: (405, "method_not_allowed"),
    412: (412, "precondition_failed"),
    413: (413, "payload_too_large"),
    415: (415, "unsupported_media_type"),
    422: (422, "validation_error"),
    429: (429, "rate_limited"),
    503: (503, "service_unavailable"),
}


@pytest.mark.parametrize("code", sorted(default_exceptions))
def test_every_http_exception_is_one_of_our_problems(code):
    response = answer(default_exceptions[code](description=SECRET))

    other = (500, "internal_error") if code >= 500 else (400, "bad_request")
    assert (response.status_code, response.json["code"]) == FOREIGN.get(code, other)
    assert set(response.json) == MEMBERS | ({"errors"} if code == 422 else set())
    assert response.content_type == "application/problem+json"
    assert SECRET not in response.text


def test_a_405_keeps_the_allowed_methods():
    response = client_raising(NotFound()).post("/v1/things")

    assert response.status_code == 405
    assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}


def test_an_unknown_host_is_told_by_the_name_of_the_setting_and_logged(caplog):
    response = answer(SecurityError(SECRET))

    assert (response.status_code, response.json["code"]) == (400, "bad_request")
    assert "TRUSTED_HOSTS" in response.json["detail"]
    assert SECRET not in response.text
    assert [record.message for record in caplog.records] == ["untrusted_host"]


def test_only_headers_that_mean_something_are_kept():
    response = answer(RequestTimeout(SECRET))

    assert response.headers["Content-Type"] == "application/problem+json"
    assert "Connection" not in response.headers


def test_a_response_that_was_raised_is_sent_as_it_is():
    with Flask("errors").test_request_context():
        moved = redirect("/elsewhere", 303)

    response = answer(HTTPException(response=moved))

    assert (response.status_code, response.headers["Location"]) == (303, "/elsewhere")


def test_a_bare_abort_leaks_no_page():
    app = Flask("errors")
    errors.register_error_handlers(app)
    app.add_url_rule("/v1/things", view_func=lambda: abort(500))

    response = app.test_client().get("/v1/things")

    assert response.status_code == 500
    assert response.content_type == "application/problem+json"


# --- unexpected errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ValueError(SECRET),
        KeyError(SECRET),
        RecursionError(SECRET),
        MemoryError(SECRET),
        AssertionError(SECRET),
        UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET),
        ProgrammingError(f"SELECT {SECRET}", {}, psycopg.errors.UndefinedTable(SECRET)),
        IntegrityError(f"INSERT {SECRET}", {}, psycopg.errors.UniqueViolation(SECRET)),
        InternalError(f"SELECT {SECRET}", {}, psycopg.errors.InFailedSqlTransaction(SECRET)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_unexpected_error_is_a_constant_500_and_is_logged(error, caplog):
    response = answer(error)

    assert response.status_code == 500
    assert set(response.json) == MEMBERS
    assert response.json["detail"] == "Something went wrong on our side."
    assert not re.search(f"{SECRET}|Error|SELECT|psycopg|sqlalchemy", response.text)
    [record] = caplog.records
    assert (record.message, record.exc_info and record.exc_info[1]) == ("unhandled_error", error)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OperationalError(SECRET, {}, psycopg.OperationalError(SECRET)), "OperationalError"),
        (OperationalError(SECRET, {}, psycopg.errors.QueryCanceled(SECRET)), "QueryCanceled"),
        (OperationalError(SECRET, {}, psycopg.errors.AdminShutdown(SECRET)), "AdminShutdown"),
        (OperationalError(SECRET, {}, psycopg.errors.TooManyConnections(SECRET)), "TooManyConnections"),
        (OperationalError(SECRET, {}, psycopg.errors.DeadlockDetected(SECRET)), "DeadlockDetected"),
        (OperationalError(SECRET, {}, sqlite3.OperationalError("database is locked")), "OperationalError"),
        (InternalError(SECRET, {}, psycopg.errors.ReadOnlySqlTransaction(SECRET)), "ReadOnlySqlTransaction"),
        (InterfaceError(SECRET, {}, psycopg.InterfaceError(SECRET), connection_invalidated=True), "InterfaceError"),
        (PoolTimeout(SECRET), "TimeoutError"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_database_that_is_away_or_busy_is_503(error, cause, caplog):
    response = answer(error)

    assert (response.status_code, response.json["code"]) == (503, "service_unavailable")
    assert set(response.json) == MEMBERS
    assert response.headers["Retry-After"] == "2"
    assert SECRET not in response.text
    [record] = caplog.records
    assert (record.message, record.error, record.exc_info) == ("database_unavailable", cause, None)


# --- the registry -----------------------------------------------------------------------------------------------------


def family(error: type[AppError]) -> set[type[AppError]]:
    """An error class and all that are derived from it."""
    return {error}.union(*(family(child) for child in error.__subclasses__()))


def test_every_error_is_in_the_registry_under_its_own_code():
    # These two are bases and are never raised themselves.
    ours = {error for error in family(AppError) if error.__module__.startswith("project.")}
    for error in ours - {Conflict, Unauthorized}:
        code = REGISTRY[error.code]
        assert (code.name, code.status) == (error.code, error.status)


@pytest.mark.parametrize("code", REGISTRY.values(), ids=list(REGISTRY))
def test_every_code_says_what_it_means_and_what_to_do(code):
    assert re.fullmatch("[a-z]+(_[a-z]+)*", code.name)
    refusals = {400, 401, 402, 403, 404, 405, 409, 410, 411, 412, 413, 414, 415, 416, 422, 429, 431}
    assert code.status in refusals | {500, 502, 503}
    assert code.title.endswith(".")
    assert code.cure.endswith(".")


def test_a_code_has_one_meaning():
    assert register_code("not_found", 404, NotFound.message, NotFound.cure) == "not_found"
    with pytest.raises(ValueError, match="not_found"):
        field_code("not_found", NotFound.message, NotFound.cure)
    assert REGISTRY["not_found"].status == 404


def test_a_class_without_a_code_of_its_own_adds_nothing_to_the_registry():
    before = set(REGISTRY)
    type("Special", (NotFound,), {"message": "There is nothing special here."})

    assert set(REGISTRY) == before
