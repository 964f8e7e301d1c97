"""`make stack`: the production topology on one machine, without Docker.

nginx, two servers of two processes each, a worker, and, where no URL names another, PostgreSQL, Valkey and an S3. Those
three live as long as the stack, with all that is in them; secrets, mails and logs stay in DATA_DIR. DATA_DIR/stack.env
says how to reach everything. HUP rolls the servers: for each in turn a new one is started, nginx is told of it, and the
old one ends what it has begun and stops.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote, urlsplit

import requests

from tests.servers import CREDENTIALS, NGINX, create_database, make_bucket, run_postgres, run_s3, run_valkey
from tests.servers.process import ServerFailedError, free_port, running

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
SERVERS = 2
PROCESSES = "2"
POLL_SECONDS = 0.2
READY_SECONDS = 30
# How long nginx may take to finish what it has begun with a server that is taken out.
LEAVE_SECONDS = 10
LOCAL = """{user}
daemon off;
pid {folder}/pid;
error_log stderr warn;
"""
LISTEN = """server {{
    listen {port};
    listen [::1]:{port};
    server_name localhost 127.0.0.1 [::1];
    access_log {folder}/access.log json;
    client_body_temp_path {folder}/body;
    set $files_root "{files}";
    include server.conf;
}}
server {{
    listen {port} default_server;
    listen [::1]:{port} default_server;
    access_log {folder}/access.log json;
    include problems.conf;
    location / {{
        return 400;
    }}
}}
"""
# Set to nothing by nginx itself where it was built without them.
SPOOLS = ("proxy", "fastcgi", "uwsgi", "scgi")


class StackError(Exception):
    """Something that the stack needs is missing."""


class Part:
    """A process of the stack that is started again when it ends."""

    def __init__(
        self, name: str, command: list[str], env: dict[str, str], logs: Path, ready: Callable[[], bool]
    ) -> None:
        self.name = name
        self._command, self._env, self._log, self._ready = command, env, logs / f"{name}.log", ready
        self._running = ExitStack()
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        """Start it and wait until it is ready."""
        started = running(
            self._command, log=self._log, ready=self._ready, env=self._env, cwd=ROOT, seconds=READY_SECONDS
        )
        self.process = self._running.enter_context(started)

    def stop(self) -> None:
        """End it in good order and wait for that."""
        self._running.close()

    def restart(self) -> None:
        """Start it again after it has ended."""
        self.stop()
        self.start()


class Stack:
    """Everything that runs."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.logs, self.nginx_folder = folder / "logs", folder / "nginx"
        self.env: dict[str, str] = {}
        self.ports = [free_port() for _ in range(SERVERS)]
        self.servers: list[Part] = []
        self.parts: list[Part] = []
        self.wants_roll = False

    def start(self, backing: ExitStack) -> None:
        """Start all of it; what was started is ended by `backing`."""
        for folder in (self.folder, self.logs, self.nginx_folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.env = self._environment(backing)
        self._write_env()
        say("migrating the database")
        upgrade = subprocess.run(  # noqa: S603 - our own command
            [PYTHON, "-m", "flask", "db", "upgrade"],
            env=self.env,
            cwd=ROOT,
            check=False,
            capture_output=True,
            text=True,
        )
        if upgrade.returncode:
            raise StackError(f"The database could not be migrated.\n{upgrade.stderr[-2000:]}")
        self.servers = [self._server(number, port) for number, port in enumerate(self.ports, start=1)]
        worker = Part("worker", [PYTHON, "-m", "flask", "worker"], self.env, self.logs, lambda: True)
        self._configure_nginx()
        command = [
            str(NGINX),
            "-e",
            "stderr",
            "-p",
            str(self.nginx_folder),
            "-c",
            str(self.nginx_folder / "nginx.conf"),
        ]
        self.nginx = Part("nginx", command, self.env, self.logs, lambda: listens(self.port))
        self.parts = [*self.servers, worker, self.nginx]
        backing.callback(self.stop)
        for part in self.parts:
            say(f"starting {part.name}")
            part.start()
        wait_for(lambda: answers(self.port), f"http://127.0.0.1:{self.port}/readyz is not 200")
        self._write_pids()

    def stop(self) -> None:
        """End all of it, nginx first."""
        for part in reversed(self.parts):
            part.stop()

    def _environment(self, backing: ExitStack) -> dict[str, str]:
        """Return the settings of the servers: what the caller has set, and else the stack's own."""
        given = dict(os.environ)
        # One folder, in which the processes of both servers and the worker add up what they count.
        metrics = self.folder / "metrics"
        shutil.rmtree(metrics, ignore_errors=True)
        metrics.mkdir(mode=0o700)
        own = {
            "APP_ENV": "production",
            "PAYMENTS_SANDBOX_IN_PRODUCTION": "1",
            "PUBLIC_URL": f"http://127.0.0.1:{self.port}",
            "PROXY_HOPS": "1",
            "WEB_CONCURRENCY": PROCESSES,
            "PROMETHEUS_MULTIPROC_DIR": str(metrics),
            **self._secrets(),
        }
        if "DATABASE_URL" not in given:
            say("starting postgresql")
            own["DATABASE_URL"] = create_database(backing.enter_context(run_postgres()), "project")
        if "REDIS_URL" not in given:
            say("starting valkey")
            own["REDIS_URL"] = f"{backing.enter_context(run_valkey())}/0"
        if "STORAGE_URL" not in given:
            say("starting s3")
            own |= {"STORAGE_URL": make_bucket(backing.enter_context(run_s3()), "project"), **CREDENTIALS}
        return {**own, **given, "DATA_DIR": str(self.folder), "PORT": str(self.port)}

    def _secrets(self) -> dict[str, str]:
        """Return the secrets of this DATA_DIR, made when it is first used: tokens outlive the stack."""
        made = {}
        for name, prefix in {"SECRET_KEY": "", "JWT_SECRET_KEYS": "stack:"}.items():
            path = self.folder / name.lower()
            if not path.exists():
                path.touch(mode=0o600)
                path.write_text(prefix + secrets.token_urlsafe(48))
            made[name] = path.read_text()
        return made

    def _write_env(self) -> None:
        """Write the settings that are not the machine's, for `set -a; . stack.env; flask …`."""
        path = self.folder / "stack.env"
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        shown = {name: value for name, value in self.env.items() if self._is_setting(name)}
        path.write_text("".join(f"{name}={quoted(value)}\n" for name, value in sorted(shown.items())))

    def _is_setting(self, name: str) -> bool:
        documented = {line.partition("=")[0] for line in (ROOT / ".env.example").read_text().splitlines()}
        return name in documented or name.startswith("AWS_")

    def _write_pids(self) -> None:
        """Write which process is which, for those who want to see what happens without it."""
        lines = [f"{part.name} {part.process.pid}\n" for part in self.parts]
        (self.folder / "stack.pids").write_text("".join([f"stack {os.getpid()}\n", *lines]))

    def _server(self, number: int, port: int) -> Part:
        command = [PYTHON, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "wsgi:app"]
        return Part(f"server{number}", command, {**self.env, "PORT": str(port)}, self.logs, lambda: answers(port))

    def _configure_nginx(self) -> None:
        for source in (ROOT / "deploy" / "nginx").glob("*.conf"):
            shutil.copy(source, self.nginx_folder)
        user = "user root;" if os.geteuid() == 0 else ""  # else it would become nobody, who may not come here
        files = unquote(urlsplit(self.env["STORAGE_URL"]).path)  # which nobody looks at where they are in a bucket
        known = {"user": user, "folder": self.nginx_folder, "port": self.port, "files": files}
        (self.nginx_folder / "local.conf").write_text(LOCAL.format(**known))
        (self.nginx_folder / "listen.conf").write_text(LISTEN.format(**known))
        self._write_upstreams()

    def _write_upstreams(self) -> None:
        servers = "".join(f"    server 127.0.0.1:{port} max_fails=2 fail_timeout=2s;\n" for port in self.ports)
        spools = "".join(f"{name}_temp_path {self.nginx_folder}/{name};\n" for name in SPOOLS)
        text = f"{spools}upstream project {{\n    zone project 64k;\n{servers}    keepalive 64;\n}}\n"
        (self.nginx_folder / "upstream.conf").write_text(text)

    def supervise(self) -> NoReturn:
        """Start again whatever ends, and roll the servers when asked to."""
        while True:
            time.sleep(POLL_SECONDS)
            for part in self.parts:
                if part.process.poll() is not None:
                    say(f"{part.name} ended with {part.process.returncode}; starting it again")
                    part.restart()
                    self._write_pids()
            if self.wants_roll:
                self.wants_roll = False
                self.roll()

    def roll(self) -> None:
        """Replace one server after the other, so that no request meets one that is going."""
        for number, old in enumerate(self.servers):
            say(f"rolling {old.name}")
            port = free_port()
            new = self._server(number + 1, port)
            new.start()
            self.ports[number], self.servers[number] = port, new
            self.parts[number] = new
            self._write_upstreams()
            self._reload_nginx()
            old.stop()
        self._write_pids()
        say("rolled")

    def _reload_nginx(self) -> None:
        """Let nginx read its configuration, and wait for those of its processes that know the former."""
        before = children(self.nginx.process.pid)
        self.nginx.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + LEAVE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            now = children(self.nginx.process.pid)
            if now and not now & before:
                return


def children(pid: int) -> set[str]:
    """Return the processes that a process has started."""
    return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def quoted(value: str) -> str:
    """Return a value as a shell and `.env` files read it."""
    return value if all(char.isalnum() or char in "_-./:@%+=," for char in value) else f'"{value}"'


def listens(port: int) -> bool:
    """Tell whether something listens there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def answers(port: int) -> bool:
    """Tell whether what is there is ready."""
    try:
        return requests.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == requests.codes.ok
    except requests.RequestException:
        return False


def wait_for(ready: Callable[[], bool], complaint: str) -> None:
    """Wait until something is ready.

    Raises:
        StackError: it took too long.
    """
    deadline = time.monotonic() + READY_SECONDS
    while not ready():
        if time.monotonic() > deadline:
            raise StackError(complaint)
        time.sleep(POLL_SECONDS)


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"stack: {text}", flush=True)  # noqa: T201 - a command


def check_machine(port: int) -> None:
    """Look for what no wheel brings.

    Raises:
        StackError: nginx is not there, or the port is taken.
    """
    if NGINX is None:
        raise StackError("nginx is missing: install it (Debian: apt install nginx-light).")
    if listens(port):
        raise StackError(f"PORT {port} is in use; try another.")


def main() -> None:
    """Run the stack until TERM or Ctrl-C."""
    folder, port = Path(os.environ.get("DATA_DIR", "instance")).absolute(), int(os.environ.get("PORT", "8000"))
    stack = Stack(folder, port)

    def end(*_: object) -> NoReturn:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        sys.exit(0)

    def roll(*_: object) -> None:
        stack.wants_roll = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGHUP, roll)
    try:
        check_machine(port)
        with ExitStack() as backing:
            stack.start(backing)
            say(f"ready at http://127.0.0.1:{port} · settings in {folder / 'stack.env'} · logs in {stack.logs}")
            stack.supervise()
    except (StackError, ServerFailedError) as error:
        sys.exit(f"stack: {error}")


if __name__ == "__main__":
    main()
