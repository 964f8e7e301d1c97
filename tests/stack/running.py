"""`make stack`, started for tests."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import requests

from tests.http.client import eventually
from tests.http.tokens import JWT_KEY, KEY_ID
from tests.servers.app import INHERITED, ROOT
from tests.servers.process import free_port, running, scratch_directory

COMMAND = [sys.executable, "-m", "deploy.stack"]


@dataclass(frozen=True)
class RunningStack:
    """The stack: nginx's address, its folder, and its own process."""

    url: str
    folder: Path
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def log(self) -> str:
        """What it has printed."""
        return self.log_path.read_text()

    @property
    def env(self) -> dict[str, str]:
        """The settings of stack.env."""
        lines = (self.folder / "stack.env").read_text().splitlines()
        pairs = [line.split("=", 1) for line in lines]
        return {name: value.strip('"') for name, value in pairs}

    @property
    def pids(self) -> dict[str, int]:
        """Which process is which."""
        lines = (self.folder / "stack.pids").read_text().splitlines()
        return {name: int(pid) for name, pid in (line.split() for line in lines)}

    @property
    def servers(self) -> list[str]:
        """The addresses of the servers behind nginx."""
        text = (self.folder / "nginx" / "upstream.conf").read_text()
        return [f"http://127.0.0.1:{port}" for port in re.findall(r"server 127\.0\.0\.1:(\d+)", text)]

    def flask(self, *arguments: str, entered: str = "") -> str:
        """Run a `flask` command with the settings of the stack."""
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        command = [sys.executable, "-m", "flask", *arguments]
        done = subprocess.run(
            command, input=entered, text=True, check=False, cwd=ROOT, env={**inherited, **self.env}, capture_output=True
        )
        assert done.returncode == 0, f"flask {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def roll(self) -> None:
        """Roll the servers and wait until that is done."""
        before = self.rolled
        self.process.send_signal(signal.SIGHUP)
        self.wait_for_roll(before + 1)

    @property
    def rolled(self) -> int:
        """How often the servers were rolled."""
        return self.log.count("stack: rolled")

    def wait_for_roll(self, number: int) -> None:
        """Wait until the servers were rolled so often."""
        eventually(lambda: self.rolled >= number or None, "the servers were rolled", seconds=240)
        assert "not rolled" not in self.log


@contextmanager
def run_stack(settings: Mapping[str, str] | None = None) -> Iterator[RunningStack]:
    """Run the stack until the block ends; it is ready when the block starts.

    At the end SIGTERM stops it, if the block has not: without an error and with all its parts.
    """
    port = free_port()
    with scratch_directory("project-stack-") as root:
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        env = {
            **inherited,
            "JWT_SECRET_KEYS": f"{KEY_ID}:{JWT_KEY}",
            **(settings or {}),
            "DATA_DIR": str(root / "data"),
            "PORT": str(port),
        }
        log = root / "log"
        with running(
            COMMAND, log=log, ready=lambda: "stack: ready" in log.read_text(), env=env, cwd=ROOT, seconds=120
        ) as process:
            stack = RunningStack(f"http://127.0.0.1:{port}", root / "data", process, log)
            yield stack
            pids = stack.pids
        assert process.returncode == 0, stack.log
        assert [name for name, pid in pids.items() if Path(f"/proc/{pid}").exists()] == []


@dataclass
class Load:
    """Requests in the background, as clients with open connections send them, and what became of them."""

    send: Callable[[requests.Session], requests.Response]
    clients: int = 20
    pause: float = 0.2  # seconds between two requests of a client
    answers: list[int | str] = field(default_factory=list)
    stopping: bool = False

    def __enter__(self) -> "Load":
        self._threads = [Thread(target=self._run, args=(number,)) for number in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stopping = True
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        with requests.Session() as session:
            time.sleep(self.pause * number / self.clients)
            while not self.stopping:
                try:
                    self.answers.append(self.send(session).status_code)
                except requests.RequestException as error:
                    self.answers.append(type(error).__name__)
                time.sleep(self.pause)
