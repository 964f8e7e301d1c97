"""Uploads that end too early or are too large: never a file, and nothing is left of them, whatever their framing."""

import json
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http.client import RemoteDisconnected
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.files.buckets import Bucket, new_bucket
from tests.http.client import (
    SECONDS,
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
from tests.http.cluster import Cluster, check_log
from tests.http.front import Front, run_front
from tests.servers import CREDENTIALS, NGINX, AppServer, run_server

MAX_SIZE = 1024 * 1024
QUOTA = MAX_SIZE * 3 // 2
CONTENT = random.Random(0).randbytes(400_000)
BOUNDARY = "a-boundary-of-the-tests"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# Of an upload that is cut before nginx has reached the server, the server never hears.
PASSED_ON_SECONDS = 3
LAST_CHUNK = b"0\r\n\r\n"
CHUNK = 10_000
ENTRANCES = {
    "raw": ("/v1/files/raw?filename=cut.bin", "application/octet-stream"),
    "form": ("/v1/files", f"multipart/form-data; boundary={BOUNDARY}"),
}


@dataclass(frozen=True)
class Site:
    """A server with a storage of its own, perhaps behind nginx, on the database that it shares with the others."""

    server: AppServer
    front: Front | None
    folder: Path  # of parts, and of objects unless they are in the bucket
    bucket: Bucket | None
    database_url: str

    @property
    def url(self) -> str:
        """Where clients come in."""
        return self.front.url if self.front else self.server.url

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

    def stored(self) -> dict[str, int]:
        """The sizes of all parts and objects, by name."""
        on_disk = {path.name: path.stat().st_size for path in self.folder.rglob("*") if path.is_file()}
        return on_disk | (self.bucket.objects() if self.bucket else {})

    def empty(self) -> None:
        """Remove all objects."""
        for path in self.folder.rglob("*"):
            if path.is_file():
                path.unlink()
        if self.bucket:
            self.bucket.delete(*self.bucket.objects())

    def await_the_end(self, account: Account, *, files: int) -> dict[str, int]:
        """Wait until no upload of an account is under way and it has so many files, and return its usage."""

        def look() -> dict[str, int] | None:
            usage: dict[str, int] = account.api.get("/v1/files/usage").json()["data"]
            done = usage["reserved"] == 0 and self.rows(account) == ["ready"] * files and len(self.stored()) == files
            return usage if done and usage["file_count"] == files else None

        return eventually(look, f"the end of the upload with {files} files")

    def check_nothing_is_left(self, account: Account) -> None:
        """Check that an account has no file, and that the storage is empty."""
        assert self.await_the_end(account, files=0)["used"] == 0

    def find_logged(self, request_id: str) -> dict[str, Any] | None:
        """Look for the line of a request in the log of the server."""
        lines = [line for line in self.server.log.splitlines() if request_id in line and '"status"' in line]
        return json.loads(lines[-1]) if lines else None

    def logged(self, request_id: str, *, seconds: float = SECONDS) -> dict[str, Any]:
        """Wait for the line of a request in the log of the server, and return it."""
        return eventually(lambda: self.find_logged(request_id), f"request {request_id} in the log", seconds=seconds)

    def check_refused(self, request_id: str) -> None:
        """Wait for the end of a request, and check that the server has refused it, if it was passed on to it at all."""
        if self.front is None:
            assert self.logged(request_id)["status"] == 400
            return
        access_log = self.front.access_log
        eventually(lambda: request_id in access_log.read_text() or None, f"request {request_id} in the log of nginx")
        # nginx is done with it; what it has passed on, the server is about to log.
        with suppress(AssertionError):
            self.logged(request_id, seconds=PASSED_ON_SECONDS)
        found = self.find_logged(request_id)
        assert found is None or found["status"] == 400


# The kind of worker, if not the one of production, what is before it, and where files are.
SITES = {
    "alone": (None, "", "disk"),
    "sync": ("sync", "", "disk"),
    "behind nginx": (None, "nginx", "disk"),
    "behind nginx, in a bucket": (None, "nginx", "bucket"),
}


@pytest.fixture(scope="module", params=SITES.values(), ids=list(SITES))
def site(cluster: Cluster, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Each site in turn. At the end the log of its server must be clean."""
    worker_class, front, storage = request.param
    if front and NGINX is None:
        pytest.skip("nginx is not installed")
    data_dir = tmp_path_factory.mktemp("site")
    (data_dir / "files").mkdir()
    bucket = new_bucket(request.getfixturevalue("s3_url")) if storage == "bucket" else None
    env = {
        **cluster.env,
        **CREDENTIALS,
        "DATA_DIR": str(data_dir),
        "STORAGE_URL": bucket.url if bucket else (data_dir / "files").as_uri(),
        "FILES_DELIVERY": "app",
        "FILES_MAX_SIZE": str(MAX_SIZE),
        "FILES_QUOTA": str(QUOTA),
        "PROXY_HOPS": "1" if front else "0",
        "WEB_CONCURRENCY": "1",
    }
    with ExitStack() as running:
        server = running.enter_context(
            run_server(env, arguments=("--worker-class", worker_class) if worker_class else ())
        )
        nginx = running.enter_context(run_front(server.port, env["STORAGE_URL"])) if front else None
        yield Site(server, nginx, data_dir / "files", bucket, env["DATABASE_URL"])
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
    site.empty()
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
@pytest.mark.parametrize("ending", ["fin", "rst"])
def test_a_cut_upload_is_refused_and_leaves_nothing(
    site: Site, nobody: Account, ending: str, entrance: str, framing: str, percent: int
) -> None:
    header, sent = cut_upload(entrance, framing, percent)
    cut(site, nobody, ending, entrance, header, sent)
    site.check_nothing_is_left(nobody)


def cut(site: Site, account: Account, ending: str, entrance: str, header: str, sent: bytes, *more: str) -> None:
    """Send a part of an upload and end the connection, our side of it or all; check that it was refused."""
    request_id = str(uuid4())
    # A reset throws away what was not read yet; so it has to be known that the request has arrived.
    expect = ["Expect: 100-continue"] if ending == "rst" else []
    target, headers = headers_of(site, account, entrance, header, f"X-Request-ID: {request_id}", *more, *expect)
    with connect(site.url) as connection:
        connection.sendall(raw_request(site.url, target, method="POST", headers=headers))
        assert not expect or connection.recv(len(CONTINUE)) == CONTINUE
        connection.sendall(sent)
        if ending == "fin":
            end(site, connection, target)
        else:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    site.check_refused(request_id)


def end(site: Site, connection: socket.socket, target: str) -> None:
    """End our side of a connection: that is 400, which nginx may keep to itself."""
    connection.shutdown(socket.SHUT_WR)
    try:
        answer = read_answer(connection, method="POST")
    except RemoteDisconnected:
        assert site.front
    else:
        raw_problem(answer, target.partition("?")[0], 400, "incomplete_body")


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
    return raw(site.url, raw_request(site.url, target, method="POST", headers=headers, body=body))


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
    assert site.await_the_end(owner, files=1)["used"] == MAX_SIZE
    assert upload(site, owner, entrance, framing, bytes(QUOTA - MAX_SIZE)).status == 201
    assert upload(site, owner, entrance, framing, b"x").status == 413
    assert site.await_the_end(owner, files=2)["used"] == QUOTA


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
    cut(site, owner, ending, entrance, header, body[:200_000], key)

    def retry() -> RawAnswer | None:
        answer = post(site, owner, entrance, header, body, key)
        # Nobody has told the client that its first attempt is over.
        return None if site.front and answer.status == 409 else answer

    first, again = (eventually(retry, "an answer that is not 409") for _ in range(2))
    assert (first.status, again.status, again.headers.get("Idempotent-Replayed")) == (201, 201, "true")
    assert first.body == again.body
    assert site.await_the_end(owner, files=1)["used"] == len(CONTENT) == sum(site.stored().values())


def test_the_retry_of_an_upload_whose_answer_was_lost_makes_one_file(site: Site, owner: Account) -> None:
    header, key, request_id = f"Content-Length: {len(CONTENT)}", f"Idempotency-Key: {uuid4()}", str(uuid4())
    target, headers = headers_of(site, owner, "raw", header, key, f"X-Request-ID: {request_id}")
    with connect(site.url) as connection:
        request = raw_request(site.url, target, method="POST", headers=headers, body=CONTENT)
        connection.sendall(request)
        assert site.logged(request_id)["status"] == 201  # and nobody reads the answer
    replayed = post(site, owner, "raw", header, CONTENT, key)
    assert (replayed.status, replayed.headers.get("Idempotent-Replayed")) == (201, "true")
    assert site.rows(owner) == ["ready"]


def test_an_upload_under_way_is_pending_and_reserves_until_it_is_cut(site: Site, nobody: Account) -> None:
    target, headers = headers_of(site, nobody, "raw", f"Content-Length: {len(CONTENT)}")
    with connect(site.url) as connection:
        connection.sendall(raw_request(site.url, target, method="POST", headers=headers, body=CONTENT[:1000]))
        eventually(lambda: site.rows(nobody) or None, "the row")
        assert site.rows(nobody) == ["pending"]
        # Asked of another server: this one may have a single thread, which is busy.
        assert nobody.api.get("/v1/files/usage").json()["data"]["reserved"] == len(CONTENT)
        assert nobody.api.get("/v1/files").json()["data"] == []
        assert [Path(name).suffix for name in site.stored()] == [".part"]
        end(site, connection, target)
    site.check_nothing_is_left(nobody)
