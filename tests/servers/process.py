"""Starting, watching and stopping a server process."""

import ctypes
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TypedDict

from tests.leaks import check_lines

PR_SET_PDEATHSIG = 1


class Account(TypedDict, total=False):
    """The arguments of Popen that start a process as another user."""

    user: int
    group: int
    extra_groups: list[int]


class ServerFailedError(RuntimeError):
    """A server did not start or stop; the text ends with its log."""


@contextmanager
def scratch_directory(prefix: str) -> Iterator[Path]:
    """A directory that goes away, under /tmp because a socket's path has 107 bytes at most."""
    base = "/tmp" if Path("/tmp").is_dir() else None
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


# Where a server listens, and its process.
Running = tuple[int, "subprocess.Popen[bytes]"]


class Restartable:
    """A server that can be stopped, killed and started again where it was."""

    def __init__(self, start: Callable[[int | None], AbstractContextManager[Running]]) -> None:
        self._start = start
        self._running = ExitStack()
        self.port, self._process = self._running.enter_context(start(None))

    @property
    def pid(self) -> int:
        """The number of its first process."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it does not run, and was not stopped by us."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """Stop it; who is connected is cut off."""
        self._running.close()

    def crash(self) -> None:
        """Kill it; what it had not written down is gone."""
        self._process.kill()
        self._process.wait()
        self.stop()

    def start(self) -> None:
        """Start it again at the port that it had, with what it keeps."""
        self.stop()
        _, self._process = self._running.enter_context(self._start(self.port))


def package_directory(name: str) -> Path:
    """Where a package is installed, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ServerFailedError(f"{name} is not installed: run `make test`, which installs it.")
    return Path(spec.origin).parent


# Below those that the system gives to clients. Each process begins elsewhere, and takes one after the other.
PORTS = range(10_000, 30_000)
_numbers = count(os.getpid() * 1999)


def free_port() -> int:
    """A TCP port that nobody uses at this moment, and that no other process is likely to choose as well."""
    while True:
        port = PORTS[next(_numbers) % len(PORTS)]
        with suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def listens(port: int) -> bool:
    """Tell whether something listens there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


@contextmanager
def running(
    command: Sequence[str | Path],
    *,
    log: Path,
    ready: Callable[[], bool],
    stop_signal: signal.Signals = signal.SIGTERM,
    env: Mapping[str, str] | None = None,
    cwd: Path | str = "/",
    account: Account | None = None,
    seconds: float = 30,
    is_ours: bool = False,
    pass_fds: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """Start command, wait until ready() is true, and stop it at the end.

    It gets a process group of its own, because Ctrl-C in a terminal reaches the whole group and would
    take the database away from tests that are still closing their connections. On Linux it lives no
    longer than the thread that started it. Of a server of ours (`is_ours`) no line that it has logged may leak.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            start_new_session=True,
            pass_fds=pass_fds,
            preexec_fn=_die_with_parent(stop_signal),  # noqa: PLW1509 - it does one system call
            **(account or {}),
        )
    try:
        _wait_until_ready(process, ready, log, seconds)
        yield process
    finally:
        _stop(process, stop_signal, log)
    if is_ours:
        check_lines(log.read_text(errors="replace"))


def _die_with_parent(stop_signal: signal.Signals) -> Callable[[], object] | None:
    """On Linux the kernel stops the server when the test process is killed, so none is left behind."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # loaded here, as little as possible happens between fork and exec
    return lambda: libc.prctl(PR_SET_PDEATHSIG, int(stop_signal))


def _wait_until_ready(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None:
            raise ServerFailedError(_with_log(f"{process.args!r} ended with {process.returncode}", log))
        if time.monotonic() > deadline:
            raise ServerFailedError(_with_log(f"{process.args!r} was not ready in {seconds} s", log))
        time.sleep(0.02)


def _stop(process: subprocess.Popen[bytes], stop_signal: signal.Signals, log: Path) -> None:
    if process.poll() is not None:
        return
    process.send_signal(stop_signal)
    try:
        process.wait(40)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.wait()
        raise ServerFailedError(_with_log(f"{process.args!r} did not stop and was killed", log)) from error


def _with_log(message: str, log: Path) -> str:
    return f"{message}\n{log.read_text(errors='replace')[-8000:]}"
