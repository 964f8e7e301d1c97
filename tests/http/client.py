"""A client for the API over real HTTP, which checks on every answer what holds for all of them."""

import email
import email.policy
import http.client
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from email.message import EmailMessage
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit
from uuid import uuid4

import requests
from requests.structures import CaseInsensitiveDict

from tests.http.buckets import follow

PASSWORD = "canary horse battery staple"
NEW_PASSWORD = "another canary of long words"
PROBLEM = "application/problem+json"
# Behind nginx: it answers by itself what is no HTTP of ours, and closes what was cut without an answer.
PROXIED = "TEST_BASE_URL" in os.environ or "TEST_STACK" in os.environ
MEMBERS = {"type", "title", "status", "detail", "instance", "code", "request_id"}
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# The bytes of files are the users', so browsers have to be told more: they run nothing of it.
CONTENT = re.compile(r"/v1/files/[^/]+/(content|thumbnail)|/v1/shares/[^/]+")
CONTENT_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}
# What is ours alone: hashes, columns that are not fields, code, SQL, paths of the server.
INTERNAL = re.compile(
    r"\$argon2|password_hash|token_hash|refresh_jti|session_epoch"
    r"|Traceback|sqlalchemy|psycopg|sqlite3|site-packages|/usr/|/home/|SELECT .* FROM|line \d+, in",
    re.IGNORECASE,
)
PAGES = ("/docs", "/errors", "/openapi.json")
SECONDS = 15

_numbers = count(1)
T = TypeVar("T")


class Api:
    """One client of one server. `token` is sent as Bearer unless a call gives another, or None for none."""

    def __init__(self, base_url: str, token: str | None = None) -> None:
        self.base_url = base_url
        self.token = token
        self._session = requests.Session()
        # Nothing of the developer's environment: no proxies, no passwords from ~/.netrc.
        self._session.trust_env = False

    def with_token(self, token: str | None) -> "Api":
        """Another client of the same server."""
        return Api(self.base_url, token)

    def at(self, base_url: str) -> "Api":
        """The same caller at another server."""
        return Api(base_url, self.token)

    def request(
        self, method: str, path: str, *, token: str | None = "", headers: Mapping[str, str] | None = None, **kwargs: Any
    ) -> requests.Response:
        """Send a request and check its answer; where a bucket has the bytes, get them there."""
        bearer = self.token if token == "" else token
        credentials = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        response = self._session.request(
            method,
            self.base_url + path,
            headers={**credentials, **(headers or {})},
            timeout=SECONDS,
            allow_redirects=False,
            **kwargs,
        )
        at = urlsplit(self.base_url + path).path
        check_answer(response.status_code, response.headers, response.content, at)
        if response.status_code != 302 or not CONTENT.fullmatch(at):
            return response
        found = follow(response.headers, headers or {}, self.base_url)
        if found.ok:
            return found
        # What has just gone the API does not know any more either.
        assert self.request("HEAD", path, token=token).status_code == 404, found.text
        return self.request(method, path, token=token, headers=headers, **kwargs)

    def get(self, path: str, **kwargs: Any) -> requests.Response:
        """GET."""
        return self.request("GET", path, **kwargs)

    def post(self, path: str, **kwargs: Any) -> requests.Response:
        """POST."""
        return self.request("POST", path, **kwargs)

    def patch(self, path: str, **kwargs: Any) -> requests.Response:
        """PATCH."""
        return self.request("PATCH", path, **kwargs)

    def delete(self, path: str, **kwargs: Any) -> requests.Response:
        """DELETE."""
        return self.request("DELETE", path, **kwargs)


def check_answer(status: int, headers: Mapping[str, str], body: bytes, path: str) -> None:
    """Check what every answer of the application has, and what none may have."""
    assert status < 500 or status == 503, (status, body[:500])
    if CONTENT.fullmatch(path) and ("ETag" in headers or status == 302):
        check_content(status, headers)
        return
    text = _our_words(status, body)
    if not path.startswith(PAGES):
        assert not INTERNAL.search(text), text[:2000]
    assert re.fullmatch("[A-Za-z0-9-]{8,64}", headers["X-Request-ID"])
    assert not re.search("[0-9]", headers.get("Server", ""))
    assert "X-Powered-By" not in headers
    for name, value in SECURITY_HEADERS.items():
        if not path.startswith(PAGES):
            assert headers[name] == value, name
    if path.startswith("/v1/"):
        assert headers["Cache-Control"] == "no-store"
        assert "Origin" in headers["Vary"]
    if status >= 400:
        assert headers["Content-Type"] == PROBLEM, (status, headers, text[:500])


def check_content(status: int, headers: Mapping[str, str]) -> None:
    """Check what every answer with content has, and those that spare it."""
    assert status in {200, 206, 302, 304}
    # A redirect leads to a bucket, whose answers are its own.
    if status == 302:
        assert headers["Cache-Control"] == "no-store"
    else:
        assert {name: headers[name] for name in CONTENT_HEADERS} == CONTENT_HEADERS
        assert headers["Cache-Control"] in {"private, no-cache", "public, max-age=300", "private, no-store"}
    assert headers["Cross-Origin-Resource-Policy"] in {"same-site", "cross-origin"}
    assert "Origin" in headers["Vary"]
    assert re.fullmatch("[A-Za-z0-9-]{8,64}", headers["X-Request-ID"])
    assert not re.search("[0-9]", headers.get("Server", ""))


def _our_words(status: int, body: bytes) -> str:
    """The text of an answer, without the names that a problem repeats because the client sent them."""
    if status < 400 or not body:
        return body.decode("utf-8", "replace")
    told = json.loads(body)
    errors = [{**error, "pointer": ""} for error in told.get("errors", ())]
    return json.dumps({**told, "instance": "", "errors": errors})


def problem(response: requests.Response, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is this problem, in exactly the one shape, and return its body."""
    body: dict[str, Any] = response.json()
    assert (response.status_code, body.get("code")) == (status, code), body
    check_problem(body, response.headers, urlsplit(response.url).path)
    return body


def check_problem(body: dict[str, Any], headers: Mapping[str, str], path: str) -> None:
    """Check the members of a problem and that they agree with the request and the headers."""
    if "instance" not in body:
        check_problem_of_proxy(body, headers)
        return
    assert set(body) - {"errors"} == MEMBERS
    assert ("errors" in body) == (body["status"] == 422)
    assert body["type"] == f"/errors#{body['code']}"
    assert body["request_id"] == headers["X-Request-ID"]
    # Escapes are a matter of taste (RFC 3986 §6.2.2.2), so what they stand for is compared.
    assert unquote(body["instance"]) == unquote(path)
    assert quote(unquote(body["instance"])) == body["instance"]
    assert all(body[member] for member in ("title", "detail"))
    for error in body.get("errors", ()):
        assert set(error) == {"pointer", "code", "detail"}
        assert all(isinstance(value, str) for value in error.values())
        assert error["code"]
        assert error["detail"]
    if body["status"] == 401:
        assert headers["WWW-Authenticate"].startswith("Bearer ")
    if body["status"] in {429, 503}:
        assert re.fullmatch("[1-9][0-9]*", headers["Retry-After"])


def check_problem_of_proxy(body: dict[str, Any], headers: Mapping[str, str]) -> None:
    """Check a problem of nginx, which knows of no instance."""
    assert PROXIED
    assert set(body) == MEMBERS - {"instance"}
    assert body["type"] == f"/errors#{body['code']}"
    assert body["request_id"] == headers["X-Request-ID"]


def codes(body: dict[str, Any]) -> dict[str, str]:
    """The codes of a 422, by pointer."""
    return {error["pointer"]: error["code"] for error in body["errors"]}


@dataclass(frozen=True)
class RawAnswer:
    """What came back over a socket; `body` is freed from its framing."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def raw(base_url: str, request: bytes, *, half_close: bool = False) -> RawAnswer:
    """Send bytes as they are and read one answer, whose headers nobody has checked yet.

    `half_close` ends our side of the connection after them (FIN), as a client that died does.
    """
    with connect(base_url) as connection:
        connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return read_answer(connection, method=request.split(b" ", 1)[0].decode("latin-1"))


def connect(base_url: str) -> socket.socket:
    """Open a connection to a server."""
    url = urlsplit(base_url)
    return socket.create_connection((url.hostname or "", url.port or 80), timeout=SECONDS)


def read_answer(connection: socket.socket, *, method: str = "GET") -> RawAnswer:
    """Read one answer from a connection."""
    response = http.client.HTTPResponse(connection, method=method)
    response.begin()
    return RawAnswer(response.status, CaseInsensitiveDict(response.headers.items()), response.read())


def raw_problem(answer: RawAnswer, path: str, status: int, code: str) -> None:
    """Check that an answer from a socket is this problem."""
    check_answer(answer.status, answer.headers, answer.body, path)
    body = json.loads(answer.body)
    assert (answer.status, body["code"]) == (status, code), body
    check_problem(body, answer.headers, path)


def raw_request(
    base_url: str,
    target: str,
    *,
    method: str = "GET",
    headers: Iterable[str] = (),
    body: bytes = b"",
    host: str | None = "",
) -> bytes:
    """Build a request whose target and headers nobody normalises; `host` None leaves the Host header out."""
    name = urlsplit(base_url).netloc if host == "" else host
    lines = [f"{method} {target} HTTP/1.1", *([] if name is None else [f"Host: {name}"]), *headers, "Connection: close"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def eventually(look: Callable[[], T | None], what: str, *, seconds: float = SECONDS) -> T:
    """Look again and again until there is something; what other processes do cannot be waited for otherwise."""
    deadline = time.monotonic() + seconds
    while (found := look()) is None:
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)
    return found


def new_address() -> str:
    """An address that nobody has used."""
    return f"canary-{next(_numbers)}-{uuid4().hex[:12]}@example.com"


@dataclass(frozen=True)
class Outbox:
    """The folder that the server writes its mails to."""

    folder: Path

    def mails(self, template: str, to: str) -> list[EmailMessage]:
        """The mails of a template to an address, oldest first."""
        return [
            message
            for path in sorted(self.folder.glob(f"*-{template}-*.eml"))
            if (message := _read(path))["To"].addresses[0].addr_spec == to
        ]

    def wait_for(self, template: str, to: str, *, at_least: int = 1) -> list[EmailMessage]:
        """Wait for mails and return them."""

        def look() -> list[EmailMessage] | None:
            found = self.mails(template, to)
            return found if len(found) >= at_least else None

        return eventually(look, f"{template} to {to}")

    def token(self, template: str, to: str) -> str:
        """Wait for a mail and return the token of its link; of several the newest."""
        part = self.wait_for(template, to)[-1].get_body(("plain",))
        assert part is not None
        found = re.search(r"^\S+#token=(\S+)$", part.get_content(), re.MULTILINE)
        assert found
        return unquote(found[1])


def _read(path: Path) -> EmailMessage:
    return email.message_from_bytes(path.read_bytes(), policy=email.policy.SMTP)


@dataclass(frozen=True)
class Account:
    """A signed-in account."""

    id: str
    email: str
    api: Api
    refresh_token: str
    password: str = PASSWORD

    @property
    def access_token(self) -> str:
        """The access token of its session."""
        assert self.api.token
        return self.api.token


def log_in(api: Api, address: str, password: str = PASSWORD) -> Account:
    """Sign in and return the account with the tokens of a new session."""
    response = api.post("/v1/auth/login", json={"email": address, "password": password}, token=None)
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    return Account(data["user"]["id"], address, api.with_token(data["access_token"]), data["refresh_token"], password)


def register_and_login(api: Api, outbox: Outbox) -> Account:
    """Register, follow the link of the mail and sign in, as a person would."""
    address = new_address()
    response = api.post("/v1/auth/register", json={"email": address, "password": PASSWORD}, token=None)
    assert response.status_code == 202, response.text
    token = outbox.token("verify_email", address)
    response = api.post("/v1/auth/verify-email", json={"token": token}, token=None)
    assert response.status_code == 200, response.text
    return log_in(api, address)
