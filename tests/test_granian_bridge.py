"""What granian is given as the answer, and what the application as the request."""

import io
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from project.granian_bridge import BLOCK, bridge
from project.middleware import BodyLength, LengthRequired

SCOPE = {"REQUEST_METHOD": "POST", "PATH_INFO": "/", "QUERY_STRING": "", "REMOTE_ADDR": "127.0.0.1"}


class Exchange:
    """Takes the answer as granian does: of an iterable it sends what comes before an error, and then ends it well."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes, /) -> None:
        if not self.status:
            self.status, self.headers, self.body = status, dict(headers), body

    def response_iter(self, status: int, headers: list[tuple[str, str]], body: Any, /) -> None:
        self.response_bytes(status, headers, b"".join(body))


class Input(io.BytesIO):
    """A body of granian's, whose other methods are not to be used."""

    def readline(self, *_: Any) -> bytes:
        raise AssertionError

    readlines = __next__ = readline  # type: ignore[assignment]


class Blocks:
    """An answer that knows whether it was closed."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = blocks
        self.is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._blocks)

    def close(self) -> None:
        self.is_closed = True


def failing(*blocks: bytes) -> Iterator[bytes]:
    yield from blocks
    raise RuntimeError


def answer(
    blocks: Iterable[bytes], *headers: tuple[str, str], status: str = "200 OK", draining: bool = False
) -> Exchange:
    """Have an application answer with these blocks, and return what granian got."""
    found, given = Exchange(), Blocks(blocks)

    def app(_environ: Any, start_response: Any) -> Blocks:
        start_response(status, list(headers))
        return given

    assert bridge(app, lambda: draining)(found, {**SCOPE, "wsgi.input": Input()}) == found.status
    assert given.is_closed
    return found


@pytest.mark.parametrize("size", [0, 5, BLOCK, BLOCK + 1])
@pytest.mark.parametrize("with_length", [True, False])
def test_an_answer_has_its_length_and_all_of_its_bytes(size, with_length):
    content = bytes(range(251)) * (size // 251 + 1)
    blocks = [content[:size][start : start + 1000] for start in range(0, size, 1000)]
    found = answer(blocks, *([("Content-Length", str(size))] if with_length else []))
    assert (found.status, found.headers, found.body) == (200, {"Content-Length": str(size)}, content[:size])


def test_an_answer_without_a_length_that_fails_is_none():
    """granian would end its chunks as if it were complete."""
    found = answer(failing(b"a,b\n", b"1,2\n"))
    assert (found.status, found.body) == (500, b"")


@pytest.mark.parametrize("blocks", [[b"abc"], [b"abc", b"defg"]])
def test_a_short_answer_is_as_long_as_it_says_or_none(blocks):
    assert answer(blocks, ("Content-Length", "5")).status == 500


def test_a_long_answer_that_fails_ends_before_its_length(caplog):
    found = answer(failing(b"abc"), ("Content-Length", str(BLOCK + 1)))
    assert (found.status, found.body) == (200, b"abc")
    assert "answer_failed" in caplog.text


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_what_has_no_body_has_no_length_either(status):
    found = answer([], status=status)
    assert (found.headers, found.body) == ({}, b"")


@pytest.mark.parametrize("draining", [True, False])
def test_while_the_server_drains_each_answer_ends_its_connection(draining):
    assert ("Connection" in answer([], ("Content-Length", "0"), draining=draining).headers) is draining


def read(scope: dict[str, Any], body: bytes, how: str = "read", *size: int) -> bytes:
    """Have an application read its body, and return what it got."""
    found: list[Any] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        try:
            found.append(getattr(environ["wsgi.input"], how)(*size))
        except LengthRequired as error:
            found.append(error)
        start_response("204 No Content", [])
        return []

    bridge(BodyLength(app), lambda: False)(Exchange(), {**SCOPE, **scope, "wsgi.input": Input(body)})
    [one] = found
    if isinstance(one, LengthRequired):
        raise one
    return one if isinstance(one, bytes) else b"|".join(one)


@pytest.mark.parametrize(
    ("how", "size", "expected"),
    [
        ("read", (), b"ab\n\ncd"),
        ("read", (4,), b"ab\n\n"),
        ("readline", (), b"ab\n"),
        ("readline", (1,), b"a"),
        ("readlines", (), b"ab\n|\n|cd"),
    ],
)
def test_a_body_with_a_length_is_read_in_any_way(how, size, expected):
    assert read({"CONTENT_LENGTH": "6"}, b"ab\n\ncd", how, *size) == expected


@pytest.mark.parametrize("how", ["read", "readline", "readlines"])
@pytest.mark.parametrize("encoding", ["chunked", "gzip, chunked", "Chunked", ""])
def test_a_body_in_chunks_is_not_read_at_all(how, encoding):
    with pytest.raises(LengthRequired):
        read({"HTTP_TRANSFER_ENCODING": encoding}, b"{}", how)


def test_without_a_length_there_is_no_body():
    assert read({}, b"something") == b""


def test_the_environment_of_the_process_is_not_handed_on(monkeypatch):
    monkeypatch.setenv("HTTP_X_FORWARDED_FOR", "203.0.113.7")
    monkeypatch.setenv("SECRET_KEY", "of the process")
    seen: dict[str, Any] = {}

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.update(environ)
        start_response("204 No Content", [])
        return []

    bridge(app, lambda: False)(Exchange(), {**SCOPE, "wsgi.input": Input()})
    assert all(name in SCOPE or name == "SCRIPT_NAME" or name.startswith("wsgi.") for name in seen)


def test_an_application_that_fails_is_500_and_its_text_is_not_told(caplog):
    def app(_environ: Any, _start_response: Any) -> list[bytes]:
        raise RuntimeError

    found = Exchange()
    assert bridge(app, lambda: False)(found, {**SCOPE, "wsgi.input": Input()}) == 500
    assert (found.status, found.body) == (500, b"")
    assert "request_failed_outside_application" in caplog.text


def test_an_address_that_is_too_long_is_414():
    def app(_environ: Any, _start_response: Any) -> list[bytes]:
        raise AssertionError

    found = Exchange()
    bridge(app, lambda: False)(found, {**SCOPE, "PATH_INFO": "/" + "a" * 8190, "wsgi.input": Input()})
    assert (found.status, found.headers["Content-Type"]) == (414, "application/problem+json")
