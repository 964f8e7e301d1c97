"""What Prometheus counts, and /metrics.

With PROMETHEUS_MULTIPROC_DIR, one folder on each machine, all processes that have it add up: servers and job workers.
The library looks at that variable when it is imported, so deploy/gunicorn.conf.py sets it before anything else.
"""

import ipaddress
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from socketserver import ThreadingMixIn
from threading import Thread
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from flask import Flask, Response, g, request
from sqlalchemy import Engine, event
from sqlalchemy.exc import SQLAlchemyError

# Empty is not set, as with every setting. To the library it would be the folder that the process was started in.
if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from project import metric_files
from project.config import settings
from project.database import db
from project.environment import ConfigError
from project.errors import NotFound
from project.extensions import limiter
from project.postgresql import WatchedConnection

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

# In seconds: from an answer out of memory to the longest wait for a payment provider.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

REQUESTS = Counter("http_requests", "Requests answered.", ["method", "route", "status"])
DURATION = Histogram("http_request_duration_seconds", "Time until the answer.", ["method", "route"], buckets=BUCKETS)
STATEMENTS = Histogram("database_statement_duration_seconds", "Time of SQL statements.", buckets=BUCKETS)
CONNECTIONS = Gauge("database_connections_in_use", "Connections taken out of the pools.", multiprocess_mode="livesum")
JOBS = Counter("jobs", "Attempts at jobs: done, failed or given_up.", ["task", "outcome"])
JOB_DURATION = Histogram("job_duration_seconds", "Time of attempts at jobs.", ["task"], buckets=BUCKETS)
LOGINS = Counter("logins", "Attempts to sign in: success or failure.", ["outcome"])
WEBHOOKS = Counter("webhooks", "Webhooks that came: received, repeated or invalid_signature.", ["outcome"])
EVENTS = Counter("webhook_events", "Webhook events looked at: processed, ignored or failed.", ["outcome"])
QUOTA_REFUSALS = Counter("quota_refusals", "Uploads for which an account had no room.")
DISCREPANCIES = Counter("payments_discrepancies", "What reconciliation could not cure, at each of its runs.")
UNANSWERED = Counter("payments_unanswered", "How often reconciliation got no answer from the payment provider.")
LIMITS_UNSHARED = Counter("rate_limits_unshared", "Requests counted by their process alone, since Redis was away.")

_STARTED = "project_started"
# Of RFC 9110 and RFC 5789. A client may make up others without end, each of which would be a series for ever.
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


@dataclass(frozen=True)
class Measure:
    """A number that is looked up when Prometheus asks, such as how many jobs wait."""

    name: str
    meaning: str
    look: Callable[[], float]


_measures: list[Measure] = []


def measured(name: str, meaning: str) -> Callable[[Callable[[], float]], Callable[[], float]]:
    """Register a function that looks a number up (a decorator)."""

    def register(look: Callable[[], float]) -> Callable[[], float]:
        _measures.append(Measure(name, meaning, look))
        return look

    return register


class _Measured(Collector):
    def collect(self) -> Iterator[Metric]:
        for measure in _measures:
            # Without the database the counters are worth the more.
            with suppress(SQLAlchemyError):
                yield GaugeMetricFamily(measure.name, measure.meaning, value=measure.look())


def init_app(app: Flask) -> None:
    """Count requests and the work of the database, and add /metrics."""
    app.after_request(_count)
    app.add_url_rule("/metrics", view_func=limiter.exempt(show_metrics))
    with app.app_context():
        _watch(db.engine)


def show_metrics() -> Response:
    """Show the numbers to Prometheus.

    Raises:
        NotFound: the caller is outside METRICS_NETWORKS; to the world there is no such page.
    """
    if not _is_inside(request.remote_addr):
        raise NotFound()
    return Response(_exposition(), content_type=CONTENT_TYPE_LATEST, headers={"Cache-Control": "no-store"})


def serve(app: Flask, host: str, port: int) -> None:
    """Show the numbers at an address of its own, from a thread, to METRICS_NETWORKS: for a worker, which has no other.

    Raises:
        ConfigError: the address is of another machine, or taken.
    """

    def answer(_environ: "WSGIEnvironment", start_response: "StartResponse") -> list[bytes]:
        with app.app_context():
            body = _exposition()
        start_response("200 OK", [("Content-Type", CONTENT_TYPE_LATEST), ("Content-Length", str(len(body)))])
        return [body]

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def verify_request(self, _request: Any, client_address: Any) -> bool:
            # Before a byte of theirs is read. To all others nothing is said at all.
            with app.app_context():
                return _is_inside(client_address[0])

    try:
        server = make_server(host, port, answer, Server, _Handler)
    except OSError:
        raise ConfigError("WORKER_METRICS_ADDRESS must be of this machine, and free") from None
    Thread(target=server.serve_forever, name="metrics", daemon=True).start()


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds; who asks is slow at most once

    def log_message(self, *_: Any) -> None:
        """Say nothing: the log has lines of JSON alone."""


def _exposition() -> bytes:
    folder = settings.metrics.directory
    counted = generate_latest(REGISTRY) if folder is None else metric_files.exposition(folder)
    measured_now = CollectorRegistry()
    measured_now.register(_Measured())
    return counted + generate_latest(measured_now)


def _is_inside(address: str | None) -> bool:
    try:
        caller = ipaddress.ip_address(address or "")
    except ValueError:  # a Unix socket, which no proxy stands before
        return False
    return any(caller in network for network in settings.metrics.networks)


def _count(response: Response) -> Response:
    # The rule, not the path: paths are endless.
    rule, method = request.url_rule, request.method
    requests, duration = _series(
        method if method in METHODS else "other", rule.rule if rule else "none", response.status_code
    )
    requests.inc()
    duration.observe(time.perf_counter() - g.started)
    return response


@cache
def _series(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    """Return what counts answers of a kind; the library takes a lock to find it among all of its."""
    return REQUESTS.labels(method, route, str(status)), DURATION.labels(method, route)


def _watch(engine: Engine) -> None:
    if engine.dialect.name == "postgresql":
        # For all engines alike, as the counters are.
        WatchedConnection.measure = STATEMENTS.observe
    else:
        _measure_statements(engine)

    @event.listens_for(engine, "checkout")
    def take(*_: Any) -> None:
        CONNECTIONS.inc()

    @event.listens_for(engine, "checkin")
    def give_back(*_: Any) -> None:
        CONNECTIONS.dec()


def _measure_statements(engine: Engine) -> None:
    @event.listens_for(engine, "before_cursor_execute")
    def begin(connection: Any, *_: Any) -> None:
        connection.info[_STARTED] = time.perf_counter()

    @event.listens_for(engine, "after_cursor_execute")
    def end(connection: Any, *_: Any) -> None:
        STATEMENTS.observe(time.perf_counter() - connection.info[_STARTED])
