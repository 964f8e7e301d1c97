"""One server of `make stack` by itself: who answers at its address when its processes come, go and are killed."""

import http.client
import os
import signal
import time
from collections.abc import Callable, Generator
from contextlib import closing

import pytest

from deploy.parts import Server
from tests.conftest import ENV, migrated
from tests.http.client import eventually

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture
def server(tmp_path):
    env = {**ENV, "DATA_DIR": str(tmp_path / "data"), "DRAIN_SECONDS": "1"}
    migrated(env)
    found = Server("server", {**os.environ, **env}, tmp_path)
    found.start()
    yield found
    found.process.kill()
    found.stop()


@pytest.fixture
def client(server):
    """A client that keeps its connection."""
    with closing(connect(server)) as connection:
        yield connection


def connect(server: Server) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)


def status(connection: http.client.HTTPConnection) -> int:
    connection.request("GET", "/readyz")
    response = connection.getresponse()
    response.read()
    return response.status


def fresh_status(server: Server) -> int:
    with closing(connect(server)) as connection:
        return status(connection)


def refuses(server: Server) -> bool:
    try:
        with closing(connect(server)) as connection:
            connection.connect()
    except ConnectionRefusedError:
        return True
    return False


def restarted(server: Server, old: int) -> None:
    """Look after it until another process answers there."""

    def is_back() -> bool | None:
        server.look_after()
        return (server.process.pid != old and not refuses(server)) or None

    eventually(is_back, "it was started again", seconds=60)
    assert fresh_status(server) == 200


def finish(step: Generator[None, None, bool], *, seconds: float = 60) -> bool:
    """Go on until it has ended, and return what it returns."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            next(step)
        except StopIteration as end:
            return bool(end.value)
        time.sleep(0.02)
    raise AssertionError("it did not end")


def test_its_place_is_taken_without_a_pause(server, client):
    old, port = server.process.pid, server.port
    answers = set()
    replacing = asking(server.replace(), lambda: answers.update({status(client), fresh_status(server)}))
    assert finish(replacing)
    # Never 503: the address does not go, only a process does.
    assert answers == {200}
    assert (server.process.pid != old, server.port) == (True, port)


def asking(step: Generator[None, None, bool], ask: Callable[[], None]) -> Generator[None, None, bool]:
    """Ask whenever there is something to wait for."""
    while True:
        ask()
        try:
            yield next(step)
        except StopIteration as end:
            return bool(end.value)


def test_who_takes_its_place_gets_no_request_before_it_is_ready(server, tmp_path):
    empty = {**ENV, "DATABASE_URL": f"sqlite:///{tmp_path}/other.db"}
    good, server.env = server.env, {**server.env, **empty}
    replacing = server.replace()
    next(replacing)
    eventually(lambda: "not_ready" in server.log.read_text() or None, "the new one was asked", seconds=60)
    assert {fresh_status(server) for _ in range(50)} == {200}
    migrated({**good, **empty})
    assert finish(replacing)
    assert fresh_status(server) == 200


def test_who_cannot_start_leaves_the_place_to_the_old_one(server, capsys):
    old = server.process.pid
    server.env = {**server.env, "WEB_THREADS": "none"}
    assert not finish(server.replace())
    assert capsys.readouterr().out == f"stack: the new server is not ready, see {server.log}; the old one goes on\n"
    assert (server.process.pid, fresh_status(server)) == (old, 200)


def test_nobody_waits_for_one_that_was_killed(server):
    old = server.process.pid
    os.kill(old, signal.SIGKILL)  # and not its processes, which have the socket too
    eventually(server.process.status, "it was killed")
    server.look_after()
    assert refuses(server)
    restarted(server, old)


def test_one_that_is_killed_while_its_place_is_taken_starts_afresh(server):
    old = server.process.pid
    replacing = server.replace()
    next(replacing)
    os.killpg(old, signal.SIGKILL)
    eventually(server.process.status, "it was killed")
    server.look_after()
    assert finish(replacing)
    restarted(server, old)
