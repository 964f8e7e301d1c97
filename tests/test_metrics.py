"""What Prometheus is shown, that processes add up, and that nobody else sees it."""

import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from project import metric_files
from tests.conftest import ENV, migrated
from tests.servers import run_server
from tests.servers.process import free_port, running

# Beyond the highest number that Linux gives to a process.
DEAD = 4_194_999


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


def get(port: int, path: str, *, source: str = "127.0.0.1") -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10, source_address=(source, 0))
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


# --- the files of processes that are gone -----------------------------------------------------------------------------


def counted_by(pid: int, folder: Path, **values: float) -> None:
    """Leave the files of a process that has counted."""
    for kind, value in values.items():
        name, kind_of_file = f"some_{kind}_total", {"gauge": "gauge_livesum"}.get(kind, kind)
        labels = (["le"], ["0.5"]) if kind == "histogram" else ([], [])
        file = MmapedDict(str(folder / f"{kind_of_file}_{pid}.db"))
        file.write_value(mmap_key(f"some_{kind}", name, *labels, "help"), value, 0.0)
        file.close()


def shown(folder: Path) -> dict[str, float]:
    return numbers(metric_files.exposition(folder).decode())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_dead_processes_counted_stays_in_one_file(tmp_path):
    for number in range(5):
        counted_by(DEAD + number, tmp_path, counter=2, histogram=1, gauge=7)
    first = shown(tmp_path)
    assert first["some_counter_total"] == 10
    assert first['some_histogram_bucket{le="0.5"}'] == 5
    assert names(tmp_path) == {"counter_dead.db", "histogram_dead.db"}
    counted_by(DEAD, tmp_path, counter=3, gauge=7)
    assert shown(tmp_path) == {**first, "some_counter_total": 13}
    assert names(tmp_path) == {"counter_dead.db", "histogram_dead.db"}


def test_the_files_of_the_living_stay(tmp_path):
    counted_by(os.getpid(), tmp_path, counter=2, gauge=7)
    counted_by(DEAD, tmp_path, counter=1, gauge=7)
    metric_files.fold(tmp_path)
    assert names(tmp_path) == {
        f"counter_{os.getpid()}.db",
        f"gauge_livesum_{os.getpid()}.db",
        "counter_dead.db",
        "histogram_dead.db",
    }
    assert shown(tmp_path)["some_counter_total"] == 3


def test_a_process_that_was_killed_before_its_first_byte_does_no_harm(tmp_path):
    (tmp_path / f"counter_{DEAD}.db").touch()
    counted_by(DEAD + 1, tmp_path, counter=1)
    assert shown(tmp_path)["some_counter_total"] == 1


@pytest.mark.parametrize("done", range(6))
def test_who_is_killed_while_making_them_one_counts_nothing_twice(tmp_path, done):
    counted_by(DEAD, tmp_path, counter=1, histogram=1)
    metric_files.fold(tmp_path)
    counted_by(DEAD + 1, tmp_path, counter=2, histogram=2)
    after = tmp_path / "after"
    shutil.copytree(tmp_path, after)
    metric_files.fold(after)
    # How far it came: the sums are written, it is decided, files are removed one by one, the sums put in their place.
    for kind in ("counter", "histogram"):
        shutil.copy(after / f"{kind}_dead.db", tmp_path / f"{kind}_dead.db.new")
    gone = [f"counter_{DEAD + 1}.db", f"histogram_{DEAD + 1}.db"]
    steps = [
        lambda: (tmp_path / "folded").write_text("\n".join(gone)),
        (tmp_path / gone[0]).unlink,
        (tmp_path / gone[1]).unlink,
        lambda: (tmp_path / "counter_dead.db.new").rename(tmp_path / "counter_dead.db"),
        lambda: (tmp_path / "histogram_dead.db.new").rename(tmp_path / "histogram_dead.db"),
    ]
    for step in steps[:done]:
        step()
    shutil.rmtree(after)
    found = shown(tmp_path)
    assert (found["some_counter_total"], found['some_histogram_bucket{le="0.5"}']) == (3, 3)
    assert names(tmp_path) == {"counter_dead.db", "histogram_dead.db"}


# --- workers ----------------------------------------------------------------------------------------------------------


def worker_env(tmp_path: Path, address: str, networks: str) -> dict[str, str]:
    env = {**ENV, "DATA_DIR": str(tmp_path / "data"), "WORKER_METRICS_ADDRESS": address, "METRICS_NETWORKS": networks}
    migrated(env)
    return {**env, "PATH": os.environ["PATH"], "FLASK_APP": "wsgi:app"}


@pytest.mark.server
def test_a_worker_shows_its_numbers_to_whom_they_are_for(tmp_path):
    port, log = free_port(), tmp_path / "log"
    env = worker_env(tmp_path, f"127.0.0.1:{port}", "127.0.0.5")
    with running(
        [sys.executable, "-m", "flask", "worker"],
        log=log,
        ready=lambda: "worker_started" in log.read_text(),
        env=env,
        cwd=Path(__file__).parents[1],
    ):
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            get(port, "/metrics")
        text = get(port, "/metrics", source="127.0.0.5")
        assert numbers(text)["jobs_waiting"] == 0
        assert "# TYPE jobs_total counter" in text
    assert "127.0.0" not in log.read_text()


@pytest.mark.server
def test_a_worker_whose_address_is_taken_says_so(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        env = worker_env(tmp_path, f"127.0.0.1:{taken.getsockname()[1]}", "127.0.0.5")
        command = [sys.executable, "-m", "flask", "worker"]
        root = Path(__file__).parents[1]
        done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "WORKER_METRICS_ADDRESS" in done.stderr, "Traceback" in done.stderr) == (1, True, False)
