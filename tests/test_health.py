import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_limiter import ExemptionScope
from flask_migrate import Migrate
from sqlalchemy import text

from project import observability
from project.database import db, transaction
from project.extensions import limiter
from project.observability import readiness_check
from tests.conftest import ENV, migrated
from tests.observed_app import make_app
from tests.small_app import small_app


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    return make_app(tmp_path)


@pytest.fixture
def client(app):
    return app.test_client()


@pytest.fixture
def ready_app(tmp_path: Path) -> Iterator[Flask]:
    """An application that is ready: a database, two migrations that were applied, limits in memory."""
    with small_app(tmp_path) as app:
        app.config["RATELIMIT_STORAGE_URI"] = "memory://"
        observability.init_app(app)
        Migrate().init_app(app, db, directory=str(tmp_path / "migrations"))
        limiter.init_app(app)
        limiter._storage_dead = False  # it is one object per process, and another test may have taken Redis away
        versions = tmp_path / "migrations" / "versions"
        versions.mkdir(parents=True)
        (versions / "a0.py").write_text("revision = 'a0'\ndown_revision = None\n")
        (versions / "a1.py").write_text("revision = 'a1'\ndown_revision = 'a0'\n")
        with app.app_context(), transaction():
            db.session.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
            db.session.execute(text("INSERT INTO alembic_version VALUES ('a1')"))
        yield app


def test_healthz_answers_without_touching_anything(client):
    response = client.get("/healthz")
    assert (response.status_code, response.json) == (200, {"data": {"status": "ok"}})


def test_readyz_says_what_it_checked(ready_app):
    response = ready_app.test_client().get("/readyz")
    assert response.status_code == 200
    assert response.json == {
        "data": {"status": "ready", "checks": {"database": "ok", "migrations": "ok", "rate_limits": "ok"}}
    }


def test_a_process_without_its_database_is_not_ready(ready_app):
    with ready_app.app_context():
        db.engine.dispose()
        path = Path(str(db.engine.url.database))
        path.rename(path.with_suffix(".away"))
        path.mkdir()
    response = ready_app.test_client().get("/readyz")
    assert response.status_code == 503
    assert response.content_type == "application/problem+json"
    assert response.json["code"] == "instance_not_ready"
    assert response.json["detail"] == "Not ready: database, migrations."
    assert response.json["checks"] == {"database": "failed", "migrations": "failed", "rate_limits": "ok"}
    assert response.headers["Retry-After"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE alembic_version SET version_num = 'a0'",
        "DELETE FROM alembic_version",
        "DROP TABLE alembic_version",
    ],
)
def test_a_process_whose_database_is_not_migrated_is_not_ready(ready_app, statement):
    with ready_app.app_context(), transaction():
        db.session.execute(text(statement))
    response = ready_app.test_client().get("/readyz")
    assert (response.status_code, response.json["detail"]) == (503, "Not ready: migrations.")


def test_a_process_goes_on_when_a_newer_release_has_migrated_the_database(ready_app):
    with ready_app.app_context(), transaction():
        db.session.execute(text("UPDATE alembic_version SET version_num = 'b2'"))
    response = ready_app.test_client().get("/readyz")
    assert (response.status_code, response.json["data"]["checks"]["migrations"]) == (200, "ok")


def test_a_newer_migration_on_disk_does_not_unready_a_running_process(ready_app, tmp_path):
    client = ready_app.test_client()
    assert client.get("/readyz").status_code == 200
    (tmp_path / "migrations/versions/b2.py").write_text("revision = 'b2'\ndown_revision = 'a1'\n")
    assert client.get("/readyz").status_code == 200


def test_a_process_whose_storage_is_away_says_so_and_serves_all_else(tmp_path):
    app = migrated({**ENV, "DATA_DIR": str(tmp_path)})
    folder = tmp_path / "files"

    def storage() -> tuple[int, Any]:
        response = app.test_client().get("/readyz")
        return response.status_code, response.get_json()["data"]["checks"]["storage"]

    folder.rename(tmp_path / "away")
    assert storage() == (200, "degraded")
    (tmp_path / "away").rename(folder)
    assert storage() == (200, "ok")


def test_limits_that_are_not_shared_degrade_but_do_not_unready(ready_app):
    ready_app.config["RATELIMIT_STORAGE_URI"] = "redis://127.0.0.1:1"
    limiter.init_app(ready_app)
    response = ready_app.test_client().get("/readyz")
    assert response.status_code == 200
    assert response.json["data"]["checks"]["rate_limits"] == "degraded"


def test_a_registered_check_counts(ready_app):
    def fail() -> None:
        raise OSError("/var/secret")

    readiness_check(ready_app, "disk", fail)
    response = ready_app.test_client().get("/readyz")
    assert (response.status_code, response.json["detail"]) == (503, "Not ready: disk.")
    assert "secret" not in response.text


def test_a_check_that_hangs_is_cut_off_and_not_started_twice(ready_app, monkeypatch):
    monkeypatch.setattr(observability, "CHECK_SECONDS", 0.5)
    starts, release = [], threading.Event()

    def hang() -> None:
        starts.append(1)
        release.wait(30)

    readiness_check(ready_app, "slow", hang)
    client = ready_app.test_client()
    assert [client.get("/readyz").json["detail"] for _ in range(2)] == ["Not ready: slow."] * 2
    assert starts == [1]
    release.set()


@pytest.mark.parametrize("endpoint", ["healthz", "readyz"])
def test_health_is_not_rate_limited(app, endpoint):
    scope = limiter.limit_manager.exemption_scope(app, endpoint, None)
    assert scope & ExemptionScope.DEFAULT
    assert scope & ExemptionScope.APPLICATION
