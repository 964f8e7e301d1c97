"""Running wrk: what is sent, and what came of it."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("wrk.lua")
MARK = "RESULT "
# After which an answer counts as lost.
TIMEOUT_SECONDS = 10


class LoadFailedError(RuntimeError):
    """What was measured is not what was meant to be."""


@dataclass(frozen=True)
class Request:
    """One request; wrk sends a list of them in turn."""

    method: str
    path: str
    token: str = ""
    body: str = ""

    def line(self) -> str:
        """Return it as wrk.lua reads it."""
        parts = (self.method, self.path, self.token, self.body)
        if any("\t" in part or "\n" in part for part in parts):
            raise ValueError("a request holds a separator")
        return "\t".join(parts)


@dataclass(frozen=True)
class Measured:
    """What one run of wrk found. Latencies are in milliseconds; `refused` counts answers of 400 and more."""

    requests: int
    seconds: float
    bytes: int
    refused: int
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        """Requests a second, those that were refused left out."""
        return (self.requests - self.refused) / self.seconds


def write_requests(path: Path, requests: Sequence[Request]) -> Path:
    """Write the file that wrk.lua reads."""
    path.write_text("".join(request.line() + "\n" for request in requests))
    return path


def start(url: str, requests: Path, *, connections: int, seconds: float) -> subprocess.Popen[str]:
    """Start wrk with one thread; `finish` waits for what it says."""
    options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", f"--timeout={TIMEOUT_SECONDS}s"]
    command = [shutil.which("wrk") or "wrk", *options, "-s", str(SCRIPT), url, "--", str(requests)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], *, refusals: bool = False) -> Measured:
    """Wait for wrk and return what it found.

    Raises:
        LoadFailedError: it failed, or answers were lost or refused (unless refusals are expected): who answers errors
            is not to be measured.
    """
    output, _ = process.communicate()
    if process.returncode:
        raise LoadFailedError(f"wrk ended with {process.returncode}:\n{output}")
    return parse(output, refusals=refusals)


def run(url: str, requests: Path, *, connections: int, seconds: float, refusals: bool = False) -> Measured:
    """Run wrk and return what it found; raises as `finish`."""
    return finish(start(url, requests, connections=connections, seconds=seconds), refusals=refusals)


def parse(output: str, *, refusals: bool = False) -> Measured:
    """Read the line that wrk.lua writes; raises as `finish`."""
    lines = [line for line in output.splitlines() if line.startswith(MARK)]
    if len(lines) != 1:
        raise LoadFailedError(f"wrk did not say what it found:\n{output}")
    found = json.loads(lines[0].removeprefix(MARK))
    if not found["requests"] or found["broken"] or (found["refused"] and not refusals):
        raise LoadFailedError(f"wrk was not answered as it should be: {lines[0]}")
    return Measured(
        requests=found["requests"],
        seconds=found["microseconds"] / 1e6,
        bytes=found["bytes"],
        refused=found["refused"],
        p50=found["p50"] / 1000,
        p99=found["p99"] / 1000,
    )
