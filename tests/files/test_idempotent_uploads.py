"""Idempotency-Key on uploads: one file, whatever happens to the answer."""

import base64
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import BytesIO
from threading import Event
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, update
from werkzeug.test import TestResponse

from project.database import db, transaction, utcnow
from project.errors import Unavailable
from project.files.models import File
from project.files.storage import LocalStorage
from project.files.sweep import sweep
from project.idempotency_keys import LOCKED_FOR, IdempotencyKey, State
from tests.files.asking import FILES, a_file, code, errors, form
from tests.files.uploading import CONTENT, Killed, broken, check_books, check_nothing_stored, on_disk

RAW = f"{FILES}/raw"
PLAIN = "text/plain"
OTHER = CONTENT[::-1]
Send = Callable[..., TestResponse]


@pytest.fixture
def caller(as_user, files_root):
    """An account that stores files."""
    return as_user()


@pytest.fixture
def engine(in_app) -> Engine:
    """The connections of the application."""
    return in_app(lambda: db.engine)


@pytest.fixture(params=["raw", "form"])
def send(request, client, caller) -> Send:
    """Upload with the Idempotency-Key `a-key`, in both of the ways; `query` and `headers` may be others."""

    def post(content: bytes = CONTENT, *, query: str = "", **headers: str) -> TestResponse:
        sent = {**caller, "Idempotency-Key": "a-key", **{key.replace("_", "-"): text for key, text in headers.items()}}
        if request.param == "form":
            return client.post(f"{FILES}{query}", headers=sent, **form(a_file(content)))
        return client.post(f"{RAW}{query}", headers=sent, data=content, content_type=PLAIN)

    return post


def digest(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def count_files() -> int:
    return db.session.scalar(select(func.count()).select_from(File)) or 0


def states() -> list[State]:
    return list(db.session.scalars(select(IdempotencyKey.state)))


def let_a_minute_pass() -> None:
    with transaction():
        db.session.execute(update(IdempotencyKey).values(locked_at=utcnow() - LOCKED_FOR - timedelta(seconds=1)))


def is_replayed(response: TestResponse) -> bool:
    return response.headers.get("Idempotent-Replayed") == "true"


# --- Repetitions -----------------------------------------------------------------------------------------------------


def test_a_repetition_is_told_the_same_and_stores_nothing(in_app, files_root, send):
    first, second = send(), send()
    assert first.status_code == second.status_code == 201
    assert first.data == second.data
    for name in ("Location", "ETag", "Content-Type"):
        assert first.headers[name] == second.headers[name]
    assert (is_replayed(first), is_replayed(second)) == (False, True)
    assert in_app(count_files) == 1
    in_app(check_books, files_root)


def test_without_a_key_or_with_another_it_is_another_file(in_app, files_root, send):
    assert not is_replayed(send())
    assert not is_replayed(send(Idempotency_Key="another"))
    assert in_app(count_files) == 2
    in_app(check_books, files_root)


def test_what_is_compared_is_declared_and_not_the_bytes(in_app, send):
    first = send()
    assert send(OTHER).data == first.data
    assert in_app(count_files) == 1


@pytest.mark.parametrize(
    "other",
    [{"content": CONTENT + b"!"}, {"Content_Digest": digest(CONTENT)}, {"Repr_Digest": digest(CONTENT)}],
    ids=["length", "Content-Digest", "Repr-Digest"],
)
def test_another_length_or_digest_is_another_request(in_app, files_root, send, other):
    send()
    response = send(**other)
    assert code(response) == (422, "idempotency_key_reused")
    assert [error["pointer"] for error in response.json["errors"]] == ["/header/Idempotency-Key"]
    assert in_app(count_files) == 1
    in_app(check_books, files_root)


def test_other_parameters_are_another_request(client, caller, in_app):
    def send(query: str) -> TestResponse:
        headers = {**caller, "Idempotency-Key": "a-key"}
        return client.post(f"{RAW}?{query}", headers=headers, data=CONTENT, content_type=PLAIN)

    assert send("filename=a.txt").status_code == 201
    assert code(send("filename=b.txt")) == (422, "idempotency_key_reused")
    assert is_replayed(send("filename=a.txt"))
    assert in_app(count_files) == 1


def test_a_key_of_one_way_is_no_key_of_the_other(client, caller, in_app):
    headers = {**caller, "Idempotency-Key": "a-key"}
    assert client.post(FILES, headers=headers, **form(a_file())).status_code == 201
    response = client.post(RAW, headers=headers, data=CONTENT, content_type=PLAIN)
    assert code(response) == (422, "idempotency_key_reused")


def test_chunked_bodies_have_keys_as_well(client, caller, in_app):
    def send() -> TestResponse:
        return client.post(
            RAW,
            headers={**caller, "Idempotency-Key": "a-key", "Transfer-Encoding": "chunked"},
            input_stream=BytesIO(CONTENT),
            content_type=PLAIN,
            environ_overrides={"wsgi.input_terminated": True},
        )

    first, second = send(), send()
    assert first.status_code == 201
    assert (second.data, is_replayed(second)) == (first.data, True)
    assert in_app(count_files) == 1


def test_a_deleted_file_is_still_the_answer_to_its_key(client, caller, in_app, run_jobs, send):
    first = send()
    client.delete(first.headers["Location"], headers=caller)
    run_jobs()
    assert send().data == first.data
    assert in_app(count_files) == 0


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "wrong", "refusal"),
    [
        ({"max_size": 100}, {"content": bytes(101)}, (413, "file_too_large")),
        ({"quota": 100}, {"content": bytes(101)}, (413, "quota_exceeded")),
        ({}, {"content": b""}, (422, "validation_error")),
        ({}, {"query": "?unknown=1"}, (422, "validation_error")),
        ({"allowed_types": ["text/*"]}, {"content": b"<html>"}, (415, "type_not_allowed")),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_a_refused_upload_leaves_the_key_to_the_corrected_one(
    in_app, files_root, set_files, send, settings, wrong, refusal
):
    set_files(**settings)
    assert code(send(**wrong)) == refusal
    in_app(check_nothing_stored, files_root)
    assert in_app(states) == []
    response = send()
    assert (response.status_code, is_replayed(response)) == (201, False)
    assert in_app(count_files) == 1


def test_a_wrong_digest_leaves_the_key_to_the_right_one(client, caller, in_app):
    def send(content_digest: str) -> TestResponse:
        headers = {**caller, "Idempotency-Key": "a-key", "Content-Digest": content_digest}
        return client.post(RAW, headers=headers, data=CONTENT, content_type=PLAIN)

    assert errors(send(digest(OTHER))) == {"/header/Content-Digest": "digest_mismatch"}
    assert code(send("sha-256=nonsense")) == (400, "invalid_digest")
    assert send(digest(CONTENT)).status_code == 201
    assert in_app(count_files) == 1


def test_a_cut_body_leaves_the_key_to_the_whole_one(client, caller, in_app, files_root):
    def send(path: str, body: bytes, length: int, content_type: str) -> TestResponse:
        headers = {**caller, "Idempotency-Key": path}
        overrides = {"CONTENT_LENGTH": str(length)}
        return client.post(path, headers=headers, data=body, content_type=content_type, environ_overrides=overrides)

    whole = form(a_file())
    for path, body, content_type in ((RAW, CONTENT, PLAIN), (FILES, whole["data"], whole["content_type"])):
        assert code(send(path, body[:-5], len(body), content_type)) == (400, "incomplete_body")
        in_app(check_nothing_stored, files_root)
        assert in_app(states) == []
    for path, body, content_type in ((RAW, CONTENT, PLAIN), (FILES, whole["data"], whole["content_type"])):
        response = send(path, body, len(body), content_type)
        assert (response.status_code, is_replayed(response)) == (201, False)


# --- Failures and crashes --------------------------------------------------------------------------------------------


class Broken(LocalStorage):
    """A storage that fails, or ends its process, as often as it is told to, after it has taken the file."""

    errors: list[BaseException]

    def put(self, *args: Any, **kwargs: Any) -> None:
        """Store, and fail."""
        super().put(*args, **kwargs)
        if self.errors:
            raise self.errors.pop()


def test_after_a_failure_the_repetition_is_executed(in_app, files_root, replace_storage, send):
    replace_storage(Broken).errors = [Unavailable()]
    assert code(send()) == (503, "service_unavailable")
    in_app(check_nothing_stored, files_root)
    assert in_app(states) == [State.RETRYABLE]
    assert code(send(CONTENT + b"!")) == (422, "idempotency_key_reused")
    response = send()
    assert (response.status_code, is_replayed(response)) == (201, False)
    assert is_replayed(send())
    in_app(check_books, files_root)
    assert in_app(count_files) == 1


def test_killed_before_the_file_is_ready_the_repetition_makes_it(in_app, files_root, replace_storage, send, engine):
    replace_storage(Broken).errors = [Killed()]
    with broken("DELETE FROM files", Killed(), engine=engine), pytest.raises(Killed):
        send()
    assert code(send()) == (409, "idempotency_in_progress")
    in_app(let_a_minute_pass)
    assert send().status_code == 201
    assert in_app(sweep, older_than=0).uploads == 1
    in_app(check_books, files_root)
    assert in_app(count_files) == 1


def test_killed_after_the_file_is_ready_the_repetition_shows_it(in_app, files_root, send, engine):
    with broken("UPDATE idempotency_keys SET state", Killed(), engine=engine), pytest.raises(Killed):
        send()
    before = in_app(lambda: db.session.scalars(select(File.id)).one())
    assert code(send()) == (409, "idempotency_in_progress")
    in_app(let_a_minute_pass)
    response = send()
    assert (response.status_code, is_replayed(response)) == (201, False)
    assert response.json["data"]["id"] == str(before)
    assert (send().data, is_replayed(send())) == (response.data, True)
    in_app(check_books, files_root)
    assert in_app(count_files) == 1


def test_killed_after_the_file_is_ready_and_deleted_since_the_repetition_finds_nothing(
    client, caller, in_app, files_root, run_jobs, send, engine
):
    with broken("UPDATE idempotency_keys SET state", Killed(), engine=engine), pytest.raises(Killed):
        send()
    file_id = in_app(lambda: db.session.scalars(select(File.id)).one())
    assert client.delete(f"{FILES}/{file_id}", headers=caller).status_code == 204
    in_app(let_a_minute_pass)
    assert [code(send()) for _ in range(2)] == [(404, "not_found")] * 2
    run_jobs()
    in_app(check_nothing_stored, files_root)


# --- At once ---------------------------------------------------------------------------------------------------------


class Held(BytesIO):
    """A body of which the server gets no more until it is let."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.started, self.go_on = Event(), Event()

    def read(self, size: int | None = -1, /) -> bytes:
        """Read when it is allowed."""
        self.started.set()
        assert self.go_on.wait(30)
        return super().read(size)


@pytest.mark.parametrize("way", ["raw", "form"])
def test_of_two_at_once_with_one_key_one_is_stored_and_one_is_told_to_wait(app, caller, in_app, files_root, way):
    headers = {**caller, "Idempotency-Key": "a-key"}
    options: dict[str, Any] = form(a_file()) if way == "form" else {"data": CONTENT, "content_type": PLAIN}
    path = FILES if way == "form" else RAW
    held = Held(options["data"])
    slow = {"input_stream": held, "content_type": options["content_type"]}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(app.test_client().post, path, headers=headers, **slow)
        assert held.started.wait(30)
        second = app.test_client().post(path, headers=headers, **options)
        held.go_on.set()
        assert first.result().status_code == 201
    assert code(second) == (409, "idempotency_in_progress")
    assert second.headers["Retry-After"] == "1"
    third = app.test_client().post(path, headers=headers, **options)
    assert (third.data, is_replayed(third)) == (first.result().data, True)
    assert in_app(count_files) == 1
    in_app(check_books, files_root)


def test_an_upload_that_lost_its_key_leaves_nothing_of_its_own(app, caller, in_app, files_root):
    headers = {**caller, "Idempotency-Key": "a-key"}
    held = Held(CONTENT)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(app.test_client().post, RAW, headers=headers, input_stream=held, content_type=PLAIN)
        assert held.started.wait(30)
        in_app(let_a_minute_pass)
        fast = app.test_client().post(RAW, headers=headers, data=CONTENT, content_type=PLAIN)
        held.go_on.set()
        assert code(slow.result()) == (409, "idempotency_in_progress")
    assert fast.status_code == 201
    assert list(in_app(on_disk, files_root).values()) == [len(CONTENT)]
    in_app(check_books, files_root)
