import base64
import hashlib
import os
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast
from urllib.parse import parse_qs, urlsplit

import pytest
from flask import Flask, Response
from gunicorn.http.wsgi import FileWrapper
from werkzeug.test import TestResponse, create_environ, run_wsgi_app
from werkzeug.wsgi import ClosingIterator

from project import errors, headers
from project.config import load_config
from project.errors import NotFound
from project.files.delivery import Content, RangeNotSatisfiable, requested_range, send
from project.files.storage import new_key, storage
from project.json import OrjsonProvider

DATA = bytes(range(256)) * 1000
SIZE = len(DATA)
SHA256 = hashlib.sha256(DATA).hexdigest()
ETAG = f'"{SHA256}"'
OTHER = '"' + "0" * 64 + '"'
# With a fraction, which no header can say.
MODIFIED = datetime(2026, 3, 1, 12, 30, 15, 999_000, tzinfo=UTC)
DATE = "Sun, 01 Mar 2026 12:30:15 GMT"
EARLIER = "Sun, 01 Mar 2026 12:30:14 GMT"
LATER = "Thu, 01 Jan 2099 00:00:00 GMT"
NO_DATES = [
    "",
    "yesterday",
    "0",
    "2026-03-01",
    "Sun, 01 Mar 99999999999999999999 12:30:15 GMT",
    "Sun, 01 Mar 2026 12:30:15 +99999999999999999999",
    "Sun, 32 Mar 2026 12:30:15 GMT",
    "9" * 8000,
    "(" * 8000,
]


def named(value: object) -> str:
    """Name a case of a test, however long its header is."""
    return repr(value).replace(SHA256, "same")[:60]


class Stage:
    """An application with one file and one route, which sends it."""

    def __init__(self, data_dir: Path, **env: str) -> None:
        self.app = Flask("stage")
        self.app.json = OrjsonProvider(self.app)
        self.app.extensions["settings"] = load_config({"APP_ENV": "testing", "DATA_DIR": str(data_dir), **env})
        headers.init_app(self.app)
        errors.register_error_handlers(self.app)
        self.app.add_url_rule("/v1/content", view_func=self._view)
        self.started = 0
        self.refusal: Exception | None = None
        self.content = Content(
            key=new_key(),
            size=SIZE,
            content_type="image/png",
            etag=SHA256,
            sha256=SHA256,
            modified=MODIFIED,
            filename="holiday.png",
            disposition="inline",
            cache_control="private, no-cache",
            resource_policy="same-site",
        )
        self.path = data_dir / "files" / self.content.key

    def store(self) -> None:
        """Put the file where it belongs."""
        with self.app.app_context():
            part = storage().incoming_parts / "one.part"
            part.write_bytes(DATA)
            storage().put(self.content.key, part, content_type="image/png", sha256=SHA256, modified=MODIFIED)

    def _view(self) -> Response:
        return send(self.content, on_start=self._start)

    def _start(self) -> None:
        self.started += 1
        if self.refusal:
            raise self.refusal

    def __call__(self, method: str = "GET", **sent: str) -> TestResponse:
        """Send a request; `if_match=x` sends `If-Match: x`."""
        named = {name.replace("_", "-"): value for name, value in sent.items()}
        return self.app.test_client().open("/v1/content", method=method, headers=named, buffered=True)

    @property
    def is_open(self) -> bool:
        """True while this process has the file open."""
        found = self.path.stat()
        for descriptor in range(256):
            with suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), found):
                    return True
        return False


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """The application sends the bytes itself."""
    made = Stage(tmp_path)
    made.store()
    return made


@pytest.fixture
def behind_nginx(tmp_path: Path) -> Stage:
    """The application tells nginx what to send."""
    made = Stage(tmp_path, FILES_DELIVERY="x-accel")
    made.store()
    return made


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Clients fetch from a bucket; nothing has to run there, since an URL is signed without it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    return Stage(tmp_path, STORAGE_URL="s3://files?endpoint=http://127.0.0.1:1&region=eu-west-1")


# --- ranges -----------------------------------------------------------------------------------------------------------

PARTS = [
    ("bytes=0-0", 0, 1),
    ("bytes=0-99", 0, 100),
    ("bytes=7-7", 7, 8),
    ("bytes=90-", 90, 100),
    ("bytes=0-", 0, 100),
    ("bytes=50-100", 50, 100),
    ("bytes=0-999999999999999999", 0, 100),
    ("bytes=-1", 99, 100),
    ("bytes=-100", 0, 100),
    ("bytes=-999999999999999999", 0, 100),
    ("bytes=007-008", 7, 9),
    ("BYTES=0-0", 0, 1),
]
OUTSIDE = ["bytes=100-", "bytes=100-100", "bytes=100-200", "bytes=999999999999999999-", "bytes=-0", "bytes=-000"]
IGNORED = [
    "",
    "bytes",
    "bytes=",
    "bytes=-",
    "bytes=abc",
    "bytes=5-1",
    "bytes=200-100",
    "bytes=--1",
    "bytes=-1-",
    "bytes=1-2-3",
    "bytes=+1-2",
    "bytes=1.0-2",
    "bytes=0x1-2",
    "bytes=1_0-20",
    "bytes= 0-0",
    "bytes=0 - 0",
    "bytes =0-0",
    "bytes=0-0,",
    "bytes=,0-0",
    "bytes=0-0,5-9",
    "bytes=0-0, 5-9",
    "bytes=0-0,bytes=5-9",
    "bytes=0-0\n",
    "bytes=\N{ARABIC-INDIC DIGIT ONE}-2",
    "bytes=0-99999999999999999999",
    "bytes=9999999999999999999-",
    "bytes=-9999999999999999999",
    "items=0-1",
    "seconds=0-1",
    "xbytes=0-0",
    "bytes=" + "9" * 8000 + "-",
    "bytes=" + ",".join(["0-"] * 5000),
    "bytes=" + "0-0," * 2000,
    "bytes=" + "-" * 8000,
    " " * 8000,
]


@pytest.mark.parametrize(("header", "start", "stop"), PARTS)
def test_one_range_is_a_part_that_ends_with_the_content_at_the_latest(header, start, stop):
    assert requested_range(header, 100) == range(start, stop)


@pytest.mark.parametrize("header", OUTSIDE)
def test_a_range_without_a_byte_is_refused_with_the_size(header):
    with pytest.raises(RangeNotSatisfiable) as raised:
        requested_range(header, 100)

    assert raised.value.headers == {"Content-Range": "bytes */100"}


@pytest.mark.parametrize("header", IGNORED, ids=named)
def test_what_is_not_one_range_of_bytes_is_ignored(header):
    assert requested_range(header, 100) is None


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=0-0", "bytes=-1", "bytes=-0"])
def test_content_without_bytes_has_no_part(header):
    with pytest.raises(RangeNotSatisfiable):
        requested_range(header, 0)


# --- answers ----------------------------------------------------------------------------------------------------------

WHOLE = {
    "Accept-Ranges": "bytes",
    "Cache-Control": "private, no-cache",
    "Content-Disposition": 'inline; filename="holiday.png"',
    "Content-Length": str(SIZE),
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Content-Type": "image/png",
    "Cross-Origin-Resource-Policy": "same-site",
    "ETag": ETAG,
    "Last-Modified": DATE,
    "Referrer-Policy": "no-referrer",
    "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(SHA256)).decode()}:",
    "Vary": "Origin",
    "X-Content-Type-Options": "nosniff",
}


def test_the_whole_content_comes_with_all_that_is_said_of_it(stage):
    response = stage()

    assert (response.status_code, response.data) == (200, DATA)
    assert dict(response.headers) == WHOLE


@pytest.mark.parametrize(
    ("wanted", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=1000-1999", 1000, 2000),
        ("bytes=70000-", 70_000, SIZE),
        ("bytes=-5", SIZE - 5, SIZE),
        ("bytes=0-999999999", 0, SIZE),
    ],
)
def test_a_part_comes_with_its_place_and_the_digest_of_the_whole(stage, wanted, start, stop):
    place = f"bytes {start}-{stop - 1}/{SIZE}"

    response = stage(range=wanted)

    assert (response.status_code, response.data) == (206, DATA[start:stop])
    assert dict(response.headers) == {**WHOLE, "Content-Length": str(stop - start), "Content-Range": place}


def test_a_range_outside_is_a_problem_that_tells_the_size(stage):
    response = stage(range=f"bytes={SIZE}-")

    assert (response.status_code, response.json["code"]) == (416, "range_not_satisfiable")
    assert response.headers["Content-Range"] == f"bytes */{SIZE}"
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("sent", [{}, {"range": "bytes=5-9"}, {"range": f"bytes={SIZE}-"}, {"if_range": OTHER}])
def test_head_has_the_headers_of_the_whole_whatever_range_is_asked_for(stage, sent):
    response = stage("HEAD", **sent)

    assert (response.status_code, response.data) == (200, b"")
    assert dict(response.headers) == WHOLE


CONDITIONS = [
    # If-Match compares strongly, and where it stands the date does not count.
    ({"if_match": ETAG}, 200),
    ({"if_match": f"{OTHER}, {ETAG}"}, 200),
    ({"if_match": "*"}, 200),
    ({"if_match": OTHER}, 412),
    ({"if_match": f"W/{ETAG}"}, 412),
    ({"if_match": ""}, 412),
    ({"if_match": '"' * 8000}, 412),
    ({"if_match": ETAG, "if_unmodified_since": EARLIER}, 200),
    ({"if_unmodified_since": DATE}, 200),
    ({"if_unmodified_since": LATER}, 200),
    ({"if_unmodified_since": EARLIER}, 412),
    # If-None-Match compares weakly, and where it stands the date does not count.
    ({"if_none_match": ETAG}, 304),
    ({"if_none_match": f"W/{ETAG}"}, 304),
    ({"if_none_match": f"{OTHER},{ETAG}"}, 304),
    ({"if_none_match": "*"}, 304),
    ({"if_none_match": OTHER}, 200),
    ({"if_none_match": '",' * 4000}, 200),
    ({"if_none_match": OTHER, "if_modified_since": LATER}, 200),
    ({"if_modified_since": DATE}, 304),
    ({"if_modified_since": LATER}, 304),
    ({"if_modified_since": "Sunday, 01-Mar-26 12:30:15 GMT"}, 304),
    ({"if_modified_since": "Sun Mar  1 12:30:15 2026"}, 304),
    ({"if_modified_since": EARLIER}, 200),
    # In this order: the first one that fails decides.
    ({"if_match": OTHER, "if_none_match": ETAG}, 412),
    ({"if_match": ETAG, "if_none_match": ETAG}, 304),
    ({"if_unmodified_since": EARLIER, "if_modified_since": LATER}, 412),
    ({"if_none_match": ETAG, "range": "bytes=0-0"}, 304),
    ({"if_none_match": ETAG, "range": f"bytes={SIZE}-"}, 304),
    ({"if_match": OTHER, "range": "bytes=0-0"}, 412),
    *(({"if_modified_since": text, "if_unmodified_since": text}, 200) for text in NO_DATES),
]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(("sent", "status"), CONDITIONS, ids=named)
def test_conditions_are_checked_in_their_order(stage, method, sent, status):
    response = stage(method, **sent)

    assert response.status_code == status
    assert response.data == b"" or method == "GET"
    assert not stage.is_open


def test_what_the_client_has_already_is_not_described_again(stage):
    response = stage(if_none_match=ETAG)

    described = {"Accept-Ranges", "Last-Modified", "Repr-Digest"} | {name for name in WHOLE if name[:8] == "Content-"}
    kept = {name: value for name, value in WHOLE.items() if name not in described - {"Content-Security-Policy"}}
    assert response.data == b""
    assert dict(response.headers) == kept


def test_a_failed_condition_is_a_problem_and_not_the_content(stage):
    response = stage(if_match=OTHER)

    assert (response.status_code, response.json["code"]) == (412, "precondition_failed")
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("validator", "status"),
    [
        (ETAG, 206),
        (DATE, 206),
        (f"W/{ETAG}", 200),
        (OTHER, 200),
        (f"{ETAG}, {OTHER}", 200),
        (SHA256, 200),
        ("*", 200),
        ("", 200),
        (EARLIER, 200),
        (LATER, 200),
        ("Sunday, 01-Mar-26 12:30:15 GMT", 200),
        *((text, 200) for text in NO_DATES),
    ],
    ids=named,
)
def test_a_range_counts_only_for_the_very_bytes_that_if_range_names(stage, validator, status):
    assert stage(range="bytes=5-9", if_range=validator).status_code == status
    # Where the range does not count, it cannot be wrong either.
    assert stage(range=f"bytes={SIZE}-", if_range=validator).status_code == (416 if status == 206 else 200)


def test_if_range_alone_asks_for_nothing(stage):
    assert stage(if_range=ETAG).status_code == 200


def test_only_harmless_types_are_shown_in_a_browser_whatever_is_asked_for(stage):
    stage.content = replace(stage.content, content_type="text/html", filename="a.html")

    response = stage()

    assert response.headers["Content-Disposition"].startswith("attachment;")
    assert response.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_a_download_that_is_asked_for_is_one(stage):
    stage.content = replace(stage.content, disposition="attachment")

    assert stage().headers["Content-Disposition"].startswith('attachment; filename="holiday.png"')


def test_a_thumbnail_has_no_digest(stage):
    stage.content = replace(stage.content, etag=f"{SHA256}-256-webp", sha256=None)

    response = stage()

    assert "Repr-Digest" not in response.headers
    assert response.headers["ETag"] == f'"{SHA256}-256-webp"'


# --- what happens at the start ----------------------------------------------------------------------------------------

STARTS = [
    ("GET", {}, 1),
    ("GET", {"range": "bytes=0-0"}, 1),
    ("GET", {"range": f"bytes=-{SIZE}"}, 1),
    ("GET", {"range": "bytes=0-0,5-6"}, 1),
    ("GET", {"range": "bytes=1-", "if_range": OTHER}, 1),
    ("GET", {"if_match": ETAG}, 1),
    ("GET", {"range": "bytes=1-"}, 0),
    ("GET", {"range": "bytes=-1"}, 0),
    ("GET", {"range": f"bytes={SIZE}-"}, 0),
    ("GET", {"if_none_match": ETAG}, 0),
    ("GET", {"if_match": OTHER}, 0),
    ("HEAD", {}, 0),
    ("HEAD", {"range": "bytes=0-0"}, 0),
]
starts = pytest.mark.parametrize(("method", "sent", "times"), STARTS, ids=named)


@starts
def test_a_download_starts_with_the_first_byte(stage, method, sent, times):
    stage(method, **sent)

    assert stage.started == times


@starts
def test_a_download_starts_with_the_first_byte_behind_nginx_too(behind_nginx, method, sent, times):
    behind_nginx(method, **sent)

    assert behind_nginx.started == times


@pytest.mark.parametrize("made", ["stage", "behind_nginx"])
@pytest.mark.parametrize("lose", [os.unlink, lambda path: os.truncate(path, SIZE - 1)], ids=["gone", "cut"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("sent", [{}, {"if_none_match": "*"}, {"if_match": OTHER}, {"range": f"bytes={SIZE}-"}])
def test_bytes_that_are_lost_are_never_promised(request, made, lose, method, sent):
    chosen = request.getfixturevalue(made)
    lose(chosen.path)

    response = chosen(method, **sent)

    assert (response.status_code, response.content_type) == (410, "application/problem+json")
    assert method == "HEAD" or response.json["code"] == "file_lost"
    assert chosen.started == 0


@pytest.mark.parametrize("made", ["stage", "behind_nginx", "bucket"])
def test_what_the_start_refuses_is_the_answer_and_leaves_nothing_open(request, made):
    chosen = request.getfixturevalue(made)
    chosen.refusal = NotFound("It may not be sent.")

    response = chosen()

    assert (response.status_code, response.json["detail"]) == (404, "It may not be sent.")
    assert not {"X-Accel-Redirect", "Location", "ETag"} & set(response.headers.keys())
    assert made == "bucket" or not chosen.is_open


# --- who sends the bytes ----------------------------------------------------------------------------------------------


def ask(app: Flask) -> ClosingIterator:
    """Ask as a server does: the body is read by the caller, who closes it."""
    body, status, _ = run_wsgi_app(app, create_environ("/v1/content"))
    assert status == "200 OK"
    return cast(ClosingIterator, body)


def test_the_file_is_closed_after_its_last_byte(stage):
    body = ask(stage.app)
    assert stage.is_open

    assert b"".join(body) == DATA
    body.close()

    assert not stage.is_open


def test_the_file_is_closed_when_the_client_goes_away(stage):
    body = ask(stage.app)
    assert next(body)

    body.close()

    assert not stage.is_open


def test_the_file_outlives_its_name(stage):
    body = ask(stage.app)

    stage.path.unlink()

    assert b"".join(body) == DATA
    body.close()


@pytest.mark.parametrize(("wanted", "start", "size"), [("", 0, SIZE), ("bytes=100000-100009", 100_000, 10)])
def test_a_server_with_sendfile_gets_the_file_at_its_first_byte(stage, wanted, start, size):
    told: list[dict[str, str]] = []
    environ = create_environ("/v1/content", headers={"Range": wanted})
    environ["wsgi.file_wrapper"] = FileWrapper

    body = stage.app(environ, lambda _status, fields: told.append(dict(fields)))

    # What gunicorn looks for: its own wrapper, a descriptor, where that stands, and how much to send.
    assert isinstance(body, FileWrapper)
    assert os.lseek(body.filelike.fileno(), 0, os.SEEK_CUR) == start
    assert told[0]["Content-Length"] == str(size)
    # Where it cannot send from the descriptor it reads.
    assert b"".join(body) == DATA[start : start + size]
    body.close()
    assert not stage.is_open


REDIRECTS = [
    ({}, 200, "/_files-whole/"),
    ({"range": "bytes=5-9"}, 206, "/_files/"),
    ({"range": "bytes=5-9", "if_range": ETAG}, 206, "/_files/"),
    ({"range": "bytes=5-9", "if_range": OTHER}, 200, "/_files-whole/"),
    ({"range": "bytes=0-0,5-9"}, 200, "/_files-whole/"),
    ({"range": "bytes=abc"}, 200, "/_files-whole/"),
    ({"if_none_match": OTHER}, 200, "/_files-whole/"),
    ({"if_modified_since": EARLIER}, 200, "/_files-whole/"),
]


@pytest.mark.parametrize(("sent", "status", "location"), REDIRECTS, ids=named)
def test_nginx_is_told_what_to_send_and_whether_the_range_counts(behind_nginx, sent, status, location):
    response = behind_nginx(**sent)

    accel = {"X-Accel-Redirect": location + behind_nginx.content.key}
    assert (response.status_code, response.data) == (status, b"")
    assert dict(response.headers) == {**WHOLE, **accel, "Content-Length": "0"}
    assert not behind_nginx.is_open


@pytest.mark.parametrize(
    ("method", "sent", "status"),
    [
        ("GET", {"if_match": ETAG}, 200),
        ("GET", {"if_match": "*", "range": "bytes=5-9"}, 206),
        ("GET", {"if_unmodified_since": "garbage"}, 200),
        ("GET", {"if_match": OTHER}, 412),
        ("GET", {"if_none_match": ETAG}, 304),
        ("GET", {"range": f"bytes={SIZE}-"}, 416),
        ("HEAD", {}, 200),
    ],
    ids=named,
)
def test_what_nginx_would_decide_anew_the_application_answers_itself(behind_nginx, stage, method, sent, status):
    response = behind_nginx(method, **sent)

    assert response.status_code == status
    assert "X-Accel-Redirect" not in response.headers
    assert response.data == stage(method, **sent).data


@pytest.mark.parametrize("sent", [{}, {"range": "bytes=5-9"}, {"if_match": ETAG}])
def test_a_bucket_sends_its_objects_itself(bucket, sent):
    before = datetime.now(UTC)

    response = bucket(**sent)

    target = urlsplit(response.headers["Location"])
    asked = {name: values[0] for name, values in parse_qs(target.query).items()}
    assert (response.status_code, response.data) == (302, b"")
    assert target.path == f"/files/{bucket.content.key}"
    assert asked["response-content-type"] == "image/png"
    assert asked["response-content-disposition"] == WHOLE["Content-Disposition"]
    assert asked["X-Amz-Expires"] == "60"
    assert datetime.strptime(asked["X-Amz-Date"], "%Y%m%dT%H%M%S%z") - before < timedelta(seconds=10)
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Cross-Origin-Resource-Policy"] == "same-site"
    assert not {"ETag", "Last-Modified", "Accept-Ranges", "Repr-Digest"} & set(response.headers.keys())
    # Nobody sees what is fetched there, so each redirect counts.
    assert bucket.started == 1


@pytest.mark.parametrize(
    ("method", "sent", "status"),
    [
        ("HEAD", {}, 200),
        ("GET", {"if_none_match": ETAG}, 304),
        ("GET", {"if_match": OTHER}, 412),
        ("GET", {"range": f"bytes={SIZE}-"}, 416),
    ],
    ids=named,
)
def test_before_a_bucket_the_application_answers_what_has_no_bytes(bucket, stage, method, sent, status):
    response = bucket(method, **sent)

    assert (response.status_code, bucket.started) == (status, 0)
    assert dict(response.headers) == dict(stage(method, **sent).headers)


def test_a_bucket_is_told_not_to_show_what_is_not_harmless(bucket):
    bucket.content = replace(bucket.content, content_type="image/svg+xml", filename="a.svg")

    asked = parse_qs(urlsplit(bucket().headers["Location"]).query)

    assert asked["response-content-disposition"][0].startswith("attachment;")
