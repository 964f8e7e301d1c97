"""The pytest plugin that reads every log line of a test run: none may hold a card number, a secret or an address.

Lines are formatted as the product does it in production. A test in which one leaks fails, whatever else it is about.
What servers log is checked when they stop, see servers/process.py.
"""

import logging
from collections.abc import Generator

import pytest

from project import logs
from tests.leaks import fail, leaks


class Watch(logging.Handler):
    """Formats each record as production does, and remembers those that leak."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logs._formatter(readable=False, request_id=lambda: None))
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Look at a line."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - whatever went wrong
            return  # The product's handler cannot write it either.
        if names := leaks(line):
            self.found.append(f"{', '.join(names)}: {line}")

    def check(self) -> None:
        """Fail if a line leaked since the last check."""
        found, self.found = self.found, []
        fail(found)


watch = Watch()


def _watched() -> Generator[None, object, object]:
    root = logging.getLogger()
    if watch not in root.handlers:
        root.addHandler(watch)
    try:
        result = yield
    except BaseException:
        watch.found.clear()
        raise
    watch.check()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    """Watch the fixtures."""
    return (yield from _watched())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Watch the test."""
    return (yield from _watched())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, object, object]:
    """Watch what comes after it."""
    return (yield from _watched())
