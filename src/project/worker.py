"""What runs jobs for good: threads beside the server on SQLite, a Procrastinate worker on PostgreSQL."""

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from threading import Event, Thread
from typing import Any, cast

import procrastinate
from flask import Flask
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job as StoredJob
from procrastinate.jobs import Status
from procrastinate.manager import JobManager
from procrastinate.retry import BaseRetryStrategy, RetryDecision
from psycopg_pool import PoolTimeout

from project.database import db
from project.postgresql import CONNECT_TIMEOUT_SECONDS
from project.queues import LOCK, Job, LocalQueue, next_attempt

logger = logging.getLogger(__name__)

CONCURRENCY = 4
# Beside the server, which needs the processor too.
LOCAL_CONCURRENCY = 2
# New jobs are told of; this is for those that are due later and, on SQLite, for those of other processes.
POLL_SECONDS = 2
PAUSE_AFTER_ERROR_SECONDS = 5
# A worker that was silent for this long is dead, and what it was running runs again. Somebody may be waiting for it,
# and where the worker was only slow, a job that runs twice does no harm.
HEARTBEAT_SECONDS = 2
STALLED_SECONDS = 10
# The last time of a periodic task that was missed while no worker ran is made up for, unless it is older.
MADE_UP_FOR_SECONDS = 24 * 60 * 60
EVERY_FIVE_SECONDS = "* * * * * */5"

_wake = Event()


def wake() -> None:
    """Let the local loop look at once."""
    _wake.set()


def run_local(app: Flask, *, crons: Mapping[str, str], run: Callable[[LocalQueue, Job], object], stop: Event) -> None:
    """Run the jobs of an SQLite database until `stop` is set, then wait for those that are running.

    `run` runs one job and notes how it ended; it is called in a thread and without an application context.
    """
    queue = LocalQueue()
    running: dict[Thread, Job] = {}
    scheduled = False
    renewed = time.monotonic()
    while not stop.is_set():
        _wake.clear()
        try:
            with app.app_context():
                if not scheduled:
                    queue.schedule(crons)
                    scheduled = True
                running = {thread: job for thread, job in running.items() if thread.is_alive()}
                if running and time.monotonic() - renewed > LOCK.total_seconds() / 3:
                    queue.renew(running.values())
                    renewed = time.monotonic()
                while len(running) < LOCAL_CONCURRENCY and (job := queue.claim()):
                    thread = Thread(target=_run_one, args=(run, queue, job), name=f"job-{job.id}", daemon=True)
                    thread.start()
                    running[thread] = job
        except Exception:
            # The database is locked, full or not migrated yet. What was claimed runs when its lock ends.
            logger.exception("jobs_unavailable")
            stop.wait(PAUSE_AFTER_ERROR_SECONDS)
        _wake.wait(POLL_SECONDS)
    for thread in running:
        thread.join()


def _run_one(run: Callable[[LocalQueue, Job], object], queue: LocalQueue, job: Job) -> None:
    try:
        run(queue, job)
    except Exception:
        # It ran, but that could not be written down: it runs again when its lock ends.
        logger.exception("job_unsettled", extra={"task": job.task, "job_id": job.id})
    _wake.set()


def run_procrastinate(
    app: Flask, *, crons: Mapping[str, str], tasks: Iterable[str], run: Callable[[Job], None]
) -> None:
    """Run the jobs of a PostgreSQL database until SIGTERM or SIGINT, then wait for those that are running.

    `run` runs one job; it is called in a thread and without an application context. A worker that has lost
    the database starts again, and what it was running is rescued like the jobs of a dead one.
    """
    stop = Event()
    while not stop.is_set():
        try:
            asyncio.run(_serve(_procrastinate(app, crons=crons, tasks=tasks, run=run), stop))
        except asyncio.CancelledError:
            continue
        except (ConnectorException, PoolTimeout):
            logger.exception("worker_lost_database")
        else:
            logger.error("worker_lost_database")
        stop.wait(PAUSE_AFTER_ERROR_SECONDS)


async def _serve(queue: procrastinate.App, stop: Event) -> None:
    main = cast("asyncio.Task[None]", asyncio.current_task())

    def end() -> None:
        stop.set()
        main.cancel()  # the worker then takes no more jobs and finishes those it has

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)
    async with queue.open_async():
        await _rescue(queue.job_manager)
        await queue.run_worker_async(
            concurrency=CONCURRENCY,
            delete_jobs="successful",
            install_signal_handlers=False,
            fetch_job_polling_interval=POLL_SECONDS,
            update_heartbeat_interval=HEARTBEAT_SECONDS,
            stalled_worker_timeout=STALLED_SECONDS,
        )


def _procrastinate(
    app: Flask, *, crons: Mapping[str, str], tasks: Iterable[str], run: Callable[[Job], None]
) -> procrastinate.App:
    """Make the library's application: our tasks by name, and connections to the database of our engine."""
    with app.app_context():
        _, options = db.engine.dialect.create_connect_args(db.engine.url)
    # Without these a database that falls silent would keep the worker waiting for hours.
    options.update(connect_timeout=CONNECT_TIMEOUT_SECONDS, tcp_user_timeout=STALLED_SECONDS * 1000)
    connector = procrastinate.PsycopgConnector(
        kwargs=options, min_size=1, max_size=CONCURRENCY, timeout=PAUSE_AFTER_ERROR_SECONDS
    )
    queue = procrastinate.App(connector=connector, periodic_defaults={"max_delay": MADE_UP_FOR_SECONDS})

    def run_stored(context: procrastinate.JobContext, /, **arguments: Any) -> None:
        job = context.job
        run(Job(job.id or 0, job.task_name, arguments, job.attempts + 1))

    for name in tasks:
        register = queue.task(name=name, pass_context=True, retry=False if name in crons else Backoff())
        task = cast("procrastinate.tasks.Task[[procrastinate.JobContext, int], None, [int]]", register(run_stored))
        if name in crons:
            queue.periodic(cron=crons[name])(task)
    # In a queue of its own, from which run_pending takes nothing.
    rescue = queue.task(name="rescue_stalled", queue="internal", pass_context=True)(rescue_stalled)
    queue.periodic(cron=EVERY_FIVE_SECONDS)(rescue)
    return queue


class Backoff(BaseRetryStrategy):
    """How the library asks when a job runs again."""

    def get_retry_decision(self, *, exception: BaseException, job: StoredJob) -> RetryDecision | None:  # noqa: ARG002
        """Return the time, or None to give the job up."""
        retry_at = next_attempt(job.attempts + 1)
        return RetryDecision(retry_at=retry_at) if retry_at else None


async def rescue_stalled(context: procrastinate.JobContext, timestamp: int) -> None:  # noqa: ARG001
    """Run the jobs of dead workers again: the periodic task."""
    await _rescue(context.app.job_manager)


async def _rescue(manager: JobManager) -> None:
    for job in await manager.get_stalled_jobs(seconds_since_heartbeat=STALLED_SECONDS):
        fields = {"task": job.task_name, "job_id": job.id, "attempt": job.attempts + 1}
        try:
            if next_attempt(job.attempts + 1):
                await manager.retry_job(job)
            else:
                # It may be what kills them.
                await manager.finish_job(job, Status.FAILED, delete_job=False)
        except ConnectorException:
            # Its worker was only slow and has finished it meanwhile.
            logger.info("job_not_stalled", extra=fields)
        else:
            logger.warning("job_stalled", extra=fields)
