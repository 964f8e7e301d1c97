"""What can break, how it is broken, and what clients may be told meanwhile.

docs/operations.md has the same list under "What happens when a part fails".
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.chaos.topology import Topology
from tests.http.client import eventually
from tests.servers.faults import Link

EVERYTHING = frozenset({"read", "pay", "upload", "register"})
WRITES = EVERYTHING - {"read"}
NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Fault:
    """Something that breaks for a while.

    `unavailable` names the requests that may be told 503 meanwhile; all others have to do what they were asked for.
    `seconds` is how long any answer may take meanwhile.
    """

    name: str
    broken: Callable[[Topology], AbstractContextManager[None]]
    unavailable: frozenset[str]
    seconds: float = 3.0


@contextmanager
def postgres_stopped(topology: Topology) -> Iterator[None]:
    topology.postgres.stop()
    yield
    topology.postgres.start()


@contextmanager
def postgres_killed(topology: Topology) -> Iterator[None]:
    """Kill it and start it again at once."""
    topology.postgres.crash()
    topology.postgres.start()
    yield


@contextmanager
def out_of_connections(topology: Topology) -> Iterator[None]:
    """Take all connections that the server has, those of the application too."""
    with ExitStack() as taken:
        first = taken.enter_context(topology.connect())
        for _ in range(3):
            first.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'project'")
            try:
                while True:
                    taken.enter_context(topology.connect())
            except psycopg.OperationalError:
                continue
        yield


@contextmanager
def valkey_stopped(topology: Topology) -> Iterator[None]:
    topology.valkey.stop()
    yield
    topology.valkey.start()


@contextmanager
def provider_down(topology: Topology) -> Iterator[None]:
    faults = "/v1/sandbox/faults"
    topology.admin.api.post(faults, json={"fault": "timeout_before", "count": 1000})
    yield
    topology.admin.api.post(faults, json={"fault": "timeout_before", "count": 0})


def refused(name: str) -> Callable[[Topology], AbstractContextManager[None]]:
    """Return what cuts a link."""
    return lambda topology: _without(_link(topology, name), Link.refuse)


def silent(name: str) -> Callable[[Topology], AbstractContextManager[None]]:
    """Return what lets nothing come through a link."""
    return lambda topology: _without(_link(topology, name), Link.swallow)


def _link(topology: Topology, name: str) -> Link:
    link: Link = getattr(topology, name)
    return link


@contextmanager
def _without(link: Link, action: Callable[[Link], None]) -> Iterator[None]:
    action(link)
    yield
    link.heal()


def killed(part: str) -> Callable[[Topology], AbstractContextManager[None]]:
    """Return what kills a part of the stack with all its processes; it is started again by who watches over it."""

    @contextmanager
    def broken(topology: Topology) -> Iterator[None]:
        before = topology.stack.pids[part]
        os.killpg(before, signal.SIGKILL)
        eventually(lambda: topology.stack.pids[part] != before or None, f"{part} was started again", seconds=60)
        yield

    return broken


@contextmanager
def process_killed(topology: Topology) -> Iterator[None]:
    """Kill one of the processes of a server; its parent starts another."""
    server = topology.stack.pids["server1"]
    before = _children(server)
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: len([pid for pid in _children(server) if pid not in before]) or None, "another was started")
    yield


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def disk_full(topology: Topology) -> Iterator[None]:
    assert topology.disk is not None
    filler = topology.disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as output:
        while True:
            output.write(bytes(4096))
    yield
    filler.unlink()


FAULTS = (
    Fault("PostgreSQL stopped", postgres_stopped, EVERYTHING),
    Fault("PostgreSQL killed and restarted", postgres_killed, EVERYTHING),
    Fault("PostgreSQL silent", silent("database"), EVERYTHING),
    Fault("PostgreSQL out of connections", out_of_connections, EVERYTHING),
    Fault("Valkey stopped", valkey_stopped, NOTHING),
    Fault("Valkey silent", silent("limits"), NOTHING),
    Fault("Storage stopped", refused("storage"), frozenset({"upload"})),
    Fault("Storage silent", silent("storage"), frozenset({"upload"}), seconds=30),
    Fault("Payment provider down", provider_down, frozenset({"pay"})),
    Fault("Mail server stopped", refused("mail"), NOTHING),
    Fault("Mail server silent", silent("mail"), NOTHING),
    Fault("Worker killed", killed("worker"), NOTHING),
    Fault("Process of a server killed", process_killed, WRITES),
    Fault("Server killed", killed("server1"), WRITES),
)
# Of an installation whose files are on a disk of its own.
ON_DISK = (Fault("Disk of the files full", disk_full, frozenset({"upload"})),)
