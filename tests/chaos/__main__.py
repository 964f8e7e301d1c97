"""`make chaos`: break one part after the other under load, and print what came of it.

CHAOS_SECONDS (10) says for how long each is broken. Ends with 1 if clients were told anything that they should not have
been told, or anything was lost.
"""

import os
import sys
from collections.abc import Iterable

from tests.chaos.faults import FAULTS, ON_DISK, Fault
from tests.chaos.load import Written
from tests.chaos.running import Result, run_fault, wait_for_mails
from tests.chaos.topology import Topology, run_topology
from tests.servers.disk import small_disk

HEADINGS = ("broken", "for s", "slowest s", "healthz p99 ms", "recovery s", "written", "lost", "answers by status")
PAUSE_SECONDS = 0.05
ROW = "{:<30} {:>6} {:>10} {:>15} {:>11} {:>8} {:>5}  {}"
VERIFIERS = (("ledger", "verify"), ("files", "verify"), ("payments", "reconcile"))


def main() -> None:
    """Run all faults and the verifiers."""
    seconds = float(os.environ.get("CHAOS_SECONDS", "10"))
    say(ROW.format(*HEADINGS))
    with run_topology() as topology:
        sound = run(topology, FAULTS, seconds=seconds)
    with small_disk() as disk:
        if disk is None:
            say("not tried, since mounting a disk of its own needs root: " + ", ".join(fault.name for fault in ON_DISK))
        else:
            with run_topology(disk) as topology:
                sound = run(topology, ON_DISK, seconds=seconds) and sound
    sys.exit(0 if sound else 1)


def run(topology: Topology, faults: Iterable[Fault], *, seconds: float) -> bool:
    """Run some faults and the verifiers, print what came of it, and return whether all was as it should be."""
    written: list[Written] = []
    sound = True
    for fault in faults:
        result = run_fault(topology, fault, seconds=seconds, pause=PAUSE_SECONDS)
        say(row(result))
        written += result.written
        sound = sound and not result.wrong and not result.lost
    wait_for_mails(topology, written)
    mails = topology.mailbox.mails
    say(f"mails: {len(mails)} addresses, {sum(count > 1 for count in mails.values())} got theirs more than once")
    for command in VERIFIERS:
        sound = verified(topology, command) and sound
    return sound


def row(result: Result) -> str:
    """Return a line of the table."""
    seconds = (f"{figure:.1f}" for figure in (result.held, result.slowest))
    by_status = "  ".join(f"{outcome}: {count}" for outcome, count in sorted(result.outcomes.items()))
    counted = (len(result.written), len(result.lost), by_status + complaints(result))
    return ROW.format(
        result.fault.name, *seconds, f"{result.health_p99 * 1000:.0f}", f"{result.recovery:.1f}", *counted
    )


def complaints(result: Result) -> str:
    """Return what clients should not have been told, if anything."""
    if not result.wrong:
        return ""
    found = sorted({f"{answer.kind}: {answer.outcome} {answer.code}".strip() for answer in result.wrong})
    return "  ! " + ", ".join(found)


def verified(topology: Topology, command: tuple[str, ...]) -> bool:
    """Run a verifier and print what it says."""
    try:
        said = topology.stack.flask(*command)
    except AssertionError as error:
        say(str(error))
        return False
    say(f"flask {' '.join(command)}: {said.strip()}")
    return True


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)  # noqa: T201 - a command


if __name__ == "__main__":
    main()
