"""Settings: their defaults, what is refused and how, the generated secrets, and .env.example."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path

import pytest
from dotenv import dotenv_values

from project.config import load_config
from project.database import db
from project.environment import ConfigError
from tests.servers.process import free_port
from tests.small_app import small_app

ROOT = Path(__file__).parents[1]
SECRET = "0123456789abcdefghijklmnopqrstuv"
OTHER_SECRET = SECRET[::-1]
PRODUCTION = {
    "APP_ENV": "production",
    "DATABASE_URL": "postgresql://app:sesame@db.example.com/app",
    "SECRET_KEY": SECRET,
    "JWT_SECRET_KEYS": f"k1:{OTHER_SECRET}",
    "PAYMENTS_PROVIDER": "stripe",
    "STRIPE_SECRET_KEY": "sk_live_0123456789abcdef",
    "STRIPE_PUBLISHABLE_KEY": "pk_live_0123456789abcdef",
    "STRIPE_WEBHOOK_SECRETS": "whsec_0123456789abcdef",
    "WEB_CONCURRENCY": "1",
}


class RecordingEnv(Mapping[str, str]):
    """An environment that remembers what was asked for."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.read.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    """Defaults are relative to the current folder."""
    monkeypatch.chdir(tmp_path)


def refusal(env: Mapping[str, str]) -> str:
    """Return the one line with which these settings are refused."""
    with pytest.raises(ConfigError) as caught:
        load_config(env)
    # A traceback would show the causes too, and they quote values.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


# --- defaults ---------------------------------------------------------------------------------------------------------


def test_an_empty_environment_is_a_working_development_environment(tmp_path):
    settings = load_config({})

    assert settings.environment == "development"
    assert not settings.production
    assert not settings.debug
    assert settings.data_dir == tmp_path / "instance"
    assert settings.database_url == f"sqlite:///{tmp_path}/instance/project.db"
    assert settings.sqlite
    assert settings.redis_url is None
    assert settings.rate_limits
    assert settings.web_concurrency == 1
    assert settings.log_level == "INFO"
    assert settings.port == 8000
    assert settings.public_url == "http://127.0.0.1:8000"
    assert settings.app_url == "http://localhost:5173"
    assert settings.trusted_hosts == ["localhost", "127.0.0.1", "[::1]", "127.0.0.1"]
    assert settings.proxy_hops == 0
    assert settings.cors_origins == ["http://localhost:3000", "http://localhost:5173"]
    assert settings.outbox == tmp_path / "instance" / "outbox"
    assert settings.payments.provider == "sandbox"
    assert settings.payments.currencies == ["USD", "EUR", "GBP", "JPY"]
    assert settings.payments.expire_after == timedelta(hours=24)
    assert settings.payments.max_attempts == 10


def test_the_port_is_part_of_the_default_address():
    assert load_config({"PORT": "9000"}).public_url == "http://127.0.0.1:9000"


def test_the_host_of_the_public_url_is_trusted_unless_the_hosts_are_named():
    assert "api.example.com" in load_config({"PUBLIC_URL": "https://api.example.com"}).trusted_hosts
    env = {"PUBLIC_URL": "https://api.example.com", "TRUSTED_HOSTS": "a.example, b.example"}
    assert load_config(env).trusted_hosts == ["a.example", "b.example"]


def test_settings_do_not_show_themselves():
    assert SECRET not in repr(load_config({"SECRET_KEY": SECRET}))


@pytest.mark.parametrize("written", [f'"{SECRET}"', f"'{SECRET}'", f"  {SECRET}\n", f' " {SECRET} " '])
def test_quotes_and_blanks_around_a_value_are_taken_off(written):
    assert load_config({"SECRET_KEY": written}).secret_key == SECRET


@pytest.mark.parametrize("name", ["PORT", "RATE_LIMITS", "PUBLIC_URL", "LIMIT_READ", "DATABASE_URL", "APP_ENV"])
@pytest.mark.parametrize("empty", ["", "  ", '""'])
def test_an_empty_value_counts_as_not_set(name, empty):
    assert load_config({name: empty}) == load_config({})


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgresql://u@h/d", "postgresql+psycopg://u@h/d"),
        ("postgres://u:p%40ss@h:5433/d?sslmode=require", "postgresql+psycopg://u:p%40ss@h:5433/d?sslmode=require"),
        ("postgresql+psycopg2://u@h/d", "postgresql+psycopg://u@h/d"),
        ("sqlite:////data/x.db", "sqlite:////data/x.db"),
    ],
)
def test_any_postgresql_url_means_our_driver(given, used, tmp_path):
    used, given = (url.replace("//data", f"/{tmp_path}/made/on/the/way") for url in (used, given))

    assert load_config({"DATABASE_URL": given}).database_url == used


def test_a_relative_sqlite_path_is_relative_to_the_current_folder(tmp_path):
    assert load_config({"DATABASE_URL": "sqlite:///x.db"}).database_url == f"sqlite:///{tmp_path}/x.db"


@pytest.mark.parametrize("folder", ["50% off?", "a#b", "ä b"])
def test_the_data_folder_may_have_any_name(folder, tmp_path):
    with small_app(tmp_path / folder) as app, app.app_context():
        db.session.connection()

    assert (tmp_path / folder / "project.db").is_file()


def test_several_keys_keep_their_order():
    keys = load_config({"JWT_SECRET_KEYS": f" new : {SECRET} , old:{OTHER_SECRET}"}).jwt_keys

    assert list(keys.items()) == [("new", SECRET), ("old", OTHER_SECRET)]


def test_a_key_may_contain_colons():
    assert load_config({"JWT_SECRET_KEYS": f"k:a:b:{SECRET}"}).jwt_keys == {"k": f"a:b:{SECRET}"}


# --- refusals everywhere ----------------------------------------------------------------------------------------------

# Each wrong value has the word sesame or a rare number, so that its appearance in a message would be noticed.
MALFORMED = [
    ("APP_ENV", "sesame"),
    ("APP_ENV", "Production-sesame"),
    ("RATE_LIMITS", "sesame"),
    ("DEBUG", "sesame"),
    ("FLASK_DEBUG", "sesame"),
    ("PORT", "sesame"),
    ("PORT", "0"),
    ("PORT", "65536"),
    ("PORT", "80.5"),
    ("WEB_CONCURRENCY", "0"),
    ("WEB_CONCURRENCY", "-1"),
    ("WEB_CONCURRENCY", "257"),
    ("WEB_THREADS", "0"),
    ("PROXY_HOPS", "-1"),
    ("PROXY_HOPS", "11"),
    ("LOG_LEVEL", "sesame"),
    ("SERVER", "sesame"),
    ("SERVER", "Granian"),
    ("DATABASE_URL", "sesame"),
    ("DATABASE_URL", "mysql://u:sesame@h/d"),
    ("DATABASE_URL", "postgresql://u:p@h:sesame/d"),
    ("DATABASE_URL", "sqlite://"),
    ("DATABASE_URL", "sqlite:///:memory:"),
    ("DATABASE_URL", "sqlite:////proc/sesame/x.db"),
    ("DATA_DIR", "/proc/sesame"),
    ("REDIS_URL", "sesame"),
    ("REDIS_URL", "memory://sesame"),
    ("REDIS_URL", "redis://:sesame@/0"),
    ("REDIS_URL", "redis://h:sesame"),
    ("PUBLIC_URL", "sesame.example.com"),
    ("PUBLIC_URL", "ftp://sesame.example.com"),
    ("PUBLIC_URL", "https://"),
    ("PUBLIC_URL", "https:sesame"),
    ("PUBLIC_URL", "https://[sesame"),
    ("PUBLIC_URL", "https://h:sesame"),
    ("PUBLIC_URL", "https://sesame .example.com"),
    ("APP_URL", "sesame"),
    ("APP_URL", "https://"),
    ("STORAGE_URL", "sesame"),
    ("STORAGE_URL", "ftp://sesame/x"),
    ("STORAGE_URL", "file://sesame/x"),
    ("STORAGE_URL", "file:///proc/sesame"),
    ("STORAGE_URL", "file:///tmp/x?sesame=1"),
    ("STORAGE_URL", "s3:///sesame"),
    ("STORAGE_URL", "s3://bucket?sesame=1"),
    ("STORAGE_URL", "s3://bucket?endpoint=sesame"),
    ("STORAGE_URL", "s3://bucket?endpoint=http://h:sesame"),
    ("FILES_DELIVERY", "sesame"),
    ("FILES_MAX_SIZE", "0"),
    ("FILES_MAX_SIZE", "-1"),
    ("FILES_MAX_SIZE", "1.5 GiB"),
    ("FILES_MAX_SIZE", "10 sesame"),
    ("FILES_QUOTA", "0"),
    ("FILES_QUOTA", "9" * 30),
    ("FILES_ALLOWED_TYPES", "sesame"),
    ("FILES_ALLOWED_TYPES", ","),
    ("FILES_ALLOWED_TYPES", "image/*, text sesame/plain"),
    ("MAIL_URL", "sesame"),
    ("MAIL_URL", "imap://sesame"),
    ("MAIL_URL", "smtp://h:sesame"),
    ("CORS_ORIGINS", "sesame.example.com"),
    ("CORS_ORIGINS", "https://app.example.com/"),
    ("CORS_ORIGINS", "https://app.example.com,https://app.example.com/sesame"),
    ("CORS_ORIGINS", "https://Sesame.example.com"),
    ("CORS_ORIGINS", "null"),
    ("WORKER_METRICS_ADDRESS", "sesame"),
    ("WORKER_METRICS_ADDRESS", "9101"),
    ("WORKER_METRICS_ADDRESS", ":9101"),
    ("WORKER_METRICS_ADDRESS", "sesame:0"),
    ("WORKER_METRICS_ADDRESS", "http://sesame:9101"),
    ("WORKER_METRICS_ADDRESS", "127.0.0.1:9101/sesame"),
    ("PAYMENTS_PROVIDER", "sesame"),
    ("PAYMENTS_CURRENCIES", "sesame"),
    ("PAYMENTS_CURRENCIES", ","),
    ("PAYMENTS_CURRENCIES", "USD sesame"),
    ("PAYMENTS_CURRENCIES", "USD EUR usd"),
    ("PAYMENTS_CURRENCIES", "USD XYZ"),  # no currency
    ("PAYMENTS_CURRENCIES", "USD ISK"),  # Stripe counts it in another unit than ISO 4217
    ("PAYMENTS_EXPIRE_AFTER", "sesame"),
    ("PAYMENTS_EXPIRE_AFTER", "24"),
    ("PAYMENTS_EXPIRE_AFTER", "0 h"),
    ("PAYMENTS_EXPIRE_AFTER", "-1 h"),
    ("PAYMENTS_EXPIRE_AFTER", "1.5 h"),
    ("PAYMENTS_MAX_ATTEMPTS", "sesame"),
    ("PAYMENTS_MAX_ATTEMPTS", "0"),
    ("PAYMENTS_MAX_ATTEMPTS", "1001"),
    ("STRIPE_SECRET_KEY", "sesame"),
    ("STRIPE_SECRET_KEY", "pk_test_sesame0123456789"),
    ("SECRET_KEY", "sesame"),
    ("SECRET_KEY", "sesame" * 6),
    ("SECRET_KEY", "sesame, a key, change-me: abcdefghijklm"),
    ("JWT_SECRET_KEYS", f"sesame{SECRET}"),
    ("JWT_SECRET_KEYS", f":sesame{SECRET}"),
    ("JWT_SECRET_KEYS", "k:sesame"),
    ("JWT_SECRET_KEYS", f"k:sesame{SECRET},"),
    ("JWT_SECRET_KEYS", f"k:sesame{SECRET},l:"),
    ("JWT_SECRET_KEYS", f"k:sesame{SECRET},k:{OTHER_SECRET}sesame"),
    ("JWT_SECRET_KEYS", f"k:sesame{SECRET},l:sesame{SECRET}"),
    *((name, wrong) for name in ("LIMIT_READ", "LIMIT_MAILBOX") for wrong in ("sesame", "0/minute", "-1/minute")),
    ("LIMIT_WRITE", "10/sesame"),
    ("LIMIT_PASSWORD", "10/minute;99/hour"),
]


@pytest.mark.parametrize(("name", "value"), MALFORMED)
def test_a_malformed_value_is_refused_in_one_line_that_names_the_variable_only(name, value):
    message = refusal({name: value})

    assert message.startswith(f"{name} ")
    assert "\n" not in message
    assert "sesame" not in message.lower()


@pytest.mark.parametrize("kind", ["missing parent", "a file"])
def test_a_data_folder_that_cannot_be_made_is_refused(kind, tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "folder" if kind == "missing parent" else tmp_path / "file"

    assert refusal({"DATA_DIR": str(path)}).startswith("DATA_DIR ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_data_folder_that_cannot_be_written_to_is_refused(tmp_path):
    tmp_path.chmod(0o500)

    assert refusal({"DATA_DIR": str(tmp_path)}).startswith("DATA_DIR ")


# --- refusals in production -------------------------------------------------------------------------------------------


def test_production_starts_with_the_least_that_is_needed():
    settings = load_config(PRODUCTION)

    assert settings.production
    assert settings.database_url == "postgresql+psycopg://app:sesame@db.example.com/app"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"SECRET_KEY": ""}, "SECRET_KEY"),
        ({"SECRET_KEY": "sesame"}, "SECRET_KEY"),
        ({"SECRET_KEY": SECRET[:31]}, "SECRET_KEY"),
        ({"SECRET_KEY": "a" * 64}, "SECRET_KEY"),
        ({"SECRET_KEY": "changeme" * 4}, "SECRET_KEY"),
        ({"SECRET_KEY": "please-change_me-before-going-live"}, "SECRET_KEY"),
        ({"SECRET_KEY": "replace-this-with-32-random-bytes-1"}, "SECRET_KEY"),
        ({"SECRET_KEY": "your-secret-key-goes-here-abcdefgh"}, "SECRET_KEY"),
        ({"SECRET_KEY": OTHER_SECRET}, "SECRET_KEY"),
        ({"SECRET_KEY": f'"{OTHER_SECRET}"'}, "SECRET_KEY"),
        ({"JWT_SECRET_KEYS": ""}, "JWT_SECRET_KEYS"),
        ({"JWT_SECRET_KEYS": "k1:sesame"}, "JWT_SECRET_KEYS"),
        ({"JWT_SECRET_KEYS": f"k1:{OTHER_SECRET},k2:{OTHER_SECRET}"}, "JWT_SECRET_KEYS"),
        ({"DATABASE_URL": ""}, "DATABASE_URL"),
        ({"DATABASE_URL": "sqlite:////data/sesame.db"}, "DATABASE_URL"),
        ({"DATABASE_URL": "", "ALLOW_SQLITE_IN_PRODUCTION": "no"}, "DATABASE_URL"),
        ({"DEBUG": "1"}, "DEBUG"),
        ({"DEBUG": "sesame"}, "DEBUG"),
        ({"FLASK_DEBUG": "1"}, "FLASK_DEBUG"),
        ({"TESTING": "1"}, "TESTING"),
        ({"TESTING": "sesame"}, "TESTING"),
        ({"CORS_ORIGINS": "*"}, "CORS_ORIGINS"),
        ({"CORS_ORIGINS": "https://app.example.com, *"}, "CORS_ORIGINS"),
        ({"CORS_ORIGINS": "https://*.sesame.example.com"}, "CORS_ORIGINS"),
        ({"TRUSTED_HOSTS": "*"}, "TRUSTED_HOSTS"),
        ({"RATE_LIMITS": "off"}, "RATE_LIMITS"),
        ({"WEB_CONCURRENCY": "2"}, "REDIS_URL"),
        ({"PAYMENTS_PROVIDER": ""}, "PAYMENTS_PROVIDER"),
        ({"PAYMENTS_PROVIDER": "sandbox"}, "PAYMENTS_PROVIDER"),
        ({"PAYMENTS_PROVIDER": "sandbox", "STRIPE_SECRET_KEY": ""}, "PAYMENTS_PROVIDER"),
        ({"PAYMENTS_PROVIDER": "sandbox", "PAYMENTS_SANDBOX_IN_PRODUCTION": "1"}, "PAYMENTS_PROVIDER"),
        (
            {"PAYMENTS_PROVIDER": "sandbox", "PAYMENTS_SANDBOX_IN_PRODUCTION": "sesame"},
            "PAYMENTS_SANDBOX_IN_PRODUCTION",
        ),
    ],
)
def test_production_refuses_what_is_dangerous_there(changes, named, tmp_path):
    message = refusal({**PRODUCTION, **changes})

    assert message.startswith(f"{named} ")
    assert "\n" not in message
    values = {value for value in changes.values() if len(value) > 5 and value != "sandbox"}
    assert not [value for value in {*values, "sesame"} if value in message]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"DATABASE_URL": "", "ALLOW_SQLITE_IN_PRODUCTION": "1"},
        {"PAYMENTS_PROVIDER": "sandbox", "PAYMENTS_SANDBOX_IN_PRODUCTION": "1", "STRIPE_SECRET_KEY": ""},
        {"WEB_CONCURRENCY": "2", "REDIS_URL": "redis://cache.example.com:6379/0"},
        {"CORS_ORIGINS": "https://app.example.com,capacitor://localhost"},
        {"SECRET_KEY": "ж" * 8 + "abcdefgh" + "12345678"},
    ],
)
def test_production_takes_what_was_decided_knowingly(changes):
    load_config({**PRODUCTION, **changes})


@pytest.mark.parametrize("name", sorted(PRODUCTION.keys() - {"APP_ENV", "WEB_CONCURRENCY"}))
def test_production_has_no_default_for_what_it_needs(name):
    env = {key: value for key, value in PRODUCTION.items() if key != name}

    assert refusal(env).startswith(f"{name} ")


# --- generated secrets ------------------------------------------------------------------------------------------------


def test_generated_secrets_stay_the_same_and_are_private(tmp_path):
    first, second = load_config({}), load_config({})

    assert (first.secret_key, first.jwt_keys) == (second.secret_key, second.jwt_keys)
    assert first.secret_key not in first.jwt_keys.values()
    paths = [tmp_path / "instance" / name for name in ("secret_key", "jwt_secret_key")]
    assert [oct(path.stat().st_mode & 0o777) for path in paths] == ["0o600", "0o600"]


def test_another_folder_has_other_secrets():
    assert load_config({"DATA_DIR": "a"}).secret_key != load_config({"DATA_DIR": "b"}).secret_key


def secrets_of(data_dir: str) -> tuple[str, dict[str, str]]:
    settings = load_config({"DATA_DIR": data_dir})
    return settings.secret_key, settings.jwt_keys


def test_processes_that_start_together_agree_on_the_secrets(tmp_path):
    processes = get_context("forkserver")
    processes.set_forkserver_preload(["project.config"])
    with processes.Pool(2) as pool:
        for attempt in range(20):
            folder = tmp_path / str(attempt)
            first, second = pool.map(secrets_of, [str(folder)] * 2, chunksize=1)
            assert first == second
            assert sorted(path.name for path in folder.iterdir()) == ["files", "jwt_secret_key", "secret_key"]


# --- real processes ---------------------------------------------------------------------------------------------------

SERVE = [sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "wsgi:app"]
MIGRATE = [sys.executable, "-m", "flask", "db", "upgrade"]


@pytest.mark.server
@pytest.mark.parametrize(("command", "name"), [(SERVE, "SECRET_KEY"), (MIGRATE, "LIMIT_READ")])
def test_a_process_with_a_wrong_setting_ends_with_one_line(command, name, tmp_path):
    env = {**PRODUCTION, name: "sesame", "DATA_DIR": str(tmp_path), "PORT": str(free_port())}
    done = subprocess.run(command, check=False, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)

    printed = done.stdout + done.stderr
    assert done.returncode != 0
    # Beside gunicorn's own lines, each of which starts with a time.
    [line] = [line for line in printed.splitlines() if line and not line.startswith("[")]
    assert line.startswith(f"Refusing to start: {name} ")
    assert "Traceback" not in printed
    assert "sesame" not in printed


def test_in_production_a_folder_for_files_has_to_be_there(tmp_path):
    folder = tmp_path / "files"
    assert "STORAGE_URL" in refusal({**PRODUCTION, "STORAGE_URL": folder.as_uri()})

    folder.mkdir()

    assert load_config({**PRODUCTION, "STORAGE_URL": folder.as_uri()}).files.storage_url == folder.as_uri()


def test_elsewhere_a_folder_for_files_is_made(tmp_path):
    load_config({"STORAGE_URL": (tmp_path / "a" / "files").as_uri()})

    assert (tmp_path / "a" / "files").stat().st_mode & 0o777 == 0o750


def test_sizes_have_units():
    files = load_config({"FILES_MAX_SIZE": "2 KiB", "FILES_QUOTA": "3"}).files

    assert (files.max_size, files.quota) == (2048, 3)


# --- .env.example -----------------------------------------------------------------------------------------------------


def read_variables() -> set[str]:
    """Return every variable that load_config reads, in any environment."""
    environments: list[dict[str, str]] = [
        {},
        {**PRODUCTION, "DATABASE_URL": "", "ALLOW_SQLITE_IN_PRODUCTION": "1"},
        {**PRODUCTION, "PAYMENTS_PROVIDER": "sandbox", "PAYMENTS_SANDBOX_IN_PRODUCTION": "1", "STRIPE_SECRET_KEY": ""},
    ]
    names: set[str] = set()
    for env in environments:
        recording = RecordingEnv(env)
        load_config(recording)
        names |= recording.read
    return names


def test_the_example_lists_exactly_what_is_read():
    assert set(dotenv_values(ROOT / ".env.example")) == read_variables()


def test_the_example_has_a_comment_for_each_setting():
    paragraphs = (ROOT / ".env.example").read_text().split("\n\n")
    settings = "\n".join(paragraph for paragraph in paragraphs if "=" in paragraph)

    assert settings.startswith("#")
    assert len([line for line in settings.splitlines() if line.startswith("#")]) > len(read_variables())


def test_the_example_says_the_defaults():
    values = {name: value or "" for name, value in dotenv_values(ROOT / ".env.example").items()}

    assert load_config(values) == load_config({})
