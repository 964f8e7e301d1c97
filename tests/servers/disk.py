"""A disk that is soon full."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.process import scratch_directory

MEBIBYTES = 16


@contextmanager
def small_disk() -> Iterator[Path | None]:
    """Mount a small disk in memory and give its folder, or None where that is not allowed."""
    with scratch_directory("project-disk-") as root:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={MEBIBYTES}m,mode=0755", "tmpfs", str(root)]
        try:
            subprocess.run(mount, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            yield None
            return
        try:
            yield root
        finally:
            subprocess.run(["umount", "--lazy", str(root)], check=True, capture_output=True)
