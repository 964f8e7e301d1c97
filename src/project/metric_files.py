"""The files in which processes add up what they count: read together, and those of dead processes made one.

A process has a file for each kind of metric, named after its number. Counters have to outlive it, or sums would fall;
but each file takes room in memory and time at every look, and each release and each crash leaves some.
"""

import fcntl
import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

logger = logging.getLogger(__name__)

# What is added up; gauges are of the living.
KINDS = ("counter", "histogram")
# The files that are about to be removed since what they count is in the new ones, which end like this.
JOURNAL, NEW = "folded", ".new"


def exposition(folder: Path) -> bytes:
    """Return what all processes have counted, as Prometheus reads it."""
    registry = CollectorRegistry()
    with _locked(folder):
        _try_to_fold(folder)
        MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def fold(folder: Path) -> None:
    """Add what dead processes of this machine have counted to one file of each kind, and remove theirs.

    Where somebody else is at it, that is enough: who has to look after processes must not wait.
    """
    with suppress(BlockingIOError), _locked(folder, fcntl.LOCK_NB):
        _try_to_fold(folder)


@contextmanager
def _locked(folder: Path, how: int = 0) -> Iterator[None]:
    """Let nobody else fold or read meanwhile. Processes that count need not wait: their files stay as they are."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | how)
        yield
    finally:
        os.close(descriptor)


def _try_to_fold(folder: Path) -> None:
    try:
        _fold(folder)
    except OSError:
        # No room, for example. Everything is still there.
        logger.exception("metrics_not_folded")


def _fold(folder: Path) -> None:
    _finish(folder)
    dead = [path for path in folder.glob("*.db") if _is_dead(path)]
    if not dead:
        return
    for kind in KINDS:
        _add_up(folder / f"{kind}_dead.db", [path for path in dead if path.name.startswith(kind)])
    draft = folder / f"{JOURNAL}.tmp"
    draft.write_text("\n".join(path.name for path in dead))
    draft.rename(folder / JOURNAL)  # from here on it counts
    _finish(folder)


def _finish(folder: Path) -> None:
    """Complete what was decided, also by a process that was killed since, or remove what was only prepared."""
    journal = folder / JOURNAL
    if journal.exists():
        for name in journal.read_text().splitlines():
            (folder / name).unlink(missing_ok=True)
        for path in folder.glob(f"*{NEW}"):
            path.rename(path.with_suffix(""))
        journal.unlink()
    for path in folder.glob(f"*{NEW}"):
        path.unlink()


def _add_up(total: Path, files: list[Path]) -> None:
    """Write the sum of the total so far and of the files to a new file."""
    sums: defaultdict[str, float] = defaultdict(float)
    for path in [*files, total]:
        # A process can be killed before the first byte, too.
        if path.exists() and path.stat().st_size:
            for key, value, _, _ in MmapedDict.read_all_values_from_file(path):  # type: ignore[no-untyped-call]
                sums[key] += value
    new = MmapedDict(f"{total}{NEW}")  # type: ignore[no-untyped-call]
    for key, value in sums.items():
        new.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
    new.close()  # type: ignore[no-untyped-call]


def _is_dead(path: Path) -> bool:
    """Tell whether a file is of a process that is gone: its name ends with the number of it."""
    number = path.stem.rpartition("_")[2]
    if not number.isdigit():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
