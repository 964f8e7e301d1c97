"""Break something under load, mend it, and count."""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tests.chaos.faults import Fault
from tests.chaos.load import Answer, Load, Written, lost
from tests.chaos.topology import Topology
from tests.http.client import eventually

WARM_UP_SECONDS = 1.0
# So many good answers of each kind in a row, and it is over.
ENOUGH = 5
RECOVERY_SECONDS = 60
# A mail that was refused is tried again after 10, 30 and 90 s.
MAIL_SECONDS = 150


@dataclass(frozen=True)
class Result:
    """What happened: seconds, and numbers of requests."""

    fault: Fault
    held: float
    answers: list[Answer]  # to what was begun while it was broken, or before and not answered yet
    recovery: float  # until the last answer that was not good, counted from when it was mended
    written: list[Written]
    lost: list[Written]

    @property
    def wrong(self) -> list[Answer]:
        """What clients should not have been told."""
        return [answer for answer in self.answers if not self._expected(answer)]

    @property
    def outcomes(self) -> Counter[str]:
        """How often there was which answer."""
        return Counter(str(answer.outcome) for answer in self.answers)

    @property
    def slowest(self) -> float:
        """How long the slowest answer took."""
        return max((answer.ended - answer.begun for answer in self.answers), default=0)

    @property
    def health_p99(self) -> float:
        """How long `/healthz` took, but for one of a hundred."""
        took = sorted(answer.ended - answer.begun for answer in self.answers if answer.kind == "health")
        return took[len(took) * 99 // 100]

    def _expected(self, answer: Answer) -> bool:
        return answer.good or (answer.outcome == 503 and answer.kind in self.fault.unavailable)


def run_fault(topology: Topology, fault: Fault, *, seconds: float, pause: float) -> Result:
    """Break something for so many seconds while clients go on asking, and watch until all is well again.

    Each of them pauses for so many seconds after an answer.
    """
    stack = topology.stack
    with Load(stack.url, topology.admin, topology.price_id, pause) as load:
        load.run_for(WARM_UP_SECONDS)
        begun = time.monotonic()
        with fault.broken(topology):
            load.run_for(seconds)
            held = time.monotonic() - begun
        mended = time.monotonic()
        eventually(lambda: _is_well(load) or None, f"all was well after: {fault.name}", seconds=RECOVERY_SECONDS)
    meanwhile = [answer for answer in load.answers if answer.ended >= begun]
    bad = [answer.ended - mended for answer in meanwhile if not answer.good and answer.ended > mended]
    return Result(
        fault,
        held=held,
        answers=meanwhile,
        recovery=max(bad, default=0.0),
        written=load.written,
        lost=lost(stack.url, topology.admin, load.written),
    )


def _is_well(load: Load) -> bool:
    last: dict[str, list[bool]] = {kind: [] for kind in load.kinds}
    for answer in reversed(load.answers[-500:]):
        if len(last[answer.kind]) < ENOUGH:
            last[answer.kind].append(answer.good)
    return all(len(found) == ENOUGH and all(found) for found in last.values())


def wait_for_mails(topology: Topology, written: Iterable[Written]) -> None:
    """Wait until each address that was promised a mail has one."""
    promised = {one.id for one in written if one.kind == "mail"}
    eventually(lambda: promised <= set(topology.mailbox.mails) or None, "all mails came", seconds=MAIL_SECONDS)
