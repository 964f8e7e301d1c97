"""The processes of granian: they drain, are replaced, and leave nothing behind."""

import http.client
import json
import os
import signal
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import requests

from project.metric_files import exposition
from tests.granian.client import ME, headers_of
from tests.http.client import connect, eventually, raw_request, read_answer
from tests.servers import run_server

pytestmark = [pytest.mark.server, pytest.mark.xdist_group("granian")]


def ended(connection: http.client.HTTPConnection) -> bool:
    connection.request("GET", "/healthz")
    response = connection.getresponse()
    response.read()
    return bool(response.will_close)


def test_term_begins_a_drain_in_which_readiness_goes_first_and_what_is_under_way_is_finished(env, token):
    with (
        run_server({**env, "DRAIN_SECONDS": "2", "WEB_CONCURRENCY": "2"}, server="granian") as server,
        closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as kept,
        connect(server.url) as slow,
    ):
        assert ended(kept) is False
        body = b'{"name": "Slow"}'
        headers = headers_of(token, f"Content-Length: {len(body)}")
        slow.sendall(raw_request(server.url, ME, method="PATCH", headers=headers, body=body[:5]))
        server.process.send_signal(signal.SIGTERM)
        ready = f"{server.url}/readyz"
        eventually(lambda: requests.get(ready, timeout=10).status_code == 503 or None, "readiness has gone")
        assert requests.get(f"{server.url}/healthz", timeout=10).status_code == 200
        assert ended(kept) is True
        eventually(lambda: "Stopping worker" in server.log or None, "it stops")
        slow.sendall(body[5:])
        assert read_answer(slow, method="PATCH").status == 200
        assert server.process.wait(40) == 0


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]], ids=["ctrl-c", "second term"])
def test_who_is_in_a_hurry_does_not_wait(env, signals):
    with run_server({**env, "DRAIN_SECONDS": "60"}, server="granian") as server:
        for number in signals:
            server.process.send_signal(number)
            time.sleep(0.3)
        assert server.process.wait(20) == 0


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="it looks for the children in /proc")
def test_a_process_that_dies_is_replaced_and_what_it_counted_stays(env, tmp_path):
    folder = tmp_path / "metrics"
    folder.mkdir()
    with run_server({**env, "PROMETHEUS_MULTIPROC_DIR": str(folder)}, server="granian") as server:
        [first] = children(server.process.pid)
        os.kill(first, signal.SIGKILL)
        eventually(lambda: (set(children(server.process.pid)) - {first}) or None, "another process")
        ready = f"{server.url}/readyz"
        eventually(lambda: is_ok(ready) or None, "it serves")
        counted = exposition(folder).decode()
        assert (folder / "counter_dead.db").exists()
        assert 'http_requests_total{method="GET",route="/readyz",status="200"}' in counted
        assert all(json.loads(line)["event"] for line in server.log.splitlines())
        [second] = children(server.process.pid)
        server.process.kill()
        server.process.wait()
        eventually(lambda: not Path(f"/proc/{second}").exists() or None, "no process is left behind")


def is_ok(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False
