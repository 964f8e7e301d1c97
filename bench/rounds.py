"""W1, W2 and W3 in rounds: in each everybody has a turn, since only what was measured side by side may be compared."""

from collections.abc import Sequence
from typing import Any, TypeVar

from bench import load, processes
from bench.contenders import CONNECTIONS, Server
from bench.pace import Pace
from bench.seed import forget_what_was_written
from bench.workloads import WORKLOADS, Callers, Workload

WARM_UP_SECONDS = 2.0
MEASURES = ("rate", "p50", "p99", "cpu")
T = TypeVar("T")


def turned(items: Sequence[T], by: int) -> list[T]:
    """Return the items beginning with another one, so that nobody always comes first."""
    by %= len(items)
    return [*items[by:], *items[:by]]


def measure(servers: Sequence[Server], callers: Callers, database_url: str, pace: Pace) -> dict[str, Any]:
    """Return for each workload what each contender reached in each round.

    Requests a second; the median and the 99th percentile of waiting, in ms; and the microseconds that the server's own
    processes ran for a request, which says most on a machine that is not quiet.
    """
    return {
        workload.key: {"title": workload.title, **_measure_one(workload, servers, callers, database_url, pace)}
        for workload in WORKLOADS
    }


def _measure_one(
    workload: Workload, servers: Sequence[Server], callers: Callers, database_url: str, pace: Pace
) -> dict[str, Any]:
    keys = [server.contender.key for server in servers]
    found: dict[str, dict[str, list[float]]] = {name: {key: [] for key in keys} for name in MEASURES}
    files = {
        server.contender.key: load.write_requests(
            pace.folder / f"{workload.key}-{server.contender.key}", workload.requests(server, callers)
        )
        for server in servers
    }
    for number in range(-1, pace.rounds):  # the first only warms up
        for server in turned(servers, number):
            key = server.contender.key
            forget_what_was_written(database_url)
            length = min(pace.seconds, WARM_UP_SECONDS) if number < 0 else pace.seconds
            before = processes.cpu_seconds(server.pid)
            run = load.run(server.url, files[key], connections=CONNECTIONS, seconds=length)
            if number < 0:
                continue
            cpu = 1e6 * (processes.cpu_seconds(server.pid) - before) / run.requests
            for name, value in zip(MEASURES, (run.rate, run.p50, run.p99, cpu), strict=True):
                found[name][key].append(round(value, 2))
            pace.say(f"{workload.key} round {number + 1}/{pace.rounds} {server.contender.title}: {run.rate:.0f}/s")
    return found
