"""The application under gunicorn, as production serves it by itself, or under granian."""

import http.client
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.process import free_port, running, scratch_directory

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "gunicorn": [sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py"],
    "granian": [sys.executable, "-m", "deploy.granian_server"],
}
# TEST_SERVER=granian runs all tests of servers under it; what is gunicorn's own then fails.
SERVER = os.environ.get("TEST_SERVER", "gunicorn")
# What a process needs to run at all; every setting of ours comes from the test.
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT")


@dataclass(frozen=True)
class AppServer:
    """A running application: its address, its master process and its log file."""

    url: str
    port: int
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def log(self) -> str:
        """All that it has printed so far."""
        return self.log_path.read_text(errors="replace")


@contextmanager
def run_server(
    env: Mapping[str, str],
    port: int | None = None,
    *,
    arguments: tuple[str, ...] = (),
    app: str = "wsgi:app",
    server: str = SERVER,
) -> Iterator[AppServer]:
    """Run the application with these settings until the block ends; it is ready when the block starts.

    The database has to be migrated already. DATA_DIR defaults to a directory that goes away. Arguments
    go to the server, such as `("--workers", "2")`; `app` is another application than that of production.
    """
    port = port or free_port()
    with scratch_directory("project-app-") as root:
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        settings = {"APP_ENV": "testing", "DATA_DIR": str(root / "data"), **env, "PORT": str(port)}
        log = root / "log"
        with running(
            [*COMMANDS[server], *arguments, app],
            log=log,
            ready=lambda: _is_ready(port),
            env={**inherited, **settings},
            cwd=ROOT,
            is_ours=True,
        ) as process:
            yield AppServer(f"http://127.0.0.1:{port}", port, process, log)


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
