"""The pipeline of uploads: what it keeps, and that whatever is refused or fails leaves nothing."""

import hashlib
import resource
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import chain
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from project.database import db, transaction, utcnow
from project.errors import AppError, IncompleteBody, Invalid, Unavailable
from project.files import quota, uploads
from project.files.models import File, FileStatus, StorageUsage, UploadMethod, Visibility
from project.files.parts import SUFFIX
from project.files.quota import QuotaExceeded, Usage
from project.files.storage import PARTS, LocalStorage
from project.files.sweep import OLDER_THAN, sweep
from project.files.uploads import Checked, FileTooLarge, TypeNotAllowed
from project.security import SessionRevoked
from project.users import service as users
from project.users.models import User
from tests.factories import make_user
from tests.files.samples import picture
from tests.files.storages import limited
from tests.files.uploading import (
    CONTENT,
    WAYS,
    Killed,
    at_once,
    broken,
    broken_commit,
    check_books,
    check_counters,
    check_nothing_stored,
    content_of,
    holds_no_connection,
    in_blocks,
    on_disk,
    status_of,
    upload,
    upload_chunked,
    upload_form,
)

Send = Callable[..., File]
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER_SHA256 = hashlib.sha256(b"other").hexdigest()


@pytest.fixture
def user(session, files_root) -> User:
    """An account that stores files."""
    return make_user()


@pytest.fixture(params=WAYS)
def send(request) -> Send:
    """Upload in each of the ways that go through the server."""
    return WAYS[request.param]


def invalid(error: Invalid) -> dict[str, str]:
    return {field.pointer: field.code for field in error.errors}


# --- What is kept ----------------------------------------------------------------------------------------------------


def test_an_uploaded_file_is_ready_with_its_bytes_on_disk(user, files_root, send):
    file = send(user, filename="../a\nb.txt", visibility=Visibility.PUBLIC, purpose="note", metadata={"a": "b"})
    assert (file.status, file.size, file.reserved, file.sha256) == (FileStatus.READY, len(CONTENT), 0, SHA256)
    assert (file.filename, file.content_type, file.declared_type) == ("ab.txt", "text/plain", "text/plain")
    assert (file.owner_id, file.visibility, file.purpose, file.labels) == (user.id, "public", "note", {"a": "b"})
    assert content_of(file) == CONTENT
    assert (files_root / file.storage_key).stat().st_mtime == pytest.approx(file.ready_at.timestamp(), abs=0.001)
    assert quota.usage(user.id).used == len(CONTENT)
    check_books(files_root)


def test_what_the_pipeline_returns_is_what_the_database_has(user, send):
    file = send(user)
    columns = {column.key: getattr(file, column.key) for column in File.__mapper__.column_attrs}
    db.session.expire_all()
    assert columns == {column.key: getattr(file, column.key) for column in File.__mapper__.column_attrs}


@pytest.mark.parametrize("method", UploadMethod)
def test_a_file_keeps_how_it_came(user, method):
    assert upload(user, method=method).upload_method is method


def test_a_file_of_many_blocks_is_stored_in_their_order(user, files_root, send):
    content = bytes(range(256)) * 1000
    assert content_of(send(user, content, blocks=in_blocks(content, 7001))) == content
    check_books(files_root)


def test_a_picture_has_its_type_and_its_measures_whatever_was_declared(user, send):
    file = send(user, picture("PNG", (40, 20)), declared_type="text/plain")
    assert (file.content_type, file.declared_type, file.width, file.height) == ("image/png", "text/plain", 40, 20)


def test_a_digest_that_fits_is_accepted(user, send):
    assert send(user, sha256=SHA256).sha256 == SHA256


def test_the_same_bytes_twice_are_two_files(user, files_root, send):
    first, second = send(user), send(user)
    assert first.storage_key != second.storage_key
    assert quota.usage(user.id) == Usage(2 * len(CONTENT), 0, 1 << 30, 2)
    check_books(files_root)


@pytest.mark.parametrize("size", [1, 999, 1000])
def test_a_file_up_to_the_limit_is_accepted(user, files_root, set_files, send, size):
    set_files(max_size=1000)
    assert send(user, bytes(size)).size == size
    check_books(files_root)


def test_a_file_that_fills_the_quota_is_accepted(user, set_files, send):
    set_files(quota=len(CONTENT))
    send(user)
    assert quota.usage(user.id).available == 0


# --- What is refused -------------------------------------------------------------------------------------------------


def test_an_empty_file_is_refused(user, files_root, send):
    with pytest.raises(Invalid) as refused:
        send(user, b"")
    assert invalid(refused.value) == {"/file": "empty_file"}
    check_nothing_stored(files_root)


@pytest.mark.parametrize("pointer", ["/sha256", "/header/Content-Digest"])
def test_bytes_of_another_digest_are_refused(user, files_root, send, pointer):
    with pytest.raises(Invalid) as refused:
        send(user, sha256=OTHER_SHA256, sha256_pointer=pointer)
    assert invalid(refused.value) == {pointer: "digest_mismatch"}
    check_nothing_stored(files_root)


def test_a_type_that_is_not_allowed_is_refused_by_what_the_bytes_are(user, files_root, set_files, send):
    set_files(allowed_types=["image/*"])
    with pytest.raises(TypeNotAllowed) as refused:
        send(user, declared_type="image/png")
    assert "application/octet-stream" in refused.value.detail
    check_nothing_stored(files_root)


def test_a_file_over_the_limit_is_refused(user, files_root, set_files, send):
    set_files(max_size=1000)
    with pytest.raises(FileTooLarge):
        send(user, bytes(1001))
    check_nothing_stored(files_root)


def test_a_file_over_the_quota_is_refused(user, files_root, set_files, send):
    set_files(quota=1000)
    with pytest.raises(QuotaExceeded):
        send(user, bytes(1001))
    check_nothing_stored(files_root)


def test_of_a_refused_file_what_was_there_before_stays(user, files_root, set_files, send):
    kept = send(user)
    set_files(quota=len(CONTENT) + 100)
    with pytest.raises(QuotaExceeded):
        send(user, bytes(101))
    assert content_of(kept) == CONTENT
    check_books(files_root)


@pytest.mark.parametrize(
    ("way", "settings", "refusal"),
    [
        ("chunked", {"max_size": 1000}, FileTooLarge),
        ("chunked", {"quota": 1000}, QuotaExceeded),
        ("form", {"max_size": 1000}, FileTooLarge),
    ],
)
def test_what_turns_out_to_be_too_large_is_read_no_further(user, files_root, set_files, way, settings, refusal):
    set_files(**settings)
    blocks = in_blocks(bytes(6000), 600)
    with pytest.raises(refusal):
        WAYS[way](user, blocks=blocks)
    assert len(list(blocks)) == 8
    check_nothing_stored(files_root)


@pytest.mark.parametrize("settings", [{"max_size": 1000}, {"quota": 1000}], ids=["limit", "quota"])
def test_of_a_length_that_is_too_large_nothing_is_read(user, files_root, set_files, settings):
    set_files(**settings)
    blocks = in_blocks(bytes(1001), 1)
    with pytest.raises(AppError):
        upload(user, bytes(1001), blocks=blocks)
    assert len(list(blocks)) == 1001
    check_nothing_stored(files_root)


def test_without_any_room_a_chunked_body_is_not_read(user, files_root, set_files):
    set_files(quota=len(CONTENT))
    upload(user)
    blocks = in_blocks(CONTENT, 1)
    with pytest.raises(QuotaExceeded):
        upload_chunked(user, blocks=blocks)
    assert b"".join(blocks) == CONTENT
    check_books(files_root)


@pytest.mark.parametrize("came", [b"", CONTENT[:-1], CONTENT + b"!"])
def test_a_body_of_another_length_than_was_declared_is_refused(user, files_root, came):
    with pytest.raises((IncompleteBody, QuotaExceeded)):
        upload(user, blocks=in_blocks(came))
    check_nothing_stored(files_root)


# --- What is held while bytes come -----------------------------------------------------------------------------------


def observed(content: bytes, look: Callable[[], Any], seen: list[Any]) -> Iterator[bytes]:
    """Give blocks, and look before each of them and before the end."""
    for block in in_blocks(content, len(content) // 3):
        seen.append(look())
        yield block
    seen.append(look())


def test_no_transaction_and_no_connection_is_held_while_bytes_come(user, send):
    seen: list[bool] = []
    send(user, blocks=observed(CONTENT, holds_no_connection, seen))
    assert len(seen) > 3
    assert all(seen)


@pytest.mark.parametrize(
    ("way", "settings", "held"),
    [
        ("raw", {}, len(CONTENT)),
        ("chunked", {"max_size": 1000}, 1000),
        ("chunked", {"quota": 1000}, 1000),
        ("chunked", {"quota": 1000, "max_size": 1001}, 1000),
    ],
)
def test_while_bytes_come_room_is_held_and_what_was_not_needed_is_given_back(user, set_files, way, settings, held):
    set_files(**settings)
    seen: list[Usage] = []
    WAYS[way](user, blocks=observed(CONTENT, lambda: quota.usage(user.id), seen))
    assert {(usage.used, usage.reserved, usage.file_count) for usage in seen} == {(0, held, 0)}
    after = quota.usage(user.id)
    assert (after.used, after.reserved, after.file_count) == (len(CONTENT), 0, 1)


def test_while_bytes_come_the_file_is_pending_and_its_part_grows(user, files_root):
    seen: list[Any] = []

    def look() -> tuple[FileStatus | None, dict[str, int]]:
        return db.session.scalar(select(File.status)), on_disk(files_root)

    file = upload(user, b"abc", blocks=observed(b"abc", look, seen))
    assert seen == [(FileStatus.PENDING, {f"{PARTS}/{file.id}{SUFFIX}": size}) for size in range(4)]


# --- What fails ------------------------------------------------------------------------------------------------------


class Full(LocalStorage):
    """A storage that takes nothing."""

    def put(self, *_args: Any, **_kwargs: Any) -> None:
        raise Unavailable("The storage is full.")


class Uncertain(LocalStorage):
    """A storage that takes everything and says that it has not."""

    def put(self, *args: Any, **kwargs: Any) -> None:
        super().put(*args, **kwargs)
        raise Unavailable("The storage did not answer.")


class Stopping(LocalStorage):
    """A process that is told to stop while it stores."""

    def put(self, *args: Any, **kwargs: Any) -> None:
        super().put(*args, **kwargs)
        raise Killed


@pytest.mark.parametrize(("kind", "error"), [(Full, Unavailable), (Uncertain, Unavailable), (Stopping, Killed)])
def test_when_storing_fails_nothing_is_left(user, files_root, replace_storage, send, kind, error):
    replace_storage(kind)
    with pytest.raises(error):
        send(user)
    check_nothing_stored(files_root)


def test_when_the_disk_is_full_nothing_is_left(user, files_root, send):
    content = bytes(5 << 20)
    # More than the database writes, less than the file.
    with limited(resource.RLIMIT_FSIZE, 4 << 20), pytest.raises(Unavailable):
        send(user, content, blocks=in_blocks(content, 1 << 20))
    check_nothing_stored(files_root)


@pytest.mark.parametrize("in_the_way", [None, b"not a folder"], ids=["gone", "a file"])
def test_when_the_storage_is_not_mounted_nothing_is_left(user, files_root, send, in_the_way):
    shutil.rmtree(files_root)
    if in_the_way is not None:
        files_root.write_bytes(in_the_way)
    with pytest.raises(Unavailable):
        send(user)
    files_root.unlink(missing_ok=True)
    files_root.mkdir()
    check_nothing_stored(files_root)


@pytest.mark.parametrize("moment", range(3))
def test_when_the_storage_goes_away_while_bytes_come_it_is_unavailable(user, files_root, send, moment):
    def lose(seen: list[Any]) -> None:
        if len(seen) == moment:
            shutil.rmtree(files_root)

    seen: list[Any] = []
    with pytest.raises(Unavailable):
        send(user, blocks=observed(CONTENT, lambda: lose(seen), seen))
    files_root.mkdir()
    check_nothing_stored(files_root)


def test_when_the_parts_cannot_even_be_removed_it_is_unavailable(user, files_root, send):
    def lose() -> None:
        parts = files_root / PARTS
        if parts.is_dir():
            shutil.rmtree(parts)
            parts.write_bytes(b"")

    with pytest.raises(Unavailable):
        send(user, blocks=observed(CONTENT, lose, []))
    (files_root / PARTS).unlink()
    check_nothing_stored(files_root)


@pytest.mark.parametrize("statement", ["INSERT INTO files", "UPDATE storage_usage SET reserved", "UPDATE files"])
def test_when_the_database_fails_nothing_is_left(user, files_root, send, statement):
    with broken(statement), pytest.raises(OperationalError):
        send(user)
    check_nothing_stored(files_root)


@pytest.mark.parametrize("number", [1, 2], ids=["of the reservation", "of the file"])
def test_when_a_commit_fails_nothing_is_left(user, files_root, send, number):
    with broken_commit(number, is_done=False), pytest.raises(OperationalError):
        send(user)
    check_nothing_stored(files_root)


def test_a_file_whose_commit_was_not_confirmed_keeps_its_bytes(user, files_root, send):
    with broken_commit(2, is_done=True), pytest.raises(OperationalError):
        send(user)
    file = db.session.scalars(select(File)).one()
    assert (file.status, content_of(file)) == (FileStatus.READY, CONTENT)
    check_books(files_root)


def test_what_cannot_be_undone_at_once_is_told_as_what_it_was_and_left_to_a_sweep(user, files_root, send, caplog):
    with broken("DELETE FROM files"), pytest.raises(Invalid):
        send(user, sha256=OTHER_SHA256)
    assert [record.msg for record in caplog.records] == ["upload_not_undone"]
    check_counters()
    assert quota.usage(user.id).reserved > 0
    assert sweep(older_than=0).uploads == 1
    check_nothing_stored(files_root)


@pytest.mark.parametrize("error", [IncompleteBody, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("way", ["raw", "chunked"])
def test_when_the_body_breaks_off_nothing_is_left(user, files_root, way, error):
    def breaking() -> Iterator[bytes]:
        yield CONTENT[:5]
        raise error

    with pytest.raises(error):
        WAYS[way](user, blocks=breaking())
    check_nothing_stored(files_root)


# --- What others do meanwhile ----------------------------------------------------------------------------------------


def meanwhile(app: Flask, act: Callable[[], Any]) -> Iterator[bytes]:
    """Give some bytes, let somebody else do something, and give the rest."""
    yield CONTENT[:5]
    with app.app_context():
        act()
    yield CONTENT[5:]


@pytest.mark.parametrize("way", ["raw", "chunked"])
def test_an_upload_of_an_account_that_is_erased_meanwhile_ends_without_a_trace(app, user, files_root, run_jobs, way):
    blocks = meanwhile(app, lambda: users.erase_user(user.id, actor_id=None))
    with pytest.raises(Unavailable):
        WAYS[way](user, blocks=blocks)
    assert db.session.scalars(select(StorageUsage)).all() == []
    run_jobs()
    check_nothing_stored(files_root)


def test_a_form_of_an_account_that_is_erased_meanwhile_is_refused_without_a_trace(app, user, files_root):
    with pytest.raises(SessionRevoked):
        upload_form(user, blocks=meanwhile(app, lambda: users.erase_user(user.id, actor_id=None)))
    assert db.session.scalars(select(StorageUsage)).all() == []
    check_nothing_stored(files_root)


def test_uploads_beside_the_erasure_of_their_account_end_in_one_way_or_another(app, in_app, files_root, run_jobs):
    user = in_app(make_user)
    calls = [lambda send=send: send(user) for send in [*WAYS.values()] * 3]
    *ended, erased = at_once(app, [*calls, lambda: users.erase_user(user.id, actor_id=None)])
    assert erased is None
    # A busy database may refuse connections; what must not be is that two wait for each other.
    assert {type(one) for one in ended} <= {File, Unavailable, SessionRevoked, OperationalError}
    assert not any("deadlock" in str(one) for one in ended)
    run_jobs()
    in_app(check_nothing_stored, files_root)
    assert in_app(lambda: db.session.scalars(select(StorageUsage)).all()) == []


def take_for_dead() -> None:
    """Sweep as if the uploads under way had been silent for long."""
    with transaction():
        db.session.execute(update(File).values(updated_at=utcnow() - timedelta(seconds=OLDER_THAN + 1)))
    assert sweep().uploads == 1


@pytest.mark.parametrize("way", ["raw", "chunked"])
@pytest.mark.parametrize("clear", [take_for_dead, lambda: sweep(older_than=0)], ids=["the row", "the row and the part"])
def test_an_upload_that_a_sweep_took_for_dead_is_told_so_and_its_object_goes(app, user, files_root, way, clear):
    with pytest.raises(Unavailable):
        WAYS[way](user, blocks=meanwhile(app, clear))
    check_nothing_stored(files_root)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_upload_that_is_taken_for_dead_while_it_is_stored_leaves_no_object(
    app, user, files_root, replace_storage, send, moment
):
    class Slow(LocalStorage):
        def put(self, *args: Any, **kwargs: Any) -> None:
            for now in ("before", "after"):
                if now == "after":
                    super().put(*args, **kwargs)
                if now == moment:
                    with app.app_context():
                        take_for_dead()

    replace_storage(Slow)
    with pytest.raises(Unavailable):
        send(user)
    check_nothing_stored(files_root)


def test_a_file_that_became_ready_while_it_was_taken_for_dead_stays(app, user, files_root):
    found: list[File] = []
    file = upload(user, blocks=meanwhile(app, lambda: found.extend(db.session.scalars(select(File)))))
    assert [uploads.abandon(dead) for dead in found] == [False]
    assert (status_of(file.id), content_of(file)) == (FileStatus.READY, CONTENT)
    check_books(files_root)


def test_a_file_becomes_ready_once(user, files_root):
    file = upload(user)
    again = Checked(2 * file.size, OTHER_SHA256, "image/png", 1, 1)
    with pytest.raises(Unavailable):
        uploads.publish(file, again, ready_at=utcnow())
    assert (file.size, file.sha256, content_of(file)) == (len(CONTENT), SHA256, CONTENT)
    check_books(files_root)


def test_a_slow_upload_tells_that_it_lives(app, user, files_root, monkeypatch):
    monkeypatch.setattr(uploads, "TOUCH_SECONDS", 0)
    old = utcnow() - timedelta(hours=1)

    def age() -> None:
        with transaction():
            db.session.execute(update(File).values(updated_at=old))

    def slowly() -> Iterator[bytes]:
        for byte in CONTENT:
            yield bytes([byte])
            with app.app_context():
                assert sweep().uploads == 0
                age()

    upload(user, blocks=slowly())
    check_books(files_root)


def test_a_slow_upload_that_was_taken_for_dead_hears_it_before_its_end(app, user, files_root, monkeypatch):
    monkeypatch.setattr(uploads, "TOUCH_SECONDS", 0)
    blocks = chain(meanwhile(app, take_for_dead), in_blocks(bytes(100_000)))
    with pytest.raises(Unavailable):
        upload_chunked(user, blocks=blocks)
    assert len(list(blocks)) == 100
    check_nothing_stored(files_root)
