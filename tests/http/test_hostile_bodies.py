"""Bodies that parsers disagree about, that are cut or too large: refused by every operation, and without effect."""

import gzip
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.http.client import (
    Account,
    Api,
    codes,
    new_address,
    problem,
)
from tests.http.cluster import Cluster
from tests.http.document import Operation, send
from tests.http.files import BOUNDARY, FORM, forget_peak, peak_of

JSON = "application/json"
LIMIT = 256 * 1024


# --- what cannot be parsed -------------------------------------------------------------------------------------------

UNPARSABLE: dict[str, bytes] = {
    "nothing": b"",
    "blank": b" ",
    "not JSON": b"email=ann@example.com",
    "unfinished": b'{"name": "Ann"',
    "a trailing comma": b'{"name": "Ann",}',
    "single quotes": b"{'name': 'Ann'}",
    "a comment": b'{"name": "Ann"} // Ann',
    "two values": b"{}{}",
    "trailing text": b"{} x",
    "a duplicate key": b'{"name": "Ann", "name": "Ben"}',
    "a duplicate key, escaped": b'{"name": "Ann", "\\u006eame": "Ben"}',
    "a duplicate key, inside": b'{"name": {"a": 1, "a": 2}}',
    "NaN": b'{"name": NaN}',
    "Infinity": b'{"name": Infinity}',
    "-Infinity": b'{"name": -Infinity}',
    "a number too large": b'{"name": 1e400}',
    "a number too small": b'{"name": -1e400}',
    "20 digits": b'{"name": ' + b"9" * 20 + b"}",
    "309 digits": b'{"name": ' + b"9" * 309 + b"}",
    "5,000 digits": b'{"name": -' + b"9" * 5_000 + b"}",
    "200,000 digits": b'{"name": ' + b"9" * 200_000 + b"}",
    "a leading zero": b'{"name": 01}',
    "a plus": b'{"name": +1}',
    "hexadecimal": b'{"name": 0x10}',
    "33 levels": b'{"name": ' + b"[" * 32 + b"]" * 32 + b"}",
    "100,000 arrays": b"[" * 100_000 + b"]" * 100_000,
    "100,000 arrays without an end": b"[" * 100_000,
    "40,000 objects": b'{"a":' * 40_000,
    "brackets before an endless string": b"[" * 40 + b'"' + b'\\"' * 120_000,
    "brackets and backslashes": b"[" * 40 + b'"' + b"\\" * 240_001,
    "quotes and brackets": b'["' * 120_000,
    "a lone high surrogate": b'{"name": "\\ud800"}',
    "a lone low surrogate": b'{"name": "a\\udfffb"}',
    "a lone surrogate in a key": b'{"\\ud800": 1}',
    "surrogates the wrong way round": b'{"name": "\\udc00\\ud800"}',
    "a raw NUL": b'{"name": "a\x00b"}',
    "a raw line break": b'{"name": "a\nb"}',
    "invalid UTF-8": b'{"name": "\xff"}',
    "overlong UTF-8": b'{"name": "\xc0\xaf"}',
    "a surrogate as UTF-8": b'{"name": "\xed\xa0\x80"}',
    "latin-1": '{"name": "Zoë"}'.encode("latin-1"),
    "a byte order mark": b'\xef\xbb\xbf{"name": "Ann"}',
    "UTF-16": '{"name": "Ann"}'.encode("utf-16"),
    "UTF-16 without a mark": '{"name": "Ann"}'.encode("utf-16-le"),
    "UTF-32": '{"name": "Ann"}'.encode("utf-32"),
}


@pytest.mark.parametrize("body", UNPARSABLE.values(), ids=list(UNPARSABLE))
def test_every_operation_refuses_a_body_that_cannot_be_parsed(
    admin: Account, json_operations: list[Operation], body: bytes
) -> None:
    for operation in json_operations:
        problem(send(admin, operation, data=body, headers={"Content-Type": JSON}), 400, "invalid_json")


@pytest.mark.parametrize("body", [b"null", b"[]", b'"x"', b"1", b"true", b"1.5", b"[{}]", b"9" * 19])
def test_every_operation_refuses_what_is_not_an_object(
    admin: Account, json_operations: list[Operation], body: bytes
) -> None:
    for operation in json_operations:
        refused = problem(send(admin, operation, data=body, headers={"Content-Type": JSON}), 422, "validation_error")
        assert codes(refused) == {"": "invalid_type"}, operation.name


CONTENT_TYPES = [
    None,
    "",
    "text/plain",
    "text/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/octet-stream",
    "application/jsonp",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/json; charset=latin-1",
    "application/json; charset=utf-16",
    "application/json, text/plain",
    "json",
]


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
def test_every_operation_refuses_another_content_type(
    admin: Account, json_operations: list[Operation], content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    for operation in json_operations:
        # A page of our own posts a form there.
        if content_type == "application/x-www-form-urlencoded" and operation.id == "authenticatePaymentIntent":
            continue
        body = json.dumps(operation.example).encode()
        problem(send(admin, operation, data=body, headers=headers), 415, "unsupported_media_type")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "GZIP, identity", "x"])
def test_every_operation_refuses_a_compressed_body(
    admin: Account, json_operations: list[Operation], encoding: str
) -> None:
    headers = {"Content-Type": JSON, "Content-Encoding": encoding}
    for operation in json_operations:
        body = gzip.compress(json.dumps(operation.example).encode())
        problem(send(admin, operation, data=body, headers=headers), 415, "unsupported_media_type")


@pytest.mark.parametrize("content_type", [JSON, "APPLICATION/JSON", 'application/json; charset="UTF-8"'])
def test_json_in_utf_8_is_accepted_however_it_is_named(user: Account, content_type: str) -> None:
    body = '{"name": "Zoë 🦊"}'.encode()
    response = user.api.patch("/v1/users/me", data=body, headers={"Content-Type": content_type})
    assert response.json()["data"]["name"] == "Zoë 🦊"


# --- what can be parsed and is not valid -----------------------------------------------------------------------------


def test_every_operation_refuses_unknown_fields(admin: Account, json_operations: list[Operation]) -> None:
    for operation in json_operations:
        for name in ("unknown", "", "__class__", "Password", "a/b~c", "name ", "constructor"):
            refused = problem(send(admin, operation, json={**operation.example, name: 1}), 422, "validation_error")
            pointer = "/" + name.replace("~", "~0").replace("/", "~1")
            assert codes(refused) == {pointer: "unknown_field"}, operation.name


def test_every_field_refuses_other_types(admin: Account, json_operations: list[Operation]) -> None:
    """No coercion: not a number for a text, not 1 for true, not a list around the value."""
    values: dict[str, Any] = {
        "null": None,
        "boolean": True,
        "integer": 1,
        "number": 10.5,
        "string": "10",
        "array": ["x"],
        "object": {"x": 1},
    }
    for operation, name, schema in fields(json_operations):
        allowed = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        for kind, value in values.items():
            if kind not in allowed and not (kind == "integer" and "number" in allowed):
                response = send(admin, operation, json={**operation.example, name: value})
                refused = problem(response, 422, "validation_error")
                assert list(codes(refused)) == [f"/{name}"], (operation.name, name, kind)


def fields(operations: list[Operation]) -> Iterator[tuple[Operation, str, dict[str, Any]]]:
    for operation in operations:
        for name, schema in operation.properties.items():
            yield operation, name, schema


@pytest.mark.parametrize("text", ["\0", "a\0b", "\0" * 200])
def test_every_text_field_refuses_nul(admin: Account, json_operations: list[Operation], text: str) -> None:
    for operation, name, schema in fields(json_operations):
        # Names of files are cleaned, never refused.
        if "string" in schema["type"] and name != "filename":
            response = send(admin, operation, json={**operation.example, name: text})
            refused = problem(response, 422, "validation_error")
            assert list(codes(refused)) == [f"/{name}"], (operation.name, name)


def test_every_text_field_survives_strange_texts(admin: Account, json_operations: list[Operation]) -> None:
    """Whatever the text, it is stored or refused: nothing fails."""
    texts = [
        "",
        " ",
        "\u202e",
        "\u2028",
        "\uffff",
        "\U0010ffff",
        "😀" * 200,
        "'\"; --",
        "{{7*7}}",
        "%s%n",
        "x" * 250_000,
    ]
    for operation, name, schema in fields(json_operations):
        if "string" in schema["type"] and operation.id not in {"updateUser", "createUser"}:
            for text in texts:
                response = send(admin, operation, json={**operation.example, name: text})
                assert response.status_code in operation.statuses, (operation.name, name, text[:20], response.text)


@pytest.mark.parametrize("operation_id", ["register", "resendVerification", "forgotPassword", "login", "createUser"])
def test_what_is_no_address_is_refused(admin: Account, json_operations: list[Operation], operation_id: str) -> None:
    operation = next(operation for operation in json_operations if operation.id == operation_id)
    for address in (
        "a",
        "a@",
        "@x.com",
        "a@b@x.com",
        "a@x",
        "a@x.com\r\nBcc: b@x.com",
        "a@x.com,b@y.com",
        '"<script>"@x.com',
        "a@x.com>",
        "<a@x.com>",
        "a b@x.com",
        "a@x..com",
        ".a@x.com",
        "a@-x.com",
        "a@[127.0.0.1]",
        "\u212a@x.com",
        "\uff41@x.com",
        "a@x.com\t",
        "a" * 250 + "@x.com",
        "a@" + "x" * 64 + ".com",
    ):
        response = send(admin, operation, json={**operation.example, "email": address})
        assert codes(problem(response, 422, "validation_error")) == {"/email": "invalid_email"}, address


def test_at_most_100_faults_are_listed(user: Account) -> None:
    body = {f"field{number}": 1 for number in range(10_000)}
    assert len(problem(user.api.patch("/v1/users/me", json=body), 422, "validation_error")["errors"]) == 100


def test_nothing_to_change_changes_nothing(user: Account) -> None:
    user.api.patch("/v1/users/me", json={"name": "Kept"})
    before = user.api.get("/v1/users/me")
    assert user.api.patch("/v1/users/me", json={}).status_code == 200
    after = user.api.get("/v1/users/me")
    assert (after.content, after.headers["ETag"]) == (before.content, before.headers["ETag"])


# --- forms -----------------------------------------------------------------------------------------------------------

A_FILE = b'Content-Disposition: form-data; name="file"; filename="a"'
DELIMITER = b"--" + BOUNDARY.encode()


def a_form(*parts: tuple[bytes, bytes]) -> bytes:
    """A form of parts, each its headers and its content."""
    return b"".join(DELIMITER + b"\r\n%s\r\n\r\n%s\r\n" % part for part in parts) + DELIMITER + b"--\r\n"


def a_field(name: bytes) -> bytes:
    return b'Content-Disposition: form-data; name="%s"' % name


# What parsers of forms were brought down with (CVE-2023-25577, CVE-2023-46136, CVE-2024-49767), and what is no form.
HOSTILE_FORMS: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "10,000 texts": (lambda: a_form(*[(a_field(b"x"), b"y")] * 10_000), 413, "payload_too_large"),
    "10,000 files": (lambda: a_form(*[(A_FILE, b"y")] * 10_000), 413, "payload_too_large"),
    "170,000 headers": (lambda: a_form((b"X: y\r\n" * 170_000 + A_FILE, b"x")), 413, "payload_too_large"),
    "a header of 1 MB": (lambda: a_form((b"X: " + b"y" * 1_000_000, b"x")), 413, "payload_too_large"),
    "a name of 1 MB": (lambda: a_form((a_field(b"x" * 1_000_000), b"x")), 413, "payload_too_large"),
    "a field of 10 MB": (lambda: a_form((a_field(b"purpose"), bytes(10_000_000))), 413, "payload_too_large"),
    "10 MB in front": (lambda: bytes(10_000_000) + b"\r\n" + a_form((A_FILE, b"x")), 413, "payload_too_large"),
    "10 MB behind": (lambda: a_form((A_FILE, b"x")) + bytes(10_000_000), 413, "payload_too_large"),
    "a form in a form": (
        lambda: a_form((a_field(b"file") + b"\r\nContent-Type: multipart/mixed; boundary=x", b"--x\r\n\r\n--x--")),
        422,
        "validation_error",
    ),
    "no end": (lambda: a_form((A_FILE, b"x"))[: -len(DELIMITER)], 400, "incomplete_body"),
    "no headers": (lambda: a_form((b"", b"x")), 400, "incomplete_body"),
    "no disposition": (lambda: a_form((b"Content-Type: text/plain", b"x")), 400, "incomplete_body"),
    "no name": (lambda: a_form((A_FILE.replace(b'name="file"; ', b""), b"x")), 422, "validation_error"),
    "another boundary": (lambda: a_form((A_FILE, b"x")).replace(b"-tests", b"-others"), 400, "incomplete_body"),
    "a text that is not UTF-8": (lambda: a_form((A_FILE, b"x"), (a_field(b"purpose"), b"\xff")), 400, "bad_request"),
    "a surrogate": (lambda: a_form((A_FILE, b"x"), (a_field(b"purpose"), b"\xed\xa0\x80")), 400, "bad_request"),
    "UTF-16": (
        lambda: a_form((a_field(b"purpose") + b"\r\nContent-Type: text/plain; charset=utf-16", b"\xff\xfea\0")),
        400,
        "bad_request",
    ),
    "a charset for all": (lambda: a_form((a_field(b"_charset_"), b"utf-7"), (A_FILE, b"x")), 422, "validation_error"),
}


@pytest.mark.parametrize(("make", "status", "code"), HOSTILE_FORMS.values(), ids=list(HOSTILE_FORMS))
def test_a_hostile_form_costs_neither_memory_nor_time_and_leaves_nothing(
    user: Account, cluster: Cluster, make: Callable[[], bytes], status: int, code: str
) -> None:
    body, usage = make(), user.api.get("/v1/files/usage").content
    forget_peak(cluster.first)
    before, started = peak_of(cluster.first), time.monotonic()
    # A connection of its own: the server ends one on which much was left unread.
    fresh = user.api.with_token(user.access_token)
    problem(fresh.post("/v1/files", data=body, headers={"Content-Type": FORM}), status, code)
    assert time.monotonic() - started < 5
    assert peak_of(cluster.first) - before < 20
    assert user.api.get("/v1/files/usage").content == usage


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"\r\n" * 2_500_000,
        lambda: b"\r" * 5_000_000,
        lambda: (b"\r\n" + DELIMITER[:-1] + b"x") * 200_000,
        lambda: b"\r\n" + DELIMITER[:-1],
    ],
    ids=["line ends", "halves of line ends", "what is nearly a boundary", "half a boundary"],
)
def test_a_file_that_looks_like_framing_is_stored_byte_for_byte(
    user: Account, cluster: Cluster, make: Callable[[], bytes]
) -> None:
    content = make()
    forget_peak(cluster.first)
    before, started = peak_of(cluster.first), time.monotonic()
    fresh = user.api.with_token(user.access_token)
    response = fresh.post("/v1/files", data=a_form((A_FILE, content)), headers={"Content-Type": FORM})
    assert response.json()["data"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert time.monotonic() - started < 5
    assert peak_of(cluster.first) - before < 20


# --- passwords: long ones are neither cut nor hashed -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("password", "code"),
    [
        ("x7-Kite-2Gm", "password_too_short"),
        ("🦊" * 11, "password_too_short"),
        ("ab1 " * 64 + "x", "password_too_long"),
        ("🦊🐢" * 128 + "x", "password_too_long"),
        ("ab1 " * 60_000, "password_too_long"),
        ("projectproject1", "password_too_common"),
        ("aaaaaaaaaaaaaaaa", "password_too_common"),
        ("123456789012", "password_too_common"),
    ],
)
def test_a_password_against_the_policy_is_refused_by_name(anonymous: Api, password: str, code: str) -> None:
    body = {"email": new_address(), "password": password}
    response = anonymous.post("/v1/auth/register", json=body)
    assert codes(problem(response, 422, "validation_error")) == {"/password": code}
    assert password not in response.text
