"""Whatever customers, staff, banks, events, faults and time do in whichever order: the money adds up.

TEST_MACHINE_STEPS is how many steps, on each database; any but the default also makes them random.
"""

import os
from collections import Counter
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.conftest import Databases
from tests.payments.machine import PaymentsMachine

DEFAULT_STEPS = 500
STEPS = int(os.environ.get("TEST_MACHINE_STEPS", DEFAULT_STEPS))
STEPS_OF_ONE = 25


@pytest.mark.slow
@pytest.mark.timeout(max(STEPS, 900))  # a step takes up to 50 ms, and a failure five minutes to be made small
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_money_adds_up_whatever_happens(databases: Databases, kind: str) -> None:
    class Machine(PaymentsMachine):
        open_app = staticmethod(lambda: databases.empty_app(kind))
        seen: ClassVar[Counter[str]] = Counter()

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=STEPS // STEPS_OF_ONE,
            stateful_step_count=STEPS_OF_ONE,
            derandomize=STEPS == DEFAULT_STEPS,
            database=None,
            deadline=None,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        ),
    )
    if STEPS != DEFAULT_STEPS:
        print(sorted(Machine.seen.items()))  # noqa: T201 - for whoever ran it by hand, with -s
