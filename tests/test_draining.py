"""TERM: first /readyz says no while everything else goes on, then the server ends what it began and stops."""

import http.client
import signal
import time

import pytest

from tests.conftest import ENV, migrated
from tests.servers import run_server

pytestmark = pytest.mark.server


def status(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
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
        assert server.process.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_who_presses_ctrl_c_does_not_wait(env, number):
    with run_server({**env, "DRAIN_SECONDS": "60"}) as server:
        server.process.send_signal(number)
        assert server.process.wait(10) == 0


def test_a_second_term_does_not_wait(env):
    with run_server({**env, "DRAIN_SECONDS": "60"}) as server:
        server.process.send_signal(signal.SIGTERM)
        while status(server.port, "/readyz") != 503:
            time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
