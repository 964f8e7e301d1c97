"""`flask doctor` says of each part whether it works, what is wrong and what to do, and never shows a secret."""

import json

import pytest

from project import create_app
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
    # On PostgreSQL there is a process for each core, and without Redis each of them counts on its own.
    assert {name for name, state in states(app).items() if state != "ok"} <= {"rate limits"}


def test_what_it_stores_it_deletes_again(app):
    with app.app_context():
        list(examine())
        files = [path for path in (app.extensions["settings"].data_dir / "files").rglob("*") if path.is_file()]
    assert files == []


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named_with_its_cure_and_without_its_password(tmp_path, name):
    url, parts = BROKEN[name]
    broken = create_app({**ENV, "DATA_DIR": str(tmp_path), "RATE_LIMITS": "on", name: url})
    runner = broken.test_cli_runner()
    told = runner.invoke(args=["doctor"])
    assert told.exit_code == 1
    lines = [line for line in told.output.splitlines() if line.startswith("failed")]
    assert parts <= {line.removeprefix("failed").strip().partition(":")[0] for line in lines}
    assert any(name in line for line in lines)
    assert "canary-password" not in told.output


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
        text = next(finding.text for finding in examine() if finding.name == "environment")
    assert [
        name for name in ("PUBLIC_URL", "APP_URL", "MAIL_URL", "PROXY_HOPS", "DRAIN_SECONDS") if name not in text
    ] == []


def test_a_script_gets_json(app):
    told = app.test_cli_runner().invoke(args=["doctor", "--json"])
    found = json.loads(told.output)
    assert {"name", "state", "text"} == set(found[0])
