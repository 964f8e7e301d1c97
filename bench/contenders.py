"""Who is measured, and how each is served: the same number of processes, and room for the same connections."""

import http.client
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.seed import plain
from tests.servers.process import free_port, running, scratch_directory

ROOT = Path(__file__).resolve().parents[1]
PYTHON = str(ROOT / ".venv-bench" / "bin" / "python")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
# Also where there are more cores, which wrk and the database then have for themselves.
PROCESSES = min(CORES, 2)
CONNECTIONS = 16
# Of each process: all connections may land at one of them.
THREADS = CONNECTIONS
SECRET = "a signing key of the benchmarks that is long enough"  # noqa: S105 - signs for nobody
# A measurement may be started on a machine that is busy with other things, to see whether it works.
START_SECONDS = 60
STOP_SECONDS = 10
# What a process needs to run at all; nothing else of the environment may decide how it does.
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")

GUNICORN = ("-m", "gunicorn")
GRANIAN = (
    *("-m", "granian", "--interface", "wsgi", "--host", "127.0.0.1", "--port", "{port}", "--http", "1", "--no-ws"),
    *("--workers", str(PROCESSES), "--blocking-threads", str(THREADS)),
)
UVICORN = ("-m", "uvicorn", "--host", "127.0.0.1", "--port", "{port}", "--workers", str(PROCESSES), "--no-access-log")
# That of our deployment, without our file of settings.
GUNICORN_OF_A_PEER = (
    *(*GUNICORN, "--bind", "127.0.0.1:{port}", "--workers", str(PROCESSES), "--threads", str(THREADS)),
    *("--worker-class", "gthread", "--keep-alive", "75", "--no-control-socket"),
)


@dataclass(frozen=True)
class Contender:
    """One way to answer the requests; `arguments` follow the interpreter, with `{port}` where it listens."""

    key: str
    title: str
    arguments: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Server:
    """A contender that answers, and how long it took until it did."""

    contender: Contender
    url: str
    port: int
    pid: int
    seconds_to_ready: float
    data_dir: Path


OURS = Contender("gunicorn", "project, gunicorn", (*GUNICORN, "-c", "deploy/gunicorn.conf.py", "wsgi:app"))
OURS_GRANIAN = Contender("granian", "project, granian", ("-m", "deploy.granian_server"))
# As in production: every request counts in the store that all processes share. The others count nothing.
OURS_LIMITED = Contender("limited", "project, gunicorn, rate limits in Valkey", OURS.arguments, {"RATE_LIMITS": "on"})
FASTAPI_SYNC = Contender("fastapi_sync", "FastAPI sync, SQLModel", (*UVICORN, "bench.peers.fastapi_sync:app"))
FASTAPI_ASYNC = Contender("fastapi_async", "FastAPI async, asyncpg", (*UVICORN, "bench.peers.fastapi_async:app"))
DRF = Contender("drf", "Django REST Framework", (*GUNICORN_OF_A_PEER, "bench.peers.drf.wsgi:application"))
PLAIN = Contender("plain", "no framework, granian (the limit)", (*GRANIAN, "bench.peers.plain_wsgi:app"))
ALL = (OURS, OURS_GRANIAN, OURS_LIMITED, FASTAPI_SYNC, FASTAPI_ASYNC, DRF, PLAIN)

# Nobody is to be refused, and everything is to be counted.
BOUNDLESS = {f"LIMIT_{name}": "1000000000/minute" for name in ("READ", "WRITE", "DOWNLOAD", "ANONYMOUS")}


def environment(database_url: str, folder: Path, port: int, redis_url: str | None = None) -> dict[str, str]:
    """Return the settings of the product and those of the peers."""
    ours = {
        "APP_ENV": "testing",
        "DATA_DIR": str(folder / "data"),
        "SECRET_KEY": "a secret key of the benchmarks that is long enough",
        "JWT_SECRET_KEYS": f"bench:{SECRET}",
        "MAIL_URL": "memory://outbox",
        "RATE_LIMITS": "off",
        "WEB_CONCURRENCY": str(PROCESSES),
        "WEB_THREADS": str(THREADS),
        "FILES_QUOTA": "100 GiB",
        "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"),
        **BOUNDLESS,
        **({"REDIS_URL": redis_url} if redis_url else {}),
    }
    # As deploy/ has it, and for everybody: large blocks of memory come in large pages.
    memory = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    peers = {"JWT_SECRET": SECRET, "POOL_SIZE": str(THREADS), "PUBLIC_URL": f"http://127.0.0.1:{port}"}
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    paths = {"PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": "bench.peers.drf.settings"}
    return {**inherited, **memory, **ours, **peers, **paths, "DATABASE_URL": plain(database_url), "PORT": str(port)}


@contextmanager
def serving(
    contender: Contender, database_url: str, *, redis_url: str | None = None, env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Serve the contender until the block ends; it is ready when the block starts."""
    port = free_port()
    with scratch_directory(f"bench-{contender.key}-") as folder:
        (folder / "metrics").mkdir()
        settings = {**environment(database_url, folder, port, redis_url), **contender.env, **(env or {})}
        command = [PYTHON, *(argument.format(port=port) for argument in contender.arguments)]
        started = time.perf_counter()
        with running(
            command, log=folder / "log", ready=lambda: is_ready(port), env=settings, cwd=ROOT, seconds=START_SECONDS
        ) as process:
            seconds = time.perf_counter() - started
            try:
                yield Server(contender, f"http://127.0.0.1:{port}", port, process.pid, seconds, folder / "data")
            finally:
                _stop_all(process)


def _stop_all(process: subprocess.Popen[bytes]) -> None:
    """Stop a server and whatever it leaves behind: granian's processes outlive a parent that did not end well."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):  # all have ended, as they should
        os.killpg(process.pid, signal.SIGKILL)


def is_ready(port: int) -> bool:
    """Tell whether a server is there and has its database."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
