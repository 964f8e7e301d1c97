"""What gunicorn and granian have in common when they serve the application. Imported before anything of it."""

import ctypes
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

# What glibc does with free memory. By itself it learns to keep large blocks, in each of many arenas: with the 19 MiB
# that a password takes for a moment, a process would grow by 300. So these go back to the system; what bodies are read
# into is kept, since getting that anew took more than half of the time of an upload.
_MALLOPT = {
    "M_MMAP_THRESHOLD": (-3, 16 << 20),
    "M_TRIM_THRESHOLD": (-1, 16 << 20),
    "M_ARENA_MAX": (-8, 2),
}
with suppress(OSError, AttributeError):  # another C library
    for _option in _MALLOPT.values():
        ctypes.CDLL(None).mallopt(*_option)

# Where the processes add up what they count. The library for it looks when it is imported, so before all else.
_own_metrics = None
if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
    _own_metrics = os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="project-metrics-")

from flask import Flask  # noqa: E402

from project import metric_files  # noqa: E402
from project.config import Settings, load_config  # noqa: E402
from project.environment import ConfigError  # noqa: E402
from project.observability import readiness_check  # noqa: E402

# A byte that all processes share, without a lock, which one that is killed might take along: set while the server is
# about to stop.
draining = multiprocessing.RawValue("b", 0)


def read_settings() -> Settings:
    """Return the settings, or end the process with one line that says what is wrong with them."""
    try:
        return load_config()
    except ConfigError as error:
        sys.exit(f"Refusing to start: {error}.")


def announce_stop(app: Flask) -> None:
    """Let /readyz tell that the server is about to stop."""
    readiness_check(app, "server", _still_serving)


def _still_serving() -> None:
    if draining.value:
        raise RuntimeError("the server is about to stop")


def drain(seconds: int, stop: Callable[[int, Any], object], number: int, frame: Any) -> None:
    """On TERM say so, and go on for some seconds, so that proxies and balancers go elsewhere by themselves; then stop.

    A second signal does not wait.
    """
    if draining.value or not seconds:
        stop(number, frame)
        return
    draining.value = 1
    timer = threading.Timer(seconds, stop, (number, frame))
    timer.daemon = True
    timer.start()


def fold_metrics() -> None:
    """Keep what a process has counted that is gone, and forget what it had in use."""
    with suppress(FileNotFoundError):
        metric_files.fold(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))


def remove_own_metrics() -> None:
    """Remove the folder of the metrics, if it was our own."""
    if _own_metrics is not None:
        shutil.rmtree(_own_metrics, ignore_errors=True)
