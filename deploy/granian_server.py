"""How granian serves the application: `python -m deploy.granian_server [--bind 127.0.0.1:8000] [wsgi:app]`.

The same application and settings as under gunicorn, faster, and less strict about HTTP: it belongs behind nginx.
docs/operations.md says what is different. Its own command knows nothing of draining, of the jobs of SQLite, of our
metrics and logs, and takes a body that was cut off for a whole one, so it is started here.
"""

import argparse
import ctypes
import importlib
import logging
import multiprocessing
import signal
import socket
import sys
from contextlib import suppress
from functools import partial
from typing import Any

from granian import Granian, log
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server import mp

from deploy import serving  # before anything else of the application
from project.config import Settings
from project.granian_bridge import bridge
from project.jobs import start_local
from project.observability import configure_logs

# Connections that a process has at a time, with or without a request; more of them wait.
CONNECTIONS = 1000
# Bytes of the address and all headers together; what is longer granian refuses, without a body.
MAX_HEAD = 64 * 1024
# For a head to come, and for a connection between two requests: longer than any proxy keeps idle ones, as for gunicorn.
HEAD_SECONDS = 75
# For what is under way when it stops, in seconds.
GRACEFUL_SECONDS = 30
PR_SET_PDEATHSIG = 1


class Server(Granian):  # type: ignore[misc,valid-type]
    """granian, with what it has no settings for."""

    drain_seconds = 0

    def signal_handler_interrupt(self, number: int, frame: Any) -> None:
        """Let TERM begin a drain; who presses Ctrl-C does not wait."""
        seconds = self.drain_seconds if number == signal.SIGTERM else 0
        serving.drain(seconds, super().signal_handler_interrupt, number, frame)

    def _respawn_workers(self, *args: Any, **kwargs: Any) -> None:
        serving.fold_metrics()
        super()._respawn_workers(*args, **kwargs)


def serve(settings: Settings, host: str, port: int, target: str) -> None:
    """Serve until TERM or Ctrl-C."""
    # Its processes are copies of this one, so that they share `draining` and what is imported.
    multiprocessing.set_start_method("fork")
    # There is no setting for it; setup.cfg lets no version in that was not tried.
    mp._wsgi_call_wrap = lambda app, *_: bridge(app, lambda: serving.draining.value)  # noqa: SLF001
    server = Server(
        target,
        host,
        port,
        interface=Interfaces.WSGI,
        workers=settings.web_concurrency,
        blocking_threads=settings.web_threads,
        backpressure=CONNECTIONS,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=HEAD_SECONDS * 1000, max_buffer_size=MAX_HEAD),
        websockets=False,
        log_level=log.LogLevels(settings.log_level.lower()),
        # No handlers of its own: its lines go where ours go, in the same form.
        log_dictconfig={"formatters": {}, "handlers": {}, "loggers": {}},
        respawn_failed_workers=True,
        workers_kill_timeout=GRACEFUL_SECONDS,
    )
    server.drain_seconds = settings.drain_seconds
    configure_logs(settings)
    log.logger.addFilter(_is_news)
    try:
        server.serve(target_loader=partial(_load, settings))
    finally:
        serving.remove_own_metrics()


def _is_news(record: logging.LogRecord) -> bool:
    """Leave out what granian says of WEB_THREADS, of which most wait for clients."""
    return not record.getMessage().startswith("Configuration allows spawning")


def _load(settings: Settings, target: str) -> Any:
    """Return the application, in a process that is about to serve it."""
    # Not to outlive the process that started it, and go on at its port. Where it has not Linux's prctl, it does.
    with suppress(AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    module, _, name = target.partition(":")
    app = getattr(importlib.import_module(module), name)
    serving.announce_stop(app)
    if settings.sqlite:
        start_local(app)
    return app


def main() -> None:
    """Read what the command line and the settings say, and serve."""
    settings = serving.read_settings()
    parser = argparse.ArgumentParser(prog="granian_server")
    parser.add_argument("--bind", default=f"127.0.0.1:{settings.port}", help="HOST:PORT")
    parser.add_argument("app", nargs="?", default="wsgi:app")
    arguments = parser.parse_args()
    host, _, port = arguments.bind.rpartition(":")
    if settings.proxy_hops and not settings.proxy_drops_underscores:
        sys.exit("Refusing to start: PROXY_HOPS under granian needs PROXY_DROPS_UNDERSCORES=on, see .env.example.")
    try:
        # granian would share the port with whoever shares it too.
        socket.create_server((host, int(port))).close()
    except OSError:
        sys.exit(f"Refusing to start: {arguments.bind} is in use.")
    serve(settings, host, int(port), arguments.app)


if __name__ == "__main__":
    main()
