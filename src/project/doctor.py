"""`flask doctor`: looks at everything that the settings name, and says of each what is wrong and what to do."""

import logging
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from hashlib import sha256
from urllib.parse import urlsplit

from flask import current_app
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
from project.worker import STALLED_SECONDS

MIB = 1 << 20
LITTLE_ROOM = 1024 * MIB
CLOCKS_DIFFER = timedelta(seconds=5)
# Whoever runs this wants to know now; each thing has longer waits of its own.
LOOK_SECONDS = 10


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
    yield Finding("environment", State.OK, settings.environment)
    for concern in _concerns():
        yield Finding("environment", State.WARNING, concern)
    failed: set[str] = set()
    for name, look in _LOOKS.items():
        if name in _NEED_THE_DATABASE and "database" in failed:
            yield Finding(name, State.FAILED, "not looked at; see the database")
            continue
        try:
            yield Finding(name, State.OK, _in_time(look))
        except Concern as concern:
            yield Finding(name, State.WARNING, str(concern))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it is what was asked
            failed.add(name)
            yield Finding(name, State.FAILED, f"{_CURES[name]} ({_reason(error)})")


def _in_time(look: Callable[[], str]) -> str:
    """Return what was found, or raise what went wrong.

    Raises:
        TimeoutError: it took longer than LOOK_SECONDS; the thread is left to itself.
    """
    found: Future[str] = Future()
    context = current_app.app_context()

    def work() -> None:
        try:
            with context:
                found.set_result(look())
        except Exception as error:  # noqa: BLE001 - for whoever waits
            found.set_exception(error)

    with _silence():
        threading.Thread(target=work, daemon=True).start()
        return found.result(LOOK_SECONDS)


@contextmanager
def _silence() -> Iterator[None]:
    """Log nothing meanwhile: what there is to say are the findings."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _reason(error: BaseException) -> str:
    """Say in words of ours why something failed: messages of drivers quote addresses and names of users."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = getattr(link, "orig", None) or link.__cause__ or link.__context__
    for each in chain:
        code = getattr(each, "response", None)  # of S3
        if isinstance(code, dict) and re.fullmatch(r"\w+", str(code.get("Error", {}).get("Code"))):
            return str(code["Error"]["Code"])
    told = " ".join(f"{type(each).__name__}: {each}" for each in chain)
    known = (words for pattern, words in _REASONS.items() if re.search(pattern, told, re.IGNORECASE))
    return next(known, f"{type(error).__module__}.{type(error).__name__}")


_REASONS = {
    "password authentication failed|AuthenticationError|WRONGPASS|Misconfigured": "name, password or key is refused",
    "no password supplied|NOAUTH": "a password is needed",
    'database ".*" does not exist': "there is no such database",
    'role ".*" does not exist': "there is no such role",
    "pg_hba.conf": "pg_hba.conf does not let us in",
    "too many (clients|connections)|connection slots": "it has no connection left for us",
    "CERTIFICATE_VERIFY": "its certificate is not trusted",
    "resolve|translate host|name or service|getaddrinfo": "the name of its host is not known",
    "refused": "nothing listens there",
    "time.?out|timed out|OutcomeUnknown|ServerDisconnected|EndpointConnection": "it does not answer",
    "No space left": "the disk is full",
    "PermissionError": "we may not",
}


def _concerns() -> list[str]:
    """Return what suits a laptop and not production; there, nothing forces these settings."""
    if not settings.production:
        return []
    name = urlsplit(settings.public_url).hostname or ""
    local = name in _bare(LOCAL_HOSTS)
    concerns = {
        "PUBLIC_URL is this machine's own; links that clients get will not work": local,
        "PUBLIC_URL is not https": settings.public_url.startswith("http:") and not local,
        "TRUSTED_HOSTS lacks the host of PUBLIC_URL; clients get 400": name not in _bare(settings.trusted_hosts),
        "TRUSTED_HOSTS lacks 127.0.0.1; health checks get 400": "127.0.0.1" not in settings.trusted_hosts,
        "APP_URL is this machine's own; links in mails lead there": "//localhost" in settings.app_url,
        "CORS_ORIGINS are this machine's own; browsers let no other site read": any(
            "//localhost" in origin for origin in settings.cors_origins
        ),
        "MAIL_URL is a folder; nobody gets mail": settings.mail_url.startswith("file"),
        "MAIL_FROM is at localhost; mail servers refuse that": "@localhost" in settings.mail_from,
        "PROXY_HOPS is 0; behind a proxy all clients look like one": not settings.proxy_hops,
        "DRAIN_SECONDS is 0; proxies and balancers hear of a stop too late": not settings.drain_seconds,
        "METRICS_NETWORKS lets everybody see /metrics": any(not net.prefixlen for net in settings.metrics.networks),
        "PAYMENTS_PROVIDER is sandbox; nobody is charged": settings.payments.provider == "sandbox",
    }
    return [text for text, applies in concerns.items() if applies]


def _bare(hosts: Iterable[str]) -> set[str]:
    return {host.strip("[]") for host in hosts}


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
    # Counted and not only greeted: a replica and a full one answer, and take nothing.
    limiter.storage.incr("doctor", 1)
    return "counted in Redis"


def _storage() -> str:
    part = storage().incoming_parts / f"doctor-{secrets.token_hex(8)}.part"
    content, key = b"doctor", new_key()
    try:
        part.write_bytes(content)
        digest = sha256(content).hexdigest()
        storage().put(key, part, content_type="text/plain", sha256=digest, modified=utcnow())
        try:
            with storage().open(key) as file:
                if file.read() != content:
                    raise OSError("other bytes came back than were stored")
        finally:
            with suppress(Exception):
                storage().delete(key)
    finally:
        part.unlink(missing_ok=True)
    return f"{'a bucket' if storage().direct else settings.files.storage_url}: stored, read and deleted an object"


def _mail() -> str:
    where = mail.try_out()
    return f"{where}; nothing was sent"


def _payments() -> str:
    if settings.payments.provider == "sandbox":
        return "the sandbox; no money moves"
    next(iter(current_gateway().list_payments(since=utcnow())), None)
    if settings.production and not settings.payments.livemode:
        raise Concern("STRIPE_SECRET_KEY is of the test mode; nobody is charged")
    return f"Stripe accepts the key; {'live' if settings.payments.livemode else 'test'} mode"


def _jobs() -> str:
    backlog = current_queue().backlog()
    waiting = f"{backlog.waiting} wait"
    if not settings.sqlite:
        since = utcnow() - timedelta(seconds=STALLED_SECONDS)
        alive = text("SELECT count(*) FROM procrastinate_workers WHERE last_heartbeat > :since")
        workers = db.session.execute(alive, {"since": since}).scalar_one()
        if not workers:
            raise Concern(f"{waiting}, and no worker runs: start `flask worker`")
        waiting += f"; workers: {workers}"
    if backlog.lag > LONG_LAG_SECONDS:
        raise Concern(f"{waiting}, the oldest for {backlog.lag:.0f} s; more workers are needed")
    return waiting


_LOOKS: dict[str, Callable[[], str]] = {
    "data directory": _data_dir,
    "database": _database,
    "migrations": _migrations,
    "rate limits": _rate_limits,
    "storage": _storage,
    "mail": _mail,
    "payments": _payments,
    "jobs": _jobs,
}
_NEED_THE_DATABASE = {"migrations", "jobs"}
_CURES = {
    "data directory": "DATA_DIR must be a folder that this user can write to",
    "database": "DATABASE_URL is of no use: look at the server, the name and the password",
    "migrations": "the tables are not those of this version: run `flask db upgrade`",
    "rate limits": "REDIS_URL is of no use, so each process counts on its own: look at the server and the password",
    "storage": "STORAGE_URL does not take, give or delete an object: look at the disk, or the bucket and its keys",
    "mail": "MAIL_URL is of no use: look at the server, the name and the password",
    "payments": "the payment provider is of no use: look at STRIPE_SECRET_KEY, and whether it can be reached",
    "jobs": "the jobs cannot be counted; see the database",
}
