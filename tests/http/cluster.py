"""What the tests over HTTP run against: servers of their own, or `make stack` as production has it (TEST_STACK)."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.http.client import NEW_PASSWORD, PASSWORD, eventually
from tests.http.front import run_front
from tests.http.tokens import JWT_KEY, KEY_ID
from tests.servers import AppServer, run_server
from tests.servers.app import INHERITED, ROOT
from tests.servers.process import running
from tests.stack.running import RunningStack, run_stack

FLASK = [sys.executable, "-m", "flask"]
ADMIN_EMAIL = "canary-admin@example.com"
PLENTY = "1000000/minute"
CLIENT_GONE = 499  # as nginx logs it
LIMITS = (
    "READ",
    "WRITE",
    "DOWNLOAD",
    "ANONYMOUS",
    "LOGIN_NETWORK",
    "LOGIN_ACCOUNT",
    "PASSWORD",
    "MAILBOX",
    "WEBHOOK",
    "SYNC",
)
# Production, since its log is JSON; limits out of the way, except where a test is about them.
SETTINGS = {
    "APP_ENV": "production",
    "SECRET_KEY": "a secret key of these tests that is long enough",
    "JWT_SECRET_KEYS": f"{KEY_ID}:{JWT_KEY}",
    "PAYMENTS_SANDBOX_IN_PRODUCTION": "1",
    "WEB_CONCURRENCY": "1",
    **{f"LIMIT_{name}": PLENTY for name in LIMITS},
}
# gunicorn's master speaks before the application is loaded and has set up the log.
GUNICORN_LINE = re.compile(r"\[[-0-9 :+]+\] \[\d+\] \[[A-Z]+\] [\w .:/()@-]+")
SECRETS = re.compile(rf"canary|{PASSWORD}|{NEW_PASSWORD}|eyJ[\w-]{{8,}}\.|\$argon2|Bearer [\w-]", re.IGNORECASE)


@dataclass(frozen=True)
class Entrance:
    """An address, with the processes and logs of what is behind it: one server, or nginx with two of them."""

    url: str
    masters: tuple[int, ...]
    server_logs: tuple[Path, ...]
    proxy_logs: tuple[Path, ...] = ()

    @property
    def log(self) -> str:
        """All that the servers have logged so far."""
        return _read(self.server_logs)

    @property
    def whole_log(self) -> str:
        """All that was logged so far, by nginx as well."""
        return _read(self.server_logs + self.proxy_logs)


@dataclass(frozen=True)
class Cluster:
    """Two ways in to servers with a worker, a PostgreSQL and a Valkey. Behind nginx both are one."""

    env: Mapping[str, str]
    first: Entrance
    second: Entrance
    worker_log: Path

    @property
    def proxied(self) -> bool:
        """Whether nginx is in between."""
        return bool(self.first.proxy_logs)

    @property
    def in_bucket(self) -> bool:
        """Whether files are in a bucket, which answers for itself."""
        return self.env.get("STORAGE_URL", "").startswith("s3:")

    @property
    def logs(self) -> list[str]:
        """All that was logged so far, by process, without nginx."""
        return [self.first.log, self.second.log, self.worker_log.read_text(errors="replace")]

    def first_logged(self, request_id: str) -> dict[str, Any]:
        """Wait for the line of a request in the log of the first server and return it."""

        def look() -> dict[str, Any] | None:
            lines = [line for line in self.first.log.splitlines() if request_id in line]
            return json.loads(lines[-1]) if lines else None

        return eventually(look, f"request {request_id} in the log")

    def check_refused(self, request_id: str) -> None:
        """Check that a request whose JSON was cut was refused: as 400, or by nginx, which does not even pass it on."""
        if not self.proxied:
            assert self.first_logged(request_id)["status"] == 400
            return

        def look() -> dict[str, Any] | None:
            lines = [line for line in _read(self.first.proxy_logs[-1:]).splitlines() if request_id in line]
            return json.loads(lines[-1]) if lines else None

        assert eventually(look, f"request {request_id} in the log of nginx")["status"] in {400, CLIENT_GONE}
        assert request_id not in self.first.log

    @contextmanager
    def server_with(self, settings: Mapping[str, str]) -> Iterator[str]:
        """Run another server with other settings until the block ends, behind nginx like the others; give its URL."""
        env = {**self.env, **settings}
        with run_server(env) as server:
            if not self.proxied:
                yield server.url
                return
            with run_front(server.port, env["STORAGE_URL"]) as front:
                yield front.url


def _read(paths: tuple[Path, ...]) -> str:
    return "".join(path.read_text(errors="replace") for path in paths)


@contextmanager
def own_servers(env: Mapping[str, str]) -> Iterator[Cluster]:
    """Run a worker and two servers, the second with two processes. At the end their logs must be clean."""
    log = Path(env["DATA_DIR"]) / "worker.log"
    with run_worker(env, log), run_server(env) as first, run_server({**env, "WEB_CONCURRENCY": "2"}) as second:
        found = Cluster(env, entrance(first), entrance(second), log)
        yield found
        for text in found.logs:
            check_log(text)


def entrance(server: AppServer) -> Entrance:
    """The way to one server."""
    return Entrance(server.url, (server.process.pid,), (server.log_path,))


@contextmanager
def whole_stack(mode: str, storage: Path) -> Iterator[Cluster]:
    """Run `make stack` with files in a "bucket", on "disk", or there and sent by nginx ("x-accel")."""
    settings = {name: value for name, value in SETTINGS.items() if name.startswith("LIMIT_")}
    if mode != "bucket":
        storage.mkdir()
        delivery = {"disk": "app", "x-accel": "x-accel"}[mode]
        settings |= {"STORAGE_URL": storage.as_uri(), "FILES_DELIVERY": delivery}
    with run_stack(settings) as stack:
        way_in = _entrance_of(stack)
        yield Cluster(stack.env, way_in, way_in, stack.folder / "logs" / "worker.log")
        for log in (*way_in.server_logs, stack.folder / "logs" / "worker.log"):
            check_log(log.read_text(errors="replace"))
        assert not SECRETS.search(_read(way_in.proxy_logs))


def _entrance_of(stack: RunningStack) -> Entrance:
    logs, pids = stack.folder / "logs", stack.pids
    names = [name for name in pids if name.startswith("server")]
    return Entrance(
        stack.url,
        tuple(pids[name] for name in names),
        tuple(logs / f"{name}.log" for name in names),
        (logs / "nginx.log", stack.folder / "nginx" / "access.log"),
    )


def flask(env: Mapping[str, str], *arguments: str, entered: str = "") -> None:
    """Run a `flask` command with these settings."""
    done = subprocess.run(
        [*FLASK, *arguments], input=entered, text=True, check=False, cwd=ROOT, env=_inherited(env), capture_output=True
    )
    assert done.returncode == 0, done.stderr


@contextmanager
def run_worker(env: Mapping[str, str], log: Path) -> Iterator[None]:
    """Run `flask worker` until the block ends."""
    ready = "worker_started"
    with running([*FLASK, "worker"], log=log, ready=lambda: ready in log.read_text(), env=_inherited(env), cwd=ROOT):
        yield


def _inherited(env: Mapping[str, str]) -> dict[str, str]:
    return {**{name: os.environ[name] for name in INHERITED if name in os.environ}, **env}


def check_log(text: str) -> None:
    """Check that a log is one JSON object a line, without secrets, addresses and unexpected errors."""
    for line in text.splitlines():
        assert not SECRETS.search(line), line
        if not GUNICORN_LINE.fullmatch(line) and line != "Running jobs; Ctrl-C stops.":
            entry = json.loads(line)
            assert {"event", "level", "time"} <= set(entry)
            assert entry["level"] not in {"error", "critical"}, line
