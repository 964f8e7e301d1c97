"""`make stack`: the production topology on one machine, without Docker.

nginx, two servers of two processes each, a worker, and, where no URL names another, PostgreSQL, Valkey and an S3. Those
three live as long as the stack, with all that is in them; secrets, mails and logs stay in DATA_DIR. DATA_DIR/stack.env
says how to reach everything. HUP rolls the servers: for each in turn a new one is started on the same socket, and when
it is ready the old one ends what it has begun and stops.
"""

import os
import queue
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote, urlsplit

from deploy.parts import PYTHON, ROOT, START_SECONDS, Backing, Part, Server, StackError, answers, say
from tests.servers import CREDENTIALS, NGINX, create_database, make_bucket, run_s3
from tests.servers.postgres import SAFE, run_cluster
from tests.servers.process import ServerFailedError, listens
from tests.servers.valkey import Valkey

SERVERS = 2  # as many as deploy/nginx/upstream.conf has
PROCESSES = "2"
# Longer than nginx keeps idle connections to a server (deploy/nginx/upstream.conf).
DRAIN_SECONDS = "2"
POLL_SECONDS = 0.2
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


class Stack:
    """Everything that runs."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.logs, self.nginx_folder = folder / "logs", folder / "nginx"
        self.env: dict[str, str] = {}
        self.servers: list[Server] = []
        self.parts: list[Part] = []
        self.backing: list[Backing] = []
        self.wants_roll = False
        # Something for each signal; unlike events and conditions it may be used by their handlers.
        self.signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._pids = ""

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
        self.servers = [Server(f"server{number}", self.env, self.logs) for number in range(1, SERVERS + 1)]
        self._configure_nginx()
        backing.callback(self.stop)
        for part in self._all_parts():
            say(f"starting {part.name}")
            part.start()
            self.parts.append(part)
        wait_for(lambda: answers(self.port), f"http://127.0.0.1:{self.port}/readyz is not 200")
        self._write_pids()

    def stop(self) -> None:
        """End all of it, nginx first."""
        for part in reversed(self.parts):
            part.stop()
            if part.name == "nginx":  # nobody comes any more; at a second TERM, that of stop(), a server does not drain
                for server in self.servers:
                    server.process.terminate()

    def _all_parts(self) -> list[Part]:
        worker = [PYTHON, "-m", "flask", "worker"]
        configuration = str(self.nginx_folder / "nginx.conf")
        nginx = [str(NGINX), "-e", "stderr", "-p", str(self.nginx_folder), "-c", configuration]
        return [
            *self.servers,
            Part("worker", worker, self.env, self.logs, lambda: True),
            Part("nginx", nginx, self.env, self.logs, lambda: listens(self.port)),
        ]

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
            "DRAIN_SECONDS": DRAIN_SECONDS,
            "PROMETHEUS_MULTIPROC_DIR": str(metrics),
            **self._secrets(),
        }
        if "DATABASE_URL" not in given:
            say("starting postgresql")
            postgres = backing.enter_context(run_cluster(SAFE))
            self.backing.append(Backing("postgresql", postgres))
            own["DATABASE_URL"] = create_database(postgres.url, "project")
        if "REDIS_URL" not in given:
            say("starting valkey")
            valkey = Valkey()
            backing.callback(valkey.stop)
            self.backing.append(Backing("valkey", valkey))
            own["REDIS_URL"] = f"{valkey.url}/0"
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

    def _watched(self) -> list[Backing | Part]:
        return [*self.backing, *self.parts]

    def _write_pids(self) -> None:
        """Write which process is which, for those who want to see what happens without it."""
        text = "".join(f"{part.name} {part.pid}\n" for part in self._watched())
        if text != self._pids:
            self._pids = text
            path = self.folder / "stack.pids"
            path.with_suffix(".new").write_text(f"stack {os.getpid()}\n{text}")
            path.with_suffix(".new").replace(path)  # nobody reads half of it

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
        """Put the addresses of the servers, which stay, in the place of those of the example."""
        path = self.nginx_folder / "upstream.conf"
        servers = iter(self.servers)
        text = re.sub(r"(?<=server 127\.0\.0\.1:)\d+", lambda _: str(next(servers).port), path.read_text())
        spools = "".join(f"{name}_temp_path {self.nginx_folder}/{name};\n" for name in SPOOLS)
        path.write_text(spools + text)

    def supervise(self) -> NoReturn:
        """Start again whatever ends, and roll the servers when asked to."""
        rolling = None
        while True:
            with suppress(queue.Empty):
                self.signals.get(timeout=POLL_SECONDS)
            for part in self._watched():
                part.look_after()
            if rolling is None and self.wants_roll:
                self.wants_roll, rolling = False, self.roll()
            if rolling is not None and next(rolling, "done") == "done":
                rolling = None
            self._write_pids()

    def roll(self) -> Iterator[None]:
        """Replace one server after the other; yield while there is something to wait for."""
        for server in self.servers:
            say(f"rolling {server.name}")
            if not (yield from server.replace()):
                say("not rolled")
                return
        say("rolled")


def quoted(value: str) -> str:
    """Return a value as a shell and `.env` files read it."""
    return value if all(char.isalnum() or char in "_-./:@%+=," for char in value) else f'"{value}"'


def wait_for(ready: Callable[[], bool], complaint: str) -> None:
    """Wait until something is ready.

    Raises:
        StackError: it took too long.
    """
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if time.monotonic() > deadline:
            raise StackError(complaint)
        time.sleep(POLL_SECONDS)


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

    def wake(number: int, _: object) -> None:
        stack.wants_roll |= number == signal.SIGHUP
        stack.signals.put(number)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGHUP, wake)
    signal.signal(signal.SIGCHLD, wake)
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
