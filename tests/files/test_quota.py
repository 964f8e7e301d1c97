"""The quota: uploads at once never pass it, and the counters are always the sums of the rows."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from threading import Barrier, Event, Thread
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select, update

from project.audit import AuditEvent
from project.database import db, transaction
from project.errors import NotFound
from project.files import quota, service
from project.files.models import File, StorageUsage
from project.files.quota import QuotaExceeded, Usage
from project.users import service as users
from tests.factories import make_user
from tests.files.uploading import (
    CONTENT,
    WAYS,
    at_once,
    check_books,
    check_nothing_stored,
    principal_of,
    upload,
    upload_chunked,
)

SIZE = 1000
GIB = 1 << 30


@pytest.fixture
def user(in_app, files_root):
    """An account that stores files."""
    return in_app(make_user)


@pytest.fixture
def admin(in_app):
    """Who sets quotas."""
    return in_app(make_user, role="admin")


def set_quota(user: Any, size: int | None, admin: Any) -> Usage:
    return quota.set_quota(user.id, quota=size, actor_id=admin.id)


def outcomes(ended: Sequence[object]) -> Counter[str]:
    return Counter(type(one).__name__ for one in ended)


# --- At once ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["raw", "form"])
def test_of_24_uploads_at_once_with_room_for_4_exactly_4_are_stored(app, in_app, user, files_root, set_files, way):
    set_files(quota=5 * SIZE - 1)
    # All have come to the middle of their bytes before any goes on.
    ended = at_once(app, [lambda: WAYS[way](user, bytes(SIZE))] * 24)
    assert outcomes(ended) == {"File": 4, "QuotaExceeded": 20}
    in_app(check_books, files_root)
    assert in_app(quota.usage, user.id) == Usage(4 * SIZE, 0, 5 * SIZE - 1, 4)


def test_uploads_that_wait_for_their_clients_hold_the_room_that_they_will_need(
    app, in_app, user, files_root, set_files
):
    set_files(quota=4 * SIZE)
    all_hold, all_refused = Barrier(5), Event()

    def slowly() -> Iterator[bytes]:
        yield bytes(1)
        all_hold.wait(30)
        all_refused.wait(30)
        yield bytes(SIZE - 1)

    def come_late() -> File:
        all_hold.wait(30)
        try:
            return upload(user, b"!")
        finally:
            all_refused.set()

    *stored, late = at_once(app, [*[lambda: upload(user, bytes(SIZE), blocks=slowly())] * 4, come_late])
    assert outcomes(stored) == {"File": 4}
    assert isinstance(late, QuotaExceeded)
    in_app(check_books, files_root)


def test_chunked_uploads_at_once_never_pass_the_quota(app, in_app, user, files_root, set_files):
    set_files(quota=4 * SIZE, max_size=2 * SIZE)
    ended = at_once(app, [lambda: upload_chunked(user, bytes(SIZE))] * 24)
    assert set(outcomes(ended)) <= {"File", "QuotaExceeded"}
    assert 1 <= outcomes(ended)["File"] <= 4
    in_app(check_books, files_root)


def test_uploads_of_others_have_nothing_to_do_with_it(app, in_app, user, files_root, set_files):
    set_files(quota=SIZE)
    others = [in_app(make_user) for _ in range(4)]
    ended = at_once(app, [partial(upload, owner, bytes(SIZE)) for owner in [user, *others] * 2])
    assert outcomes(ended) == {"File": 5, "QuotaExceeded": 5}
    in_app(check_books, files_root)


def test_deleting_and_uploading_at_once_keeps_the_books(app, in_app, user, files_root, set_files, run_jobs):
    set_files(quota=4 * SIZE)

    def come_and_go() -> None:
        for _ in range(5):
            try:
                file = upload(user, bytes(SIZE))
            except QuotaExceeded:
                continue
            usage = quota.usage(user.id)
            assert usage.used + usage.reserved <= usage.quota
            service.delete_file(file.id, caller=principal_of(user))

    assert outcomes(at_once(app, [come_and_go] * 8 + [run_jobs])) == {"NoneType": 8, "int": 1}
    in_app(check_books, files_root)
    run_jobs()
    in_app(check_nothing_stored, files_root)


def test_a_loop_of_uploads_and_deletions_cannot_pass_the_quota(session, user, files_root, set_files, run_jobs):
    set_files(quota=4 * SIZE)
    for _ in range(4):
        service.delete_file(upload(user, bytes(SIZE)).id, caller=principal_of(user))
    with pytest.raises(QuotaExceeded):
        upload(user, b"!")
    assert quota.usage(user.id) == Usage(4 * SIZE, 0, 4 * SIZE, 4)
    check_books(files_root)
    run_jobs()
    assert quota.usage(user.id) == Usage(0, 0, 4 * SIZE, 0)
    upload(user, bytes(4 * SIZE))
    check_books(files_root)


# --- Setting it ------------------------------------------------------------------------------------------------------


def test_an_account_without_files_has_used_nothing(session, user, set_files):
    set_files(quota=10)
    assert quota.usage(user.id) == quota.get_usage(user.id) == Usage(0, 0, 10, 0)
    assert quota.usage(user.id).available == 10


def test_a_lower_quota_keeps_what_is_stored_and_lets_nothing_more_in(session, user, admin, files_root):
    upload(user)
    lowered = set_quota(user, len(CONTENT) - 1, admin)
    assert lowered == Usage(len(CONTENT), 0, len(CONTENT) - 1, 1)
    assert lowered.available == 0
    for way in WAYS.values():
        with pytest.raises(QuotaExceeded):
            way(user, b"!")
    check_books(files_root)


def test_a_quota_that_is_lowered_while_bytes_come_lets_them_in(app, session, user, admin, files_root):
    def slowly() -> Iterator[bytes]:
        yield CONTENT[:5]
        with app.app_context():
            set_quota(user, 0, admin)
        yield CONTENT[5:]

    upload(user, blocks=slowly())
    assert quota.usage(user.id) == Usage(len(CONTENT), 0, 0, 1)
    check_books(files_root)


def test_an_account_can_have_more_than_the_default_and_the_default_again(session, user, admin, set_files):
    set_files(quota=SIZE)
    assert set_quota(user, 2 * SIZE, admin).available == 2 * SIZE
    upload(user, bytes(2 * SIZE))
    assert set_quota(user, None, admin) == Usage(2 * SIZE, 0, SIZE, 1)


@pytest.mark.parametrize("way", WAYS)
def test_with_a_quota_of_nothing_nothing_is_accepted(session, user, admin, files_root, way):
    set_quota(user, 0, admin)
    with pytest.raises(QuotaExceeded):
        WAYS[way](user, b"!")
    check_nothing_stored(files_root)


def test_setting_a_quota_is_written_into_the_audit_log(session, user, admin):
    set_quota(user, 5, admin)
    set_quota(user, None, admin)
    events = db.session.scalars(select(AuditEvent).order_by(AuditEvent.id)).all()
    assert [(one.action, one.actor_id, one.target_id, one.data) for one in events] == [
        ("quota_changed", admin.id, user.id, {"quota": 5}),
        ("quota_changed", admin.id, user.id, {"quota": None}),
    ]


def test_only_accounts_have_a_quota(session, user, admin):
    erased = make_user()
    users.erase_user(erased.id, actor_id=None)
    for user_id in (uuid4(), erased.id):
        with pytest.raises(NotFound):
            quota.set_quota(user_id, quota=5, actor_id=admin.id)
        with pytest.raises(NotFound):
            quota.get_usage(user_id)
    assert db.session.scalars(select(StorageUsage)).all() == []


# --- Counting again --------------------------------------------------------------------------------------------------


def spoil(user: Any, **counters: int) -> None:
    with transaction():
        db.session.execute(update(StorageUsage).where(StorageUsage.user_id == user.id).values(counters))


@pytest.mark.parametrize("wrong", [{"used": 0}, {"reserved": 7}, {"file_count": 9}, {"used": GIB, "file_count": 0}])
def test_wrong_counters_become_the_sums_again(session, user, admin, files_root, wrong):
    set_quota(user, 12345, admin)
    upload(user)
    service.delete_file(upload(user).id, caller=principal_of(user))
    spoil(user, **wrong)
    assert quota.recount(user.id, dry_run=True)
    assert quota.recount(user.id)
    assert quota.usage(user.id) == Usage(2 * len(CONTENT), 0, 12345, 2)
    assert not quota.recount(user.id)
    check_books(files_root)


def test_a_dry_run_tells_and_changes_nothing(session, user):
    upload(user)
    spoil(user, used=1)
    assert [quota.recount(user.id, dry_run=True) for _ in range(2)] == [True, True]
    assert quota.usage(user.id).used == 1


def test_counting_again_knows_what_uploads_under_way_hold(session, user):
    seen: list[object] = []

    def look() -> Iterator[bytes]:
        seen.append((quota.recount(user.id), quota.usage(user.id).reserved))
        spoil(user, reserved=0)
        seen.append((quota.recount(user.id), quota.usage(user.id).reserved))
        yield CONTENT

    upload(user, blocks=look())
    assert seen == [(False, len(CONTENT)), (True, len(CONTENT))]
    assert quota.usage(user.id).reserved == 0


def test_there_is_nothing_to_count_for_an_account_without_counters(session, user):
    assert not quota.recount(user.id)
    assert db.session.scalars(select(StorageUsage)).all() == []


def test_counting_again_beside_uploads_and_deletions_corrupts_nothing(app, in_app, user, files_root, run_jobs):
    ended = Event()
    counted: list[bool] = []

    def count() -> None:
        with app.app_context():
            while not ended.is_set():
                counted.append(quota.recount(user.id))

    def come_and_go() -> None:
        for number in range(10):
            file = upload(user, bytes(SIZE))
            if number % 2:
                service.delete_file(file.id, caller=principal_of(user))
                service.purge(file_id=str(file.id))

    counting = Thread(target=count)
    counting.start()
    try:
        assert outcomes(at_once(app, [come_and_go] * 6)) == {"NoneType": 6}
    finally:
        ended.set()
        counting.join()
    assert len(counted) > 10
    # It never found anything to repair: whoever changes a row changes the counters with it.
    assert not any(counted)
    in_app(check_books, files_root)
    assert in_app(quota.usage, user.id).file_count == 30
