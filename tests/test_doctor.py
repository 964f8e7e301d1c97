"""`flask doctor` says of each part whether it works, what is wrong and what to do, and never shows a secret."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from project import create_app, doctor
from project.doctor import examine
from tests.conftest import ENV

BROKEN = {
    "DATABASE_URL": ("postgresql://ann:canary-password@127.0.0.1:1/x", {"database", "migrations", "jobs"}),
    "REDIS_URL": ("redis://:canary-password@127.0.0.1:1/0", {"rate limits"}),
    "MAIL_URL": ("smtp://ann:canary-password@127.0.0.1:1", {"mail"}),
}


def states(app) -> dict[str, str]:
    with app.app_context():
        return {finding.name: finding.state for finding in examine()}


def test_a_good_set_up_has_nothing_broken(app):
    app.extensions["settings"].data_dir.chmod(0o700)
    # On PostgreSQL there is a process for each core, without Redis each of them counts on its own, and no worker runs.
    assert {name for name, state in states(app).items() if state != "ok"} <= {"rate limits", "jobs"}
    assert "failed" not in states(app).values()


def test_what_it_stores_it_deletes_again(app):
    folder = app.extensions["settings"].data_dir / "files"

    def stored() -> set[Path]:
        return {path for path in folder.rglob("*") if path.is_file()}

    with app.app_context():
        before = stored()
        list(examine())
        assert stored() == before


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named_with_its_cure_and_without_its_password(tmp_path, name):
    url, parts = BROKEN[name]
    broken = create_app({**ENV, "DATA_DIR": str(tmp_path), "RATE_LIMITS": "on", name: url})
    runner = broken.test_cli_runner()
    told = runner.invoke(args=["doctor"])
    assert told.exit_code == 1
    lines = [line for line in told.output.splitlines() if line.startswith("failed")]
    assert parts <= {line.removeprefix("failed").strip().partition(":")[0] for line in lines}
    assert any(name in line and line.endswith("(nothing listens there)") for line in lines)
    assert "canary-password" not in told.output
    assert "{" not in told.output  # nor are there log lines between


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0), backlog=20) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("name", "url", "part"),
    [
        ("DATABASE_URL", "postgresql://127.0.0.1:{}/x", "database"),
        ("REDIS_URL", "redis://127.0.0.1:{}/0", "rate limits"),
        ("MAIL_URL", "smtp://127.0.0.1:{}", "mail"),
    ],
)
def test_what_never_answers_is_not_waited_for(tmp_path, monkeypatch, silent_port, name, url, part):
    monkeypatch.setattr(doctor, "LOOK_SECONDS", 0.3)
    broken = create_app({**ENV, "DATA_DIR": str(tmp_path), "RATE_LIMITS": "on", name: url.format(silent_port)})
    with broken.app_context():
        found = {finding.name: finding for finding in examine()}
    assert found[part].state == "failed"
    assert found[part].text.endswith("(it does not answer)")


def test_tables_of_another_release_are_to_be_migrated(tmp_path):
    empty = create_app({**ENV, "DATA_DIR": str(tmp_path)})
    told = empty.test_cli_runner().invoke(args=["doctor"])
    assert "failed   migrations: the tables are not those of this version: run `flask db upgrade`" in told.output


@pytest.mark.parametrize("app", ["postgresql"], indirect=True)
def test_a_worker_that_is_missing_is_asked_for(app):
    with app.app_context():
        [jobs] = [finding for finding in examine() if finding.name == "jobs"]
    assert (jobs.state, jobs.text) == ("warning", "0 wait, and no worker runs: start `flask worker`")


def test_a_storage_that_is_not_mounted_is_found_out(app, tmp_path):
    settings = app.extensions["settings"]
    gone = tmp_path / "mounted"
    moved = create_app({**ENV, "DATA_DIR": str(settings.data_dir), "STORAGE_URL": gone.as_uri()})
    gone.rmdir()
    assert states(moved)["storage"] == "failed"


def test_in_production_it_says_what_only_suits_a_laptop(tmp_path):
    env = {
        **ENV,
        "APP_ENV": "production",
        "DATA_DIR": str(tmp_path),
        "ALLOW_SQLITE_IN_PRODUCTION": "1",
        "PAYMENTS_SANDBOX_IN_PRODUCTION": "1",
        "MAIL_URL": "file:",
    }
    production = create_app(env)
    with production.app_context():
        concerns = [each.text.split()[0] for each in examine() if (each.name, each.state) == ("environment", "warning")]
    assert concerns == [
        "PUBLIC_URL",
        "APP_URL",
        "CORS_ORIGINS",
        "MAIL_URL",
        "MAIL_FROM",
        "PROXY_HOPS",
        "DRAIN_SECONDS",
        "PAYMENTS_PROVIDER",
    ]


def test_in_production_hosts_that_are_not_answered_are_found_out(tmp_path):
    env = {
        **ENV,
        "APP_ENV": "production",
        "DATA_DIR": str(tmp_path),
        "ALLOW_SQLITE_IN_PRODUCTION": "1",
        "PAYMENTS_SANDBOX_IN_PRODUCTION": "1",
        "PUBLIC_URL": "https://api.example.com",
        "TRUSTED_HOSTS": "www.example.com",
        "METRICS_NETWORKS": "0.0.0.0/0",
    }
    with create_app(env).app_context():
        text = "\n".join(finding.text for finding in examine())
    assert "TRUSTED_HOSTS lacks the host of PUBLIC_URL" in text
    assert "TRUSTED_HOSTS lacks 127.0.0.1" in text
    assert "METRICS_NETWORKS lets everybody see /metrics" in text


def test_a_script_gets_json(app):
    told = app.test_cli_runner().invoke(args=["doctor", "--json"])
    found = json.loads(told.output)
    assert {"name", "state", "text"} == set(found[0])
