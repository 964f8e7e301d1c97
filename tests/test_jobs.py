import inspect
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from math import nan
from pathlib import Path
from uuid import uuid4

import pytest
from procrastinate.schema import migrations_path
from sqlalchemy import text

from project import jobs
from project.config import settings
from project.database import db, transaction
from project.queues import MAX_ATTEMPTS, LocalQueue, current_queue
from tests import job_tasks

ROOT = Path(__file__).parent.parent
SECRET = "canary-ann@example.com"


pytestmark = pytest.mark.usefixtures("session")
on_sqlite_only = pytest.mark.parametrize("app", ["sqlite"], indirect=True)


@pytest.fixture
def queue():
    return LocalQueue()


@pytest.fixture(autouse=True)
def ran():
    job_tasks.ran.clear()
    return job_tasks.ran


def defer(task, **arguments):
    with transaction():
        jobs.defer(task, **arguments)


def on_sqlite():
    return db.engine.dialect.name == "sqlite"


def execute(*, sqlite, postgresql):
    """Run the statement of this database and return the rows of a query."""
    statement = sqlite if on_sqlite() else postgresql
    with transaction():
        result = db.session.execute(text(statement))
        return result.all() if statement.startswith("SELECT") else []


def stored():
    """The jobs that are kept: task, attempts so far, whether given up."""
    return execute(
        sqlite="SELECT task, attempts, failed_at IS NOT NULL FROM local_jobs WHERE cron IS NULL ORDER BY id",
        postgresql="SELECT task_name, attempts, status = 'failed' FROM procrastinate_jobs"
        " WHERE task_name LIKE 'tests.%' ORDER BY id",
    )


def make_due():
    """Let the pause before the next attempt be over, and return its seconds."""
    [(seconds,)] = execute(
        sqlite="SELECT round((julianday(run_at) - julianday('now')) * 86400) FROM local_jobs",
        postgresql="SELECT round(extract(epoch FROM scheduled_at - now())) FROM procrastinate_jobs",
    )
    execute(
        sqlite="UPDATE local_jobs SET run_at = '2000-01-01 00:00:00'",
        postgresql="UPDATE procrastinate_jobs SET scheduled_at = NULL",
    )
    return seconds


def make_old(days):
    """Let the jobs that were given up be older."""
    execute(
        sqlite=f"UPDATE local_jobs SET failed_at = datetime(failed_at, '-{days} days')",
        postgresql=f"UPDATE procrastinate_events SET at = at - interval '{days} days'",
    )


def forget_killed_process():
    """Let the time pass after which a process that says nothing is held for dead."""
    execute(
        sqlite="UPDATE local_jobs SET locked_until = '2000-01-01 00:00:00'",
        postgresql="UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 minute'",
    )


def next_time():
    """The hour and minute of the one periodic task on SQLite."""
    [(run_at,)] = execute(sqlite="SELECT run_at FROM local_jobs WHERE cron IS NOT NULL", postgresql="")
    time = datetime.fromisoformat(run_at)
    return time.hour, time.minute


class Process:
    """A process of job_tasks, and what it has printed."""

    def __init__(self, mode: str, directory: Path, **env: str) -> None:
        program = [sys.executable, "-c", "from tests.job_tasks import main; main()"]
        self.popen = subprocess.Popen(
            [*program, mode, settings.database_url, str(directory)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"} | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""

    def read_until(self, *words: str) -> str:
        """Return the next line that contains all the words; if it never comes, pytest-timeout ends the wait."""
        assert self.popen.stdout
        for line in self.popen.stdout:
            self.output += line
            if all(word in line for word in words):
                return line
        raise AssertionError(f"ended without {words}:\n{self.output}")

    def write(self, words: str) -> None:
        """Write to its standard input."""
        assert self.popen.stdin
        self.popen.stdin.write(words)
        self.popen.stdin.flush()

    def close(self) -> None:
        """End its standard input."""
        assert self.popen.stdin
        self.popen.stdin.close()

    def end(self, number: signal.Signals) -> int:
        """Send a signal, read the rest and return the exit status."""
        self.popen.send_signal(number)
        self.output += self.popen.communicate()[0]
        return self.popen.returncode


@contextmanager
def process(mode: str, directory: Path, **env: str) -> Iterator[Process]:
    started = Process(mode, directory, **env)
    try:
        yield started
    finally:
        started.popen.kill()
        started.popen.wait()
        for stream in (started.popen.stdin, started.popen.stdout):
            assert stream
            stream.close()


@pytest.fixture
def pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def test_job_cannot_be_deferred_outside_a_transaction(app):
    with pytest.raises(RuntimeError, match=r"inside transaction\(\)"):
        jobs.defer(job_tasks.note, text="a")


@pytest.mark.parametrize("arguments", [{}, {"text": "a", "more": "b"}, {"text": object()}, {"text": nan}])
def test_job_with_wrong_arguments_is_refused_where_it_is_deferred(app, arguments):
    with pytest.raises((TypeError, ValueError)):
        defer(job_tasks.note, **arguments)
    assert stored() == []


def test_every_job_runs_once_when_several_run_them(app, ran):
    for number in range(20):
        defer(job_tasks.note, text=str(number))
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(jobs.run_pending, [app] * 4))
    assert sum(counts) == 20
    assert sorted(ran, key=int) == [str(number) for number in range(20)]


def test_two_tasks_cannot_have_one_name():
    with pytest.raises(ValueError, match="two tasks"):
        jobs.task(job_tasks.note)


def test_rollback_leaves_no_job(app, ran):
    def defer_and_fail():
        with transaction():
            jobs.defer(job_tasks.note, text="a")
            raise LookupError

    with pytest.raises(LookupError):
        defer_and_fail()
    assert stored() == []


def test_commit_leaves_one_job_that_runs_once(app, ran):
    defer(job_tasks.note, text="a")
    assert stored() == [("tests.job_tasks.note", 0, False)]
    assert [jobs.run_pending(app), jobs.run_pending(app)] == [1, 0]
    assert ran == ["a"]
    assert stored() == []


def test_jobs_run_in_the_order_in_which_they_were_deferred(app, ran):
    for number in range(5):
        defer(job_tasks.note, text=str(number))
    jobs.run_pending(app)
    assert ran == ["0", "1", "2", "3", "4"]


def test_uuid_arrives_as_text(app, ran):
    value = uuid4()
    defer(job_tasks.note, text=value)
    jobs.run_pending(app)
    assert ran == [str(value)]


def test_jobs_that_a_job_defers_run_too(app, ran):
    defer(job_tasks.count_down, start=3)
    assert jobs.run_pending(app) == 4
    assert ran == ["3", "2", "1", "0"]


def test_run_pending_runs_the_other_jobs_before_it_raises(app, ran):
    defer(job_tasks.fail, text="a")
    defer(job_tasks.note, text="b")
    with pytest.raises(LookupError):
        jobs.run_pending(app)
    assert ran == ["b"]


def test_failing_job_is_retried_after_longer_and_longer_pauses(app):
    defer(job_tasks.fail, text="a")
    pauses = []
    for _ in range(MAX_ATTEMPTS - 1):
        assert jobs.run_pending(app, reraise=False) == 1
        assert jobs.run_pending(app, reraise=False) == 0
        pauses.append(make_due())
    assert pauses == pytest.approx([10, 30, 90, 270, 810, 2430, 3600, 3600, 3600], abs=2)


def test_failing_job_is_kept_after_its_last_attempt_and_not_run_again(app):
    defer(job_tasks.fail, text="a")
    for _ in range(MAX_ATTEMPTS):
        assert jobs.run_pending(app, reraise=False) == 1
        make_due()
    assert stored() == [("tests.job_tasks.fail", MAX_ATTEMPTS, True)]
    assert jobs.run_pending(app) == 0


def test_failed_run_of_a_periodic_task_is_not_repeated(app):
    with transaction():
        current_queue().add("tests.job_tasks.stumble", '{"timestamp": 0}')
    assert jobs.run_pending(app, reraise=False) == 1
    assert stored() == [("tests.job_tasks.stumble", 1, True)]


def test_job_that_was_given_up_is_forgotten_after_a_week(app):
    defer(job_tasks.fail, text="a")
    for _ in range(MAX_ATTEMPTS):
        jobs.run_pending(app, reraise=False)
        make_due()
    make_old(days=6)
    jobs.forget_failed()
    assert len(stored()) == 1
    make_old(days=2)
    jobs.forget_failed()
    assert stored() == []


def test_job_of_an_unknown_task_is_tried_again_later(app):
    defer(job_tasks.note, text="a")
    execute(
        sqlite="UPDATE local_jobs SET task = 'tests.gone'",
        postgresql="UPDATE procrastinate_jobs SET task_name = 'tests.gone'",
    )
    assert jobs.run_pending(app, reraise=False) == 1
    assert stored() == [("tests.gone", 1, False)]


def test_log_names_the_task_and_never_its_arguments(app, caplog):
    caplog.set_level(logging.DEBUG)
    defer(job_tasks.note, text=SECRET)
    jobs.run_pending(app)
    [record] = [record for record in caplog.records if record.message == "job_done"]
    assert vars(record).items() >= {"task": "tests.job_tasks.note", "attempt": 1}.items()
    assert not [record for record in caplog.records if SECRET in str(vars(record))]


def test_worker_runs_jobs_at_once_and_logs_no_argument(app, tmp_path):
    with process("worker", tmp_path) as worker:
        worker.read_until("worker_started")
        defer(job_tasks.note, text=SECRET)
        done = json.loads(worker.read_until("job_done", "job_tasks.note"))
        defer(job_tasks.fail, text=SECRET)
        failed = json.loads(worker.read_until("job_failed"))
        assert worker.end(signal.SIGTERM) == 0
    assert {"task", "job_id", "attempt", "duration_ms"} <= done.keys()
    assert failed["error"] == "builtins.LookupError"
    assert inspect.getsource(job_tasks.fail).splitlines()[-1].strip() in failed["exception"]
    assert SECRET not in worker.output
    assert "procrastinate" not in worker.output, "its messages quote arguments"
    assert stored() == [("tests.job_tasks.fail", 1, False)], "it is tried again"


def test_periodic_task_fires_every_time(app, tmp_path):
    with process("ticking worker", tmp_path) as worker:
        for _ in range(2):
            worker.read_until("tick")
            worker.read_until("job_done", "tick")


def test_worker_finishes_its_job_when_it_is_told_to_stop(app, tmp_path, pipe):
    defer(job_tasks.wait, pipe=str(pipe))
    with process("worker", tmp_path) as worker:
        worker.read_until("running")
        worker.popen.send_signal(signal.SIGTERM)
        pipe.write_text("")
        worker.read_until("job_done", "job_tasks.wait")
        assert worker.popen.wait() == 0
    assert stored() == []


def test_job_of_a_killed_worker_runs_again(app, tmp_path, pipe):
    defer(job_tasks.wait, pipe=str(pipe))
    with process("worker", tmp_path) as worker:
        worker.read_until("running")
        worker.end(signal.SIGKILL)
    assert jobs.run_pending(app) == 0, "it may still be running"
    forget_killed_process()
    with process("worker", tmp_path) as worker:
        worker.read_until("running")
        pipe.write_text("")
        assert json.loads(worker.read_until("job_done", "job_tasks.wait"))["attempt"] == 2
        assert worker.end(signal.SIGTERM) == 0
    assert stored() == []


@on_sqlite_only
def test_server_has_one_thread_that_a_commit_wakes_and_that_finishes_its_job_at_the_end(app, tmp_path, pipe):
    with process("server", tmp_path) as server:
        server.read_until("threads 1")
        for _ in range(5):
            server.write(f"{pipe}\n")
            server.read_until("running")
            pipe.write_text("")
            server.read_until("job_done")
        server.write(f"{pipe}\n")
        server.read_until("running")
        server.close()
        with pytest.raises(subprocess.TimeoutExpired):
            server.popen.wait(1)
        pipe.write_text("")
        server.read_until("job_done")
        assert server.popen.wait() == 0
    assert stored() == []


@on_sqlite_only
def test_lock_of_a_job_that_takes_long_is_renewed(app, queue):
    defer(job_tasks.note, text="a")
    job = queue.claim()
    forget_killed_process()
    queue.renew([job])
    assert jobs.run_pending(app) == 0


@on_sqlite_only
def test_job_that_kills_its_process_every_time_is_given_up(app, queue):
    defer(job_tasks.note, text="a")
    for _ in range(MAX_ATTEMPTS):
        assert queue.claim()
        forget_killed_process()
    with pytest.raises(jobs.CrashedError):
        jobs.run_pending(app)
    assert stored() == [("tests.job_tasks.note", MAX_ATTEMPTS + 1, True)]


@on_sqlite_only
def test_missed_time_of_a_periodic_task_is_made_up_for_once(app, queue):
    queue.schedule({"jobs.forget_failed": "0 3 * * *"})
    assert jobs.run_pending(app) == 0
    make_due()
    queue.schedule({"jobs.forget_failed": "0 3 * * *"})
    assert [jobs.run_pending(app), jobs.run_pending(app)] == [1, 0]
    assert next_time() == (3, 0)


@on_sqlite_only
def test_runs_of_a_periodic_task_do_not_count_as_attempts_of_one_job(app, queue):
    queue.schedule({"jobs.forget_failed": "0 3 * * *"})
    for _ in range(MAX_ATTEMPTS + 1):
        make_due()
        assert jobs.run_pending(app) == 1


@on_sqlite_only
def test_periodic_task_that_failed_waits_for_its_next_time(app, queue):
    queue.schedule({"tests.job_tasks.fail": "0 3 * * *"})
    make_due()
    assert jobs.run_pending(app, reraise=False) == 1
    assert next_time() == (3, 0)


@on_sqlite_only
def test_changed_and_removed_periodic_tasks_follow_the_code(app, queue):
    queue.schedule({"jobs.forget_failed": "0 3 * * *", "tests.gone": "0 4 * * *"})
    queue.schedule({"jobs.forget_failed": "30 5 * * *"})
    assert next_time() == (5, 30)


def test_copy_of_the_library_schema_lacks_nothing():
    newest = max(path.name for path in Path(migrations_path).glob("*.sql"))
    assert newest == "03.04.00_50_post_add_retry_failed_job_procedure.sql", (
        "Procrastinate has new migrations: copy them into one of ours, as 0001_jobs.py says, and name the last here"
    )
