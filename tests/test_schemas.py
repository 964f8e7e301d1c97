"""Input schemas: what each field accepts and refuses, with which code and where."""

import unicodedata
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from flask import Flask, request
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import ValidationError, fields

from project.blueprint import Parser
from project.email_addresses import normalize_email
from project.errors import MAX_FIELD_ERRORS, REGISTRY, Invalid, problem_response
from project.json import dumps, loads
from project.list_queries import page_query
from project.pagination import PageRequest
from project.schemas import (
    Boolean,
    Email,
    Id,
    Integer,
    Length,
    OneOf,
    QueryBoolean,
    QueryInteger,
    Range,
    Schema,
    String,
    Timestamp,
)
from project.security import Role
from project.validation import Message, field_errors

ID = "0190f8e2-5a3b-7c4d-8e9f-0a1b2c3d4e5f"
MAX = 2**63 - 1
ABSENT = object()


def even(value: int) -> None:
    """A validator of a feature."""
    if value % 2:
        raise ValidationError([Message("This must be even.", "out_of_range")])


class Inner(Schema):
    """A nested object."""

    name = String(required=True)


class Everything(Schema):
    """One field of each type."""

    string = String()
    short = String(validate=Length(2, 5))
    choice = String(validate=OneOf(["red", "green"]))
    boolean = Boolean()
    integer = Integer()
    bounded = Integer(validate=Range(1, 10))
    even = Integer(validate=even)
    id = Id()
    time = Timestamp()
    email = Email()
    role = fields.Enum(Role, by_value=True)
    nullable = String(allow_none=True)
    inner = fields.Nested(Inner)
    things = fields.List(fields.Nested(Inner))
    numbers = fields.List(Integer(), validate=Length(max=3))


def refusals(document: Any, schema: Schema | None = None) -> list[tuple[str, str]]:
    """Return where and why a document is refused."""
    with pytest.raises(ValidationError) as caught:
        (schema or Everything()).load(document)
    found = field_errors(caught.value.messages)
    assert all(error.code in REGISTRY and error.detail for error in found)
    return [(error.pointer, error.code) for error in found]


# --- fields of JSON ---------------------------------------------------------------------------------------------------

ACCEPTED = [
    ("string", "", ""),
    ("string", " a\n😀\u202e ", " a\n😀\u202e "),
    ("string", "10", "10"),
    ("short", "äö", "äö"),
    ("short", "😀" * 5, "😀" * 5),
    ("choice", "red", "red"),
    ("boolean", True, True),
    ("boolean", False, False),
    ("integer", 0, 0),
    ("integer", MAX, MAX),
    ("integer", -MAX, -MAX),
    ("bounded", 1, 1),
    ("bounded", 10, 10),
    ("even", 2, 2),
    ("id", ID, UUID(ID)),
    ("role", "staff", Role.STAFF),
    ("nullable", None, None),
    ("nullable", "x", "x"),
    ("inner", {"name": "x"}, {"name": "x"}),
    ("things", [], []),
    ("numbers", [1, 2, 3], [1, 2, 3]),
]


@pytest.mark.parametrize(("name", "given", "loaded"), ACCEPTED)
def test_a_field_accepts(name, given, loaded):
    [value] = Everything().load({name: given}).values()

    assert value == loaded
    assert type(value) is type(loaded)


LIKE_STRINGS: list[Any] = [1, 1.5, True, ["x"], {"x": "y"}]
LIKE_INTEGERS: list[Any] = ["10", " 10", 10.0, 10.9, 1e3, True, False, [1], {"a": 1}, "ten", ""]
NO_OBJECTS: list[Any] = [1, "x", [], True]
NO_LISTS: list[Any] = [1, "x", {}, True]
LIKE_BOOLEANS: list[Any] = ["true", "on", "1", 1, 0, 1.0, [], {}]
REFUSED: list[tuple[str, Any, str]] = [
    *(("string", value, "invalid_type") for value in LIKE_STRINGS),
    ("string", None, "null_not_allowed"),
    ("string", "a\0b", "invalid_characters"),
    ("string", "\ud800", "invalid_characters"),
    ("string", "x\udfff", "invalid_characters"),
    ("short", "x", "invalid_length"),
    ("short", "😀" * 6, "invalid_length"),
    ("choice", "Red", "invalid_choice"),
    ("choice", "", "invalid_choice"),
    *(("boolean", value, "invalid_type") for value in LIKE_BOOLEANS),
    ("boolean", None, "null_not_allowed"),
    *(("integer", value, "invalid_type") for value in LIKE_INTEGERS),
    ("integer", MAX + 1, "out_of_range"),
    ("integer", -MAX - 1, "out_of_range"),
    ("integer", None, "null_not_allowed"),
    ("bounded", 0, "out_of_range"),
    ("bounded", 11, "out_of_range"),
    ("bounded", "5", "invalid_type"),
    ("even", 3, "out_of_range"),
    *(("id", value, "invalid_format") for value in (1, True, [ID], "", "1", "null", ID + "0", ID[:-1])),
    ("id", ID.upper(), "invalid_format"),
    ("id", ID.replace("-", ""), "invalid_format"),
    ("id", f"{{{ID}}}", "invalid_format"),
    ("id", f"urn:uuid:{ID}", "invalid_format"),
    ("id", f" {ID}", "invalid_format"),
    ("id", None, "null_not_allowed"),
    ("role", "root", "invalid_choice"),
    ("role", "STAFF", "invalid_choice"),
    ("role", "", "invalid_choice"),
    ("role", 1, "invalid_choice"),
    ("role", ["user"], "invalid_choice"),
    ("role", {"user": 1}, "invalid_choice"),
    ("role", None, "null_not_allowed"),
    *(("inner", value, "invalid_type") for value in NO_OBJECTS),
    ("inner", None, "null_not_allowed"),
    *(("things", value, "invalid_type") for value in NO_LISTS),
    ("numbers", [1, 2, 3, 4], "invalid_length"),
]


@pytest.mark.parametrize(("name", "given", "code"), REFUSED)
def test_a_field_refuses(name, given, code):
    assert refusals({name: given}) == [(f"/{name}", code)]


# --- times ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2030-01-31T12:00:00Z", datetime(2030, 1, 31, 12, tzinfo=UTC)),
        ("2030-01-31t12:00:00z", datetime(2030, 1, 31, 12, tzinfo=UTC)),
        ("2030-01-31T12:00:00.5Z", datetime(2030, 1, 31, 12, 0, 0, 500_000, tzinfo=UTC)),
        ("2030-01-31T12:00:00.123456-00:00", datetime(2030, 1, 31, 12, 0, 0, 123_456, tzinfo=UTC)),
        ("2030-01-31T12:00:00+05:30", datetime(2030, 1, 31, 6, 30, tzinfo=UTC)),
        ("2024-02-29T00:00:00-23:59", datetime(2024, 2, 29, 23, 59, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime.min.replace(tzinfo=UTC)),
        ("9999-12-31T23:59:59.999999Z", datetime.max.replace(tzinfo=UTC)),
    ],
)
def test_a_time_is_read_into_utc(text, time):
    loaded = Everything().load({"time": text})["time"]

    assert loaded == time
    assert loaded.tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        "2030-01-31T12:00:00",
        "2030-01-31 12:00:00Z",
        "2030-01-31",
        "2030-01-31T12:00Z",
        "2030-01-31T12Z",
        "20300131T120000Z",
        "2030-W05-4T12:00:00Z",
        "2030-031T12:00:00Z",
        "2030-01-31T12:00:00,5Z",
        "2030-01-31T12:00:00.1234567Z",
        "2030-01-31T12:00:00.Z",
        "2030-01-31T12:00:00+0530",
        "2030-01-31T12:00:00+05",
        "2030-01-31T12:00:00+24:00",
        "2030-01-31T12:00:00 +05:30",
        "2030-01-31T12:00:00[Europe/Berlin]",
        "2026-02-30T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-00-10T00:00:00Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T23:60:00Z",
        "2016-12-31T23:59:60Z",
        "0000-01-01T00:00:00Z",
        "10000-01-01T00:00:00Z",
        "-0001-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "\uff12030-01-31T12:00:00Z",
        " 2030-01-31T12:00:00Z",
        "2030-01-31T12:00:00Z\n",
        "now",
        "",
        "1893456000",
        1893456000,
        1893456000.5,
        True,
        ["2030-01-31T12:00:00Z"],
        {},
    ],
)
def test_what_is_no_time_of_rfc_3339_is_refused(text):
    assert refusals({"time": text}) == [("/time", "invalid_format")]


def test_a_time_goes_out_in_utc_with_z():
    east = datetime(2030, 1, 31, 14, tzinfo=timezone(timedelta(hours=2)))

    assert dumps(Everything().dump({"time": east})) == b'{"time":"2030-01-31T12:00:00Z"}'
    assert Everything().dump({"time": None}) == {"time": None}


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_time_that_went_out_can_come_in_again(time):
    assert Everything().load(loads(dumps(Everything().dump({"time": time}))))["time"] == time


# --- e-mail addresses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("ann@example.com", "ann@example.com"),
        ("A@X.com", "a@x.com"),
        ("a@X.COM", "a@x.com"),
        (" a@x.com ", "a@x.com"),
        ("a+tag@x.com", "a+tag@x.com"),
        ("o'brien@x.com", "o'brien@x.com"),
        ("a@bücher.example", "a@xn--bcher-kva.example"),
        ("a@BÜCHER.example", "a@xn--bcher-kva.example"),
        ("a@xn--bcher-kva.example", "a@xn--bcher-kva.example"),
        ("a@XN--BCHER-KVA.EXAMPLE", "a@xn--bcher-kva.example"),
        (f"{'a' * 64}@x.com", f"{'a' * 64}@x.com"),
        ("a@mail.test", "a@mail.test"),
    ],
)
def test_an_address_has_one_stored_form(given, stored):
    assert Everything().load({"email": given}) == {"email": stored}
    assert normalize_email(stored) == stored


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a",
        "a@",
        "@x.com",
        "a@x",
        "a@@x.com",
        "a@x@x.com",
        "a@x..com",
        "a@.x.com",
        "a@x.com.",
        "a@-x.com",
        "a..b@x.com",
        ".a@x.com",
        "a.@x.com",
        "a b@x.com",
        "a@x .com",
        "a@x.com>",
        "<a@x.com>",
        "Ann <a@x.com>",
        "a@x.com,b@y.com",
        "a@x.com, b@y.com",
        "a@x.com;b@y.com",
        "a@x.com\r\nBcc:b@y.com",
        "a@x.com\n",
        "\ta@x.com",
        "a\u00a0@x.com",
        '"<script>"@x.com',
        '"a b"@x.com',
        "a(comment)@x.com",
        "a@[127.0.0.1]",
        "a@127.0.0.1",
        "a@localhost",
        "mailto:a@x.com",
        f"a@{'x' * 64}.com",
        f"a@{'x' * 60}.{'x' * 60}.{'x' * 60}.{'x' * 60}.{'x' * 60}.com",
        "ä@x.com",
        "\u212aate@x.com",
        "\uff41@x.com",
        "a@\uff58.com",
        "a@bu\u0308cher.example",
        "a@x\u200d.com",
        "a@x\u202e.com",
    ],
)
def test_what_is_no_plain_address_is_refused(text):
    assert refusals({"email": text}) == [("/email", "invalid_email")]


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (1, "invalid_type"),
        (None, "null_not_allowed"),
        (["a@x.com"], "invalid_type"),
        ("a\0@x.com", "invalid_characters"),
    ],
)
def test_an_address_is_a_string_first(value, code):
    assert refusals({"email": value}) == [("/email", code)]


@given(st.text(max_size=40) | st.emails())
def test_the_stored_form_of_an_address_is_ascii_and_its_own_stored_form(text):
    stored = normalize_email(text)

    if stored is not None:
        assert stored.isascii()
        assert stored == stored.lower() == normalize_email(stored)
        assert unicodedata.normalize("NFKC", text) == text


# --- objects ----------------------------------------------------------------------------------------------------------


class Person(Schema):
    """An object with all that an object may have."""

    name = String(required=True)
    age = Integer(allow_none=True)
    wire = String(data_key="on-the-wire")


def test_missing_null_and_absent_are_told_apart():
    assert refusals({}, Person()) == [("/name", "required")]
    assert refusals({"name": None}, Person()) == [("/name", "null_not_allowed")]
    assert Person().load({"name": "x", "age": None}) == {"name": "x", "age": None}
    assert Person().load({"name": "x"}) == {"name": "x"}


@pytest.mark.parametrize(
    "name", ["role", "is_admin", "id", "Name", "name ", "_id", "__class__", "wire", "", "constructor"]
)
def test_unknown_fields_are_refused_by_name(name):
    assert refusals({"name": "x", name: 1}, Person()) == [(f"/{name}", "unknown_field")]


@pytest.mark.parametrize("document", [None, [], [{}], "x", 1, 1.5, True])
def test_what_is_no_object_is_refused_as_a_whole(document):
    assert refusals(document, Person()) == [("", "invalid_type")]


def test_a_pointer_uses_the_name_on_the_wire():
    assert refusals({"name": "x", "on-the-wire": 1}, Person()) == [("/on-the-wire", "invalid_type")]


def test_pointers_lead_into_objects_and_lists():
    document = {"things": [{"name": "x"}, {"name": 1, "nick": 2}, 3, {}], "inner": {}, "numbers": [1, "2"]}

    assert sorted(refusals(document)) == [
        ("/inner/name", "required"),
        ("/numbers/1", "invalid_type"),
        ("/things/1/name", "invalid_type"),
        ("/things/1/nick", "unknown_field"),
        ("/things/2", "invalid_type"),
        ("/things/3/name", "required"),
    ]


def test_items_of_a_list_have_codes_of_their_own():
    assert refusals({"numbers": [1.0, None]}) == [("/numbers/0", "invalid_type"), ("/numbers/1", "null_not_allowed")]


def test_signs_of_pointers_are_escaped_in_names():
    found = refusals({"name": "x", "a/b~c": 1, "~1": 1}, Person())

    assert sorted(found) == [("/a~1b~0c", "unknown_field"), ("/~01", "unknown_field")]


def test_at_most_100_errors_are_told():
    messages = {f"field{number}": ["wrong"] for number in range(100_000)}
    with Flask("schemas").test_request_context("/"):
        response = problem_response(Invalid(errors=field_errors(messages)))

    assert MAX_FIELD_ERRORS == 100
    assert len(response.get_json()["errors"]) == 100


# --- query strings ----------------------------------------------------------------------------------------------------

Query = page_query(
    {"created_at": None, "email": None},
    q=String(validate=Length(1, 5)),
    number=QueryInteger(),
    flag=QueryBoolean(),
    after=Timestamp(data_key="from"),
    user_id=Id(),
    role=fields.Enum(Role, by_value=True),
)


def parse(query: str) -> dict[str, Any]:
    """Parse a query string as a route does."""
    with Flask("schemas").test_request_context(f"/?{query}"):
        found: dict[str, Any] = Parser().parse(Query, request, location="query")
        return found


def query_refusals(query: str) -> list[tuple[str, str]]:
    """Return where and why a query string is refused."""
    with pytest.raises(Invalid) as caught:
        parse(query)
    return [(error.pointer, error.code) for error in caught.value.errors]


def test_an_empty_query_has_the_defaults():
    assert parse("") == {"page": PageRequest(limit=20, sort="-created_at", bound_to="{}")}


def test_a_query_is_gathered_into_a_page_and_filters():
    found = parse("limit=5&cursor=abc&include_total=true&sort=email&q=a%20b&number=007&flag=false&role=staff")

    assert found.pop("page") == PageRequest(
        limit=5,
        cursor="abc",
        include_total=True,
        sort="email",
        bound_to='{"flag":false,"number":7,"q":"a b","role":"staff"}',
    )
    assert found == {"q": "a b", "number": 7, "flag": False, "role": Role.STAFF}


def test_a_cursor_is_bound_to_the_filters_in_any_order_and_not_to_the_page():
    first, second = parse("q=a&flag=true&limit=5")["page"], parse("cursor=x&flag=true&include_total=true&q=a")["page"]

    assert first.bound_to == second.bound_to
    assert first.bound_to != parse("q=a&flag=false")["page"].bound_to


@pytest.mark.parametrize("written", ["0", "9223372036854775807", "0000000000000000001"])
def test_numbers_in_a_query_are_ascii_digits(written):
    assert parse(f"number={written}")["number"] == int(written)


@pytest.mark.parametrize(
    ("query", "pointer", "code"),
    [
        *((f"limit={value}", "/query/limit", "out_of_range") for value in ("0", "101", "1000000000")),
        *(
            (f"number={value}", "/query/number", "invalid_type")
            for value in (
                "",
                "-1",
                "%2B1",
                "1.0",
                "1e3",
                "0x1",
                "1_0",
                "%201",
                "1%20",
                "٣",
                "१",
                "²",
                "NaN",
                "true",
                "null",
            )
        ),
        ("number=12345678901234567890", "/query/number", "invalid_type"),
        ("number=9223372036854775808", "/query/number", "out_of_range"),
        *((f"flag={value}", "/query/flag", "invalid_type") for value in ("", "1", "0", "True", "TRUE", "on", "yes")),
        ("sort=", "/query/sort", "invalid_choice"),
        ("sort=password", "/query/sort", "invalid_choice"),
        ("sort=%2Bemail", "/query/sort", "invalid_choice"),
        ("sort=--email", "/query/sort", "invalid_choice"),
        ("sort=email,created_at", "/query/sort", "invalid_choice"),
        ("from=yesterday", "/query/from", "invalid_format"),
        ("after=2030-01-31T12:00:00Z", "/query/after", "unknown_field"),
        ("from=2030-01-31T12:00:00+01:00", "/query/from", "invalid_format"),
        (f"user_id={ID.upper()}", "/query/user_id", "invalid_format"),
        ("user_id=", "/query/user_id", "invalid_format"),
        ("role=root", "/query/role", "invalid_choice"),
        ("q=", "/query/q", "invalid_length"),
        ("q=abcdef", "/query/q", "invalid_length"),
        ("q=%00", "/query/q", "invalid_characters"),
        ("offset=10", "/query/offset", "unknown_field"),
        ("Limit=5", "/query/Limit", "unknown_field"),
        ("q%5B%5D=a", "/query/q[]", "unknown_field"),
        ("q.x=a", "/query/q.x", "unknown_field"),
        ("a%2Fb~c=1", "/query/a~1b~0c", "unknown_field"),
        ("=1", "/query/", "unknown_field"),
        ("limit=5&limit=5", "/query/limit", "repeated_parameter"),
        ("role=user&role=admin", "/query/role", "repeated_parameter"),
        ("x=1&x=2", "/query/x", "repeated_parameter"),
        ("a%2Fb=1&a/b=2", "/query/a~1b", "repeated_parameter"),
    ],
)
def test_a_query_is_refused_where_it_is_wrong(query, pointer, code):
    assert query_refusals(query) == [(pointer, code)]


def test_all_that_is_wrong_with_a_query_is_told_at_once():
    assert sorted(query_refusals("limit=x&flag=y&z=1")) == [
        ("/query/flag", "invalid_type"),
        ("/query/limit", "invalid_type"),
        ("/query/z", "unknown_field"),
    ]
