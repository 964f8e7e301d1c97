"""Background jobs: `defer` writes one in the caller's transaction; it runs after the commit, at least once.

A task is a plain function with keyword-only arguments that JSON can carry. It may run twice, because a process can die
between the work and the note that it is done, so it must be idempotent; `current_key` helps. A release that brings a
new task restarts the workers before the servers: on PostgreSQL a worker gives up a job it does not know.
"""

import atexit
import inspect
import json
import logging
import os
import secrets
import signal
import time
from collections.abc import Callable
from contextlib import closing
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from threading import Event, Lock, Thread
from typing import Any, ParamSpec
from uuid import UUID

from flask import Flask

from project import metrics, worker
from project.config import Environment, settings
from project.database import db, on_commit, utcnow
from project.queues import MAX_ATTEMPTS, Job, LocalQueue, ProcrastinateQueue, current_queue, next_attempt

logger = logging.getLogger(__name__)

# How long a server that stops waits for the jobs it is running; less than gunicorn's graceful_timeout.
EXIT_SECONDS = 20
# Jobs that are due begin within seconds while a worker runs.
LONG_LAG_SECONDS = 60
# Beside the arguments of each job.
_KEY = "job key"

P = ParamSpec("P")


class CrashedError(Exception):
    """A job that has ended the process running it too often."""


@dataclass(frozen=True)
class Task:
    """A function that jobs run. Its name is in the database: renaming it loses the jobs that wait."""

    name: str
    function: Callable[..., None]
    cron: str | None


TASKS: dict[str, Task] = {}
_starting = Lock()
_key: ContextVar[str | None] = ContextVar("job_key", default=None)


def task(function: Callable[P, None]) -> Callable[P, None]:
    """Register a function that `defer` may name. It stays an ordinary function."""
    return _register(function, cron=None)


def periodic(cron: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a function without arguments that runs at the times of a cron line, in UTC.

    A sixth field counts seconds. A run that failed is not repeated: the next one makes up for it.
    """

    def decorate(function: Callable[[], None]) -> Callable[[], None]:
        return _register(function, cron=cron)

    return decorate


def _register(function: Callable[P, None], *, cron: str | None) -> Callable[P, None]:
    name = _name(function)
    if name in TASKS:
        raise ValueError(f"there are two tasks named {name}")
    TASKS[name] = Task(name, function, cron)
    return function


def _name(function: Callable[..., None]) -> str:
    return f"{function.__module__.removeprefix('project.')}.{function.__name__}"


def defer(function: Callable[..., None], *, run_at: datetime | None = None, **arguments: Any) -> None:
    """Add a job that calls `function` with these arguments: it exists if and only if the transaction commits.

    It runs at once, or at `run_at`.

    Raises:
        RuntimeError: outside `transaction()`.
        TypeError, ValueError: the task does not take these arguments, or JSON cannot carry them. A UUID arrives
            as text.
    """
    if not db.session().info.get("transaction"):
        raise RuntimeError("defer() belongs inside transaction()")
    inspect.signature(function).bind(**arguments)
    values = {name: str(value) if isinstance(value, UUID) else value for name, value in arguments.items()}
    values[_KEY] = _new_key()
    current_queue().add(TASKS[_name(function)].name, json.dumps(values, allow_nan=False), run_at=run_at)
    on_commit(worker.wake)


def current_key() -> str:
    """Return a text that no other job has, and this one each time it runs; what is derived from it is there once.

    It begins with the time when the job was deferred, and nobody can guess it. Outside of jobs, and in periodic ones,
    each call gives another.
    """
    return _key.get() or _new_key()


def _new_key() -> str:
    return f"{utcnow():%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(16)}"


def run_pending(app: Flask, *, reraise: bool = True) -> int:
    """Run in this thread every job that is due, and those that they defer; return how many ran.

    Raises:
        Exception: the first that a job raised, once all have run; not with `reraise=False`.
    """
    errors: list[Exception] = []
    count = 0
    with app.app_context(), closing(current_queue()) as queue:
        while job := queue.claim():
            count += 1
            error = _attempt(app, queue, job)
            if error:
                errors.append(error)
    if errors and reraise:
        raise errors[0]
    return count


def _attempt(app: Flask, queue: LocalQueue | ProcrastinateQueue, job: Job) -> Exception | None:
    """Run a claimed job and note how it ended."""
    error: Exception | None = None
    try:
        _execute(app, job)
    except Exception as caught:  # noqa: BLE001 - whatever went wrong, the job is tried again
        error = caught
    with app.app_context():
        if error is None:
            queue.finish(job)
        else:
            queue.fail(job, error=_class(error), retry_at=_retry_at(job))
    return error


def _execute(app: Flask, job: Job) -> None:
    """Run a job in an application context of its own and log how it went, without its arguments."""
    started = time.perf_counter()
    fields: dict[str, object] = {"task": job.task, "job_id": job.id, "attempt": job.attempt}
    try:
        _call(app, job)
    except Exception as error:
        fields |= {"duration_ms": _since(started), "error": _class(error)}
        outcome = "failed" if _retry_at(job) else "given_up"
        _count(job, outcome, started)
        logger.exception("job_failed" if outcome == "failed" else "job_given_up", extra=fields)
        raise
    _count(job, "done", started)
    logger.info("job_done", extra=fields | {"duration_ms": _since(started)})


def _count(job: Job, outcome: str, started: float) -> None:
    metrics.JOBS.labels(job.task, outcome).inc()
    metrics.JOB_DURATION.labels(job.task).observe(time.perf_counter() - started)


def _call(app: Flask, job: Job) -> None:
    if job.attempt > MAX_ATTEMPTS:
        raise CrashedError
    known = TASKS[job.task]
    arguments = {} if known.cron else dict(job.arguments)  # the library adds the time to a periodic task's
    token = _key.set(arguments.pop(_KEY, None))
    try:
        with app.app_context():
            known.function(**arguments)
    finally:
        _key.reset(token)


def _retry_at(job: Job) -> datetime | None:
    known = TASKS.get(job.task)
    return None if known and known.cron else next_attempt(job.attempt)


def _class(error: Exception) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}"


def _since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 1)


def init_app(app: Flask) -> None:
    """Keep the library quiet; on SQLite let the first request of a serving process start the local thread."""
    # Its messages quote the arguments of jobs: addresses, tokens. Ours say all that is needed.
    logging.getLogger("procrastinate").setLevel(logging.CRITICAL)
    with app.app_context():
        local = settings.sqlite and settings.environment is not Environment.TESTING
    if local:
        # Not at once: a command must not run jobs, and a thread would not survive the fork of a server.
        app.before_request(lambda: start_local(app))


def start_local(app: Flask) -> None:
    """Start the thread that runs the jobs of an SQLite database, unless this process already has it."""
    if app.extensions.get("jobs") == os.getpid():
        return
    with _starting:
        if app.extensions.get("jobs") == os.getpid():
            return
        app.extensions["jobs"] = os.getpid()
    stop = Event()
    thread = _local_thread(app, stop)
    thread.start()
    atexit.register(_stop, thread, stop, EXIT_SECONDS)


def run_worker(app: Flask) -> None:
    """Run jobs in the foreground until SIGTERM or SIGINT, then finish those that are running.

    Raises:
        ConfigError: WORKER_METRICS_ADDRESS is of another machine, or taken.
    """
    with app.app_context():
        local, address = settings.sqlite, settings.metrics.worker_address
    if address is not None:
        metrics.serve(app, *address)
    logger.info("worker_started")
    if not local:
        worker.run_procrastinate(app, crons=_crons(), tasks=TASKS, run=lambda job: _execute(app, job))
        return
    # The jobs that post webhooks are requests as well, and those are not to start a thread of their own.
    app.extensions["jobs"] = os.getpid()
    stop = Event()
    thread = _local_thread(app, stop)
    # Waited for rather than handled: a handler runs anywhere, also where it must not touch an event.
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    thread.start()
    signal.sigwait(ends)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ends)  # a second one ends the process at once
    _stop(thread, stop, None)


def _local_thread(app: Flask, stop: Event) -> Thread:
    def run(queue: LocalQueue, job: Job) -> None:
        _attempt(app, queue, job)

    options = {"crons": _crons(), "run": run, "stop": stop}
    return Thread(target=worker.run_local, args=(app,), kwargs=options, name="jobs", daemon=True)


def _stop(thread: Thread, stop: Event, seconds: float | None) -> None:
    stop.set()
    worker.wake()
    thread.join(seconds)


def _crons() -> dict[str, str]:
    return {known.name: known.cron for known in TASKS.values() if known.cron}


def queue_moves() -> None:
    """Raise when jobs that are due have not been begun for long: no worker runs, or too few."""
    if current_queue().backlog().lag > LONG_LAG_SECONDS:
        raise RuntimeError("jobs are waiting")


@metrics.measured("jobs_waiting", "Jobs that are due and not begun.")
def _waiting() -> float:
    return current_queue().backlog().waiting


@metrics.measured("jobs_lag_seconds", "For how long the oldest job that is due has been waiting.")
def _lag() -> float:
    return current_queue().backlog().lag


@periodic("17 3 * * *")
def forget_failed() -> None:
    """Delete the jobs that were given up a week ago or earlier."""
    current_queue().forget_failed()
