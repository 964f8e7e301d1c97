"""Where a server is killed: the name of the point is in a file, which goes with the first process that gets there."""

import os
import signal
from enum import StrEnum
from pathlib import Path


class Point(StrEnum):
    """A point on the way of a payment; between two of them is nothing that another would be needed for."""

    AFTER_KEY = "after the insert of the key"
    AFTER_ROW = "after the insert of the row"
    BEFORE_CALL = "before the call leaves"
    AFTER_CALL = "after the call was done"
    AFTER_ANSWER = "after the answer"
    AFTER_CLOSING = "after the closing commit"
    AFTER_EVENT = "after the insert of the event"
    WHILE_APPLYING = "while the event is applied"


def armed(data_dir: Path) -> Path:
    """Return the file that names the point."""
    return data_dir / "die-at"


def pass_by(point: Point, data_dir: Path) -> None:
    """End this process as kill -9 does, if this is the point."""
    file = armed(data_dir)
    if file.exists() and file.read_text() == point:
        file.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
