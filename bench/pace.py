"""How often and how long everything is measured, and the place for what is needed meanwhile."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True)
class Pace:
    """So many rounds, in which everybody has a turn of so many seconds. What is in `folder` goes away."""

    rounds: int
    seconds: float
    folder: Path

    def say(self, line: str) -> None:
        """Tell the person who waits how far it is."""
        print(f"{datetime.now(UTC):%H:%M:%S} {line}", flush=True)
