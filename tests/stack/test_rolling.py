"""Servers that are rolled, and those that are killed: what clients notice that repeat nothing."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.http.client import PASSWORD, Account, Api, eventually, log_in
from tests.stack.running import RunningStack
from tests.stack.strict import StrictLoad

pytestmark = pytest.mark.timeout(900)
ROLLS = int(os.environ.get("TEST_ROLLS", "2"))
RATE = int(os.environ.get("TEST_ROLLS_RATE", "40"))  # requests each second
EMAIL = "canary-strict@example.com"


@pytest.fixture(scope="module")
def buyer(stack: RunningStack) -> Callable[[], Account]:
    """Somebody whose payments nobody else makes; each call signs in, since tokens last for ten minutes."""
    stack.flask("users", "create-admin", EMAIL, "--password-stdin", entered=PASSWORD)
    return lambda: log_in(Api(stack.url), EMAIL)


def load(stack: RunningStack, buyer: Callable[[], Account], price: str) -> StrictLoad:
    return StrictLoad(stack.url, buyer().access_token, price, RATE)


def payments(buyer: Callable[[], Account]) -> int:
    return int(buyer().api.get("/v1/payments?include_total=true&limit=1").json()["meta"]["total"])


@dataclass(frozen=True)
class Rolled:
    """What was there before and after the servers were rolled under load."""

    load: StrictLoad
    payments: int
    before: dict[str, int]
    after: dict[str, int]
    alive: set[int]
    log: str


@pytest.fixture(scope="module")
def rolled(stack: RunningStack, buyer: Callable[[], Account], price: str) -> Rolled:
    """The servers, rolled: when that is asked for in the midst of it, once more."""
    before, paid, log = stack.pids, payments(buyer), stack.log
    with load(stack, buyer, price) as clients:
        eventually(lambda: clients.reads.total() > RATE or None, "requests were answered", seconds=60)
        stack.process.send_signal(signal.SIGHUP)
        eventually(lambda: "rolling" in stack.log.removeprefix(log) or None, "the roll began", seconds=60)
        for _ in range(3):
            stack.process.send_signal(signal.SIGHUP)
        stack.wait_for_roll(log.count("stack: rolled") + 2)
        for _ in range(ROLLS - 2):
            clients.token = buyer().access_token
            stack.roll()
    after = stack.pids
    alive = {pid for pid in [*before.values(), *after.values()] if Path(f"/proc/{pid}").exists()}
    return Rolled(clients, payments(buyer) - paid, before, after, alive, stack.log.removeprefix(log))


def test_rolling_the_servers_loses_no_request(rolled):
    assert set(rolled.load.reads) == {"200"}
    assert set(rolled.load.written) == {"201"}
    assert rolled.payments == len(rolled.load.writes) > 0


def test_the_servers_are_others_then_and_nothing_else_is(rolled):
    assert rolled.before.keys() == rolled.after.keys()
    changed = {name for name, pid in rolled.before.items() if rolled.after[name] != pid}
    assert changed == {"server1", "server2"}
    assert rolled.alive == set(rolled.after.values())


def test_whoever_asks_during_a_roll_gets_one_more_after_it(rolled):
    steps = [line for line in rolled.log.splitlines() if "roll" in line]
    assert steps == ["stack: rolling server1", "stack: rolling server2", "stack: rolled"] * ROLLS


@pytest.mark.parametrize("victim", ["a process", "a server"])
def test_of_a_server_that_is_killed_only_what_it_was_writing_fails(stack, buyer, price, victim):
    before, paid = stack.pids["server1"], payments(buyer)
    with load(stack, buyer, price) as clients:
        eventually(lambda: clients.reads.total() > RATE or None, "requests were answered", seconds=60)
        if victim == "a server":
            os.killpg(before, signal.SIGKILL)
            eventually(lambda: stack.pids["server1"] != before or None, "the server was started again", seconds=60)
        else:
            os.kill(next(children(before)), signal.SIGKILL)
        done = clients.reads.total()
        eventually(lambda: clients.reads.total() > done + 3 * RATE or None, "requests went on", seconds=60)
    assert set(clients.reads) == {"200"}
    assert set(clients.written) <= {"201", "503"}
    # What was cut off is sent again with its key: done now, or done before, or for a minute still with who was killed.
    with closing(clients.connect()) as connection:
        again = [clients.pay(connection, key) for key, (status, _) in clients.writes.items() if status == "503"]
    open_ends = [code for status, code in again if status != "201"]
    assert set(open_ends) <= {"idempotency_in_progress"}
    assert 0 <= payments(buyer) - paid - (len(clients.writes) - len(open_ends)) <= len(open_ends)


def children(pid: int) -> Iterator[int]:
    return map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
