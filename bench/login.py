"""Signing in: how near it comes to the hash alone, and what others notice of a storm of sign-ins."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import load
from bench.contenders import CONNECTIONS, PROCESSES, Server
from bench.load import Request
from bench.pace import Pace
from bench.seed import HASHER, PASSWORD
from bench.workloads import CALLERS, Callers, read_me

# As many as are surely admitted, whichever process they land at; a storm is of more, and some are told to come back.
LOGIN_CONNECTIONS = 6
STORM_CONNECTIONS = 2 * CONNECTIONS
# The storm begins before and ends after what is measured in it.
STORM_MARGIN_SECONDS = 1.0


def hash_rate(seconds: float) -> float:
    """Return how many passwords a second as many cores verify as there are processes, if they do nothing else."""
    hashed = HASHER.hash(PASSWORD)
    with ThreadPoolExecutor(PROCESSES) as pool:  # the library lets the interpreter go while it computes
        runs = [pool.submit(_verify_for, seconds, hashed) for _ in range(PROCESSES)]
        return sum(run.result() for run in runs)


def _verify_for(seconds: float, hashed: str) -> float:
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        HASHER.verify(hashed, PASSWORD)
        count += 1
    return count / (time.perf_counter() - started)


def _sign_ins(rows: int) -> list[Request]:
    bodies = [
        {"email": f"user{number}@example.com", "password": PASSWORD} for number in range(1, min(CALLERS, rows) + 1)
    ]
    return [Request("POST", "/v1/auth/login", body=json.dumps(body)) for body in bodies]


def measure(server: Server, callers: Callers, pace: Pace, *, rows: int) -> dict[str, Any]:
    """Return sign-ins and hashes a second, and the 99th percentile of W1 in ms in quiet and in a storm, by round."""
    sign_ins = load.write_requests(pace.folder / "sign-ins", _sign_ins(rows))
    reads = load.write_requests(pace.folder / "reads", read_me(server, callers))
    found: dict[str, list[float]] = {"login": [], "hash": [], "quiet_p99": [], "storm_p99": []}
    load.run(server.url, reads, connections=CONNECTIONS, seconds=1)
    for number in range(pace.rounds):
        found["hash"].append(hash_rate(pace.seconds))
        found["login"].append(load.run(server.url, sign_ins, connections=LOGIN_CONNECTIONS, seconds=pace.seconds).rate)
        found["quiet_p99"].append(load.run(server.url, reads, connections=CONNECTIONS, seconds=pace.seconds).p99)
        found["storm_p99"].append(_in_a_storm(server, sign_ins, reads, pace.seconds).p99)
        last = ", ".join(f"{name} {values[-1]:.1f}" for name, values in found.items())
        pace.say(f"login round {number + 1}/{pace.rounds}: {last}")
    return found


def _in_a_storm(server: Server, sign_ins: Path, reads: Path, seconds: float) -> load.Measured:
    length = seconds + 2 * STORM_MARGIN_SECONDS
    storm = load.start(server.url, sign_ins, connections=STORM_CONNECTIONS, seconds=length)
    try:
        time.sleep(STORM_MARGIN_SECONDS)
        run = load.run(server.url, reads, connections=CONNECTIONS, seconds=seconds)
    finally:
        load.finish(storm, refusals=True)
    return run
