"""What the kernel says of a server's processes: which they are, what memory they hold, how long they ran (Linux)."""

import os
from pathlib import Path

PROC = Path("/proc")
KIB_PER_MIB = 1024


def workers(pid: int, count: int) -> list[int]:
    """Return the processes that serve: the `count` largest below `pid`, since some servers keep small helpers."""
    return sorted(_below(pid), key=memory, reverse=True)[:count]


def _below(pid: int) -> list[int]:
    parents = {int(path.name): _parent(path) for path in PROC.iterdir() if path.name.isdigit()}
    found: list[int] = []
    generation = [pid]
    while generation:
        generation = [process for process, parent in parents.items() if parent in generation]
        found += generation
    return found


def _parent(path: Path) -> int:
    try:
        # After the name, which is in brackets and may hold anything.
        return int((path / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended
        return 0


def memory(pid: int, *, peak: bool = False) -> float:
    """Return the resident memory of a process in MiB, or the most it had since `forget_peak`."""
    name = "VmHWM:" if peak else "VmRSS:"
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / KIB_PER_MIB for line in lines if line.startswith(name)), 0.0)


def cpu_seconds(pid: int) -> float:
    """Return how long a process and all below it have run on the processors, in the kernel and outside."""
    return sum(_cpu_seconds(process) for process in [pid, *_below(pid)])


def _cpu_seconds(pid: int) -> float:
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def forget_peak(pid: int) -> None:
    """Let the peak begin anew at what the process holds now."""
    (PROC / str(pid) / "clear_refs").write_text("5")
