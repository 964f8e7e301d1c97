"""Uploads over HTTP: that whatever is refused leaves nothing, and that nothing is held while a body is read."""

import base64
import hashlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from werkzeug.test import TestResponse

from project.errors import Unavailable
from project.files import quota
from project.files.bodies import FRAMING
from project.files.storage import LocalStorage
from tests.files.asking import BOUNDARY, FILES, Part, a_file, code, errors, form
from tests.files.uploading import CONTENT, check_books, check_nothing_stored, holds_no_connection

RAW = f"{FILES}/raw"
PLAIN = "text/plain"
SHA256 = hashlib.sha256(CONTENT).digest()
OTHER_SHA256 = hashlib.sha256(b"other").digest()
Send = Callable[..., TestResponse]


class Watched(BytesIO):
    """A body that notes, whenever some of it is read, whether a connection to the database is in use."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.seen: list[bool] = []

    def read(self, size: int | None = -1, /) -> bytes:
        """Read a little."""
        self.seen.append(holds_no_connection())
        return super().read(min(size or 0, 1000))


@pytest.fixture
def caller(as_user, files_root):
    """An account that stores files."""
    return as_user()


@pytest.fixture(params=["raw", "chunked raw", "form", "chunked form"])
def send(request, client, caller) -> Send:
    """Send a file, with whatever headers, in each of the ways; `digest` is promised where the way has a place."""
    chunked, kind = request.param.startswith("chunked"), request.param.split()[-1]

    def post(content: bytes = CONTENT, *, digest: bytes | None = None, **headers: str) -> TestResponse:
        options: dict[str, Any] = {"data": content, "content_type": PLAIN}
        if kind == "form":
            told = [] if digest is None else [Part("sha256", digest.hex())]
            options = form(*told, a_file(content))
        elif digest is not None:
            headers["Content-Digest"] = digest_header(digest)
        stream = Watched(options.pop("data"))
        if chunked:
            headers["Transfer-Encoding"] = "chunked"
            options["environ_overrides"] = {"wsgi.input_terminated": True}
        sent = {**caller, **{name.replace("_", "-"): value for name, value in headers.items()}}
        response = client.post(FILES if kind == "form" else RAW, input_stream=stream, headers=sent, **options)
        response.seen = stream.seen
        return response

    return post


def digest_header(digest: bytes) -> str:
    return f"sha-256=:{base64.b64encode(digest).decode()}:"


def test_an_upload_is_stored(in_app, files_root, send, caller):
    response = send(digest=SHA256)
    assert response.status_code == 201
    assert response.json["data"]["sha256"] == SHA256.hex()
    in_app(check_books, files_root)
    assert in_app(quota.usage, caller.user.id).used == len(CONTENT)


@pytest.mark.parametrize("headers", [{}, {"Idempotency_Key": "a-key"}], ids=["without a key", "with a key"])
def test_no_connection_is_held_while_a_body_is_read(send, headers):
    response = send(bytes(5000), **headers)
    assert response.status_code == 201
    assert len(response.seen) > 4
    assert all(response.seen)


def test_what_there_is_no_room_for_is_not_read_to_its_end(set_files, send):
    set_files(quota=1000)
    response = send(bytes(2_000_000))
    assert code(response) == (413, "quota_exceeded")
    # Of 2,000 blocks: 256 KiB are read at once; a form has 64 KiB of framing.
    assert len(response.seen) < 400


def test_an_empty_file_leaves_nothing(in_app, files_root, send):
    assert errors(send(b"")) == {"/file": "empty_file"}
    in_app(check_nothing_stored, files_root)


def test_bytes_of_another_digest_leave_nothing(in_app, files_root, send):
    assert set(errors(send(digest=OTHER_SHA256)).values()) == {"digest_mismatch"}
    in_app(check_nothing_stored, files_root)


def test_a_type_that_is_not_allowed_leaves_nothing(in_app, files_root, set_files, send):
    set_files(allowed_types=["image/*"])
    assert code(send()) == (415, "type_not_allowed")
    in_app(check_nothing_stored, files_root)


@pytest.mark.parametrize("size", [1001, 2 * FRAMING], ids=["a byte more", "much more"])
def test_a_file_over_the_limit_leaves_nothing(in_app, files_root, set_files, send, size):
    set_files(max_size=1000)
    assert code(send(bytes(size))) == (413, "file_too_large")
    in_app(check_nothing_stored, files_root)


@pytest.mark.parametrize("size", [1001, 2 * FRAMING], ids=["a byte more", "much more"])
def test_a_file_over_the_quota_leaves_nothing(in_app, files_root, set_files, send, size):
    set_files(quota=1000)
    assert code(send(bytes(size))) == (413, "quota_exceeded")
    in_app(check_nothing_stored, files_root)


class Full(LocalStorage):
    """A storage that takes nothing."""

    def put(self, *_args: Any, **_kwargs: Any) -> None:
        """Refuse."""
        raise Unavailable("The storage is full.")


def test_a_storage_that_fails_is_503_and_leaves_nothing(in_app, files_root, replace_storage, send):
    replace_storage(Full)
    assert code(send()) == (503, "service_unavailable")
    in_app(check_nothing_stored, files_root)


def test_a_storage_that_is_not_mounted_is_503(in_app, files_root, send):
    files_root.rmdir()
    response = send()
    files_root.mkdir()
    assert code(response) == (503, "service_unavailable")
    assert response.headers["Retry-After"]
    in_app(check_nothing_stored, files_root)


def test_a_length_that_cannot_fit_is_refused_before_anything_is_read(client, caller, in_app, files_root, set_files):
    set_files(max_size=1000)
    multipart = f"multipart/form-data; boundary={BOUNDARY}"
    for path, content_type, size in ((RAW, PLAIN, 1001), (FILES, multipart, 1001 + FRAMING)):
        body = Watched(bytes(size))
        response = client.open(path, method="POST", input_stream=body, headers=caller, content_type=content_type)
        # Before the answer is taken: afterwards the server reads on and throws away.
        assert body.seen == []
        assert code(response) == (413, "file_too_large")
    in_app(check_nothing_stored, files_root)


def test_a_form_is_not_read_for_ever_whatever_is_around_its_file(client, caller, in_app, files_root, set_files):
    set_files(max_size=1000)
    options = form(a_file())
    whole, around = options.pop("data"), bytes(2 * FRAMING)
    for sent in (around + b"\r\n" + whole, whole + around):
        body = Watched(sent)
        headers = {**caller, "Transfer-Encoding": "chunked"}
        options["environ_overrides"] = {"wsgi.input_terminated": True}
        response = client.post(FILES, input_stream=body, headers=headers, **options)
        assert body.tell() < len(sent)
        assert code(response) == (413, "file_too_large")
    in_app(check_nothing_stored, files_root)


def test_a_form_that_breaks_off_anywhere_leaves_nothing(client, caller, in_app, files_root):
    options = form(a_file())
    whole = options.pop("data").removesuffix(b"\r\n")
    for kept in range(1, len(whole), 3):
        response = client.post(FILES, data=whole[:kept], headers=caller, **options)
        assert code(response) == (400, "incomplete_body")
    in_app(check_nothing_stored, files_root)


def test_a_form_without_a_file_leaves_nothing(client, caller, in_app, files_root):
    for parts in ((), (Part("sha256", SHA256.hex()),), (Part("file", CONTENT),), (Part("other", CONTENT, "a.txt"),)):
        assert code(client.post(FILES, headers=caller, **form(*parts))) == (422, "validation_error")
    in_app(check_nothing_stored, files_root)


def test_of_a_form_with_two_files_nothing_is_kept(client, caller, in_app, files_root):
    response = client.post(FILES, headers=caller, **form(a_file(), a_file(b"other")))
    assert errors(response) == {"/file": "repeated_parameter"}
    in_app(check_nothing_stored, files_root)
