"""Settings: read once from the environment, typed, and refused at start with one line that names the variable."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import cast
from urllib.parse import unquote, urlsplit

from flask import current_app
from sqlalchemy.engine import URL, make_url
from werkzeug.local import LocalProxy

from project.database import engine_options
from project.environment import ConfigError, Network, Reader, make_directory
from project.file_settings import Files, read_files
from project.payment_settings import Payments, read_payments
from project.secret_keys import read_jwt_keys, read_secret_key

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")

# Of a process to its database. Threads that wait for a client hold none.
MAX_CONNECTIONS = 16
# A limiter that cannot answer at once is worse than one that counts in the process.
REDIS_OPTIONS = {"socket_connect_timeout": 0.25, "socket_timeout": 0.25, "wrap_exceptions": True}


class Environment(StrEnum):
    """Where the process runs; production has no default for a secret."""

    DEVELOPMENT = "development"
    TESTING = "testing"
    PRODUCTION = "production"


class Server(StrEnum):
    """What `make run` serves with."""

    GUNICORN = "gunicorn"
    GRANIAN = "granian"


@dataclass(frozen=True)
class Limits:
    """Rate limits in the notation `count/period`; docs/client-guide.md says what each protects."""

    read: str
    write: str
    download: str
    anonymous: str
    login_network: str
    login_account: str
    password: str
    mailbox: str
    webhook: str
    sync: str


@dataclass(frozen=True)
class Metrics:
    """Where the processes of a machine add up what they count, who may see it, and where a worker shows it."""

    directory: Path | None
    networks: list[Network]
    worker_address: tuple[str, int] | None


@dataclass(frozen=True, repr=False)
class Settings:
    """Every setting of the product, checked. It has no repr, so that no secret reaches a log by accident."""

    environment: Environment
    debug: bool
    data_dir: Path
    database_url: str
    redis_url: str | None
    rate_limits: bool
    limits: Limits
    secret_key: str
    jwt_keys: dict[str, str]
    server: Server
    web_concurrency: int
    web_threads: int
    drain_seconds: int
    log_level: str
    port: int
    public_url: str
    app_url: str
    trusted_hosts: list[str]
    proxy_hops: int
    proxy_drops_underscores: bool
    cors_origins: list[str]
    mail_url: str
    mail_from: str
    files: Files
    payments: Payments
    metrics: Metrics

    @property
    def production(self) -> bool:
        """True in production."""
        return self.environment is Environment.PRODUCTION

    @property
    def sqlite(self) -> bool:
        """True when the database is an SQLite file."""
        return self.database_url.startswith("sqlite")

    @property
    def outbox(self) -> Path:
        """The folder that mails are written to when no SMTP server is set."""
        return self.data_dir / "outbox"


# What services, jobs and commands read; bound to the current application.
settings = cast(Settings, LocalProxy(lambda: current_app.extensions["settings"]))


def load_config(env: Mapping[str, str] = os.environ) -> Settings:
    """Read and check all settings.

    Raises:
        ConfigError: naming the variable that is missing or wrong.
    """
    read = Reader(env)
    environment = read.parse("APP_ENV", "development", Environment, "development, testing or production")
    data_dir = Path(read.text("DATA_DIR", "instance")).absolute()
    port, public_url = _own_address(read)
    database_url = _database_url(read, data_dir)
    settings = Settings(
        environment=environment,
        debug=read.flag("DEBUG") | read.flag("FLASK_DEBUG"),
        data_dir=data_dir,
        database_url=database_url,
        redis_url=_redis_url(read),
        rate_limits=read.flag("RATE_LIMITS", "on"),
        limits=_limits(read),
        secret_key=read_secret_key(read, data_dir, required=environment is Environment.PRODUCTION),
        jwt_keys=read_jwt_keys(read, data_dir, required=environment is Environment.PRODUCTION),
        server=read.parse("SERVER", "gunicorn", Server, "gunicorn or granian"),
        web_concurrency=_web_concurrency(read, database_url),
        web_threads=read.integer("WEB_THREADS", 256, at_least=1, at_most=1024),
        drain_seconds=read.integer("DRAIN_SECONDS", 0, at_most=60),
        log_level=_log_level(read),
        port=port,
        public_url=public_url,
        app_url=read.url("APP_URL", "http://localhost:5173"),
        trusted_hosts=read.names("TRUSTED_HOSTS") or [*LOCAL_HOSTS, urlsplit(public_url).hostname or ""],
        proxy_hops=read.integer("PROXY_HOPS", 0, at_most=10),
        proxy_drops_underscores=read.flag("PROXY_DROPS_UNDERSCORES"),
        cors_origins=read.origins("CORS_ORIGINS", "http://localhost:3000,http://localhost:5173"),
        mail_url=read.url("MAIL_URL", "file://outbox", "file", "smtp", "smtps", "memory"),
        mail_from=read.text("MAIL_FROM", "Project <no-reply@localhost>"),
        files=read_files(read, data_dir),
        payments=read_payments(read),
        metrics=_metrics(read),
    )
    return _checked(read, settings)


def _own_address(read: Reader) -> tuple[int, str]:
    port = read.integer("PORT", 8000, at_least=1)
    return port, read.url("PUBLIC_URL", f"http://127.0.0.1:{port}", "http", "https")


def _checked(read: Reader, settings: Settings) -> Settings:
    """Check what concerns several settings, or the machine, and return them."""
    if settings.production:
        _refuse_in_production(read, settings)
    if settings.debug and settings.payments.livemode:
        raise ConfigError("STRIPE_SECRET_KEY must not be a live key while DEBUG is on")
    if settings.files.storage_url.startswith("file:"):
        folder = Path(unquote(urlsplit(settings.files.storage_url).path))
        # Made anew while its disk is not mounted, it would take uploads that vanish when the disk is back.
        if settings.production and read.text("STORAGE_URL") and not folder.is_dir():
            raise ConfigError("STORAGE_URL must name a folder that exists")
        # Others may pass: nginx has to, if it is to send the files.
        make_directory("STORAGE_URL" if read.text("STORAGE_URL") else "DATA_DIR", folder, mode=0o750)
    if settings.sqlite:
        name = "DATABASE_URL" if read.text("DATABASE_URL") else "DATA_DIR"
        make_directory(name, Path(make_url(settings.database_url).database or "").parent)
    return settings


def _database_url(read: Reader, data_dir: Path) -> str:
    default = URL.create("sqlite", database=str(data_dir / "project.db")).render_as_string()
    expected = "a URL: sqlite:///path or postgresql://user:password@host/name"
    url = read.parse("DATABASE_URL", default, make_url, expected)
    dialect = url.drivername.partition("+")[0]
    if dialect in {"postgres", "postgresql"}:
        return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    # In memory each connection would see a database of its own.
    if dialect != "sqlite" or not url.database or url.database == ":memory:":
        raise ConfigError(f"DATABASE_URL must be {expected}")
    # Absolute, since Flask-SQLAlchemy would look in a folder of its own.
    return url.set(drivername="sqlite", database=str(Path(url.database).absolute())).render_as_string()


def _metrics(read: Reader) -> Metrics:
    name = read.text("PROMETHEUS_MULTIPROC_DIR")
    if name and not Path(name).is_dir():
        raise ConfigError("PROMETHEUS_MULTIPROC_DIR must be a directory")
    return Metrics(
        directory=Path(name) if name else None,
        networks=read.networks("METRICS_NETWORKS", "127.0.0.0/8,::1"),
        worker_address=read.address("WORKER_METRICS_ADDRESS"),
    )


def _redis_url(read: Reader) -> str | None:
    if not read.text("REDIS_URL"):
        return None
    return read.url("REDIS_URL", "", "redis", "rediss", "unix")


def _limits(read: Reader) -> Limits:
    return Limits(
        read=read.limit("LIMIT_READ", "600/minute"),
        write=read.limit("LIMIT_WRITE", "120/minute"),
        download=read.limit("LIMIT_DOWNLOAD", "600/minute"),
        anonymous=read.limit("LIMIT_ANONYMOUS", "100/15 minutes"),
        login_network=read.limit("LIMIT_LOGIN_NETWORK", "10/15 minutes"),
        login_account=read.limit("LIMIT_LOGIN_ACCOUNT", "100/hour"),
        password=read.limit("LIMIT_PASSWORD", "5/10 minutes"),
        mailbox=read.limit("LIMIT_MAILBOX", "5/hour"),
        webhook=read.limit("LIMIT_WEBHOOK", "6000/minute"),
        sync=read.limit("LIMIT_SYNC", "1/5 seconds"),
    )


def _web_concurrency(read: Reader, database_url: str) -> int:
    # One process on SQLite: it has one writer, and the in-process limiter is then exact.
    default = 1 if database_url.startswith("sqlite") else _cores()
    return read.integer("WEB_CONCURRENCY", default, at_least=1, at_most=256)


def _cores() -> int:
    """Return how many cores this process may use; in a container that can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _log_level(read: Reader) -> str:
    level = read.text("LOG_LEVEL", "info").upper()
    if level not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        raise ConfigError("LOG_LEVEL must be debug, info, warning or error")
    return level


def _refuse_in_production(read: Reader, settings: Settings) -> None:
    """Refuse what is convenient on a laptop and dangerous in production."""
    refusals = {
        **{f"{name} must be off in production": read.flag(name) for name in ("DEBUG", "FLASK_DEBUG", "TESTING")},
        "DATABASE_URL must be PostgreSQL in production, or set ALLOW_SQLITE_IN_PRODUCTION=1": settings.sqlite
        and not read.flag("ALLOW_SQLITE_IN_PRODUCTION"),
        "CORS_ORIGINS must be exact origins in production": any("*" in item for item in settings.cors_origins),
        "TRUSTED_HOSTS must be exact names in production": any("*" in item for item in settings.trusted_hosts),
        "RATE_LIMITS must be on in production": not settings.rate_limits,
        "REDIS_URL is required in production when WEB_CONCURRENCY is over 1": not settings.redis_url
        and settings.web_concurrency > 1,
        "PAYMENTS_PROVIDER must not be sandbox in production, or set PAYMENTS_SANDBOX_IN_PRODUCTION=1": (
            settings.payments.provider == "sandbox" and not read.flag("PAYMENTS_SANDBOX_IN_PRODUCTION")
        ),
        "PAYMENTS_PROVIDER must not be sandbox in production where STRIPE_SECRET_KEY is set": (
            settings.payments.provider == "sandbox" and bool(read.text("STRIPE_SECRET_KEY"))
        ),
        "SECRET_KEY must differ from every key in JWT_SECRET_KEYS": settings.secret_key in settings.jwt_keys.values(),
    }
    for message, refused in refusals.items():
        if refused:
            raise ConfigError(message)


def flask_config(settings: Settings) -> dict[str, object]:
    """Return what Flask and its extensions want to find in `app.config`."""
    memory = "memory://"
    return {
        "SECRET_KEY": settings.secret_key,
        "DEBUG": settings.debug,
        "TRUSTED_HOSTS": settings.trusted_hosts,
        "PROPAGATE_EXCEPTIONS": False,
        "SQLALCHEMY_DATABASE_URI": settings.database_url,
        "SQLALCHEMY_ENGINE_OPTIONS": engine_options(
            settings.database_url, pool_size=min(settings.web_threads, MAX_CONNECTIONS) + 2
        ),
        # Always set: the limiter is one object per process and would keep the last application's switch.
        "RATELIMIT_ENABLED": settings.rate_limits,
        "RATELIMIT_STORAGE_URI": settings.redis_url or memory,
        "RATELIMIT_STORAGE_OPTIONS": REDIS_OPTIONS if settings.redis_url else {},
    }
