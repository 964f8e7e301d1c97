"""Query parameters over HTTP: what is not documented or not valid is 422, a foreign cursor 400."""

import re

import pytest

from tests.http.client import Account, Api, codes, log_in, problem
from tests.http.document import file_of, good_request, read_operations

MISSING = "0190f8e2-5a3b-7c4d-8e9f-0a1b2c3d4e5f"


QUERIES = [
    *[(f"limit={value}", "limit") for value in ("0", "-1", "101", "1e9", "NaN", "٣", "+5", "5.0", "0x10", "", "1 ")],
    (f"limit={'9' * 5000}", "limit"),
    ("limit=5&limit=5", "limit"),
    ("sort=created_at&sort=email", "sort"),
    ("sort=password_hash", "sort"),
    ("sort=--created_at", "sort"),
    ("sort=", "sort"),
    ("unknown=1", "unknown"),
    ("limit[]=1", "limit[]"),
    ("limit.x=1", "limit.x"),
    ("Limit=1", "Limit"),
    ("access_token=abc", "access_token"),
    ("include_total=1", "include_total"),
    ("include_total=TRUE", "include_total"),
    ("role=root", "role"),
    ("role=USER", "role"),
    ("is_active=yes", "is_active"),
    ("q=a%00b", "q"),
    ("q=", "q"),
    ("q=" + "x" * 201, "q"),
    *[
        (f"created_after={value}", "created_after")
        for value in (
            "2030-01-31",
            "2030-01-31T12:00:00",
            "2030-02-30T12:00:00Z",
            "2030-01-31T12:00:60Z",
            "0000-01-01T00:00:00Z",
            "0001-01-01T00:00:00%2B01:00",
            "9999-12-31T23:59:59-01:00",
            "10000-01-01T00:00:00Z",
            "-001-01-01T00:00:00Z",
            "2030-01-31T12:00:00+99:99",
            "٢٠٣٠-01-31T12:00:00Z",
            "now",
            "0",
        )
    ],
]


@pytest.mark.parametrize(("query", "name"), QUERIES)
def test_a_query_that_is_not_valid_is_422_and_says_where(admin: Account, query: str, name: str) -> None:
    body = problem(admin.api.get(f"/v1/users?{query}"), 422, "validation_error")
    assert list(codes(body)) == [f"/query/{name}"]


FILE_QUERIES = [
    ("limit=0", "limit"),
    ("limit=5&limit=5", "limit"),
    ("sort=sha256", "sort"),
    ("sort=-type", "sort"),
    ("visibility=secret", "visibility"),
    ("visibility=PUBLIC", "visibility"),
    ("purpose=", "purpose"),
    ("purpose=" + "x" * 41, "purpose"),
    ("purpose=a%00b", "purpose"),
    *[
        (f"type={value}", "type")
        for value in (
            "",
            "image",
            "image/",
            "/*",
            "*/*",
            "*",
            "image/**",
            "IMAGE/*",
            "image/p(g",
            "image/p%25",
            "image/*%0A",
        )
    ],
    ("q=", "q"),
    ("q=a%00b", "q"),
    ("q=" + "x" * 201, "q"),
    ("created_after=2030-01-31", "created_after"),
    ("scope=everything", "scope"),
    ("scope=", "scope"),
    ("user_id=1", "user_id"),
    (f"user_id={MISSING.upper()}", "user_id"),
    ("status=pending", "status"),
    ("owner_id=1", "owner_id"),
    ("content_type=image/png", "content_type"),
]


@pytest.mark.parametrize(("query", "name"), FILE_QUERIES)
def test_a_query_of_files_that_is_not_valid_is_422_and_says_where(admin: Account, query: str, name: str) -> None:
    body = problem(admin.api.get(f"/v1/files?{query}"), 422, "validation_error")
    assert list(codes(body)) == [f"/query/{name}"]


def test_every_operation_refuses_unknown_query_parameters(anonymous: Api, admin: Account) -> None:
    for operation in read_operations(anonymous):
        # Of a webhook nothing is looked at before its signature.
        if "/webhooks/" in operation.path:
            continue
        # A session of its own: if the parameter were ignored, some of these would end it.
        caller = log_in(anonymous, admin.email)
        token = caller.refresh_token if operation.security == ("refresh",) else caller.access_token
        path = re.sub("{[^}]*}", MISSING, operation.path)
        response = anonymous.request(operation.method, f"{path}?unknown=1", token=token, **good_request(operation))
        assert codes(problem(response, 422, "validation_error"))["/query/unknown"] == "unknown_field", operation.name


@pytest.mark.parametrize("cursor", ["", "x", "AAAA", "ü", "=" * 50, "A" * 5_000, "eyJhIjoxfQ"])
def test_a_cursor_that_nobody_gave_out_is_400(user: Account, cursor: str) -> None:
    for path in ("/v1/auth/sessions", "/v1/files", f"/v1/files/{file_of(user)}/shares"):
        problem(user.api.get(f"{path}?cursor={cursor}"), 400, "invalid_cursor")


@pytest.mark.parametrize(
    "query",
    [
        "q=%25",
        "q=_",
        "q=%5C",
        "q='; DROP TABLE users; --",
        "q=(a%2B)%2B$",
        "created_after=0001-01-01T00:00:00Z",
        "limit=100",
    ],
)
def test_strange_but_valid_queries_are_answered(admin: Account, query: str) -> None:
    assert admin.api.get(f"/v1/users?{query}").status_code == 200
    assert admin.api.get(f"/v1/files?{query}&scope=all").status_code == 200


@pytest.mark.parametrize("pattern", ["canary%", "canary_", "canary%example", "c%", "canary\\-"])
def test_wildcards_in_a_search_are_ordinary_characters(admin: Account, user: Account, pattern: str) -> None:
    assert user.email.startswith("canary-")
    assert admin.api.get("/v1/users", params={"q": pattern}).json()["data"] == []


@pytest.mark.parametrize("name", ["fields", "include", "expand", "offset", "page"])
def test_no_parameter_shows_or_skips_more_than_documented(admin: Account, name: str) -> None:
    for path in ("/v1/users", "/v1/files"):
        for value in ("", "password_hash", "10"):
            body = problem(admin.api.get(f"{path}?{name}={value}"), 422, "validation_error")
            assert codes(body) == {f"/query/{name}": "unknown_field"}


@pytest.mark.parametrize("accept", ["text/html", "*/*;q=0", "image/webp", "," * 5_000, "x" * 5_000])
def test_errors_are_problems_whatever_the_client_likes_to_read(anonymous: Api, accept: str) -> None:
    headers = {"Accept": accept, "Accept-Language": "tlh, *;q=0"}
    problem(anonymous.get("/v1/users/me", headers=headers), 401, "token_required")
