"""The application of production, which ends as by kill -9 where a test wants it to; gunicorn serves it.

Nothing of the product is changed but the time that it waits for the dead: they hold a key for half a second here, and
not for a minute.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from threading import Thread
from typing import Any

import stripe
from flask import Flask, g, has_request_context, request
from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError

from project import create_app, idempotency_keys, jobs
from project.config import settings
from project.database import db
from project.payments.sandbox import keys, transport, wire
from project.payments.sandbox.delivery import WEBHOOK_PATH
from project.payments.sandbox.transport import SandboxTransport
from project.payments.stripe_gateway import RETRIES, StripeGateway
from tests.payments.server.points import Point, pass_by

LOCKED_FOR = timedelta(seconds=0.5)
POLL_SECONDS = 0.05


def die_at(point: Point) -> None:
    """Die, if this is the point."""
    pass_by(point, settings.data_dir)


class DeadlyTransport(SandboxTransport):
    """The way to the provider, at both ends of which the process may die."""

    def request(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Answer a request."""
        changes = method == "post"
        if changes:
            die_at(Point.BEFORE_CALL)
        answer = super().request(method, *args, **kwargs)
        if changes:
            die_at(Point.AFTER_CALL)
        if changes and has_request_context():
            g.answered = True
        return answer


def connect() -> StripeGateway:
    """Return the gateway of the sandbox, over this transport."""
    client = stripe.StripeClient(wire.API_KEY, http_client=DeadlyTransport(), max_network_retries=RETRIES)
    return StripeGateway(client, livemode=False)


def note_statement(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
    """Remember what a transaction has done."""
    connection.info.setdefault("done", []).append(statement)


def forget(connection: Connection) -> None:
    """Nothing was done."""
    connection.info["done"] = []


def commit(connection: Connection) -> None:
    """Commit; before and after that the process may die."""
    done = " ".join(connection.info.get("done", ()))
    connection.info["done"] = []
    # The others only end a phase of reading.
    if not db.session().info.get("transaction"):
        return
    if not has_request_context():
        if "INSERT INTO ledger_entries" in done:
            die_at(Point.WHILE_APPLYING)
        return
    if request.path == WEBHOOK_PATH:
        committed(connection, Point.AFTER_EVENT, when="INSERT INTO webhook_events" in done)
        return
    closing = bool(g.pop("answered", False))
    if closing:
        die_at(Point.AFTER_ANSWER)
    committed(connection, Point.AFTER_CLOSING, when=closing)
    committed(connection, Point.AFTER_KEY, when="INSERT INTO idempotency_keys" in done)
    committed(connection, Point.AFTER_ROW, when="UPDATE idempotency_keys SET resource_id" in done)


def committed(connection: Connection, point: Point, *, when: bool) -> None:
    """Die at this point, when it is that, after the commit."""
    if when:
        connection.connection.commit()
        die_at(point)


def run_jobs(application: Flask) -> None:
    """Run the jobs of a PostgreSQL database beside the server; those of SQLite run there anyway."""
    while True:
        # Somebody may take our jobs for those of the dead, and then we cannot end them.
        with suppress(DBAPIError):
            jobs.run_pending(application, reraise=False)
        time.sleep(POLL_SECONDS)


def start_jobs(application: Flask) -> Callable[[], None]:
    """Return what starts that thread with the first request of a process: it would not survive the fork."""

    def start() -> None:
        if application.extensions.get("deadly") != os.getpid():
            application.extensions["deadly"] = os.getpid()
            Thread(target=run_jobs, args=(application,), daemon=True).start()

    return start


idempotency_keys.LOCKED_FOR = keys.LOCKED = LOCKED_FOR
transport.connect = connect
app = create_app()
with app.app_context():
    event.listen(db.engine, "after_cursor_execute", note_statement)
    event.listen(db.engine, "rollback", forget)
    event.listen(db.engine, "commit", commit)
    if not settings.sqlite:
        app.before_request(start_jobs(app))
