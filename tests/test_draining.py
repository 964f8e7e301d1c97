"""TERM: first /readyz says no while everything else goes on, then the server ends what it began and stops."""

import http.client
import signal
import socket
import time
from contextlib import closing

import pytest

from tests.conftest import ENV, migrated
from tests.http.client import eventually
from tests.servers import run_server

pytestmark = pytest.mark.server


def status(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.fixture
def env(tmp_path):
    found = {**ENV, "DATA_DIR": str(tmp_path / "data")}
    migrated(found)
    return found


def test_readiness_goes_first(env):
    with run_server({**env, "DRAIN_SECONDS": "2", "WEB_CONCURRENCY": "2"}) as server:
        server.process.send_signal(signal.SIGTERM)
        answers = set()
        while server.process.poll() is None:
            try:
                answers.add((status(server.port, "/readyz"), status(server.port, "/healthz")))
            except OSError:  # it has stopped listening
                break
            time.sleep(0.02)
        assert (503, 200) in answers
        assert {health for _, health in answers} == {200}
        assert server.process.wait(40) == 0


def test_each_connection_ends_with_its_next_answer(env):
    """So at the end none is open and idle, in which a request could be on its way when it is closed."""
    with (
        run_server({**env, "DRAIN_SECONDS": "60"}) as server,
        closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as kept,
    ):
        assert ended(kept) is False
        server.process.send_signal(signal.SIGTERM)
        while status(server.port, "/readyz") != 503:
            time.sleep(0.02)
        assert ended(kept) is True
        assert ended(kept) is True
        server.process.send_signal(signal.SIGTERM)


def ended(connection: http.client.HTTPConnection) -> bool:
    connection.request("GET", "/healthz")
    response = connection.getresponse()
    response.read()
    return bool(response.will_close)


@pytest.mark.parametrize("sent", ["nothing", "a part"])
def test_what_was_accepted_is_answered(env, sent):
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    begin = 10 if sent == "a part" else 0
    with run_server(env) as server, socket.create_connection(("127.0.0.1", server.port), timeout=40) as connection:
        connection.sendall(request[:begin])
        assert status(server.port, "/healthz") == 200  # after that one was accepted
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: "Handling signal: term" in server.log or None, "it stops")
        time.sleep(0.3)  # its processes are told a little later than its log
        connection.sendall(request[begin:])
        answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"Connection: close" in answer
        assert server.process.wait(40) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_who_presses_ctrl_c_does_not_wait(env, number):
    with run_server({**env, "DRAIN_SECONDS": "60"}) as server:
        server.process.send_signal(number)
        assert server.process.wait(40) == 0


def test_a_second_term_does_not_wait(env):
    with run_server({**env, "DRAIN_SECONDS": "60"}) as server:
        server.process.send_signal(signal.SIGTERM)
        while status(server.port, "/readyz") != 503:
            time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(40) == 0
