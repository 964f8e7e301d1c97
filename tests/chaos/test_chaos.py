"""What happens when a part fails: each row of the table in docs/operations.md."""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.chaos.faults import FAULTS, ON_DISK, Fault
from tests.chaos.load import Written
from tests.chaos.running import run_fault, wait_for_mails
from tests.chaos.topology import LOGINS, Topology, run_topology
from tests.http.client import new_address
from tests.servers import NGINX
from tests.servers.app import ROOT
from tests.servers.disk import small_disk

SECONDS = float(os.environ.get("CHAOS_SECONDS", "2"))
PAUSE_SECONDS = 0.2
# The machine of the tests has other things to do as well; `make chaos` prints the figures of one that has not.
BUSY = 4
RECOVERY_SECONDS = 5
PROCESSES = 4

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
    # The mail server of these tests forgets to close what was cut.
    pytest.mark.filterwarnings("ignore:.*unclosed:pytest.PytestUnraisableExceptionWarning"),
]


def verify(topology: Topology, written: list[Written]) -> None:
    """Check what has to hold when all is over: every promised mail came, the books agree, and the files are there."""
    wait_for_mails(topology, written)
    assert "The books agree" in topology.stack.flask("ledger", "verify")
    topology.stack.flask("files", "verify")
    topology.stack.flask("payments", "reconcile")


@pytest.fixture(scope="module")
def written() -> list[Written]:
    """What clients were told has been kept, over all tests."""
    return []


@pytest.fixture(scope="module")
def topology(written: list[Written]) -> Iterator[Topology]:
    with run_topology() as found:
        yield found
        verify(found, written)


@pytest.fixture(scope="module")
def topology_on_disk() -> Iterator[Topology]:
    with small_disk() as disk:
        if disk is None:
            pytest.skip("mounting a disk of its own needs root")
        with run_topology(disk) as found:
            yield found
            verify(found, [])


def check(topology: Topology, fault: Fault) -> list[Written]:
    result = run_fault(topology, fault, seconds=SECONDS, pause=PAUSE_SECONDS)
    assert {answer.kind for answer in result.answers if answer.good} >= {"health"}
    assert result.wrong == [], topology.errors()
    assert result.lost == []
    assert result.slowest < fault.seconds * BUSY
    assert result.recovery < RECOVERY_SECONDS * BUSY
    return result.written


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_part_that_fails_has_the_effect_that_is_documented(topology, written, fault):
    written += check(topology, fault)


@pytest.mark.parametrize("fault", ON_DISK, ids=lambda fault: fault.name)
def test_a_disk_that_is_full_has_the_effect_that_is_documented(topology_on_disk, fault):
    check(topology_on_disk, fault)


def test_limits_hold_for_each_process_while_valkey_is_away(topology):
    address = new_address()

    def sign_in(number: int) -> int:
        body = {"email": address, "password": f"wrong horse {number}"}
        return requests.post(f"{topology.stack.url}/v1/auth/login", json=body, timeout=30).status_code

    topology.valkey.stop()
    with ThreadPoolExecutor(PROCESSES) as pool:
        answers = list(pool.map(sign_in, range(3 * PROCESSES * LOGINS)))
    topology.valkey.start()

    assert set(answers) == {401, 429}
    assert answers.count(401) <= PROCESSES * LOGINS


def test_the_documents_name_each_fault():
    text = Path(ROOT / "docs" / "operations.md").read_text()
    table = text.partition("## What happens when a part fails")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)
    assert {fault.name for fault in FAULTS + ON_DISK} <= set(rows)
