"""How long each contender takes to start, and what memory its processes hold after some work."""

from collections.abc import Callable, Sequence
from typing import Any

from bench import load, processes
from bench.contenders import CONNECTIONS, PROCESSES, Contender, Server, serving
from bench.pace import Pace
from bench.workloads import WORKLOADS, Callers

# After these a process has loaded what it loads, and has its threads and connections.
WORK_SECONDS = 2.0


def measure(
    contenders: Sequence[Contender],
    callers: Callers,
    database_url: str,
    store: Callable[[Contender], str | None],
    pace: Pace,
) -> dict[str, Any]:
    """Return for each contender, by round, the seconds to the first answer and the MiB of its largest process."""
    found: dict[str, dict[str, list[float]]] = {key.key: {"start": [], "memory": []} for key in contenders}
    for number in range(pace.rounds):
        for contender in contenders:
            with serving(contender, database_url, redis_url=store(contender)) as server:
                _work(server, callers, pace)
                memory = max(processes.memory(pid) for pid in processes.workers(server.pid, PROCESSES))
            found[contender.key]["start"].append(round(server.seconds_to_ready, 3))
            found[contender.key]["memory"].append(round(memory, 1))
            what = f"{server.seconds_to_ready:.2f} s, {memory:.0f} MiB"
            pace.say(f"footprint round {number + 1}/{pace.rounds} {contender.title}: {what}")
    return found


def _work(server: Server, callers: Callers, pace: Pace) -> None:
    for workload in WORKLOADS:
        requests = load.write_requests(pace.folder / "work", workload.requests(server, callers))
        load.run(server.url, requests, connections=CONNECTIONS, seconds=min(pace.seconds, WORK_SECONDS))
