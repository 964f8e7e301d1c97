"""curl as a client: uploads in all its ways, ranges, resuming, conditions, and what it shows of refusals."""

import base64
import email
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from email.utils import formatdate
from pathlib import Path
from random import Random
from time import time
from typing import Any

import pytest

from tests.files.server.conftest import Make
from tests.files.server.site import SECONDS, Site
from tests.files.uploading import check_books, on_disk
from tests.http.client import eventually
from tests.servers import AppServer

CURL = shutil.which("curl")
pytestmark = pytest.mark.skipif(CURL is None, reason="curl is not installed")

MAX_SIZE = 3 * 1024 * 1024
CONTENT = Random(0).randbytes(2 * 1024 * 1024)
SHA256 = hashlib.sha256(CONTENT)
DAY = 24 * 60 * 60


@dataclass(frozen=True)
class Answer:
    """What curl has made of an answer; `number` is its exit status."""

    number: int
    status: int
    headers: Message
    body: bytes

    @property
    def data(self) -> dict[str, Any]:
        """The data of a success."""
        data: dict[str, Any] = json.loads(self.body)["data"]
        return data

    @property
    def code(self) -> str:
        """The code of a problem."""
        return str(json.loads(self.body)["code"])


class Curl:
    """curl, with the token of an account, in a folder with the file `content.bin`."""

    def __init__(self, folder: Path, server: AppServer, caller: Mapping[str, str]) -> None:
        self.folder, self._server = folder, server
        self._credentials = [word for name, value in caller.items() for word in ("-H", f"{name}: {value}")]
        (folder / "content.bin").write_bytes(CONTENT)

    def start(self, path: str, *options: str, stdin: int | None = None) -> subprocess.Popen[bytes]:
        """Start curl, without the ~/.curlrc and the proxies of the developer."""
        words = [str(CURL), "-q", "--noproxy", "*", "-sS", *self._credentials, *options, self._server.url + path]
        return subprocess.Popen(words, stdin=stdin or subprocess.PIPE, stdout=subprocess.PIPE, cwd=self.folder)

    def __call__(self, path: str, *options: str, stdin: bytes = b"") -> Answer:
        """Run curl and return what it got."""
        head, body = self.folder / "head", self.folder / "body"
        body.unlink(missing_ok=True)
        output = [] if "-o" in options else ["-o", str(body)]
        with self.start(path, "-D", str(head), "-w", "%{http_code}", *output, *options) as process:
            status, _ = process.communicate(stdin, timeout=SECONDS)
        # The last of several heads: "100 Continue" has one too, and every redirect.
        last = head.read_bytes().rstrip().rpartition(b"\r\n\r\n")[2].partition(b"\r\n")[2]
        received = body.read_bytes() if body.exists() else b""
        return Answer(process.returncode, int(status), email.message_from_bytes(last), received)


@pytest.fixture(scope="module")
def site(make_site: Make) -> Site:
    """An application whose files are small."""
    site = make_site("sqlite")
    return Site(site.app, {**site.env, "FILES_MAX_SIZE": str(MAX_SIZE)})


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[AppServer]:
    """Its server."""
    with site.server() as server:
        yield server


@pytest.fixture
def curl(site: Site, server: AppServer, tmp_path: Path) -> Curl:
    """curl with the token of a new account."""
    return Curl(tmp_path, server, site.sign_up())


@pytest.fixture
def content(curl: Curl) -> str:
    """The path of the content of a file that was uploaded."""
    return f"/v1/files/{upload(curl)['id']}/content"


def upload(curl: Curl) -> dict[str, Any]:
    """Upload the file as a form."""
    answer = curl("/v1/files", "-F", "file=@content.bin;type=video/x-test", "-F", 'metadata={"from": "curl"}')
    assert (answer.number, answer.status) == (0, 201), answer.body
    return answer.data


def test_a_form_is_a_file_with_all_that_was_said_of_it(curl: Curl) -> None:
    told = upload(curl)
    assert (told["filename"], told["declared_type"]) == ("content.bin", "video/x-test")
    assert told["metadata"] == {"from": "curl"}
    assert (told["size"], told["sha256"]) == (len(CONTENT), SHA256.hexdigest())


def raw(*more: str) -> list[str]:
    """The options of a raw upload."""
    return ["--data-binary", "@content.bin", "-H", "Content-Type: application/x-test", *more]


def test_raw_bytes_with_their_digest_are_a_file(curl: Curl) -> None:
    digest = base64.b64encode(SHA256.digest()).decode()
    answer = curl("/v1/files/raw?filename=a.bin", *raw("-H", f"Content-Digest: sha-256=:{digest}:"))
    assert (answer.status, answer.data["sha256"]) == (201, SHA256.hexdigest())


def test_raw_bytes_with_the_digest_of_others_are_refused(curl: Curl) -> None:
    digest = base64.b64encode(hashlib.sha256(b"others").digest()).decode()
    answer = curl("/v1/files/raw?filename=a.bin", *raw("-H", f"Content-Digest: sha-256=:{digest}:"))
    assert (answer.status, json.loads(answer.body)["errors"][0]["code"]) == (422, "digest_mismatch")


def test_a_stream_of_unknown_length_is_a_file(curl: Curl) -> None:
    options = ("-T", "-", "-X", "POST", "-H", "Content-Type: application/x-test")
    answer = curl("/v1/files/raw?filename=a.bin", *options, stdin=CONTENT)
    assert (answer.status, answer.data["sha256"]) == (201, SHA256.hexdigest())


@pytest.mark.parametrize(("asked", "start", "end"), [("0-9", 0, 10), ("1000000-", 1_000_000, None), ("-5", -5, None)])
def test_a_range_is_206_with_its_bytes(curl: Curl, content: str, asked: str, start: int, end: int | None) -> None:
    answer = curl(content, "-r", asked)
    assert (answer.status, answer.body) == (206, CONTENT[start:end])


def test_a_download_that_was_interrupted_is_resumed(curl: Curl, content: str) -> None:
    target, there = curl.folder / "download", 500_000
    with curl.start(content) as interrupted:
        assert interrupted.stdout
        target.write_bytes(interrupted.stdout.read(there))
        interrupted.kill()

    answer = curl(content, "-C", "-", "-o", str(target))
    assert (answer.status, answer.headers["Content-Range"]) == (206, f"bytes {there}-{len(CONTENT) - 1}/{len(CONTENT)}")
    assert target.read_bytes() == CONTENT


def test_a_download_that_is_complete_cannot_be_resumed(curl: Curl, content: str) -> None:
    target = curl.folder / "download"
    target.write_bytes(CONTENT)
    answer = curl(content, "-C", "-", "-o", str(target))
    # 416 with the length: curl 8 takes it for the success that it is, older ones do not.
    assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{len(CONTENT)}")
    assert target.read_bytes() == CONTENT


def test_head_is_the_answer_without_the_content(curl: Curl, content: str) -> None:
    answer = curl(content, "-I", "-r", "0-9")
    assert (answer.number, answer.status) == (0, 200)
    assert answer.headers["Content-Length"] == str(len(CONTENT))
    assert answer.headers["ETag"] == f'"{SHA256.hexdigest()}"'


@pytest.mark.parametrize(("days", "status", "size"), [(-1, 200, len(CONTENT)), (1, 304, 0)])
def test_a_download_happens_only_if_there_is_something_newer(
    curl: Curl, content: str, days: int, status: int, size: int
) -> None:
    answer = curl(content, "-z", formatdate(time() + days * DAY, usegmt=True))
    assert (answer.status, len(answer.body)) == (status, size)


def test_a_download_into_nothing_can_be_counted(curl: Curl, content: str) -> None:
    with curl.start(content, "-o", os.devnull, "-w", "%{http_code} %{size_download} %{content_type}") as process:
        told, _ = process.communicate(timeout=SECONDS)
    assert told == f"200 {len(CONTENT)} application/octet-stream".encode()


def test_a_download_is_followed_to_the_bucket_and_the_token_stays_here(
    make_site: Make, bucket_url: str, tmp_path: Path
) -> None:
    site = make_site("sqlite")
    credentials = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    with site.server(STORAGE_URL=bucket_url, **credentials) as server:
        curl = Curl(tmp_path, server, site.sign_up())
        path = f"/v1/files/{upload(curl)['id']}/content"
        assert curl(path).status == 302
        answer = curl(path, "-L")
        assert (answer.status, hashlib.sha256(answer.body).digest()) == (200, SHA256.digest())


WAYS = {
    "form": ("/v1/files", ["-F", "file=@large.bin"]),
    "raw": ("/v1/files/raw?filename=a.bin", ["--data-binary", "@large.bin", "-H", "Content-Type: a/b"]),
    "stream": ("/v1/files/raw?filename=a.bin", ["-T", "-", "-X", "POST", "-H", "Content-Type: a/b"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_upload_that_is_killed_leaves_nothing(site: Site, curl: Curl, way: str) -> None:
    path, options = WAYS[way]
    large = curl.folder / "large.bin"
    large.write_bytes(CONTENT)
    before = on_disk(site.storage)
    with large.open("rb") as stdin, curl.start(path, "--limit-rate", "100K", *options, stdin=stdin.fileno()) as killed:
        eventually(lambda: on_disk(site.storage) != before or None, "the first bytes")
        killed.kill()
    eventually(lambda: on_disk(site.storage) == before or None, "the end of the part")
    eventually(lambda: curl("/v1/files/usage").data["reserved"] == 0 or None, "the end of the reservation")
    with site.looking():
        check_books(site.storage)
    assert curl("/v1/files").body == b'{"data":[],"meta":{"limit":20,"next_cursor":null}}'


@pytest.mark.parametrize("expect", ["Expect: 100-continue", "Expect:"], ids=["expecting", "not expecting"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [MAX_SIZE + 1, 10 * MAX_SIZE], ids=["by one byte", "ten times"])
def test_an_upload_that_is_too_large_is_told_so(curl: Curl, way: str, expect: str, size: int) -> None:
    path, options = WAYS[way]
    (curl.folder / "large.bin").write_bytes(bytes(size))
    answer = curl(path, "-H", expect, *options, stdin=bytes(size) if way == "stream" else b"")
    assert (answer.number, answer.status, answer.code) == (0, 413, "file_too_large")


@pytest.mark.parametrize("way", WAYS)
def test_an_upload_without_a_token_is_told_so(site: Site, server: AppServer, tmp_path: Path, way: str) -> None:
    path, options = WAYS[way]
    curl = Curl(tmp_path, server, {})
    (tmp_path / "large.bin").write_bytes(bytes(10 * MAX_SIZE))
    answer = curl(path, *options, stdin=bytes(10 * MAX_SIZE) if way == "stream" else b"")
    assert (answer.number, answer.status, answer.code) == (0, 401, "token_required")
