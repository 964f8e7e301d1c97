"""kill -9 at every step of an upload, a deletion and a sweep: one sweep makes good whatever it has left."""

import signal
from dataclasses import dataclass

import pytest

from project.config import Settings
from project.files import quota, service
from project.files.quota import Usage
from project.files.sweep import Swept, sweep
from project.users import service as users
from tests.conftest import ENV
from tests.factories import make_user
from tests.files.crashing import crash
from tests.files.uploading import CONTENT, check_books, on_disk, principal_of, upload

KILLED = -signal.SIGKILL
NOTHING = Swept()


@dataclass(frozen=True)
class Crash:
    """A process that dies, what a sweep finds after it, and how many files there are in the end."""

    action: str
    point: str
    found: Swept
    files: int = 0


UPLOADS = [
    Crash("upload", "before commit 1", NOTHING),
    Crash("upload", "after commit 1", Swept(uploads=1)),
    Crash("upload", "before parts", Swept(uploads=1)),
    Crash("upload a part", "while receiving", Swept(uploads=1, parts=1)),
    Crash("upload", "before put", Swept(uploads=1, parts=1)),
    Crash("upload", "after put", Swept(uploads=1)),
    Crash("upload", "before commit 2", Swept(uploads=1)),
    Crash("upload", "after commit 2", NOTHING, files=1),
    Crash("upload a form", "before commit 1", Swept(parts=1)),
    Crash("upload a form", "after commit 1", Swept(uploads=1, parts=1)),
    Crash("upload a form", "after put", Swept(uploads=1)),
    Crash("upload a form", "after commit 2", NOTHING, files=1),
    Crash("fail to upload", "before delete", Swept(orphans=1)),
    Crash("fail to upload", "after delete", NOTHING),
]
DELETIONS = [
    Crash("delete", "before commit 1", NOTHING, files=1),
    Crash("delete", "after commit 1", Swept(deleted=1)),
    Crash("erase", "before commit 1", NOTHING, files=1),
    Crash("erase", "after commit 1", Swept(deleted=1)),
]
PURGES = [
    Crash("purge", "before delete", Swept(deleted=1)),
    Crash("purge", "after delete", Swept(deleted=1)),
    Crash("purge", "before commit 1", Swept(deleted=1)),
    Crash("purge", "after commit 1", NOTHING),
]
# The first commit is that of the counters.
SWEEPS = [
    Crash("sweep", "before commit 2", Swept(uploads=1)),
    Crash("sweep", "after commit 2", Swept(orphans=1)),
    Crash("sweep", "after delete", NOTHING),
]


def cases(crashes: list[Crash]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", crashes, ids=lambda case: f"{case.action}, {case.point}")


@pytest.fixture
def env(app) -> dict[str, str]:
    """The settings of a process beside this one."""
    settings: Settings = app.extensions["settings"]
    return {**ENV, "DATA_DIR": str(settings.data_dir), "DATABASE_URL": settings.database_url}


@pytest.fixture
def user(session, files_root):
    """An account that stores files."""
    return make_user()


def check(case: Crash, env, user, files_root) -> None:
    """Let the process die and sweep twice: the first time finds what it has left, the second time nothing."""
    assert crash(env, case.action, case.point, user.id) == KILLED
    assert sweep(older_than=0) == case.found
    check_books(files_root)
    assert len(on_disk(files_root)) == case.files
    if case.action != "erase" or case.files:
        used = len(CONTENT) * case.files
        assert quota.usage(user.id) == Usage(used, 0, 1 << 30, case.files)
    assert sweep(older_than=0) == NOTHING


@cases(UPLOADS)
def test_killed_while_it_uploads(user, env, files_root, case):
    check(case, env, user, files_root)


@cases(DELETIONS)
def test_killed_while_it_deletes(user, env, files_root, case):
    upload(user)
    check(case, env, user, files_root)


@cases(PURGES)
def test_killed_while_it_removes_the_bytes(user, env, files_root, case):
    service.delete_file(upload(user).id, caller=principal_of(user))
    check(case, env, user, files_root)


@cases(SWEEPS)
def test_killed_while_it_sweeps(user, env, files_root, case):
    crash(env, "upload", "after put", user.id)
    check(case, env, user, files_root)


def test_what_was_stored_before_survives_all_of_it(user, env, files_root):
    kept = upload(user)
    crash(env, "upload", "after put", user.id)
    crash(env, "sweep", "after commit 2", user.id)
    assert sweep(older_than=0) == Swept(orphans=1)
    assert (files_root / kept.storage_key).read_bytes() == CONTENT
    check_books(files_root)


def test_what_died_while_it_was_stored_goes_with_its_account(user, env, files_root, run_jobs):
    assert crash(env, "upload", "after put", user.id) == KILLED
    users.erase_user(user.id, actor_id=None)
    run_jobs()
    assert on_disk(files_root) == {}
    assert sweep(older_than=0) == NOTHING
