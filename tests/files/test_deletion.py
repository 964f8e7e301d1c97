"""Deleting: a file is gone at once, its bytes count until they are removed, and an erased account leaves none."""

import hashlib
from collections.abc import Callable
from typing import Any, BinaryIO
from uuid import uuid4

import pytest
from sqlalchemy import event, func, select, text, update
from sqlalchemy.exc import OperationalError

from project.audit import AuditEvent
from project.database import db, transaction, utcnow
from project.errors import Forbidden, NotFound, PreconditionFailed, Unavailable
from project.files import direct, quota, service, shares, uploads, variants
from project.files.models import DirectUpload, File, FileStatus, FileVariant, ShareLink, StorageUsage, UploadMethod
from project.files.quota import Usage
from project.files.s3 import S3Storage
from project.files.service import NotReady
from project.files.storage import LocalStorage, storage
from project.pagination import PageRequest
from project.security import Role
from project.users import service as users
from project.users.models import User
from tests.factories import PASSWORD, make_user
from tests.files.asking import FILES
from tests.files.samples import picture
from tests.files.uploading import (
    CONTENT,
    at_once,
    broken,
    broken_commit,
    check_books,
    check_nothing_stored,
    content_of,
    describe,
    on_disk,
    principal_of,
    set_row,
    status_of,
    upload,
)

PAGE = PageRequest(limit=20, cursor=None, sort="-created_at")


@pytest.fixture
def user(in_app, files_root) -> User:
    """An account that stores files."""
    return in_app(make_user)


@pytest.fixture
def other(in_app) -> User:
    """Somebody else."""
    return in_app(make_user)


def delete(file: File, user: User, **options: Any) -> None:
    service.delete_file(file.id, caller=principal_of(user), **options)


def count(model: Any) -> int:
    return db.session.scalar(select(func.count()).select_from(model)) or 0


# --- Gone at once ----------------------------------------------------------------------------------------------------


def test_a_deleted_file_is_gone_at_once(session, user):
    file, kept = upload(user, purpose="a"), upload(user, visibility="public", purpose="b")
    share = shares.create(file.id, owner_id=user.id, expires_in=60)
    delete(file, user)
    caller, token = principal_of(user), share.url.rpartition("/")[2]
    looks: list[Callable[[], object]] = [
        lambda: service.get_file(file.id, reader=caller),
        lambda: service.get_file(file.id, reader=principal_of(make_user(role=Role.ADMIN))),
        lambda: service.get_own(file.id, owner_id=user.id),
        lambda: service.get_readable(file.id, reader_id=user.id, signed=False),
        lambda: service.get_readable(file.id, reader_id=None, signed=True),
        lambda: service.update_file(file.id, caller=caller, purpose="c"),
        lambda: service.delete_file(file.id, caller=caller),
        lambda: shares.find_shared(token),
        lambda: shares.create(file.id, owner_id=user.id, expires_in=60),
        lambda: shares.list_shares(file.id, owner_id=user.id, page=PAGE),
        lambda: shares.revoke(share.id, file_id=file.id, owner_id=user.id),
    ]
    for look in looks:
        with pytest.raises(NotFound):
            look()
    assert service.find_by_purpose("a", owner_id=user.id) is None
    listed = service.list_files(reader_id=user.id, owner_id=user.id, page=PAGE)
    assert [one.id for one in listed] == [kept.id]


def test_its_bytes_count_until_they_are_removed(session, user, files_root, run_jobs):
    delete(upload(user), user)
    assert quota.usage(user.id) == Usage(len(CONTENT), 0, 1 << 30, 1)
    assert list(on_disk(files_root).values()) == [len(CONTENT)]
    assert run_jobs() == 1
    assert quota.usage(user.id) == Usage(0, 0, 1 << 30, 0)
    check_nothing_stored(files_root)


def test_its_thumbnails_and_links_go_too(session, user, files_root, run_jobs):
    file, kept = upload(user, picture("PNG")), upload(user, picture("PNG"))
    for one in (file, kept):
        for size in (64, 128):
            variants.get_thumbnail(one, size=size, kind="webp")
        shares.create(one.id, owner_id=user.id, expires_in=60)
    assert len(on_disk(files_root)) == 6
    delete(file, user)
    run_jobs()
    assert (count(FileVariant), count(ShareLink), len(on_disk(files_root))) == (2, 1, 3)
    check_books(files_root)


def test_a_thumbnail_that_is_made_while_its_file_is_removed_is_not_kept(
    app, session, user, files_root, replace_storage
):
    file = upload(user, picture("PNG"))
    made: list[Any] = []

    class Slow(LocalStorage):
        def delete(self, key: str) -> None:
            if key == file.storage_key and not made:
                made.extend(at_once(app, [lambda: variants.get_thumbnail(file, size=64, kind="webp")]))
            super().delete(key)

    replace_storage(Slow)
    delete(file, user)
    service.purge(file_id=str(file.id))
    assert isinstance(made[0], NotFound)
    check_nothing_stored(files_root)


def test_a_download_that_has_begun_goes_on(session, user, files_root, run_jobs):
    file = upload(user)
    with storage().open(file.storage_key) as content:
        delete(file, user)
        run_jobs()
        assert content.read() == CONTENT
    check_nothing_stored(files_root)


def test_a_file_whose_bytes_are_lost_can_be_deleted(session, user, files_root, run_jobs):
    file = upload(user)
    (files_root / file.storage_key).unlink()
    set_row(file, status=FileStatus.MISSING)
    delete(file, user)
    run_jobs()
    check_nothing_stored(files_root)


# --- Who may ---------------------------------------------------------------------------------------------------------


def test_an_administrator_deletes_what_is_anothers_and_it_is_written_down(session, user, other):
    admin = make_user(role=Role.ADMIN)
    own, file = upload(user), upload(user)
    delete(own, user)
    delete(file, admin)
    assert status_of(file.id) is FileStatus.DELETING
    events = db.session.scalars(select(AuditEvent)).all()
    assert [(one.action, one.actor_id, one.target_type, one.target_id) for one in events] == [
        ("file_deleted", admin.id, "file", file.id)
    ]


def test_staff_may_not_delete_what_is_anothers(session, user):
    file = upload(user)
    with pytest.raises(Forbidden):
        delete(file, make_user(role=Role.STAFF))
    assert status_of(file.id) is FileStatus.READY


def test_for_others_there_is_no_such_file(session, user, other):
    file = upload(user)
    with pytest.raises(NotFound):
        delete(file, other)
    with pytest.raises(NotFound):
        service.delete_file(uuid4(), caller=principal_of(user))
    assert status_of(file.id) is FileStatus.READY


def test_over_http_the_roles_are_the_same(client, as_user, as_staff, as_admin, in_app, user, files_root, run_jobs):
    file = in_app(upload, user)
    path = f"{FILES}/{file.id}"
    assert client.delete(path).status_code == 401
    assert client.delete(path, headers=as_user()).status_code == 404
    assert client.delete(path, headers=as_staff).status_code == 403
    assert client.delete(path, headers=as_admin).status_code == 204
    assert client.delete(path, headers=as_admin).status_code == 404
    run_jobs()
    in_app(check_nothing_stored, files_root)


@pytest.mark.parametrize("ahead", [-1, 1, None], ids=["earlier", "later", "none"])
def test_a_version_that_is_not_expected_stays(session, user, ahead):
    file = upload(user)
    expected = frozenset() if ahead is None else frozenset({(file.id, file.version + ahead)})
    with pytest.raises(PreconditionFailed):
        delete(file, user, expected=expected)
    assert status_of(file.id) is FileStatus.READY
    delete(file, user, expected=frozenset({(file.id, file.version)}))


# --- While it is uploaded --------------------------------------------------------------------------------------------


def test_an_upload_under_way_cannot_be_deleted(app, session, user, files_root):
    def blocks() -> Any:
        yield CONTENT[:5]
        with app.app_context():
            file = db.session.scalars(select(File)).one()
            with pytest.raises(NotReady):
                delete(file, user)
            with pytest.raises(PreconditionFailed):
                delete(file, user, expected=frozenset())
        yield CONTENT[5:]

    assert upload(user, blocks=blocks()).status is FileStatus.READY
    check_books(files_root)


@pytest.fixture
def bucket(set_files, bucket_url) -> S3Storage:
    """The files are in a bucket."""
    set_files(storage_url=bucket_url)
    found = storage()
    assert isinstance(found, S3Storage)
    return found


def begin_direct(owner: User, content: bytes = CONTENT) -> tuple[File, str]:
    """Permit a direct upload whose bytes then arrive, and return the file and where they are."""
    described = describe(method=UploadMethod.DIRECT, sha256=hashlib.sha256(content).hexdigest())
    file = direct.start(described, size=len(content), owner_id=owner.id).file
    incoming = db.session.scalar(select(DirectUpload.incoming_key).where(DirectUpload.file_id == file.id))
    assert incoming is not None
    part = uploads.new_part()
    part.write(content)
    part.close()
    storage().put(incoming, part.path, content_type="text/plain", sha256=part.sha256, modified=utcnow())
    return file, incoming


def in_bucket() -> set[str]:
    return {stored.key for stored in storage().objects()}


def test_a_direct_upload_that_nobody_has_completed_is_ended(session, user, bucket):
    file, incoming = begin_direct(user)
    assert in_bucket() == {incoming}
    with pytest.raises(PreconditionFailed):
        delete(file, user, expected=frozenset())
    delete(file, user)
    assert (status_of(file.id), count(DirectUpload), in_bucket()) == (None, 0, set())
    assert quota.usage(user.id).reserved == 0


def test_a_direct_upload_that_is_being_completed_is_not_ended(session, user, bucket):
    file, incoming = begin_direct(user)
    with transaction():
        db.session.execute(update(DirectUpload).values(completing_at=utcnow()))
    with pytest.raises(NotReady):
        delete(file, user)
    assert (status_of(file.id), in_bucket()) == (FileStatus.PENDING, {incoming})


def test_a_direct_upload_that_is_completed_meanwhile_is_deleted_all_the_same(app, session, user, bucket, run_jobs):
    file, _ = begin_direct(user)
    completed: list[Any] = []

    def complete(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT direct_uploads.incoming_key") and not completed:
            completed.extend(at_once(app, [lambda: direct.complete(file.id, owner_id=user.id)]))

    event.listen(db.engine, "after_cursor_execute", complete)
    try:
        delete(file, user)
    finally:
        event.remove(db.engine, "after_cursor_execute", complete)
    assert completed[0].id == file.id
    assert status_of(file.id) is FileStatus.DELETING
    run_jobs()
    assert in_bucket() == set()


def test_ending_anothers_direct_upload_is_written_down(session, user, bucket):
    admin = make_user(role=Role.ADMIN)
    file, _ = begin_direct(user)
    delete(file, admin)
    [written] = db.session.scalars(select(AuditEvent).where(AuditEvent.action == "file_deleted")).all()
    assert (written.actor_id, written.target_id) == (admin.id, file.id)


# --- Removing the bytes ----------------------------------------------------------------------------------------------


def test_removing_twice_gives_back_once(session, user, files_root):
    file, kept = upload(user), upload(user)
    delete(file, user)
    for _ in range(2):
        service.purge(file_id=str(file.id))
    assert quota.usage(user.id) == Usage(len(CONTENT), 0, 1 << 30, 1)
    assert content_of(kept) == CONTENT
    check_books(files_root)


def test_removing_at_once_gives_back_once(app, session, user, files_root, replace_storage):
    class Slow(LocalStorage):
        """A storage in which another job overtakes this one."""

        overtaken = False

        def delete(self, key: str) -> None:
            super().delete(key)
            if not self.overtaken:
                self.overtaken = True
                with app.app_context():
                    service.purge(file_id=file_id)

    kept, file = upload(user), upload(user)
    file_id = str(file.id)
    delete(file, user)
    replace_storage(Slow)
    service.purge(file_id=file_id)
    assert content_of(kept) == CONTENT
    check_books(files_root)


def test_of_deletions_at_once_one_succeeds(app, in_app, user, files_root, run_jobs):
    file = in_app(upload, user)
    ended = at_once(app, [lambda: delete(file, user)] * 8)
    assert sorted(type(one).__name__ for one in ended) == ["NoneType"] + ["NotFound"] * 7
    assert run_jobs() == 1
    in_app(check_nothing_stored, files_root)


@pytest.mark.parametrize("status", [FileStatus.READY, FileStatus.MISSING])
def test_what_is_not_deleted_is_not_removed(session, user, files_root, status):
    file = upload(user)
    set_row(file, status=status)
    service.purge(file_id=str(file.id))
    service.purge(file_id=str(uuid4()))
    assert (status_of(file.id), content_of(file)) == (status, CONTENT)


def make_jobs_due() -> None:
    """Let the pause after a failure pass."""
    with transaction():
        if db.engine.dialect.name == "sqlite":
            db.session.execute(text("UPDATE local_jobs SET run_at = '2000-01-01 00:00:00'"))
        else:
            db.session.execute(text("UPDATE procrastinate_jobs SET scheduled_at = NULL"))


def test_while_the_storage_is_away_the_bytes_count_and_the_job_is_tried_again(session, user, files_root, run_jobs):
    file = upload(user, picture("PNG"))
    variants.get_thumbnail(file, size=64, kind="webp")
    delete(file, user)
    away = files_root.rename(files_root.with_name("away"))
    with pytest.raises(Unavailable):
        run_jobs()
    away.rename(files_root)
    check_books(files_root)
    assert quota.usage(user.id).file_count == 1
    make_jobs_due()
    assert run_jobs() == 1
    check_nothing_stored(files_root)


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "while it is confirmed"])
def test_a_removal_that_breaks_off_at_its_commit_is_finished_by_the_next(session, user, files_root, is_done):
    file = upload(user)
    file_id = str(file.id)  # the object is gone with its row
    delete(file, user)
    with broken_commit(1, is_done=is_done), pytest.raises(OperationalError):
        service.purge(file_id=file_id)
    assert on_disk(files_root) == {}
    service.purge(file_id=file_id)
    check_nothing_stored(files_root)


def test_a_removal_whose_counters_cannot_be_changed_keeps_the_row(session, user, files_root):
    file = upload(user)
    delete(file, user)
    with broken("UPDATE storage_usage"), pytest.raises(OperationalError):
        service.purge(file_id=str(file.id))
    assert status_of(file.id) is FileStatus.DELETING
    service.purge(file_id=str(file.id))
    check_nothing_stored(files_root)


# --- Erasing an account ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["by oneself", "by an administrator"])
def erase(request, client, as_admin) -> Callable[[Any], None]:
    """Erase an account over HTTP, in both of the ways."""

    def send(caller: Any) -> None:
        if request.param == "by oneself":
            response = client.post("/v1/users/me/erase", json={"password": PASSWORD}, headers=caller)
        else:
            response = client.delete(f"/v1/users/{caller.user.id}", headers=as_admin)
        assert response.status_code == 204

    return send


def test_an_erased_account_leaves_no_files_and_no_counters(client, as_user, in_app, user, files_root, run_jobs, erase):
    caller = as_user()
    kept = in_app(upload, user, picture("PNG"))
    public = in_app(upload, caller.user, picture("PNG"), visibility="public")
    for one in (kept, public):
        in_app(variants.get_thumbnail, one, size=64, kind="webp")
    deleted = in_app(upload, caller.user, filename="canary.txt", purpose="canary", metadata={"canary": "canary"})
    in_app(delete, deleted, caller.user)
    link = in_app(shares.create, public.id, owner_id=caller.user.id, expires_in=60).url

    erase(caller)

    for path in (f"{FILES}/{public.id}/content", f"{FILES}/{public.id}/thumbnail", link):
        assert client.get(path).status_code == 404
    rows = in_app(lambda: db.session.scalars(select(File).where(File.id != kept.id)).all())
    assert {row.status for row in rows} == {FileStatus.DELETING}
    assert {(row.owner_id, row.filename, row.purpose, str(row.labels)) for row in rows} == {(None, "file", None, "{}")}
    assert in_app(lambda: db.session.scalars(select(StorageUsage.user_id)).all()) == [user.id]
    run_jobs()
    assert in_app(lambda: db.session.scalars(select(File.id)).all()) == [kept.id]
    assert in_app(count, ShareLink) == 0
    in_app(check_books, files_root)
    assert in_app(quota.usage, user.id).file_count == 1


def test_an_account_without_files_can_be_erased(in_app, as_user, user, files_root, run_jobs, erase):
    kept = in_app(upload, user)
    erase(as_user())
    run_jobs()
    assert in_app(content_of, kept) == CONTENT
    in_app(check_books, files_root)


def test_of_an_erased_account_all_that_can_be_removed_is_and_the_rest_later(
    session, user, files_root, replace_storage, run_jobs
):
    class Stuck(LocalStorage):
        """A storage that does not let go of one of its objects."""

        def delete(self, key: str) -> None:
            if key == stuck.storage_key:
                raise Unavailable
            super().delete(key)

    _, stuck, _ = (upload(user) for _ in range(3))
    users.erase_user(user.id, actor_id=None)
    replace_storage(Stuck)
    with pytest.raises(Unavailable):
        run_jobs()
    assert on_disk(files_root) == {stuck.storage_key: len(CONTENT)}
    check_books(files_root)
    replace_storage(LocalStorage)
    make_jobs_due()
    assert run_jobs() == 1
    check_nothing_stored(files_root)


def test_an_erasure_that_fails_leaves_the_files(session, user, files_root):
    file = upload(user)
    with broken("DELETE FROM storage_usage"), pytest.raises(OperationalError):
        users.erase_user(user.id, actor_id=None)
    assert (status_of(file.id), content_of(file)) == (FileStatus.READY, CONTENT)
    check_books(files_root)


def test_direct_uploads_of_an_erased_account_leave_no_bytes(session, user, bucket, run_jobs):
    begin_direct(user)
    other = make_user()
    kept, incoming = begin_direct(other)
    users.erase_user(user.id, actor_id=None)
    run_jobs()
    assert db.session.scalars(select(File.id)).all() == [kept.id]
    assert in_bucket() == {incoming}


class Slow(S3Storage):
    """A bucket in which something happens while a completed upload is read."""

    meanwhile: Callable[[], None]

    def open(self, key: str) -> BinaryIO:
        """Open, after the other thing has happened."""
        self.meanwhile()
        return super().open(key)


def test_a_direct_upload_of_an_account_that_is_erased_while_it_is_completed_leaves_no_bytes(
    app, session, user, bucket, run_jobs, monkeypatch
):
    def meanwhile() -> None:
        with app.app_context():
            users.erase_user(user.id, actor_id=None)

    file, _ = begin_direct(user)
    bucket.__class__ = Slow
    monkeypatch.setattr(bucket, "meanwhile", meanwhile, raising=False)
    with pytest.raises(Unavailable):
        direct.complete(file.id, owner_id=user.id)
    run_jobs()
    assert (count(File), count(StorageUsage), in_bucket()) == (0, 0, set())
