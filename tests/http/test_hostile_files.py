"""Uploads that mean harm, by their size, name, type or what they unpack to: stored or refused, and nothing else."""

import hashlib
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import pytest
from requests import Response

from tests.files.samples import BOMBS, POLYGLOTS, Sample, picture, zip_bomb
from tests.http.client import Account, Api, codes, problem
from tests.http.cluster import Cluster
from tests.http.conftest import Start
from tests.http.files import (
    FILES,
    fetch,
    forget_peak,
    peak_of,
    send_form,
    send_raw,
    sound_storage,
    upload,
)
from tests.servers.app import ROOT

LIMIT = 100_000
DIGEST = "Content-Digest"


@pytest.fixture(scope="module", autouse=True)
def sound(cluster: Cluster) -> Iterator[None]:
    yield from sound_storage(cluster)


@pytest.fixture
def limited(user: Account, run_with: Start) -> Api:
    """The user, at a server with a small limit."""
    return user.api.at(run_with(FILES_MAX_SIZE=str(LIMIT)).base_url)


# --- sizes and digests -----------------------------------------------------------------------------------------------


def send(api: Api, way: str, content: bytes) -> Response:
    match way:
        case "form":
            return send_form(api, content)
        case "raw":
            return send_raw(api, content)
        case _:
            return send_raw(api, (content[start : start + 1000] for start in range(0, len(content), 1000)))


@pytest.mark.parametrize("way", ["form", "raw", "chunked"])
@pytest.mark.parametrize("size", [1, LIMIT - 1, LIMIT])
def test_up_to_the_limit_a_file_is_stored_byte_for_byte(limited: Api, way: str, size: int) -> None:
    content = uuid4().bytes * (size // 16 + 1)
    response = send(limited, way, content[:size])
    file = response.json()["data"]
    assert (response.status_code, file["size"]) == (201, size)
    assert file["sha256"] == hashlib.sha256(content[:size]).hexdigest()
    assert fetch(limited, file["content_url"]).body == content[:size]


@pytest.mark.parametrize("way", ["form", "raw", "chunked"])
@pytest.mark.parametrize("size", [LIMIT + 1, LIMIT * 20])
def test_one_byte_over_the_limit_is_too_large(limited: Api, way: str, size: int) -> None:
    before = limited.get(f"{FILES}/usage").json()
    problem(send(limited.with_token(limited.token), way, bytes(size)), 413, "file_too_large")
    assert limited.get(f"{FILES}/usage").json() == before


@pytest.mark.parametrize("way", ["form", "raw", "chunked"])
def test_a_file_of_no_bytes_is_refused(user: Account, way: str) -> None:
    refused = problem(send(user.api, way, b""), 422, "validation_error")
    assert list(codes(refused).values()) == ["empty_file"]


def test_other_bytes_than_the_promised_ones_leave_nothing_behind(user: Account) -> None:
    before = user.api.get(f"{FILES}/usage").json()
    headers = {"Content-Type": "text/plain", DIGEST: "sha-256=:" + "A" * 43 + "=:"}
    refused = user.api.post(f"{FILES}/raw", data=b"x", headers=headers)
    assert codes(problem(refused, 422, "validation_error")) == {f"/header/{DIGEST}": "digest_mismatch"}
    assert user.api.get(f"{FILES}/usage").json() == before


# --- names -----------------------------------------------------------------------------------------------------------

NAMES: dict[str, bytes] = {
    "nothing": b"",
    "a blank": b" ",
    "a dot": b".",
    "two dots": b"..",
    "a way up": b"../../../../CANARY",
    "a way up on Windows": b"..\\..\\..\\CANARY",
    "a way up, escaped": b"..%2f..%2fCANARY",
    "a way up, escaped twice": b"..%252f..%252fCANARY",
    "a way up, overlong": b"..\xc0\xaf..\xc0\xafCANARY",
    "a way up in full width": "\uff0e\uff0e\uff0f\uff0e\uff0e\uff0fCANARY".encode(),
    "a path": b"/tmp/CANARY",
    "a drive": b"C:\\CANARY",
    "a share": b"\\\\host\\share\\CANARY",
    "a folder": b"CANARY/",
    "a URL": b"file:///tmp/CANARY",
    "a home": b"~/CANARY",
    "hidden": b".htaccess",
    "a device": b"CON.txt",
    "no device": b"NUL",
    "a device and a dot": b"aux.h.",
    "a stream": b"LPT1.txt:stream",
    "255 letters": b"n" * 251 + b".txt",
    "256 letters": b"n" * 252 + b".txt",
    "7,000 letters": b"n" * 7_000,
    "255 foxes": "🦊".encode() * 255,
    "only an extension": b"." + b"e" * 300,
    "from right to left": "gpj\u202egnp.exe".encode(),
    "isolates and marks": "\u2066a\u2067b\u2068c\u2069\u200e\u200f\u061c.txt".encode(),
    "zero width": "a\u200bb\u200cc\u200dd\u2060\ufeff.txt".encode(),
    "controls": b"a\x01\x07\x08\x1b[31m\x7f\xc2\x85.txt",
    "a NUL": b"evil.html\x00.png",
    "a tab": b"a\tb.txt",
    "line separators": "a\u2028b\u2029c.txt".encode(),
    "a line break": b"a\nX-Evil: 1",
    "a line break of HTTP": b"a\r\nX-Evil: 1\r\n\r\n<script>",
    "an escaped line break": b"a%0d%0aX-Evil: 1",
    "a quote": b'a"b.txt',
    "a quote, escaped": b'a\\"b.txt',
    "another parameter": b'a"; filename="evil.html',
    "another extended parameter": b"a; filename*=UTF-8''evil.html",
    "a semicolon": b"a;b=c.txt",
    "other letters": "naïve 北京 🦊 ﷽.txt".encode(),
    "a fraction slash": "1\u2044..\u2215CANARY".encode(),
    "a thousand accents": ("e" + "\u0301" * 1_000).encode(),
    "no UTF-8": b"\xff\xfe\xfd.txt",
    "latin-1": "zoë.txt".encode("latin-1"),
    "a surrogate": b"\xed\xa0\x80.txt",
    "a noncharacter": "\ufffe\uffff.txt".encode(),
    "markup": b"<img src=x onerror=alert(1)>.png",
    "a template": b"{{7*7}}${7*7}%s%n",
    "SQL": b"'; DROP TABLE files; --",
}
NOT_UTF_8 = {"a way up, overlong", "no UTF-8", "latin-1", "a surrogate"}
# Of these a parser of forms may make something else than the one part that was meant, or nothing.
AMBIGUOUS = {"a line break", "a line break of HTTP", "a quote", "a quote, escaped", "another parameter"}


def check_name(account: Account, file: dict[str, str], content: bytes, marker: str) -> None:
    """Check that a name is safe to show and to save, as it was answered and as it is sent with the content."""
    name = file["filename"]
    assert name.strip(". ")
    assert len(name.encode()) <= 255
    assert not any(char in "/\\" or unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for char in name)
    answer = fetch(account.api, file["content_url"])  # which checks the header with the name
    assert answer.body == content
    quoted = quote(name, safe="!#$&+-.^_`|~")
    assert answer.headers["Content-Disposition"].endswith((f'="{name}"', f"''{quoted}"))
    for folder in (Path("/"), Path("/tmp"), Path.home(), ROOT, *ROOT.parents):
        assert not (folder / marker).exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_a_form_is_cleaned_whatever_it_is(user: Account, name: str) -> None:
    marker, content = f"canary-{uuid4()}", uuid4().bytes
    response = send_form(user.api, content, filename=NAMES[name].replace(b"CANARY", marker.encode()))
    if name in NOT_UTF_8:
        problem(response, 400, "bad_request")  # a form that cannot be parsed, like JSON in another encoding
    elif name in AMBIGUOUS and response.status_code != 201:
        assert response.status_code in {400, 422}
    else:
        assert response.status_code == 201, response.text
        check_name(user, response.json()["data"], content, marker)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_the_query_is_cleaned_whatever_it_is(user: Account, name: str) -> None:
    marker, content = f"canary-{uuid4()}", uuid4().bytes
    given = quote(NAMES[name][:2_500].replace(b"CANARY", marker.encode()), safe="")
    check_name(user, upload(user, content, query=f"?filename={given}"), content, marker)


def test_a_name_of_10_000_letters_is_cut(user: Account) -> None:
    response = send_form(user.api, b"x", filename=b"n" * 10_000 + b".txt")
    assert response.json()["data"]["filename"] == "n" * 251 + ".txt"


# --- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", POLYGLOTS, ids=lambda sample: sample.name)
@pytest.mark.parametrize("way", ["form", "raw"])
def test_whatever_a_file_claims_to_be_no_browser_runs_it(user: Account, sample: Sample, way: str) -> None:
    name = sample.filename.encode()
    if way == "form":
        response = send_form(user.api, sample.content, filename=name, declared=sample.declared)
    else:
        response = send_raw(user.api, sample.content, query=f"?filename={sample.filename}", declared=sample.declared)
    file = response.json()["data"]
    assert (file["content_type"], file["declared_type"]) == (sample.effective, sample.declared)
    for query in ("", "?disposition=attachment", "?disposition=inline"):
        answer = fetch(user.api, file["content_url"] + query)  # which checks the headers
        assert answer.body == sample.content
        assert answer.headers["Content-Type"].split(";")[0] == sample.effective
        shown = query.endswith("inline") and sample.effective.startswith(("image/", "video/", "audio/", "text/plain"))
        if not shown or sample.effective in {"image/heic"}:
            assert answer.headers["Content-Disposition"].startswith("attachment;")


def test_a_public_file_is_no_more_dangerous(user: Account) -> None:
    for content, declared in ((b"<script>1</script>", "text/html"), (b"alert(1)", "text/javascript")):
        file = upload(user, content, declared=declared, query="?filename=index.html&visibility=public")
        answer = fetch(user.api, f"{file['content_url']}?disposition=inline", token=None)
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert answer.headers["Content-Disposition"].startswith("attachment;")


# --- what unpacks to more --------------------------------------------------------------------------------------------


def test_a_zip_bomb_is_stored_and_not_unpacked(user: Account, cluster: Cluster) -> None:
    bomb = zip_bomb()
    forget_peak(cluster.first)
    before = peak_of(cluster.first)
    file = upload(user, bomb, declared="application/zip", query="?filename=42.zip")
    assert fetch(user.api, file["content_url"]).body == bomb
    problem(user.api.get(f"{FILES}/{file['id']}/thumbnail"), 422, "not_an_image")
    assert peak_of(cluster.first) - before < 10


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_picture_bomb_costs_the_server_neither_memory_nor_time(user: Account, cluster: Cluster, bomb: str) -> None:
    harmless = upload(user, picture("PNG"), declared="image/png")
    assert fetch(user.api, harmless["thumbnail_url"]).status == 200  # loads what thumbnails need
    content = BOMBS[bomb]()
    forget_peak(cluster.first)
    before = peak_of(cluster.first)
    file = upload(user, content, declared="image/png")
    started = time.monotonic()
    answer = fetch(user.api, f"{FILES}/{file['id']}/thumbnail?size=64")
    assert answer.status in {200, 422}
    assert time.monotonic() - started < 5
    # The copy without metadata, at most, beside the file.
    assert peak_of(cluster.first) - before < 60
