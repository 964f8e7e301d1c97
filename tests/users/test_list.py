from urllib.parse import urlencode, urlsplit

import pytest

from project.database import transaction
from project.security import Role
from tests.factories import make_user

USERS = "/v1/users"
OPERATIONS = [USERS, f"{USERS}/01234567-89ab-7cde-8f01-23456789abcd"]


@pytest.mark.parametrize("path", OPERATIONS)
def test_reading_accounts_needs_a_token(client, path):
    response = client.get(path)
    assert (response.status_code, response.json["code"]) == (401, "token_required")


@pytest.mark.parametrize("path", [*OPERATIONS, f"{USERS}?limit=0&nothing=1"])
def test_reading_accounts_needs_staff(client, as_user, path):
    response = client.get(path, headers=as_user())
    assert (response.status_code, response.json["code"]) == (403, "forbidden")


def test_users_do_not_even_read_themselves_by_id(client, as_user):
    caller = as_user()
    assert client.get(f"{USERS}/{caller.user.id}", headers=caller).status_code == 403


@pytest.mark.parametrize("role", [Role.STAFF, Role.ADMIN])
def test_staff_list_everybody(client, as_user, role):
    caller, other = as_user(role=role), as_user(name="Ben")
    response = client.get(USERS, headers=caller)
    assert response.status_code == 200
    assert response.json["meta"] == {"limit": 20, "next_cursor": None}
    assert "Link" not in response.headers
    assert [user["id"] for user in response.json["data"]] == [str(other.user.id), str(caller.user.id)]
    assert response.json["data"][0] == client.get("/v1/users/me", headers=other).json["data"]


@pytest.mark.parametrize(
    ("query", "pointer", "code"),
    [
        ("limit=0", "limit", "out_of_range"),
        ("limit=101", "limit", "out_of_range"),
        ("limit=-1", "limit", "invalid_type"),
        ("limit=1e9", "limit", "invalid_type"),
        ("limit=NaN", "limit", "invalid_type"),
        ("limit=1.0", "limit", "invalid_type"),
        ("limit=", "limit", "invalid_type"),
        ("limit=٣", "limit", "invalid_type"),
        ("limit=9223372036854775808", "limit", "out_of_range"),
        ("sort=name", "sort", "invalid_choice"),
        ("sort=password_hash", "sort", "invalid_choice"),
        ("sort=--email", "sort", "invalid_choice"),
        ("sort=email,created_at", "sort", "invalid_choice"),
        ("role=root", "role", "invalid_choice"),
        ("role=ADMIN", "role", "invalid_choice"),
        ("role=", "role", "invalid_choice"),
        ("is_active=1", "is_active", "invalid_type"),
        ("is_active=True", "is_active", "invalid_type"),
        ("include_total=yes", "include_total", "invalid_type"),
        ("created_after=yesterday", "created_after", "invalid_format"),
        ("created_after=2030-02-30T00:00:00Z", "created_after", "invalid_format"),
        ("created_after=2030-01-31T12:00:00", "created_after", "invalid_format"),
        ("created_after=2030-01-31", "created_after", "invalid_format"),
        ("q=", "q", "invalid_length"),
        ("q=" + "a" * 201, "q", "invalid_length"),
        ("q=%00", "q", "invalid_characters"),
        ("role=user&role=staff", "role", "repeated_parameter"),
        ("fields=password_hash", "fields", "unknown_field"),
        ("offset=1", "offset", "unknown_field"),
        ("scope=all", "scope", "unknown_field"),
    ],
)
def test_a_wrong_parameter_is_refused_and_named(client, as_staff, query, pointer, code):
    response = client.get(f"{USERS}?{query}", headers=as_staff)
    assert (response.status_code, response.json["code"]) == (422, "validation_error")
    assert [(error["pointer"], error["code"]) for error in response.json["errors"]] == [(f"/query/{pointer}", code)]


@pytest.mark.parametrize("limit", [1, 100])
def test_the_bounds_of_the_limit_are_included(client, as_staff, limit):
    assert client.get(f"{USERS}?limit={limit}", headers=as_staff).json["meta"]["limit"] == limit


def test_parameters_reach_the_search(client, as_user, as_staff):
    wanted = as_user(email="ann_b@example.com", is_active=False).user
    as_user(email="annxb@example.com", is_active=False)
    query = {"q": "ANN_B", "role": "user", "is_active": "false", "include_total": "true", "sort": "-email"}
    query["created_after"] = "2001-01-31T12:00:00+02:00"
    response = client.get(f"{USERS}?{urlencode(query)}", headers=as_staff)
    assert [user["id"] for user in response.json["data"]] == [str(wanted.id)]
    assert response.json["meta"]["total"] == 1


@pytest.fixture
def forty_five(in_app, as_staff):
    """45 accounts: that of the caller and 44 others, most of them made at the same time as another."""

    def make() -> None:
        with transaction():
            for number in range(44):
                time = as_staff.user.created_at.replace(microsecond=number // 3)
                make_user(email=f"{number * 7 % 44:02}@example.com", created_at=time)

    in_app(make)


def follow(client, path, headers) -> list[list[str]]:
    """The addresses on each page, by the Link header up to the last."""
    pages = []
    while path:
        response = client.get(path, headers=headers)
        assert response.status_code == 200
        pages.append([user["email"] for user in response.json["data"]])
        link = response.headers.get("Link")
        cursor = response.json["meta"]["next_cursor"]
        assert (link is None) == (cursor is None)
        if link is None:
            break
        target, relation = link.split("; ")
        assert relation == 'rel="next"'
        parts = urlsplit(target.strip("<>"))
        assert f"{parts.scheme}://{parts.netloc}" == "http://localhost"
        assert f"cursor={cursor}" in parts.query
        path = f"{parts.path}?{parts.query}"
    return pages


@pytest.mark.parametrize("sort", ["created_at", "-created_at", "email", "-email"])
def test_the_links_lead_over_all_accounts_once(client, forty_five, as_staff, sort):
    pages = follow(client, f"{USERS}?limit=10&sort={sort}", as_staff)
    assert [len(page) for page in pages] == [10, 10, 10, 10, 5]
    emails = [email for page in pages for email in page]
    assert len(set(emails)) == 45
    if "email" in sort:
        assert emails == sorted(emails, reverse=sort == "-email")


def test_a_list_that_fills_its_last_page_ends_there(client, forty_five, as_staff):
    assert [len(page) for page in follow(client, f"{USERS}?limit=15", as_staff)] == [15, 15, 15]


def test_the_link_keeps_the_filters(client, forty_five, as_staff):
    pages = follow(client, f"{USERS}?limit=20&role=user&q=%40EXAMPLE.com&include_total=true", as_staff)
    assert [len(page) for page in pages] == [20, 20, 4]


FIRST = {"limit": "10", "sort": "email", "role": "user", "q": "example", "is_active": "true"}


@pytest.fixture
def cursor(client, forty_five, as_staff):
    """Where the second page of the query FIRST begins."""
    return client.get(f"{USERS}?{urlencode(FIRST)}", headers=as_staff).json["meta"]["next_cursor"]


@pytest.mark.parametrize(
    "change",
    [
        {"sort": "-email"},
        {"sort": "created_at"},
        {"role": "staff"},
        {"role": None},
        {"q": "Example"},
        {"q": None},
        {"is_active": "false"},
        {"created_after": "2001-01-31T12:00:00Z"},
    ],
)
def test_a_cursor_is_of_no_use_to_another_query(client, as_staff, cursor, change):
    query = {name: value for name, value in {**FIRST, **change, "cursor": cursor}.items() if value}
    response = client.get(f"{USERS}?{urlencode(query)}", headers=as_staff)
    assert (response.status_code, response.json["code"]) == (400, "invalid_cursor")


def test_a_cursor_is_of_no_use_to_another_caller(client, as_user, cursor):
    query = urlencode({**FIRST, "cursor": cursor})
    response = client.get(f"{USERS}?{query}", headers=as_user(role=Role.STAFF))
    assert (response.status_code, response.json["code"]) == (400, "invalid_cursor")


@pytest.mark.parametrize("change", ["{}x", "x{}", "", "0", "{}="])
def test_an_altered_cursor_is_refused(client, as_staff, cursor, change):
    query = urlencode({**FIRST, "cursor": change.format(cursor)})
    response = client.get(f"{USERS}?{query}", headers=as_staff)
    assert (response.status_code, response.json["code"]) == (400, "invalid_cursor")


def test_the_next_page_may_be_larger_and_counted(client, as_staff, cursor):
    query = urlencode({**FIRST, "cursor": cursor, "limit": 100, "include_total": "true"})
    response = client.get(f"{USERS}?{query}", headers=as_staff)
    assert len(response.json["data"]) == 34
    assert response.json["meta"] == {"limit": 100, "next_cursor": None, "total": 44}


@pytest.mark.parametrize(("query", "count"), [("", 2), ("?q=a&role=user&limit=100", 2), ("?include_total=true", 3)])
def test_a_list_takes_a_fixed_number_of_queries(client, forty_five, as_staff, statements, query, count):
    statements.clear()
    assert client.get(USERS + query, headers=as_staff).status_code == 200
    assert len(statements) == count, statements


def test_one_account_takes_two_queries(client, as_user, as_staff, statements):
    other = as_user()
    statements.clear()
    assert client.get(f"{USERS}/{other.user.id}", headers=as_staff).status_code == 200
    assert len(statements) == 2, statements
