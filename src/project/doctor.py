"""`flask doctor`: looks at everything that the settings name, and says of each what is wrong and what to do."""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from hashlib import sha256

from sqlalchemy import text

from project import mail
from project.config import LOCAL_HOSTS, MAX_CONNECTIONS, settings
from project.database import db, utcnow
from project.extensions import limiter
from project.files.storage import new_key, storage
from project.jobs import LONG_LAG_SECONDS
from project.observability import migrations_are_done
from project.payments.gateway import current_gateway
from project.queues import current_queue

MIB = 1 << 20
LITTLE_ROOM = 1024 * MIB
CLOCKS_DIFFER = timedelta(seconds=5)


class State(StrEnum):
    """How something is: fine, worth a look, or broken."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """What was found out about one thing, and what to do about it."""

    name: str
    state: State
    text: str


class Concern(Exception):
    """Something works and should be otherwise."""


def examine() -> Iterator[Finding]:
    """Look at one thing after the other. Nothing is changed, but for an object that is stored and deleted again."""
    for name, look in _LOOKS.items():
        try:
            yield Finding(name, State.OK, look())
        except Concern as concern:
            yield Finding(name, State.WARNING, str(concern))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it is what was asked
            # Of the class only: messages of drivers quote addresses and names of users.
            yield Finding(name, State.FAILED, f"{_CURES[name]} ({type(error).__module__}.{type(error).__name__})")


def _environment() -> str:
    if not settings.production:
        return f"{settings.environment}; what follows is judged as for a laptop"
    local = {host for host in LOCAL_HOSTS if f"//{host}" in settings.public_url}
    concerns = {
        "PUBLIC_URL is this machine's own; links that clients get will not work": bool(local),
        "PUBLIC_URL is not https": settings.public_url.startswith("http:") and not local,
        "APP_URL is this machine's own; links in mails lead there": "//localhost" in settings.app_url,
        "MAIL_URL is a folder; nobody gets mail": settings.mail_url.startswith("file"),
        "PROXY_HOPS is 0; behind a proxy all clients look like one": not settings.proxy_hops,
        "DRAIN_SECONDS is 0; balancers that ask /readyz hear of a stop too late": not settings.drain_seconds,
        "PAYMENTS_PROVIDER is sandbox; nobody is charged": settings.payments.provider == "sandbox",
    }
    if any(concerns.values()):
        raise Concern("; ".join(text for text, applies in concerns.items() if applies))
    return "production"


def _data_dir() -> str:
    if settings.data_dir.stat().st_mode & 0o077:
        raise Concern(f"{settings.data_dir} can be entered by others; there are secrets and mails in it: chmod 700")
    if not os.access(settings.data_dir, os.W_OK):
        raise PermissionError
    free = shutil.disk_usage(settings.data_dir).free
    if free < LITTLE_ROOM:
        raise Concern(f"only {free // MIB} MiB are free")
    return f"{settings.data_dir}, {free // MIB} MiB free"


def _database() -> str:
    if settings.sqlite:
        [mode] = db.session.execute(text("PRAGMA journal_mode")).scalars()
        return f"SQLite, journal mode {mode}"
    version, now, allowed = db.session.execute(
        text("SELECT current_setting('server_version'), now(), current_setting('max_connections')::int")
    ).one()
    if abs(now - utcnow()) > CLOCKS_DIFFER:
        raise Concern(f"its clock is {abs(now - utcnow()).total_seconds():.0f} s from ours; let both ask a time server")
    needed = settings.web_concurrency * (min(settings.web_threads, MAX_CONNECTIONS) + 2)
    if needed > allowed:
        raise Concern(f"this server alone may want {needed} connections, and {allowed} are allowed")
    return f"PostgreSQL {version}; this server may want {needed} of {allowed} connections"


def _migrations() -> str:
    migrations_are_done()
    return "at the newest"


def _rate_limits() -> str:
    if not settings.rate_limits:
        raise Concern("RATE_LIMITS is off")
    if settings.redis_url is None:
        if settings.web_concurrency > 1:
            raise Concern("each process counts on its own; set REDIS_URL")
        return "counted in the one process"
    if not limiter.storage.check():
        raise ConnectionError
    return "counted in Redis"


def _storage() -> str:
    part = storage().incoming_parts / f"doctor-{secrets.token_hex(8)}.part"
    content, key = b"doctor", new_key()
    try:
        part.write_bytes(content)
        digest = sha256(content).hexdigest()
        storage().put(key, part, content_type="text/plain", sha256=digest, modified=utcnow())
        with storage().open(key) as file:
            if file.read() != content:
                raise OSError("other bytes came back than were stored")
    finally:
        part.unlink(missing_ok=True)
        with suppress(Exception):
            storage().delete(key)
    return f"{'a bucket' if storage().direct else settings.files.storage_url}: stored, read and deleted an object"


def _mail() -> str:
    where = mail.try_out()
    return f"{where}; nothing was sent"


def _payments() -> str:
    if settings.payments.provider == "sandbox":
        return "the sandbox; no money moves"
    next(iter(current_gateway().list_payments(since=utcnow())), None)
    return f"Stripe accepts the key; {'live' if settings.payments.livemode else 'test'} mode"


def _jobs() -> str:
    backlog = current_queue().backlog()
    if backlog.lag > LONG_LAG_SECONDS:
        raise Concern(f"{backlog.waiting} jobs wait, the oldest for {backlog.lag:.0f} s; is `flask worker` running?")
    return f"{backlog.waiting} wait"


_LOOKS: dict[str, Callable[[], str]] = {
    "environment": _environment,
    "data directory": _data_dir,
    "database": _database,
    "migrations": _migrations,
    "rate limits": _rate_limits,
    "storage": _storage,
    "mail": _mail,
    "payments": _payments,
    "jobs": _jobs,
}
_CURES = {
    "environment": "the settings cannot be read",
    "data directory": "DATA_DIR must be a folder that this user can write to",
    "database": "DATABASE_URL leads nowhere: is the server running, and are name and password right?",
    "migrations": "the tables are not those of this version: run `flask db upgrade`",
    "rate limits": "REDIS_URL leads nowhere: is the server running? Meanwhile each process counts on its own",
    "storage": "STORAGE_URL does not take, give or delete an object: is the disk mounted, do the credentials suffice?",
    "mail": "MAIL_URL leads nowhere, or the server refuses our password",
    "payments": "the payment provider refuses our key, or is not reached",
    "jobs": "the jobs cannot be counted; see the database",
}
