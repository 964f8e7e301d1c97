"""`flask files sweep` and `flask files verify`: what they print, refuse and return."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result
from sqlalchemy import update

from project.database import db, transaction
from project.files import uploads
from project.files.models import FileStatus, StorageUsage
from project.files.storage import new_key
from tests.conftest import ENV
from tests.factories import make_user
from tests.files.uploading import CONTENT, check_books, describe, on_disk, status_of, upload
from tests.servers.app import INHERITED, ROOT

Run = Callable[..., Result]
LINES = {
    "uploads": "uploads that never ended",
    "parts": "parts of uploads",
    "deleted": "deleted files whose bytes were still there",
    "orphans": "objects without a file",
    "missing": "files whose bytes are missing, now marked so",
    "found": "files whose bytes were missing and are back",
    "recounted": "accounts whose counters were wrong",
}


@pytest.fixture
def run(app) -> Run:
    """Run a command in the application of the test."""
    return lambda *arguments: app.test_cli_runner().invoke(args=["files", *arguments])


@pytest.fixture
def user(in_app, files_root):
    """An account that stores files."""
    return in_app(make_user)


@pytest.fixture
def mess(in_app, user, files_root) -> dict[str, Any]:
    """One of everything that can be wrong, beside a file that is right."""
    return in_app(make_mess, user, files_root)


def make_mess(user, root) -> dict[str, Any]:
    good, lost, altered = (upload(user) for _ in range(3))
    (root / lost.storage_key).unlink()
    (root / altered.storage_key).write_bytes(CONTENT[::-1])
    orphan = new_key()
    (root / orphan).parent.mkdir(parents=True)
    (root / orphan).write_bytes(b"!")
    os.utime(root / orphan, (0, 0))
    uploads.begin(describe(), owner_id=user.id, size=1)
    uploads.new_part().close()
    with transaction():
        db.session.execute(update(StorageUsage).values(used=0))
    return {"good": good.id, "lost": lost.id, "altered": altered.id, "orphan": orphan, "user": user.id}


def printed(result: Result, title: str, **counts: int) -> None:
    """Check that a sweep says to have found exactly this."""
    assert result.exit_code == 0, result.output
    numbers = {name: counts.get(name, 0) for name in LINES}
    expected = [title, *(f"{numbers[name]:>7}  {what}" for name, what in LINES.items())]
    assert result.stdout.splitlines() == expected


def refused(result: Result, code: int) -> str:
    """Check that a command failed as commands should, and return what it said last."""
    assert result.exit_code == code
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    return last


# --- sweep -----------------------------------------------------------------------------------------------------------


def test_sweep_cures_what_is_wrong_and_the_second_finds_nothing(run, in_app, mess, files_root):
    counts = {"uploads": 1, "parts": 1, "orphans": 1, "missing": 1, "recounted": 1}
    before = on_disk(files_root)
    printed(run("sweep", "--older-than", "0", "--dry-run"), "Found, and left as it is:", **counts)
    assert on_disk(files_root) == before
    assert in_app(status_of, mess["lost"]) is FileStatus.READY
    swept = run("sweep", "--older-than", "0")
    printed(swept, "Cleared up:", **counts)
    [logged] = swept.stderr.splitlines()
    assert {"event": "file_lost", "file": str(mess["lost"])}.items() <= json.loads(logged).items()
    in_app(check_books, files_root)
    assert in_app(status_of, mess["lost"]) is FileStatus.MISSING
    printed(run("sweep", "--older-than", "0"), "Cleared up:")


def test_sweep_leaves_alone_what_is_younger_than_a_quarter_of_an_hour(run, mess, files_root):
    before = on_disk(files_root)
    # The orphan is old; what is lost or miscounted is so at any age.
    printed(run("sweep", "--dry-run"), "Found, and left as it is:", orphans=1, missing=1, recounted=1)
    printed(run("sweep"), "Cleared up:", orphans=1, missing=1, recounted=1)
    assert set(before) - set(on_disk(files_root)) == {mess["orphan"]}
    printed(run("sweep", "--older-than", "1000000"), "Cleared up:")


def test_sweep_finds_nothing_in_an_empty_storage(run, user):
    printed(run("sweep"), "Cleared up:")


@pytest.mark.parametrize("value", ["-1", "1.5", "ten", "", "1h"])
def test_sweep_refuses_an_age_that_is_none(run, mess, files_root, value):
    before = on_disk(files_root)
    assert "--older-than" in refused(run("sweep", "--older-than", value), 2)
    assert on_disk(files_root) == before


def test_sweep_says_in_one_line_that_the_storage_is_away(run, in_app, user, files_root):
    file = in_app(upload, user)
    away = files_root.rename(files_root.with_name("away"))
    result = run("sweep")
    away.rename(files_root)
    assert refused(result, 1) == "Error: The file storage cannot be used right now."
    assert in_app(status_of, file.id) is FileStatus.READY


# --- verify ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 3])
def test_verify_tells_that_all_is_well(run, in_app, user, count):
    for _ in range(count):
        in_app(upload, user)
    result = run("verify")
    assert (result.exit_code, result.stdout) == (0, f"{count} files are as they were stored.\n")


def test_verify_tells_all_that_is_wrong_and_changes_nothing(run, in_app, mess, files_root):
    before = on_disk(files_root)
    result = run("verify")
    last = refused(result, 1)
    assert set(result.stdout.splitlines()) == {
        f"file {mess['lost']}: its bytes are missing",
        f"file {mess['altered']}: its bytes are not those that were stored",
        f"object {mess['orphan']}: it belongs to no file",
        f"account {mess['user']}: its counters are wrong",
    }
    assert last == "Error: 4 problems; `flask files sweep` cures all but lost bytes."
    assert run("verify").stdout == result.stdout
    assert on_disk(files_root) == before
    assert in_app(status_of, mess["lost"]) is FileStatus.READY


def test_after_a_sweep_only_lost_and_altered_bytes_are_wrong(run, mess):
    run("sweep", "--older-than", "0")
    result = run("verify")
    assert refused(result, 1).startswith("Error: 2 problems; ")
    assert {line.split()[1] for line in result.stdout.splitlines()} == {f"{mess['lost']}:", f"{mess['altered']}:"}


def test_verify_looks_at_as_many_files_as_it_is_asked_to(run, in_app, user):
    for _ in range(3):
        in_app(upload, user)
    assert run("verify", "--sample", "2").stdout == "2 files are as they were stored.\n"
    assert run("verify", "--sample", "9").stdout == "3 files are as they were stored.\n"


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "all", ""])
def test_verify_refuses_a_sample_that_is_none(run, user, value):
    assert "--sample" in refused(run("verify", "--sample", value), 2)


def test_verify_says_in_one_line_that_the_storage_is_away(run, in_app, user, files_root):
    in_app(upload, user)
    away = files_root.rename(files_root.with_name("away"))
    result = run("verify")
    away.rename(files_root)
    assert refused(result, 1) == "Error: The file storage cannot be used right now."


def test_where_there_is_no_terminal_no_progress_is_drawn(run, in_app, user):
    in_app(upload, user)
    assert run("verify").stderr == "Verifying\n"


@pytest.mark.parametrize("app", ["sqlite"], indirect=True)
def test_on_a_terminal_the_progress_is_drawn_there_and_the_result_goes_to_the_pipe(app, in_app, user):
    in_app(upload, user)
    master, terminal = os.openpty()
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    env = {**inherited, **ENV, "TERM": "xterm", "DATA_DIR": str(app.extensions["settings"].data_dir)}
    command = [sys.executable, "-m", "flask", "files", "verify"]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=terminal, text=True, cwd=ROOT, env=env)
    os.close(terminal)
    drawn = os.read(master, 100_000).decode()
    os.close(master)
    assert (done.returncode, done.stdout) == (0, "1 files are as they were stored.\n")
    assert "Verifying" in drawn
    assert "100%" in drawn
