"""Tasks for the tests of jobs, and a process that runs them: a worker, or a server with its local thread.

Run as `python -c "from tests.job_tasks import main; main()" MODE DATABASE_URL DIRECTORY`.
"""

import sys
import threading
from dataclasses import replace
from pathlib import Path

from flask import Flask

from project import jobs, logs, worker
from project.config import Environment
from project.database import transaction
from tests.small_app import small_app

ran: list[str] = []


def say(line: str) -> None:
    """Tell the test that started this process."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@jobs.task
def note(*, text: str) -> None:
    ran.append(text)


@jobs.task
def count_down(*, start: int) -> None:
    ran.append(str(start))
    if start:
        with transaction():
            jobs.defer(count_down, start=start - 1)


@jobs.task
def fail(*, text: str) -> None:
    raise LookupError(text)


@jobs.task
def wait(*, pipe: str) -> None:
    """Say that it runs, and go on when somebody writes into the pipe."""
    say("running")
    Path(pipe).read_text()


@jobs.periodic("0 0 29 2 *")
def stumble() -> None:
    raise LookupError


def tick() -> None:
    say("tick")


def main() -> None:
    """Run jobs with the log on standard output."""
    mode, url, directory = sys.argv[1:]
    for name in [name for name in jobs.TASKS if not name.startswith("tests.")]:
        del jobs.TASKS[name]  # the product's periodic tasks would leave jobs behind
    if mode == "ticking worker":
        jobs.periodic("* * * * * *")(tick)
    with small_app(Path(directory), database_url=url) as app:
        logs.configure(level="DEBUG", readable=False, request_id=lambda: None)
        if "worker" in mode:
            jobs.init_app(app)
            jobs.run_worker(app)
        else:
            serve(app)


def serve(app: Flask) -> None:
    """Be a server that has answered two requests and defers a job for each line on its standard input."""
    worker.POLL_SECONDS = 3600  # so that only the commit can wake it
    app.extensions["settings"] = replace(app.extensions["settings"], environment=Environment.DEVELOPMENT)
    jobs.init_app(app)
    for _ in range(2):
        app.test_client().get("/")
    threads = [thread.name for thread in threading.enumerate()]
    say(f"threads {threads.count('jobs')}")
    for line in sys.stdin:
        with app.app_context(), transaction():
            jobs.defer(wait, pipe=line.strip())
