"""What Prometheus is shown, that processes add up, and that nobody else sees it."""

import http.client
import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ENV, migrated
from tests.servers import run_server


def numbers(text: str) -> dict[str, float]:
    """Read the lines of an exposition by name and labels."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            found[name] = float(value)
    return found


@pytest.mark.parametrize("address", ["203.0.113.7", "2001:db8::1", "10.0.0.1", "", "127.0.0.1.example"])
def test_to_the_world_there_is_no_such_page(client, address):
    answer = client.get("/metrics", environ_base={"REMOTE_ADDR": address})
    assert (answer.status_code, answer.json["code"]) == (404, "not_found")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1"])
def test_the_machine_itself_may_look(client, address):
    answer = client.get("/metrics", environ_base={"REMOTE_ADDR": address})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert answer.headers["Cache-Control"] == "no-store"


def test_requests_are_counted_by_route_and_never_by_path(client, as_user):
    def count() -> dict[str, float]:
        return numbers(client.get("/metrics").text)

    before, caller = count(), as_user()
    client.get(f"/v1/files/{caller.user.id}", headers=caller)
    client.get("/v1/nothing-" + "x" * 30)
    after = count()

    def grown(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    assert grown('http_requests_total{method="GET",route="/v1/files/<uuid:file_id>",status="404"}') == 1
    assert grown('http_requests_total{method="GET",route="none",status="404"}') == 1
    assert grown('http_request_duration_seconds_count{method="GET",route="none"}') == 1
    assert grown("database_statement_duration_seconds_count") > 0
    assert str(caller.user.id) not in str(after)
    assert "nothing-" not in str(after)


def test_methods_that_a_client_makes_up_are_one_series(client):
    for number in range(3):
        client.open("/v1/prices", method=f"BREW{number}")
    shown = client.get("/metrics").text
    assert "BREW" not in shown
    assert numbers(shown)['http_requests_total{method="other",route="none",status="405"}'] >= 3


def test_failed_and_good_sign_ins_are_counted(client):
    before = numbers(client.get("/metrics").text).get('logins_total{outcome="failure"}', 0)
    client.post("/v1/auth/login", json={"email": "nobody@example.com", "password": "not the password"})
    assert numbers(client.get("/metrics").text)['logins_total{outcome="failure"}'] == before + 1


def test_jobs_are_counted_and_so_are_those_that_wait(client, run_jobs):
    client.post("/v1/auth/forgot-password", json={"email": "nobody@example.com"})
    waiting = numbers(client.get("/metrics").text)
    assert waiting["jobs_waiting"] == 1
    assert 0 <= waiting["jobs_lag_seconds"] < 60
    run_jobs()
    after = numbers(client.get("/metrics").text)
    assert after["jobs_waiting"] == 0
    assert after['jobs_total{outcome="done",task="auth.links.send_reset"}'] >= 1


@pytest.mark.server
def test_the_processes_of_a_server_add_up(tmp_path):
    env = {**ENV, "DATA_DIR": str(tmp_path / "data"), "WEB_CONCURRENCY": "3"}
    migrated(env)
    with run_server(env) as server:
        for _ in range(60):
            get(server.port, "/v1/prices")
        seen = [numbers(get(server.port, "/metrics")) for _ in range(10)]
    name = 'http_requests_total{method="GET",route="/v1/prices",status="200"}'
    assert [found[name] for found in seen] == [60] * 10
    assert {found["database_connections_in_use"] for found in seen} <= {0, 1, 2, 3}
    assert not re.search("eyJ|@", str(seen))


def get(port: int, path: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


@pytest.mark.server
def test_a_setting_without_a_value_puts_no_files_where_the_process_was_started(tmp_path):
    env = {**ENV, "DATA_DIR": str(tmp_path / "data"), "PROMETHEUS_MULTIPROC_DIR": "", "PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", "from project.metrics import LOGINS; LOGINS.labels('success').inc()"]
    subprocess.run(command, cwd=tmp_path, env=env, check=True)
    assert list(tmp_path.glob("*.db")) == []
