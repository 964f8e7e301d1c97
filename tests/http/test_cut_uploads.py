"""Uploads that end too early or are too large: never a file, and nothing is left of them, whatever their framing."""

import json
import random
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.http.client import (
    Account,
    Api,
    Outbox,
    RawAnswer,
    connect,
    eventually,
    raw,
    raw_problem,
    raw_request,
    read_answer,
    register_and_login,
)
from tests.http.conftest import Cluster, check_log
from tests.servers import AppServer, run_server

MAX_SIZE = 1024 * 1024
QUOTA = MAX_SIZE * 3 // 2
CONTENT = random.Random(0).randbytes(400_000)
BOUNDARY = "a-boundary-of-the-tests"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
CHUNK = 10_000
ENTRANCES = {
    "raw": ("/v1/files/raw?filename=cut.bin", "application/octet-stream"),
    "form": ("/v1/files", f"multipart/form-data; boundary={BOUNDARY}"),
}


@dataclass(frozen=True)
class Site:
    """A server with a storage of its own, on the database that it shares with the others."""

    server: AppServer
    storage: Path
    database_url: str

    def rows(self, account: Account) -> list[str]:
        """The states of all files of an account, also of those that the API does not show."""
        with psycopg.connect(self.database_url.replace("+psycopg", "")) as connection:
            query = "SELECT status FROM files WHERE owner_id = %s"
            return [status for (status,) in connection.execute(query, (account.id,))]

    def forget(self, account: Account) -> None:
        """Remove the rows of an account's files: other servers on the database would miss their bytes."""
        with psycopg.connect(self.database_url.replace("+psycopg", "")) as connection:
            connection.execute("DELETE FROM files WHERE owner_id = %s", (account.id,))
            connection.execute("DELETE FROM storage_usage WHERE user_id = %s", (account.id,))

    def stored(self) -> list[Path]:
        """All parts and objects."""
        return [path for path in self.storage.rglob("*") if path.is_file()]

    def await_the_end(self, account: Account) -> dict[str, int]:
        """Wait until no upload of an account is under way, and return its usage."""

        def look() -> dict[str, int] | None:
            usage: dict[str, int] = account.api.get("/v1/files/usage").json()["data"]
            parts = [path for path in self.stored() if path.suffix == ".part"]
            return None if usage["reserved"] or parts or "pending" in self.rows(account) else usage

        return eventually(look, "the end of the upload")

    def check_nothing_is_left(self, account: Account) -> None:
        """Check that an account has no file, and that the storage is empty."""
        usage = self.await_the_end(account)
        assert (usage["used"], usage["file_count"]) == (0, 0)
        assert self.rows(account) == []
        assert self.stored() == []

    def logged(self, request_id: str) -> dict[str, Any]:
        """Wait for the line of a request in the log, and return it."""

        def look() -> dict[str, Any] | None:
            lines = [line for line in self.server.log.splitlines() if request_id in line and '"status"' in line]
            return json.loads(lines[-1]) if lines else None

        return eventually(look, f"request {request_id} in the log")


@pytest.fixture(scope="module", params=["gthread", "sync"])
def site(cluster: Cluster, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server of each kind of worker. At the end its log must be clean."""
    storage = tmp_path_factory.mktemp("storage")
    limits = {"FILES_MAX_SIZE": str(MAX_SIZE), "FILES_QUOTA": str(QUOTA)}
    env = {**cluster.env, **limits, "STORAGE_URL": storage.as_uri()}
    with run_server(env, arguments=("--worker-class", request.param)) as server:
        yield Site(server, storage, env["DATABASE_URL"])
        check_log(server.log)


@pytest.fixture(scope="module")
def nobody(cluster: Cluster, outbox: Outbox) -> Account:
    """An account that has no file, and never gets one."""
    return register_and_login(Api(cluster.first.url), outbox)


@pytest.fixture
def owner(site: Site, cluster: Cluster, outbox: Outbox) -> Iterator[Account]:
    """An account that has no file yet; its files go with the test."""
    account = register_and_login(Api(cluster.first.url), outbox)
    yield account
    for path in site.stored():
        path.unlink()
    site.forget(account)


def in_form(content: bytes) -> bytes:
    """A form with a file and, after it, one more field."""
    head = 'Content-Disposition: form-data; name="file"; filename="cut.bin"\r\n\r\n'
    tail = 'Content-Disposition: form-data; name="purpose"\r\n\r\ncutting'
    return f"--{BOUNDARY}\r\n{head}".encode() + content + f"\r\n--{BOUNDARY}\r\n{tail}\r\n--{BOUNDARY}--\r\n".encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def in_chunks(body: bytes) -> bytes:
    """A chunked body, without the last chunk."""
    return b"".join(chunk(body[start : start + CHUNK]) for start in range(0, len(body), CHUNK))


def headers_of(site: Site, account: Account, entrance: str, *more: str) -> tuple[str, list[str]]:
    """The target and the headers of an upload."""
    target, content_type = ENTRANCES[entrance]
    return target, [f"Authorization: Bearer {account.access_token}", f"Content-Type: {content_type}", *more]


def cut_upload(entrance: str, framing: str, percent: int) -> tuple[str, bytes]:
    """The header that frames an upload, and as much of its body as comes."""
    body = CONTENT if entrance == "raw" else in_form(CONTENT)
    header = f"Content-Length: {len(body)}"
    if framing == "chunked":
        header, body = "Transfer-Encoding: chunked", in_chunks(body)
    # All of the chunks is still too little: the last one, which is empty, tells the end.
    return header, body[: len(body) * percent // 100]


CUTS = [
    pytest.param(entrance, framing, percent, id=f"{entrance}-{framing}-{percent}%")
    for entrance in ENTRANCES
    for framing, percents in {"length": (0, 1, 50, 99), "chunked": (0, 1, 50, 99, 100)}.items()
    for percent in percents
]


@pytest.mark.parametrize(("entrance", "framing", "percent"), CUTS)
def test_an_upload_cut_by_fin_is_400_and_leaves_nothing(
    site: Site, nobody: Account, entrance: str, framing: str, percent: int
) -> None:
    header, sent = cut_upload(entrance, framing, percent)
    target, headers = headers_of(site, nobody, entrance, header)
    request = raw_request(site.server.url, target, method="POST", headers=headers, body=sent)
    raw_problem(raw(site.server.url, request, half_close=True), target.partition("?")[0], 400, "incomplete_body")
    site.check_nothing_is_left(nobody)


@pytest.mark.parametrize(("entrance", "framing", "percent"), CUTS)
def test_an_upload_cut_by_rst_is_logged_as_400_and_leaves_nothing(
    site: Site, nobody: Account, entrance: str, framing: str, percent: int
) -> None:
    assert cut_by_rst(site, nobody, entrance, *cut_upload(entrance, framing, percent))["status"] == 400
    site.check_nothing_is_left(nobody)


def cut_by_rst(site: Site, account: Account, entrance: str, header: str, sent: bytes, *more: str) -> dict[str, Any]:
    """Send a part of an upload and reset the connection; return what the server logs of it."""
    request_id = str(uuid4())
    target, headers = headers_of(site, account, entrance, header, f"X-Request-ID: {request_id}", *more)
    with connect(site.server.url) as connection:
        head = raw_request(site.server.url, target, method="POST", headers=[*headers, "Expect: 100-continue"])
        connection.sendall(head)
        assert connection.recv(len(CONTINUE)) == CONTINUE
        connection.sendall(sent)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return site.logged(request_id)


FORM = in_form(CONTENT)
UNFINISHED_FORMS = {
    "in the first boundary": FORM[:10],
    "in the headers of the file": FORM[:60],
    "in the file": FORM[:200_000],
    "after the file, in the next boundary": FORM[: FORM.index(b"\r\n--" + BOUNDARY.encode()) + 10],
    "in the field after the file": FORM[: FORM.rindex(b"cutting") + 3],
    "in the last boundary": FORM[:-10],
    "before the two dashes of the last boundary": FORM[:-4],
    "after one dash of the last boundary": FORM[:-3],
}


@pytest.mark.parametrize("sent", UNFINISHED_FORMS.values(), ids=list(UNFINISHED_FORMS))
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_form_that_ends_early_though_its_framing_is_whole_is_400(
    site: Site, nobody: Account, framing: str, sent: bytes
) -> None:
    header = f"Content-Length: {len(sent)}" if framing == "length" else "Transfer-Encoding: chunked"
    body = sent if framing == "length" else in_chunks(sent) + LAST_CHUNK
    raw_problem(post(site, nobody, "form", header, body), "/v1/files", 400, "incomplete_body")
    site.check_nothing_is_left(nobody)


def post(site: Site, account: Account, entrance: str, header: str, body: bytes, *more: str) -> RawAnswer:
    """Send an upload with this framing and read the answer."""
    target, headers = headers_of(site, account, entrance, header, *more)
    return raw(site.server.url, raw_request(site.server.url, target, method="POST", headers=headers, body=body))


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_upload_one_byte_over_the_limit_is_413_and_leaves_nothing(
    site: Site, nobody: Account, entrance: str, framing: str
) -> None:
    path = ENTRANCES[entrance][0].partition("?")[0]
    raw_problem(upload(site, nobody, entrance, framing, bytes(MAX_SIZE + 1)), path, 413, "file_too_large")
    site.check_nothing_is_left(nobody)


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_upload_over_the_quota_is_413_and_one_that_fits_exactly_is_a_file(
    site: Site, owner: Account, entrance: str, framing: str
) -> None:
    path = ENTRANCES[entrance][0].partition("?")[0]
    assert upload(site, owner, entrance, framing, bytes(MAX_SIZE)).status == 201
    raw_problem(upload(site, owner, entrance, framing, bytes(QUOTA - MAX_SIZE + 1)), path, 413, "quota_exceeded")
    usage = site.await_the_end(owner)
    assert (usage["used"], usage["file_count"], len(site.stored())) == (MAX_SIZE, 1, 1)
    assert upload(site, owner, entrance, framing, bytes(QUOTA - MAX_SIZE)).status == 201
    assert upload(site, owner, entrance, framing, b"x").status == 413
    assert site.await_the_end(owner)["used"] == QUOTA
    assert site.rows(owner) == ["ready", "ready"]
    assert len(site.stored()) == 2


def upload(site: Site, account: Account, entrance: str, framing: str, content: bytes) -> RawAnswer:
    """Upload all of a file."""
    body = content if entrance == "raw" else in_form(content)
    if framing == "length":
        return post(site, account, entrance, f"Content-Length: {len(body)}", body)
    return post(site, account, entrance, "Transfer-Encoding: chunked", in_chunks(body) + LAST_CHUNK)


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("ending", ["fin", "rst"])
def test_the_retry_of_a_cut_upload_with_the_same_key_makes_one_file(
    site: Site, owner: Account, entrance: str, ending: str
) -> None:
    body = CONTENT if entrance == "raw" else FORM
    header, key = f"Content-Length: {len(body)}", f"Idempotency-Key: {uuid4()}"
    if ending == "rst":
        cut_by_rst(site, owner, entrance, header, body[:200_000], key)
    else:
        target, headers = headers_of(site, owner, entrance, header, key)
        cut = raw_request(site.server.url, target, method="POST", headers=headers, body=body[:200_000])
        assert raw(site.server.url, cut, half_close=True).status == 400

    first, again = (post(site, owner, entrance, header, body, key) for _ in range(2))
    assert (first.status, again.status, again.headers.get("Idempotent-Replayed")) == (201, 201, "true")
    assert first.body == again.body
    assert site.rows(owner) == ["ready"]
    assert site.await_the_end(owner)["used"] == len(CONTENT) == site.stored()[0].stat().st_size


def test_the_retry_of_an_upload_whose_answer_was_lost_makes_one_file(site: Site, owner: Account) -> None:
    header, key, request_id = f"Content-Length: {len(CONTENT)}", f"Idempotency-Key: {uuid4()}", str(uuid4())
    target, headers = headers_of(site, owner, "raw", header, key, f"X-Request-ID: {request_id}")
    with connect(site.server.url) as connection:
        request = raw_request(site.server.url, target, method="POST", headers=headers, body=CONTENT)
        connection.sendall(request)
        assert site.logged(request_id)["status"] == 201  # and nobody reads the answer
    replayed = post(site, owner, "raw", header, CONTENT, key)
    assert (replayed.status, replayed.headers.get("Idempotent-Replayed")) == (201, "true")
    assert site.rows(owner) == ["ready"]


def test_an_upload_under_way_is_pending_and_reserves_until_it_is_cut(site: Site, nobody: Account) -> None:
    target, headers = headers_of(site, nobody, "raw", f"Content-Length: {len(CONTENT)}")
    with connect(site.server.url) as connection:
        connection.sendall(raw_request(site.server.url, target, method="POST", headers=headers, body=CONTENT[:1000]))
        eventually(lambda: site.rows(nobody) or None, "the row")
        assert site.rows(nobody) == ["pending"]
        # Asked of another server: this one may have a single thread, which is busy.
        assert nobody.api.get("/v1/files/usage").json()["data"]["reserved"] == len(CONTENT)
        assert nobody.api.get("/v1/files").json()["data"] == []
        assert [path.suffix for path in site.stored()] == [".part"]
        connection.shutdown(socket.SHUT_WR)
        assert read_answer(connection, method="POST").status == 400
    site.check_nothing_is_left(nobody)
