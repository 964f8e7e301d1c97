"""The parts of `make stack`: processes that are started again when they end, and servers that are replaced."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import requests

from tests.servers.process import Restartable, running

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
START_SECONDS = 45
# Between two starts of what does not stay.
PAUSE_SECONDS = 1
# The longest drain and what is under way then, with some room.
LEAVE_SECONDS = 100
BIND_SECONDS = 5


class StackError(Exception):
    """Something that the stack needs is missing."""


class Process:
    """A process of a part, until it has ended."""

    def __init__(
        self,
        command: list[str],
        *,
        log: Path,
        env: dict[str, str],
        ready: Callable[[], bool],
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._running, self.started = ExitStack(), time.monotonic()
        started = running(command, log=log, ready=ready, env=env, cwd=ROOT, seconds=START_SECONDS, pass_fds=pass_fds)
        self._process = self._running.enter_context(started)
        self.pid = self._process.pid

    def status(self) -> int | None:
        """Tell how it has ended; None while it runs."""
        return self._process.poll()

    def age(self) -> float:
        """Tell for how many seconds it has been there."""
        return time.monotonic() - self.started

    def terminate(self) -> None:
        """Ask it to end, and do not wait for that."""
        self._process.terminate()

    def stop(self) -> None:
        """End it in good order and wait for that."""
        self._running.close()

    def kill(self) -> None:
        """End it at once, with all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.stop()


class Part:
    """A process that is started again when it ends."""

    def __init__(
        self, name: str, command: list[str], env: dict[str, str], logs: Path, ready: Callable[[], bool]
    ) -> None:
        self.name = name
        self.command, self.env, self.log, self.ready = command, env, logs / f"{name}.log", ready
        self.process: Process

    @property
    def pid(self) -> int:
        """The number of its first process."""
        return self.process.pid

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it is ready."""
        self.process = Process(self.command, log=self.log, env=self.env, ready=self.ready if wait else at_once)

    def stop(self) -> None:
        """End it in good order and wait for that."""
        self.process.stop()

    def look_after(self) -> None:
        """Start it again if it has ended, without waiting for it."""
        if self.process.status() is not None and self.process.age() > PAUSE_SECONDS:
            say(f"{self.name} ended with {self.process.status()}; starting it again")
            self.process.kill()  # what it had started, too: orphans of nginx would keep its port
            self.start(wait=False)


class Backing:
    """What the servers need and have not brought with them: started again with its data, by which all waits."""

    def __init__(self, name: str, server: Restartable) -> None:
        self.name, self._server = name, server

    @property
    def pid(self) -> int:
        """The number of its first process."""
        return self._server.pid

    def look_after(self) -> None:
        """Start it again if it has ended."""
        if self._server.has_ended:
            say(f"{self.name} ended; starting it again")
            self._server.start()


class Server(Part):
    """A server of the application: its processes come and go, its address stays.

    The socket is ours and each gunicorn inherits it, so that two of them can have it at once: either answers, and a
    connection that the one which goes has not taken yet is left to the other.
    """

    def __init__(self, name: str, env: dict[str, str], logs: Path) -> None:
        super().__init__(name, [], env, logs, lambda: answers(self.port))
        self._ready_file = logs / f"{name}.ready"
        self._socket = bound_socket()
        self.port: int = self._socket.getsockname()[1]
        self._others: list[Process] = []  # that have the socket too: who comes or who goes

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it is ready."""
        self.process = self._gunicorn(self.env, self.ready if wait else at_once)

    def stop(self) -> None:
        """End it in good order and wait for that."""
        for process in self._others:
            process.kill()
        super().stop()
        self._socket.close()

    def look_after(self) -> None:
        """Start it again if it has ended, without waiting for it; meanwhile connections are refused."""
        if self.process.status() is not None and self._listens():
            self._refuse()
        super().look_after()

    def replace(self) -> Generator[None, None, bool]:
        """Start a process that takes the place of the present one once it is ready, which then drains and ends.

        It yields while there is something to wait for. Returns False if the place was not taken.
        """
        old = self.process
        self._ready_file.unlink(missing_ok=True)
        new = self._gunicorn({**self.env, "READY_FILE": str(self._ready_file)}, at_once)
        self._others = [new]
        while old.status() is not None or not self._ready_file.exists():
            if old.status() is not None:
                return True  # what look_after() starts in its place is as new
            if new.status() is not None or new.age() > START_SECONDS:
                say(f"the new {self.name} is not ready, see {self.log}; the old one goes on")
                self._end_others()
                return False
            yield
        self.process, self._others = new, [old]
        old.terminate()
        leaves_before = time.monotonic() + LEAVE_SECONDS
        while old.status() is None and time.monotonic() < leaves_before:
            yield
        self._end_others()
        return True

    def _gunicorn(self, env: dict[str, str], ready: Callable[[], bool]) -> Process:
        number = self._socket.fileno()
        command = [PYTHON, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "--bind", f"fd://{number}", "wsgi:app"]
        return Process(command, log=self.log, env={**env, "PORT": str(self.port)}, ready=ready, pass_fds=[number])

    def _listens(self) -> bool:
        return bool(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))

    def _refuse(self) -> None:
        """Let nobody wait for what has ended: who has the socket still ends too, and a fresh one does not listen."""
        self.process.kill()
        self._end_others()
        self._socket.close()
        self._socket = bound_socket(self.port)

    def _end_others(self) -> None:
        for process in self._others:
            process.kill()
        self._others = []


def bound_socket(port: int = 0) -> socket.socket:
    """Return a socket that has an address of this machine and does not listen yet.

    Raises:
        StackError: somebody else has the address.
    """
    deadline = time.monotonic() + BIND_SECONDS
    while True:
        found = socket.socket()
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(("127.0.0.1", port))
        except OSError as error:
            found.close()
            if time.monotonic() > deadline:
                raise StackError(f"Port {port} is in use.") from error
            time.sleep(0.01)
        else:
            return found


def at_once() -> bool:
    """Tell that nobody waits for it to be ready."""
    return True


def answers(port: int) -> bool:
    """Tell whether what is there is ready."""
    try:
        return requests.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == requests.codes.ok
    except requests.RequestException:
        return False


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"stack: {text}", flush=True)  # noqa: T201 - a command
