"""Files over real HTTP: uploads of any name and any bytes, and what every answer with content has."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from tests.http.buckets import follow
from tests.http.client import Account, Api, RawAnswer, raw, raw_request
from tests.http.cluster import Cluster, Entrance, flask

FILES = "/v1/files"
BOUNDARY = "a-boundary-of-the-tests"
FORM = f"multipart/form-data; boundary={BOUNDARY}"

# RFC 6266, with no more than what is needed: a quoted name without escapes, and one as RFC 8187 says.
DISPOSITION = re.compile(
    r"(attachment|inline); "
    r'filename="[^"\\\x00-\x1f\x7f-\xff]+"'
    r"(; filename\*=UTF-8''[A-Za-z0-9!#$&+.^_`|~%-]+)?"
)
# Whatever a browser runs, or shows as a page of its own.
ACTIVE = re.compile(r"html|\+xml|/xml|javascript|ecmascript|/css|x-mixed-replace|rfc822|/related", re.IGNORECASE)
HEADERS = {
    "accept-ranges",
    "cache-control",
    "connection",
    "content-disposition",
    "content-length",
    "content-range",
    "content-security-policy",
    "content-type",
    "cross-origin-resource-policy",
    "date",
    "etag",
    "last-modified",
    "ratelimit",
    "ratelimit-policy",
    "referrer-policy",
    "repr-digest",
    "server",
    "vary",
    "x-content-type-options",
    "x-request-id",
}
# Where bytes may be: under random keys, and in parts while they arrive. A stack has its own beside them.
OURS = re.compile(
    r"files(/[0-9a-f]{2}(/[0-9a-f]{2}(/[0-9a-f]{32})?)?|/tmp(/[0-9a-f-]{36}\.part)?)?"
    r"|outbox(/.+\.eml)?|metrics/\w+\.db|nginx/body/.+"
)


def form(content: bytes, *, filename: bytes, declared: bytes) -> bytes:
    """Make the body of a form with a file, whose name and type nobody escapes."""
    about = b'Content-Disposition: form-data; name="file"; filename="' + filename + b'"\r\nContent-Type: ' + declared
    delimiter = b"--" + BOUNDARY.encode()
    return delimiter + b"\r\n" + about + b"\r\n\r\n" + content + b"\r\n" + delimiter + b"--\r\n"


def send_form(
    api: Api, content: bytes, *, filename: bytes = b"a", declared: str = "application/octet-stream"
) -> requests.Response:
    """Upload in a form."""
    body = form(content, filename=filename, declared=declared.encode())
    return api.post(FILES, data=body, headers={"Content-Type": FORM})


def send_raw(
    api: Api, content: bytes | Iterable[bytes], *, query: str = "", declared: str = "application/octet-stream"
) -> requests.Response:
    """Upload as a body; what is no bytes goes in chunks."""
    return api.post(f"{FILES}/raw{query}", data=content, headers={"Content-Type": declared})


def upload(account: Account, content: bytes, *, declared: str = "application/octet-stream", query: str = "") -> Any:
    """Upload a file and return it as it was answered."""
    response = send_raw(account.api, content, query=query, declared=declared)
    assert response.status_code == 201, response.text
    file = response.json()["data"]
    assert (file["size"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    return file


def fetch(api: Api, url: str, *, token: str | None = "", method: str = "GET", headers: Iterable[str] = ()) -> RawAnswer:
    """Ask for content at an address of ours, with the caller's token unless another is given, or None for none."""
    parts = urlsplit(url)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    bearer = api.token if token == "" else token
    credentials = [f"Authorization: Bearer {bearer}"] if bearer else []
    answer = raw(api.base_url, raw_request(api.base_url, target, method=method, headers=[*credentials, *headers]))
    elsewhere = answer.status == 302
    if elsewhere:
        found = follow(answer.headers, dict(header.split(": ", 1) for header in headers), api.base_url)
        if not found.ok:
            assert fetch(api, url, token=token, method="HEAD").status == 404, found.text
            return fetch(api, url, token=token, method=method, headers=headers)
        answer = RawAnswer(found.status_code, found.headers, found.content)
    if answer.status < 300:
        check_content(answer, of_ours=not elsewhere)
    return answer


def check_content(answer: RawAnswer, *, of_ours: bool = True) -> None:
    """Check that an answer with content can do no harm, whatever the content is and whoever has sent it."""
    headers = answer.headers
    assert {name.lower() for name in headers} <= HEADERS
    assert headers["X-Content-Type-Options"] == "nosniff"
    # At a bucket nothing of ours is to be had by a script.
    assert not of_ours or headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert headers["Cross-Origin-Resource-Policy"] in {"same-site", "cross-origin"}
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Accept-Ranges"] == "bytes"
    assert DISPOSITION.fullmatch(headers["Content-Disposition"]), headers["Content-Disposition"]
    assert not ACTIVE.search(headers["Content-Type"]), headers["Content-Type"]
    assert re.fullmatch("[A-Za-z0-9-]{8,64}", headers["X-Request-ID"])


def paths(folder: Path) -> set[str]:
    """Everything below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def sound_storage(cluster: Cluster) -> Iterator[None]:
    """Check, when the tests of a module are over, that they left nothing outside of the storage and it is whole."""
    url = urlsplit(cluster.env.get("STORAGE_URL", ""))
    folders = {Path(cluster.env["DATA_DIR"]), *([Path(url.path).parent] if url.scheme == "file" else [])}
    before = set().union(*map(paths, folders))
    yield
    after = set().union(*map(paths, folders))
    assert [path for path in sorted(after - before) if not OURS.fullmatch(path)] == []
    flask(cluster.env, "files", "verify")


def peak_of(server: Entrance) -> int:
    """Return the most memory that the processes of a server ever had, in MiB."""
    return sum(int(_status(pid)["VmHWM"].split()[0]) for pid in _workers(server)) // 1024


def forget_peak(server: Entrance) -> None:
    """Let the peak be what is used now."""
    for pid in _workers(server):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def _workers(server: Entrance) -> list[str]:
    folders = [Path(f"/proc/{pid}/task/{pid}/children") for pid in server.masters]
    return [pid for folder in folders for pid in folder.read_text().split()]


def _status(pid: str) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
