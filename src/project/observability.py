"""What is known about a running application: which request a line or an event belongs to, logs and health."""

import ipaddress
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from alembic.script import ScriptDirectory
from flask import Flask, Response, current_app, g, request
from sqlalchemy import text

from project import logs
from project.config import Environment, Settings
from project.database import db
from project.errors import InternalError, Unavailable, problem_response
from project.extensions import limiter

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger(__name__)

REQUEST_ID_HEADER = "X-Request-ID"
CHECK_SECONDS = 2
MAX_USER_AGENT = 255

_REQUEST_ID = re.compile(r"[A-Za-z0-9-]{8,64}")
_ENVIRON_KEY = "project.request_id"


@dataclass(frozen=True)
class Origin:
    """Where a request came from; all None outside a request."""

    ip: str | None
    user_agent: str | None
    request_id: str | None


_NOWHERE = Origin(None, None, None)
_origin: ContextVar[Origin] = ContextVar("origin", default=_NOWHERE)


class NotReady(Unavailable):
    """503: this process should get no requests yet."""

    code = "instance_not_ready"
    message = "The service is not ready."
    cure = "Send requests to another instance until /readyz answers 200."

    def __init__(self, checks: dict[str, str]) -> None:
        failed = ", ".join(name for name, state in checks.items() if state == "failed")
        super().__init__(f"Not ready: {failed}.")
        self.extra = {"checks": checks}


@dataclass
class _Check:
    run: Callable[[], object]
    essential: bool
    under_way: "Future[None] | None" = None


def origin() -> Origin:
    """Return where the current request came from; services may call it without knowing of requests."""
    return _origin.get()


def readiness_check(app: Flask, name: str, check: Callable[[], object], *, essential: bool = True) -> None:
    """Add a check to /readyz: a function that raises when something is wrong.

    It runs in an application context, in a thread, for at most CHECK_SECONDS. A failure makes the process not
    ready, or `degraded` but ready when the check is not essential.
    """
    checks: dict[str, _Check] = app.extensions["readiness"]
    checks[name] = _Check(check, essential)


def configure_logs(config: Settings) -> None:
    """Set up the one form of all lines of this process, which tells to which request each belongs."""
    readable = config.environment is Environment.DEVELOPMENT
    logs.configure(level=config.log_level, readable=readable, request_id=lambda: origin().request_id)


def init_app(app: Flask) -> None:
    """Set up logging, request ids, the request log and the health endpoints."""
    config: Settings = app.extensions["settings"]
    configure_logs(config)
    app.before_request(_begin)
    app.after_request(_finish)
    app.teardown_request(_end)
    app.log_exception = _log_exception  # type: ignore[method-assign]
    app.wsgi_app = _answer_what_escapes(app)  # type: ignore[assignment, method-assign]
    app.extensions["readiness"] = {}
    readiness_check(app, "database", _database_answers)
    readiness_check(app, "migrations", migrations_are_done)
    if config.rate_limits:
        readiness_check(app, "rate_limits", _rate_limits_are_shared, essential=False)
    app.add_url_rule("/healthz", view_func=limiter.exempt(healthz))
    app.add_url_rule("/readyz", view_func=limiter.exempt(readyz))


def _begin() -> None:
    environ = request.environ
    g.request_id = environ.setdefault(_ENVIRON_KEY, _request_id(environ.get("HTTP_X_REQUEST_ID", "")))
    g.started = time.perf_counter()
    g.outer_origin = _origin.get()
    user_agent = _user_agent(environ.get("HTTP_USER_AGENT", ""))
    _origin.set(Origin(_ip(request.remote_addr), user_agent, g.request_id))


def _request_id(given: str) -> str:
    return given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())


@lru_cache(maxsize=1024)
def _ip(address: str | None) -> str | None:
    # Behind a proxy this is what the proxy wrote; on a Unix socket it is empty.
    try:
        # Without the scope of a link-local one (%eth0), which is longer than any address.
        return str(ipaddress.ip_address((address or "").partition("%")[0]))
    except ValueError:
        return None


@lru_cache(maxsize=1024)
def _user_agent(value: str) -> str | None:
    return "".join(character for character in value if character.isprintable())[:MAX_USER_AGENT] or None


def _finish(response: Response) -> Response:
    if _ENVIRON_KEY not in request.environ:  # Flask failed before the first hook
        _begin()
    response.headers[REQUEST_ID_HEADER] = g.request_id
    user_id = g.get("user_id")
    rule = request.url_rule
    line = {
        "method": request.method,
        # The rule, not the path: a path may hold a token.
        "route": rule.rule if rule else None,
        "status": response.status_code,
        "duration_ms": round((time.perf_counter() - g.started) * 1000, 1),
        "user_id": str(user_id) if user_id else None,
        "ip": origin().ip,
    }
    logger.info("request", extra=line)
    return response


def _end(_error: BaseException | None) -> None:
    _origin.set(g.pop("outer_origin", _NOWHERE))


def _log_exception(exc_info: Any) -> None:
    # Flask's own text contains the path.
    logger.error("unhandled_error", exc_info=exc_info)


def _answer_what_escapes(app: Flask) -> "WSGIApplication":
    """Answer with a problem even when Flask itself fails, as in a teardown; the server would send HTML."""
    inner = app.wsgi_app

    def wsgi_app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        outer = _origin.get()
        announced: list[tuple[str, list[tuple[str, str]]]] = []

        def announce(status: str, headers: list[tuple[str, str]], *_exc_info: Any) -> Callable[[bytes], object]:
            # Flask announces its answer first and ends the request then; the server hears of it when both are done.
            announced.append((status, headers))
            return _write_nothing

        try:
            body = inner(environ, announce)
        except Exception as error:
            logger.exception("request_failed_outside_handlers")
            response = _last_answer(app, environ)
            _origin.set(outer)
            if response is None:
                raise error from None
            return response(environ, start_response)
        start_response(*announced[-1])
        return body

    return wsgi_app


def _last_answer(app: Flask, environ: "WSGIEnvironment") -> Response | None:
    response: Response | None = None
    # What failed at the end of the request will fail again at the end of this one.
    with suppress(Exception), app.request_context(environ):
        _begin()
        response = app.process_response(problem_response(InternalError()))
    return response


def _write_nothing(_data: bytes) -> None:
    raise NotImplementedError("Flask returns its answers")


def healthz() -> dict[str, Any]:
    """Say that the process answers; touches nothing else."""
    return {"data": {"status": "ok"}}


def readyz() -> dict[str, Any]:
    """Say whether the process should get requests."""
    checks = _run_checks(current_app.extensions["readiness"])
    if "failed" in checks.values():
        failed = [name for name, state in checks.items() if state == "failed"]
        logger.warning("not_ready", extra={"checks": failed})
        raise NotReady(checks)
    return {"data": {"status": "ready", "checks": checks}}


def _run_checks(checks: dict[str, _Check]) -> dict[str, str]:
    """Run all checks side by side and say for each: ok, degraded or failed."""
    runs = {name: _start(name, check) for name, check in checks.items()}
    wait(runs.values(), timeout=CHECK_SECONDS)
    states: dict[str, str] = {}
    for name, run in runs.items():
        fine = run.done() and run.exception() is None
        states[name] = "ok" if fine else "failed" if checks[name].essential else "degraded"
    return states


def _start(name: str, check: _Check) -> "Future[None]":
    # A check that hangs is waited for again, not started again: threads cannot pile up.
    if check.under_way is not None and not check.under_way.done():
        return check.under_way
    run: Future[None] = Future()
    context = current_app.app_context()

    def work() -> None:
        try:
            with context:
                check.run()
        except Exception as error:  # noqa: BLE001  # whatever is wrong with it, it is not ready
            logger.warning("readiness_check_failed", extra={"check": name, "error": type(error).__name__})
            run.set_exception(error)
        else:
            run.set_result(None)

    check.under_way = run
    threading.Thread(target=work, name=f"readiness-{name}", daemon=True).start()
    return run


def _database_answers() -> None:
    db.session.execute(text("SELECT 1"))


def migrations_are_done() -> None:
    """Raise unless the database is at the newest migration that this process knows, or at one that is newer.

    A release migrates before its first server starts, and migrations leave what the release before it needs: servers
    of that one go on.
    """
    current = set(db.session.scalars(text("SELECT version_num FROM alembic_version")))
    if not current or current & _former_migrations():
        raise RuntimeError("the database is not at the newest migration")


def _former_migrations() -> set[str]:
    # Read once: what counts is the code that this process runs, also when newer files are put in place.
    extensions = current_app.extensions
    if "former_migrations" not in extensions:
        script = ScriptDirectory(extensions["migrate"].directory)
        known = {revision.revision for revision in script.walk_revisions()}
        extensions["former_migrations"] = known.difference(script.get_heads())
    former: set[str] = extensions["former_migrations"]
    return former


def _rate_limits_are_shared() -> None:
    if not limiter.storage.check():
        raise RuntimeError("the storage of the rate limits is away; each process counts on its own")
