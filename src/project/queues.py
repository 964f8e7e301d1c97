"""Where jobs wait: the table local_jobs on SQLite, Procrastinate's tables on PostgreSQL."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from croniter import croniter  # type: ignore[import-untyped]
from procrastinate import sql
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    RowMapping,
    String,
    Table,
    delete,
    func,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.sqlite import insert

from project.database import UtcDateTime, db, transaction, utcnow

MAX_ATTEMPTS = 10
FIRST_PAUSE = timedelta(seconds=10)
LONGEST_PAUSE = timedelta(hours=1)
KEEP_FAILED = timedelta(days=7)
# A job of a killed process runs again when its lock has expired; a living process renews it.
LOCK = timedelta(seconds=30)


@dataclass(frozen=True)
class Backlog:
    """The jobs that are due and not begun, and for how many seconds the oldest has been."""

    waiting: int
    lag: float


@dataclass(frozen=True)
class Job:
    """A job that was claimed in order to run it. Its arguments may be secret and are never logged."""

    id: int
    task: str
    arguments: Mapping[str, Any]
    attempt: int  # 1 for the first


def next_attempt(attempt: int) -> datetime | None:
    """Return when to try again after this many attempts, None for never.

    The pauses are 10 s, 30 s, 90 s … and at most 1 h: 4 hours in all.
    """
    if attempt >= MAX_ATTEMPTS:
        return None
    pause: timedelta = FIRST_PAUSE * 3 ** (attempt - 1)
    return utcnow() + min(LONGEST_PAUSE, pause)


local_jobs = Table(
    "local_jobs",
    # Its own metadata: the table is no model, and on PostgreSQL it does not exist.
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("task", String(128)),
    Column("arguments", String),  # JSON
    Column("cron", String(128)),  # set for a periodic task, which has one row that is moved on to its next time
    Column("run_at", UtcDateTime),
    Column("attempts", Integer),
    Column("locked_until", UtcDateTime),
    Column("failed_at", UtcDateTime),
    Column("error", String(256)),  # the class only: a message may hold arguments
)


class LocalQueue:
    """The jobs of an SQLite database, run by threads of the processes that use it."""

    def add(self, task: str, arguments: str, *, run_at: datetime | None = None) -> None:
        """Add a job in the caller's transaction; `arguments` is JSON."""
        row = insert(local_jobs).values(task=task, arguments=arguments, run_at=run_at or utcnow(), attempts=0)
        db.session.execute(row)

    def claim(self) -> Job | None:
        """Take the job that has been due the longest, if there is one, and lock it."""
        now = utcnow()
        due = (
            select(local_jobs.c.id)
            .where(local_jobs.c.failed_at.is_(None), local_jobs.c.run_at <= now)
            .where(or_(local_jobs.c.locked_until.is_(None), local_jobs.c.locked_until < now))
            .order_by(local_jobs.c.run_at, local_jobs.c.id)
            .limit(1)
        )
        # Looking takes no write lock, and mostly there is nothing to do.
        with db.engine.connect() as connection:
            if connection.scalar(due) is None:
                return None
        claim = (
            update(local_jobs)
            .where(local_jobs.c.id == due.scalar_subquery())
            .values(locked_until=now + LOCK, attempts=local_jobs.c.attempts + 1)
            .returning(local_jobs)
        )
        with transaction():
            row = db.session.execute(claim).mappings().one_or_none()
        return Job(row["id"], row["task"], json.loads(row["arguments"]), row["attempts"]) if row else None

    def renew(self, jobs: Collection[Job]) -> None:
        """Keep the locks of jobs that are still running."""
        running = local_jobs.c.id.in_([job.id for job in jobs]) & local_jobs.c.locked_until.is_not(None)
        with transaction():
            db.session.execute(update(local_jobs).where(running).values(locked_until=utcnow() + LOCK))

    def finish(self, job: Job) -> None:
        """Remove a job that is done; a periodic one waits for its next time."""
        with transaction():
            if not self._move_on(job, error=None):
                db.session.execute(delete(local_jobs).where(local_jobs.c.id == job.id))

    def fail(self, job: Job, *, error: str, retry_at: datetime | None) -> None:
        """Note the failure and run the job again at `retry_at`; without one it is kept and not run again."""
        values: dict[str, Any] = {"error": error, "locked_until": None}
        values |= {"run_at": retry_at} if retry_at else {"failed_at": utcnow()}
        with transaction():
            if not self._move_on(job, error=error):
                db.session.execute(update(local_jobs).where(local_jobs.c.id == job.id).values(values))

    def _move_on(self, job: Job, *, error: str | None) -> bool:
        cron = db.session.scalar(select(local_jobs.c.cron).where(local_jobs.c.id == job.id))
        if cron is None:
            return False
        values = {"run_at": _next(cron), "attempts": 0, "locked_until": None, "error": error}
        db.session.execute(update(local_jobs).where(local_jobs.c.id == job.id).values(values))
        return True

    def schedule(self, crons: Mapping[str, str]) -> None:
        """Make the periodic tasks exactly these; a time that was missed while nothing ran is made up for."""
        with transaction():
            for task, cron in crons.items():
                row = insert(local_jobs).values(task=task, arguments="{}", cron=cron, run_at=_next(cron), attempts=0)
                changed = local_jobs.c.cron != row.excluded.cron
                row = row.on_conflict_do_update(
                    index_elements=["task"],
                    index_where=local_jobs.c.cron.is_not(None),
                    set_={"cron": row.excluded.cron, "run_at": row.excluded.run_at},
                    where=changed,
                )
                db.session.execute(row)
            gone = local_jobs.c.cron.is_not(None) & local_jobs.c.task.not_in(list(crons))
            db.session.execute(delete(local_jobs).where(gone))

    def backlog(self) -> Backlog:
        """Return what is due and not begun."""
        now = utcnow()
        due = (local_jobs.c.failed_at.is_(None), local_jobs.c.run_at <= now, local_jobs.c.locked_until.is_(None))
        count, oldest = db.session.execute(select(func.count(), func.min(local_jobs.c.run_at)).where(*due)).one()
        return Backlog(count, (now - oldest).total_seconds() if oldest else 0)

    def forget_failed(self) -> None:
        """Delete the jobs that were given up a week ago or earlier."""
        with transaction():
            db.session.execute(delete(local_jobs).where(local_jobs.c.failed_at < utcnow() - KEEP_FAILED))

    def close(self) -> None:
        """Nothing to give back; ProcrastinateQueue has."""


def _next(cron: str) -> datetime:
    time: datetime = croniter(cron, utcnow()).get_next(datetime)
    return time.astimezone(UTC)


# A job that was to run at once has no time; its event tells when it was made.
_BACKLOG = """
SELECT count(*), coalesce(extract(epoch FROM now() - min(coalesce(jobs.scheduled_at, events.at))), 0)
FROM procrastinate_jobs jobs
LEFT JOIN procrastinate_events events ON events.job_id = jobs.id AND events.type = 'deferred'
WHERE jobs.status = 'todo' AND coalesce(jobs.scheduled_at, now()) <= now()
"""


class ProcrastinateQueue:
    """The jobs of a PostgreSQL database.

    Its workers are Procrastinate's own (worker.py). Only `run_pending` takes jobs from here, with the
    library's SQL: starting a worker with an event loop and pools takes longer than most jobs.
    """

    def __init__(self) -> None:
        self._worker: int | None = None

    def add(self, task: str, arguments: str, *, run_at: datetime | None = None) -> None:
        """Add a job in the caller's transaction; `arguments` is JSON."""
        job = "ROW('default', :task, 0, NULL, NULL, CAST(:arguments AS jsonb), CAST(:run_at AS timestamptz))"
        statement = f"SELECT procrastinate_defer_jobs_v1(ARRAY[{job}::procrastinate_job_to_defer_v1])"
        db.session.execute(text(statement), {"task": task, "arguments": arguments, "run_at": run_at})

    def claim(self) -> Job | None:
        """Take the first job that is due, if there is one."""
        if self._worker is None:
            self._worker = self._call("register_worker")["worker_id"]
        self._call("update_heartbeat", worker_id=self._worker)
        row = self._call("fetch_job", queues=["default"], worker_id=self._worker)
        return None if row["id"] is None else Job(row["id"], row["task_name"], row["args"], row["attempts"] + 1)

    def finish(self, job: Job) -> None:
        """Remove a job that is done."""
        self._call("finish_job", job_id=job.id, status="succeeded", delete_job=True)

    def fail(self, job: Job, *, error: str, retry_at: datetime | None) -> None:  # noqa: ARG002
        """Run the job again at `retry_at`; without one it is kept and not run again."""
        if retry_at is None:
            self._call("finish_job", job_id=job.id, status="failed", delete_job=False)
        else:
            new = {"new_priority": None, "new_queue_name": None, "new_lock": None}
            self._call("retry_job", job_id=job.id, retry_at=retry_at, **new)

    def backlog(self) -> Backlog:
        """Return what is due and not begun."""
        count, lag = db.session.execute(text(_BACKLOG)).one()
        return Backlog(count, float(lag))

    def forget_failed(self) -> None:
        """Delete the jobs that were given up a week ago or earlier."""
        hours = KEEP_FAILED // timedelta(hours=1)
        with transaction():
            db.session.connection().exec_driver_sql(
                sql.queries["delete_old_jobs"],
                {"nb_hours": hours, "queue": None, "statuses": ["failed", "cancelled", "aborted"]},
            )

    def close(self) -> None:
        """Sign off as a worker."""
        if self._worker is not None:
            self._call("unregister_worker", worker_id=self._worker)

    def _call(self, query: str, **values: Any) -> RowMapping:
        with transaction():
            result = db.session.connection().exec_driver_sql(sql.queries[query], values)
            return result.mappings().one()


def current_queue() -> LocalQueue | ProcrastinateQueue:
    """Return the queue of the current application's database."""
    return LocalQueue() if db.engine.dialect.name == "sqlite" else ProcrastinateQueue()
