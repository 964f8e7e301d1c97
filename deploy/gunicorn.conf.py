"""How gunicorn serves the application: `gunicorn -c deploy/gunicorn.conf.py wsgi:app`.

It listens on the loopback only and belongs behind a proxy such as nginx wherever clients are not
trusted: half-open connections alone can keep it busy. `--bind` on the command line replaces the address.
"""

import multiprocessing
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

from gunicorn.glogging import Logger
from gunicorn.http import wsgi

from deploy import serving  # before anything else of the application
from project.gunicorn_worker import WholeResponse, Worker
from project.jobs import start_local
from project.observability import NotReady, configure_logs, readyz

_settings = serving.read_settings()

bind = f"127.0.0.1:{_settings.port}"
worker_class = Worker
wsgi.Response = WholeResponse  # there is no setting for it
workers = _settings.web_concurrency
# Threads wait for clients, the database, the disk or a payment provider most of the time, and are made as needed.
threads = _settings.web_threads


# Set when the server has been ready once; shared by its processes like serving.draining.
_has_begun = multiprocessing.RawValue("b", 0)


def _take_over(worker: Any) -> None:
    """As a server that replaces another: take no request before it is ready, and then say so (READY_FILE)."""
    ready_file = os.environ.get("READY_FILE")
    if not ready_file or _has_begun.value:
        return
    with worker.wsgi.app_context():
        while worker.alive:
            try:
                readyz()
            except NotReady:
                time.sleep(0.5)
            else:
                _has_begun.value = 1
                Path(ready_file).touch()
                return


def post_worker_init(worker: Any) -> None:
    """Let /readyz tell that the server stops, and run the jobs of an SQLite database in this process."""
    # On a socket that was handed over (fd://) whoever did so goes on listening: nobody need look for another address.
    if not any(isinstance(address, int) for address in worker.cfg.address):
        serving.announce_stop(worker.wsgi)
    _take_over(worker)
    if _settings.sqlite:
        start_local(worker.wsgi)


def pre_request(_worker: Any, request: Any) -> None:
    """End each connection with its next answer while the server drains: none is open and idle when it stops."""
    if serving.draining.value:
        request.force_close()


def when_ready(server: Any) -> None:
    """Let TERM begin a drain."""
    signal.signal(signal.SIGTERM, partial(serving.drain, _settings.drain_seconds, server.signal))


def child_exit(_server: Any, _worker: Any) -> None:
    """Keep what a process has counted that is gone, and forget what it had in use."""
    serving.fold_metrics()


def on_exit(_server: Any) -> None:
    """Remove the folder of the metrics, if it was our own."""
    serving.remove_own_metrics()


# The heartbeat is a file; on a disk a slow flush would look like a hung worker. This is a directory, so
# there is no name that somebody could guess and take first.
_memory = Path("/dev/shm")  # noqa: S108 # nosec B108
worker_tmp_dir = str(_memory) if _memory.is_dir() else None

timeout = 60  # longer than the slowest payment call with its retry
graceful_timeout = 30
# Longer than any proxy keeps idle connections (nginx by itself 60 s), so that never the server closes one just as it is
# used. While it stops it waits 2 s for those.
keepalive = 75

# Nobody's word is taken about the scheme, the path or the address. The application reads X-Forwarded-*
# itself, from PROXY_HOPS proxies (werkzeug's ProxyFix). An empty allow list is not enough: gunicorn trusts
# every peer on a Unix socket, so what such a peer could set is emptied too.
forwarded_allow_ips = ""
secure_scheme_headers: dict[str, str] = {}
forwarder_headers = ""
header_map = "drop"  # X_User_Id must not be readable as X-User-Id
proxy_protocol = "off"

# Beyond these: 414 for the line, 431 for the headers.
limit_request_line = 8190
limit_request_fields = 100
limit_request_field_size = 8190

# The control socket would let any process of this user change a running server.
control_socket_disable = True
# The compiled parser comes along with some installations; one parser means one behaviour to test.
http_parser = "python"


class _Logger(Logger):
    """Writes gunicorn's own lines in the form of the application's, from the first one on."""

    def setup(self, cfg: Any) -> None:
        """Replace the handlers that gunicorn has made."""
        super().setup(cfg)  # type: ignore[no-untyped-call]
        configure_logs(_settings)


logger_class = _Logger
# The application writes one structured line per request itself.
accesslog = None
errorlog = "-"
loglevel = _settings.log_level.lower()
