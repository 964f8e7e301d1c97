"""Sweeping clears away all that crashes leave, and nothing that lives; verifying finds bytes that are others."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select, update

from project.database import db, transaction, utcnow
from project.errors import Unavailable
from project.files import direct, quota, service, uploads, variants
from project.files.models import DirectUpload, File, FileStatus, StorageUsage, UploadMethod
from project.files.parts import SUFFIX
from project.files.quota import Usage
from project.files.storage import PARTS, LocalStorage, new_key, storage
from project.files.sweep import (
    BATCH,
    OLDER_THAN,
    Swept,
    count_files,
    end_stale,
    find_orphans,
    sweep,
    verify,
    wrong_counters,
)
from project.jobs import TASKS
from project.users.models import User
from tests.factories import make_user
from tests.files.samples import picture
from tests.files.uploading import (
    CONTENT,
    at_once,
    check_books,
    check_nothing_stored,
    content_of,
    describe,
    holds_no_connection,
    on_disk,
    principal_of,
    set_row,
    status_of,
    upload,
)

NOTHING = Swept()
# Just what is too young, and what is old enough.
YOUNG = timedelta(seconds=OLDER_THAN - 60)
OLD = timedelta(seconds=OLDER_THAN + 1)


@pytest.fixture
def user(session, files_root) -> User:
    """An account that stores files."""
    return make_user()


def let_pass(time: timedelta, root: Path) -> None:
    """Let rows, parts and objects become older."""
    for file_id, updated_at in db.session.execute(select(File.id, File.updated_at)).all():
        with transaction():
            db.session.execute(update(File).where(File.id == file_id).values(updated_at=updated_at - time))
    for name in on_disk(root):
        moment = (root / name).stat().st_mtime - time.total_seconds()
        os.utime(root / name, (moment, moment))


def everything(root: Path) -> object:
    """All that a sweep could change."""
    db.session.expire_all()
    rows = [db.session.execute(select(*model.__table__.columns)).all() for model in (File, StorageUsage)]
    return rows, on_disk(root)


def begin(owner: User, content: bytes = CONTENT) -> File:
    """What is left after step 1: a reservation and a row."""
    return uploads.begin(describe(), owner_id=owner.id, size=len(content))


def receive(file: File, content: bytes = CONTENT) -> Path:
    """What is left after step 2: the part as well."""
    part = uploads.new_part(file.id)
    part.write(content)
    part.close()
    return part.path


def store(key: str, content: bytes = CONTENT) -> None:
    """What is left after step 3: an object, whose row is pending."""
    part = uploads.new_part()
    part.write(content)
    part.close()
    storage().put(key, part.path, content_type="text/plain", sha256=part.sha256, modified=utcnow())


# --- Each row of the crash table -------------------------------------------------------------------------------------


def after_reserving(owner: User) -> Swept:
    begin(owner)
    return Swept(uploads=1)


def while_receiving(owner: User) -> Swept:
    receive(begin(owner))
    return Swept(uploads=1, parts=1)


def while_receiving_a_form(owner: User) -> Swept:
    receive(File(id=uuid4()))
    return Swept(parts=1)


def after_storing(owner: User) -> Swept:
    store(begin(owner).storage_key)
    return Swept(uploads=1)


def after_the_row_was_undone(owner: User) -> Swept:
    store(new_key())
    return Swept(orphans=1)


def after_deleting(owner: User) -> Swept:
    service.delete_file(upload(owner).id, caller=principal_of(owner))
    return Swept(deleted=1)


def after_removing_the_object(owner: User) -> Swept:
    file = upload(owner, picture("PNG"))
    variants.get_thumbnail(file, size=64, kind="webp")
    service.delete_file(file.id, caller=principal_of(owner))
    storage().delete(file.storage_key)
    return Swept(deleted=1)


def after_losing_count(owner: User) -> Swept:
    begin(owner)
    with transaction():
        db.session.execute(update(StorageUsage).values(used=7, reserved=8, file_count=9))
    # Ending the upload gives back what it held, which leaves the rest.
    return Swept(uploads=1, recounted=1)


@pytest.fixture(
    params=[
        after_reserving,
        while_receiving,
        while_receiving_a_form,
        after_storing,
        after_the_row_was_undone,
        after_deleting,
        after_removing_the_object,
        after_losing_count,
    ],
    ids=lambda crash: crash.__name__,
)
def crash(request) -> Callable[[User], Swept]:
    """Leave behind what a crash would, and return what a sweep should find."""
    return request.param


def test_what_a_crash_leaves_is_cleared_away_and_the_second_sweep_finds_nothing(user, files_root, crash):
    expected = crash(user)
    let_pass(OLD, files_root)
    assert sweep() == expected
    check_nothing_stored(files_root)
    assert sweep() == NOTHING
    assert (quota.usage(user.id).used, quota.usage(user.id).reserved) == (0, 0)


def test_a_dry_run_tells_the_same_and_changes_nothing(user, files_root, crash):
    expected = crash(user)
    let_pass(OLD, files_root)
    before = everything(files_root)
    assert [sweep(dry_run=True) for _ in range(2)] == [expected, expected]
    assert everything(files_root) == before


def test_what_is_young_is_left_alone_unless_it_is_asked_for(user, files_root, crash):
    expected = crash(user)
    let_pass(YOUNG, files_root)
    before = everything(files_root)
    # Counters are right or wrong at any age.
    assert sweep() == replace(NOTHING, recounted=expected.recounted)
    if not expected.recounted:
        assert everything(files_root) == before
    assert sweep(older_than=OLDER_THAN - 120) == replace(expected, recounted=0)
    check_nothing_stored(files_root)


def test_the_job_does_the_same_but_for_what_a_wrong_setting_would_make_a_disaster(user, files_root, crash):
    expected = crash(user)
    let_pass(OLD, files_root)
    if expected.recounted:
        quota.recount(user.id)
    end_stale()
    left = sweep()
    assert left == replace(NOTHING, orphans=expected.orphans)
    check_nothing_stored(files_root)


def test_the_job_runs_every_quarter_of_an_hour():
    assert TASKS["files.sweep.end_stale"].cron == "*/15 * * * *"


# --- What lives ------------------------------------------------------------------------------------------------------


def test_what_is_whole_stays(user, files_root):
    file = upload(user, picture("PNG"))
    variants.get_thumbnail(file, size=64, kind="webp")
    upload(make_user())
    let_pass(OLD, files_root)
    before = everything(files_root)
    assert sweep() == sweep(older_than=0) == NOTHING
    end_stale()
    assert everything(files_root) == before
    check_books(files_root)


def test_an_upload_that_lives_stays_however_long_it_takes(app, user, files_root):
    def slowly() -> Iterator[bytes]:
        yield CONTENT[:5]
        with app.app_context():
            file = db.session.scalars(select(File)).one()
            set_row(file, created_at=utcnow() - timedelta(days=1))
            let_pass(OLD, files_root)
            uploads.touch(file)
            assert sweep() == NOTHING
            end_stale()
        yield CONTENT[5:]

    assert content_of(upload(user, blocks=slowly())) == CONTENT
    check_books(files_root)


def test_a_form_that_is_still_received_stays(app, user, files_root):
    part = uploads.new_part()
    part.write(b"!")
    assert sweep() == NOTHING
    assert part.path.exists()
    part.discard()


@pytest.mark.parametrize("older_than", [OLDER_THAN, 0])
def test_sweeping_beside_uploads_and_deletions_keeps_the_books(app, in_app, files_root, run_jobs, older_than):
    user = in_app(make_user)

    def come_and_go() -> None:
        for _ in range(5):
            try:
                file = upload(user)
            except Unavailable:
                assert older_than == 0  # it was taken for dead
            else:
                service.delete_file(file.id, caller=principal_of(user))

    def clear() -> None:
        for _ in range(5):
            swept = sweep(older_than=older_than)
            assert (swept.missing, swept.recounted) == (0, 0)

    assert at_once(app, [come_and_go] * 5 + [clear]) == [None] * 6
    run_jobs()
    in_app(check_nothing_stored, files_root)


def test_files_of_others_in_the_storage_stay(user, files_root):
    names = [f"{PARTS}/notes{SUFFIX}", f"{PARTS}/{uuid4()}.txt", "notes.txt", "ab/cd/notes.txt", "lost+found/x"]
    for name in names:
        (files_root / name).parent.mkdir(parents=True, exist_ok=True)
        (files_root / name).write_bytes(b"!")
        os.utime(files_root / name, (0, 0))
    assert sweep(older_than=0) == NOTHING
    assert set(on_disk(files_root)) == set(names)


def test_a_deleted_file_whose_job_is_yet_to_run_stays_until_then(user, files_root, run_jobs):
    service.delete_file(upload(user).id, caller=principal_of(user))
    assert sweep() == NOTHING
    assert quota.usage(user.id).file_count == 1
    run_jobs()
    check_nothing_stored(files_root)


# --- Lost and altered bytes ------------------------------------------------------------------------------------------


def test_a_file_without_bytes_is_marked_and_still_counts(user, files_root, caplog):
    lost, kept = upload(user), upload(user)
    (files_root / lost.storage_key).unlink()
    version = lost.version
    assert sweep(dry_run=True) == Swept(missing=1)
    assert status_of(lost.id) is FileStatus.READY
    assert sweep() == Swept(missing=1)
    assert sweep() == NOTHING
    assert [status_of(file.id) for file in (lost, kept)] == [FileStatus.MISSING, FileStatus.READY]
    assert db.session.scalar(select(File.version).where(File.id == lost.id)) == version + 1
    assert [(record.msg, record.file) for record in caplog.records] == [("file_lost", str(lost.id))]
    assert quota.usage(user.id) == Usage(2 * len(CONTENT), 0, 1 << 30, 2)
    check_books(files_root)


def test_a_file_of_which_bytes_are_missing_is_marked_like_one_without(user, files_root):
    file = upload(user)
    (files_root / file.storage_key).write_bytes(CONTENT[:-1])
    assert sweep() == Swept(missing=1)
    assert status_of(file.id) is FileStatus.MISSING


def test_a_file_whose_bytes_come_back_is_ready_again(user, files_root):
    file = upload(user)
    away = files_root / "away"
    (files_root / file.storage_key).rename(away)
    assert sweep() == Swept(missing=1)

    away.rename(files_root / file.storage_key)

    assert problems() == {file.id: "it counts as missing, and its bytes are there"}
    assert sweep(dry_run=True) == Swept(found=1)
    assert sweep() == Swept(found=1)
    assert problems() == {file.id: None}
    assert sweep() == Swept()
    check_books(files_root)


def test_other_bytes_do_not_bring_a_file_back(user, files_root):
    file = upload(user)
    (files_root / file.storage_key).unlink()
    assert sweep() == Swept(missing=1)

    (files_root / file.storage_key).write_bytes(CONTENT[1:])

    assert sweep() == Swept()


def test_a_lost_file_is_410_and_no_other(client, in_app, as_user, files_root):
    caller = as_user()
    lost, kept = in_app(upload, caller.user), in_app(upload, caller.user)
    (files_root / lost.storage_key).unlink()
    assert in_app(sweep) == Swept(missing=1)
    paths = [f"/v1/files/{file.id}/content" for file in (lost, kept)]
    gone, there = (client.get(path, headers=caller, buffered=True) for path in paths)
    assert (gone.status_code, gone.json["code"]) == (410, "file_lost")
    assert (there.status_code, there.data) == (200, CONTENT)
    shown = client.get(f"/v1/files/{lost.id}", headers=caller)
    assert shown.json["data"]["status"] == "missing"
    listed = client.get("/v1/files", headers=caller).json["data"]
    assert [file["id"] for file in listed] == [str(kept.id)]


def test_a_storage_that_is_not_mounted_loses_no_file(user, files_root):
    file = upload(user)
    away = files_root.rename(files_root.with_name("away"))
    with pytest.raises(Unavailable):
        sweep()
    away.rename(files_root)
    assert (status_of(file.id), sweep()) == (FileStatus.READY, NOTHING)
    assert content_of(file) == CONTENT


# --- Direct uploads --------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(set_files, bucket_url) -> None:
    """The files are in a bucket."""
    set_files(storage_url=bucket_url)


def begin_direct(owner: User) -> tuple[File, str]:
    told = describe(method=UploadMethod.DIRECT, sha256="0" * 64)
    file = direct.start(told, size=len(CONTENT), owner_id=owner.id).file
    key = db.session.scalar(select(DirectUpload.incoming_key).where(DirectUpload.file_id == file.id))
    assert key is not None
    store(key)
    return file, key


def in_bucket() -> set[str]:
    return {stored.key for stored in storage().objects()}


def test_a_direct_upload_stays_until_it_expires(user, files_root, bucket):
    file, key = begin_direct(user)
    let_pass(OLD, files_root)
    assert sweep(older_than=0) == NOTHING
    assert (status_of(file.id), in_bucket()) == (FileStatus.PENDING, {key})
    with transaction():
        db.session.execute(update(DirectUpload).values(expires_at=utcnow()))
    assert sweep(dry_run=True) == Swept(uploads=1)
    assert sweep() == Swept(uploads=1)
    assert (status_of(file.id), in_bucket()) == (None, set())
    assert quota.usage(user.id).reserved == 0


def test_bytes_that_came_for_a_direct_upload_that_has_ended_are_removed(user, bucket):
    file, key = begin_direct(user)
    service.delete_file(file.id, caller=principal_of(user))
    store(key)
    assert [stored.key for stored in find_orphans(older_than=0)] == [key]
    assert sweep(older_than=0) == Swept(orphans=1)
    assert in_bucket() == set()


# --- More than a batch -----------------------------------------------------------------------------------------------


def test_of_many_nothing_is_forgotten(user, files_root):
    count = BATCH + 1
    for _ in range(count):
        begin(user, b"!")
    keys = [new_key() for _ in range(count)]
    for key in keys:
        (files_root / key).parent.mkdir(parents=True, exist_ok=True)
        (files_root / key).write_bytes(b"!")
    let_pass(OLD, files_root)
    assert sweep() == Swept(uploads=count, orphans=count)
    check_nothing_stored(files_root)


# --- Verifying -------------------------------------------------------------------------------------------------------


def problems(sample: int | None = None) -> dict[Any, str | None]:
    return {found.file_id: found.problem for found in verify(sample=sample)}


def test_verifying_finds_lost_and_altered_bytes(user, files_root):
    good, lost, altered, cut = (upload(user) for _ in range(4))
    (files_root / lost.storage_key).unlink()
    (files_root / altered.storage_key).write_bytes(CONTENT[::-1])
    (files_root / cut.storage_key).write_bytes(CONTENT[:-1])
    other = "its bytes are not those that were stored"
    expected = {good.id: None, lost.id: "its bytes are missing", altered.id: other, cut.id: other}
    before = everything(files_root)
    assert problems() == expected
    assert everything(files_root) == before
    set_row(lost, status=FileStatus.MISSING)
    assert problems() == expected


def test_what_is_pending_or_deleted_is_not_verified(user):
    begin(user)
    service.delete_file(upload(user).id, caller=principal_of(user))
    assert (problems(), count_files()) == ({}, 0)


def test_a_file_that_is_deleted_meanwhile_is_no_problem(user):
    first, second = upload(user), upload(user)
    found = verify()
    seen = {next(found).file_id}
    for file in (first, second):
        service.delete_file(file.id, caller=principal_of(user))
    seen |= {one.file_id for one in found}
    assert len(seen) == 1


@pytest.mark.parametrize(("sample", "count"), [(None, 3), (1, 1), (2, 2), (3, 3), (4, 3)])
def test_a_sample_is_a_part_of_all(user, sample, count):
    files = {upload(user).id for _ in range(3)}
    found = problems(sample)
    assert (len(found), count_files(sample=sample)) == (count, count)
    assert set(found) <= files


def test_wrong_counters_are_found_and_left(user):
    other = make_user()
    for owner in (user, other):
        upload(owner)
    with transaction():
        db.session.execute(update(StorageUsage).where(StorageUsage.user_id == other.id).values(used=1))
    assert wrong_counters() == wrong_counters() == [other.id]


def test_while_it_verifies_no_connection_is_held(user, replace_storage):
    seen: list[bool] = []

    class Slow(LocalStorage):
        def open(self, key: str) -> Any:
            seen.append(holds_no_connection())
            return super().open(key)

    upload(user)
    replace_storage(Slow)
    assert list(problems().values()) == [None]
    assert seen == [True]
