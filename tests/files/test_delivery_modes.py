"""One table of requests, asked of the application that sends files itself and of nginx that sends them for it."""

import hashlib
import http.client
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from project.auth import tokens
from project.auth.service import SignIn
from project.database import db
from tests import factories
from tests.conftest import ENV, migrated
from tests.servers import NGINX, run_nginx, run_server

pytestmark = pytest.mark.server
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

PICTURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)) * 1000
TEXT = "Žluťoučký kůň\n".encode() * 1000
SIZE = len(PICTURE)
TAG = f'"{hashlib.sha256(PICTURE).hexdigest()}"'
OTHER = '"' + "0" * 64 + '"'
EARLIER, LATER = "Thu, 01 Jan 1998 00:00:00 GMT", "Thu, 01 Jan 2099 00:00:00 GMT"
REQUEST_ID = "test-of-the-delivery"
# What no two answers share.
PASSING = {"date", "server", "connection", "ratelimit", "ratelimit-policy"}


@dataclass(frozen=True)
class Served:
    """An answer: its headers by name in lower case, and each of them only once."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def lasting(self) -> dict[str, str]:
        """The headers that a second answer has too."""
        return {name: value for name, value in self.headers.items() if name not in PASSING}


@dataclass(frozen=True)
class Site:
    """Where two servers serve the same files, each in its way, and nginx before one of them, if there is one."""

    token: str
    app_url: str
    nginx_url: str | None
    folder: Path
    urls: Mapping[str, str]

    def ask(self, url: str | None, name: str, method: str = "GET", sent: tuple[tuple[str, str], ...] = ()) -> Served:
        """Ask for a file; headers may be repeated."""
        assert url
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=15)
        connection.putrequest(method, self.urls.get(name, name), skip_accept_encoding=True)
        credentials = {"Authorization": f"Bearer {self.token}"} if name == "picture" else {}
        about = {**credentials, "Origin": "http://localhost:3000", "X-Request-ID": REQUEST_ID}
        for header, value in [*about.items(), *sent]:
            connection.putheader(header, value)
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        headers = [(header.lower(), value) for header, value in answer.getheaders()]
        assert len(headers) == len(dict(headers)), headers
        return Served(answer.status, dict(headers), body)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two uploaded files: a private picture and a public text."""
    data_dir = tmp_path_factory.mktemp("site")
    env = {
        **ENV,
        "DATA_DIR": str(data_dir),
        # So that HSTS is sent.
        "PUBLIC_URL": "https://localhost",
        "TRUSTED_HOSTS": "127.0.0.1",
        "LIMIT_WRITE": "1000/minute",
        "LIMIT_DOWNLOAD": "10000/minute",
    }
    token = sign_in(env)
    with (
        run_server({**env, "FILES_DELIVERY": "app"}) as app,
        run_server({**env, "FILES_DELIVERY": "x-accel"}) as behind,
    ):
        urls = {
            "picture": upload(app.url, token, PICTURE, "image/png", filename="a b.png"),
            "text": upload(app.url, token, TEXT, "text/plain", filename="kůň.txt", visibility="public"),
        }
        files = data_dir / "files"
        if NGINX is None:
            yield Site(token, app.url, None, files, urls)
            return
        with run_nginx(behind.port, files) as nginx_url:
            yield Site(token, app.url, nginx_url, files, urls)


def sign_in(env: dict[str, str]) -> str:
    """Make the database and an account, and return its access token."""
    app = migrated(env)
    with app.app_context():
        user = factories.make_user()
        token = tokens.issue(SignIn(factories.make_session(user), user, fresh=True))["access_token"]
        db.session.remove()
        db.engine.dispose()
    return str(token)


def upload(url: str, token: str, data: bytes, content_type: str, **query: str) -> str:
    """Upload a file and return the path of its content."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=15)
    path = "/v1/files/raw?" + "&".join(f"{name}={quote(value)}" for name, value in query.items())
    connection.request("POST", path, data, {"Authorization": f"Bearer {token}", "Content-Type": content_type})
    answer = connection.getresponse()
    told = json.loads(answer.read())
    connection.close()
    assert answer.status == 201, told
    return f"/v1/files/{told['data']['id']}/content"


@dataclass(frozen=True)
class Case:
    """A request and what it must be answered. `start` and `stop` are of the bytes, none for an answer without."""

    title: str
    sent: tuple[tuple[str, str], ...]
    status: int
    start: int = 0
    stop: int = SIZE
    method: str = "GET"


def case(title: str, status: int, start: int = 0, stop: int = SIZE, *, method: str = "GET", **sent: str) -> Case:
    """Make a case; `if_match=x` sends `If-Match: x`."""
    headers = tuple((name.replace("_", "-"), value) for name, value in sent.items())
    return Case(title, headers, status, start, stop, method)


MODIFIED = "the Last-Modified of the file"  # put in when it is known
NGINX_TAG = "the ETag that nginx would make"
MANY = "bytes=" + ",".join("0-" for _ in range(2600))  # 8 KB, as long as a header may be

CASES = [
    case("plain", 200),
    case("head", 200, method="HEAD"),
    case("compressed would do", 200, accept_encoding="gzip"),
    # Ranges
    case("first byte", 206, 0, 1, range="bytes=0-0"),
    case("middle", 206, 70_000, 140_001, range="bytes=70000-140000"),
    case("last byte", 206, SIZE - 1, range="bytes=-1"),
    case("from", 206, SIZE - 5, range=f"bytes={SIZE - 5}-"),
    case("all of it", 206, range="bytes=0-"),
    case("beyond the end", 206, 5, range=f"bytes=5-{SIZE * 10}"),
    case("far beyond the end", 206, range="bytes=0-999999999999999999"),
    case("longer suffix", 206, range="bytes=-999999999999999999"),
    case("upper case", 206, 0, 1, range="BYTES=0-0"),
    case("leading zeros", 206, 1, 3, range="bytes=001-0002"),
    case("compressed part", 206, 0, 100, range="bytes=0-99", accept_encoding="gzip"),
    case("behind the end", 416, range=f"bytes={SIZE}-"),
    case("far behind the end", 416, range=f"bytes={SIZE * 2}-{SIZE * 3}"),
    case("empty suffix", 416, range="bytes=-0"),
    case("too many digits", 200, range="bytes=0-99999999999999999999"),
    case("more than 2^63", 200, range="bytes=9999999999999999999-"),
    case("not a number", 200, range="bytes=abc"),
    case("two signs", 200, range="bytes=--1"),
    case("backwards", 200, range="bytes=5-1"),
    case("nothing", 200, range="bytes=-"),
    case("comma", 200, range="bytes=0-0,"),
    case("blank", 200, range="bytes= 0-0"),
    case("two", 200, range="bytes=0-0,5-6"),
    case("two, one outside", 200, range=f"bytes=0-0,{SIZE}-"),
    case("two, both outside", 200, range=f"bytes={SIZE}-,{SIZE + 1}-"),
    case("thousands", 200, range=MANY),
    case("8 KB of digits", 200, range="bytes=0-" + "9" * 7900),
    case("unknown unit", 200, range="items=0-1"),
    Case("two headers", (("Range", "bytes=0-0"), ("Range", "bytes=5-6")), 200),
    Case("the same header twice", (("Range", "bytes=0-0"), ("Range", "bytes=0-0")), 200),
    case("head of a part", 200, method="HEAD", range="bytes=0-0"),
    case("head outside", 200, method="HEAD", range=f"bytes={SIZE}-"),
    # If-Range
    case("if-range: the tag", 206, 5, 10, range="bytes=5-9", if_range=TAG),
    case("if-range: the date", 206, 5, 10, range="bytes=5-9", if_range=MODIFIED),
    case("if-range: weak", 200, range="bytes=5-9", if_range=f"W/{TAG}"),
    case("if-range: other tag", 200, range="bytes=5-9", if_range=OTHER),
    case("if-range: nginx's tag", 200, range="bytes=5-9", if_range=NGINX_TAG),
    case("if-range: later", 200, range="bytes=5-9", if_range=LATER),
    case("if-range: earlier", 200, range="bytes=5-9", if_range=EARLIER),
    case("if-range: garbage", 200, range="bytes=5-9", if_range="garbage"),
    case("if-range: outside but other", 200, range=f"bytes={SIZE}-", if_range=OTHER),
    case("if-range: outside and the same", 416, range=f"bytes={SIZE}-", if_range=TAG),
    # If-None-Match, If-Modified-Since
    case("if-none-match: the tag", 304, if_none_match=TAG),
    case("if-none-match: weak", 304, if_none_match=f"W/{TAG}"),
    case("if-none-match: in a list", 304, if_none_match=f"{OTHER}, {TAG}"),
    case("if-none-match: any", 304, if_none_match="*"),
    case("if-none-match: other", 200, if_none_match=OTHER),
    case("if-none-match: nginx's tag", 200, if_none_match=NGINX_TAG),
    case("if-none-match: garbage", 200, if_none_match='"' * 7900),
    case("if-none-match: before the range", 304, if_none_match=TAG, range="bytes=0-0"),
    case("if-none-match: other, with a range", 206, 0, 1, if_none_match=OTHER, range="bytes=0-0"),
    case("if-none-match: before the date", 200, if_none_match=OTHER, if_modified_since=LATER),
    case("if-none-match: head", 304, method="HEAD", if_none_match=TAG),
    case("if-modified-since: then", 304, if_modified_since=MODIFIED),
    case("if-modified-since: later", 304, if_modified_since=LATER),
    case("if-modified-since: earlier", 200, if_modified_since=EARLIER),
    case("if-modified-since: garbage", 200, if_modified_since="garbage"),
    case("if-modified-since: huge year", 200, if_modified_since="Sun, 01 Mar 99999999999999999999 12:30:15 GMT"),
    # If-Match, If-Unmodified-Since
    case("if-match: the tag", 200, if_match=TAG),
    case("if-match: any", 200, if_match="*"),
    case("if-match: part", 206, 100_000, 100_010, if_match=TAG, range="bytes=100000-100009"),
    case("if-match: weak", 412, if_match=f"W/{TAG}"),
    case("if-match: other", 412, if_match=OTHER),
    case("if-match: nginx's tag", 412, if_match=NGINX_TAG),
    case("if-match: garbage", 412, if_match='"' * 7900),
    case("if-match: head", 412, method="HEAD", if_match=OTHER),
    case("if-match: before the date", 200, if_match=TAG, if_unmodified_since=EARLIER),
    case("if-unmodified-since: then", 200, if_unmodified_since=MODIFIED),
    case("if-unmodified-since: later", 200, if_unmodified_since=LATER),
    case("if-unmodified-since: earlier", 412, if_unmodified_since=EARLIER),
    case("if-unmodified-since: garbage", 200, if_unmodified_since="garbage"),
]
cases = pytest.mark.parametrize("wanted", CASES, ids=[wanted.title for wanted in CASES])


def answers_to(site: Site, wanted: Case, url: str | None) -> Served:
    """Ask what the case asks, with what only the file itself can tell."""
    known = site.ask(site.app_url, "picture", "HEAD").headers["last-modified"]
    tag = f'"{int(stored(site, SIZE).stat().st_mtime):x}-{SIZE:x}"'
    filled = {MODIFIED: known, NGINX_TAG: tag}
    sent = tuple((name, filled.get(value, value)) for name, value in wanted.sent)
    return site.ask(url, "picture", wanted.method, sent)


def stored(site: Site, size: int) -> Path:
    """Find a file in storage by its size."""
    return next(path for path in site.folder.glob("??/??/*") if path.stat().st_size == size)


@cases
def test_the_application_sends_what_is_asked_for(site, wanted):
    answer = answers_to(site, wanted, site.app_url)

    assert answer.status == wanted.status
    expected = PICTURE[wanted.start : wanted.stop]
    if wanted.status == 206:
        assert answer.headers["content-range"] == f"bytes {wanted.start}-{wanted.stop - 1}/{SIZE}"
    if wanted.status in {200, 206}:
        assert answer.headers["content-length"] == str(len(expected))
        assert answer.headers["etag"] == TAG
        assert answer.body == (expected if wanted.method == "GET" else b"")
    if wanted.status == 304:
        assert (answer.headers["etag"], answer.body) == (TAG, b"")
    if wanted.status == 416:
        assert answer.headers["content-range"] == f"bytes */{SIZE}"
    if wanted.status >= 400:
        assert answer.headers["content-type"] == "application/problem+json"


@needs_nginx
@cases
def test_nginx_sends_the_same(site, wanted):
    answer = answers_to(site, wanted, site.nginx_url)

    same = answers_to(site, wanted, site.app_url)
    assert answer.status == wanted.status
    assert answer.lasting == same.lasting
    assert answer.body == same.body
    assert {"ratelimit", "ratelimit-policy"} <= set(answer.headers)


@needs_nginx
@pytest.mark.parametrize("sent", [(), (("Range", "bytes=10-19"),), (("Accept-Encoding", "gzip"),)])
def test_nginx_says_of_a_public_text_what_the_application_says(site, sent):
    answer = site.ask(site.nginx_url, "text", sent=sent)

    same = site.ask(site.app_url, "text", sent=sent)
    assert (answer.status, answer.lasting, answer.body) == (same.status, same.lasting, same.body)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["cache-control"] == "public, max-age=300"
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert answer.headers["strict-transport-security"]
    assert answer.headers["x-request-id"] == REQUEST_ID


@needs_nginx
def test_nobody_reaches_the_files_of_nginx_by_their_key(site):
    key = stored(site, SIZE).relative_to(site.folder).as_posix()

    for path in [f"/_files/{key}", f"/_files-whole/{key}", "/_files", "/_files/", "/_files/../_files/" + key]:
        assert site.ask(site.nginx_url, path).status == 404, path
    answer = site.ask(site.nginx_url, "picture", sent=(("X-Accel-Redirect", "/_files/tmp"),))
    assert answer.body == PICTURE
    assert "x-accel-redirect" not in answer.headers


@needs_nginx
def test_the_time_on_disk_means_nothing(site):
    before = site.ask(site.nginx_url, "text").headers["last-modified"]
    os.utime(stored(site, len(TEXT)), (0, 0))

    part = site.ask(site.nginx_url, "text", sent=(("Range", "bytes=0-9"), ("If-Range", before)))
    whole = site.ask(site.nginx_url, "text", sent=(("If-Modified-Since", formatdate(0, usegmt=True)),))

    assert (part.status, part.body) == (206, TEXT[:10])
    assert (whole.status, whole.body) == (200, TEXT)
    assert part.headers["last-modified"] == whole.headers["last-modified"] == before


@pytest.mark.parametrize("server", ["app_url", pytest.param("nginx_url", marks=needs_nginx)])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_lost_bytes_are_never_promised(site, server, method):
    path = stored(site, len(TEXT))
    away = path.with_suffix(".away")
    path.rename(away)

    try:
        answer = site.ask(getattr(site, server), "text", method)
    finally:
        away.rename(path)

    assert (answer.status, answer.headers["content-type"]) == (410, "application/problem+json")
    assert "etag" not in answer.headers
