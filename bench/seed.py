"""The databases: the product's own tables, filled by SQL and the same for everybody who is measured."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
from argon2 import PasswordHasher
from sqlalchemy.engine import make_url

from tests.servers import create_database

ROOT = Path(__file__).resolve().parents[1]
# Of all accounts. What it is hashed with is in project/auth/passwords.py.
PASSWORD = "four unrelated seeded words"  # noqa: S105 - of accounts that live as long as a measurement
HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)

# Accounts come one a second; the fraction is never zero, since some leave zeros out and some do not. The ids are as
# UUIDv7 would be: in the order of their time.
_FUNCTIONS = """
CREATE FUNCTION seeded_time(number bigint) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$
    SELECT timestamptz '2025-01-01 00:00:00+00' + number * interval '1 second'
        + (1 + number * 7919 % 999998) * interval '1 microsecond'
$$;
CREATE FUNCTION seeded_id(kind text, number bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT (lpad(to_hex(1735689600000 + number * 1000), 12, '0') || '7' || substr(md5(kind || number), 1, 3)
        || '8' || substr(md5(kind || number), 4, 15))::uuid
$$;
"""
# The first account is the newest. Those of staff are among them, evenly.
_ROWS = """
INSERT INTO users (id, email, name, password_hash, role, is_active, email_verified, created_at, updated_at,
    last_login_at, session_epoch, version)
SELECT seeded_id('user', n), 'user' || n || '@example.com', 'User Number ' || n, %(hash)s,
    CASE WHEN n %% %(staff_every)s = 0 THEN 'staff' ELSE 'user' END, true, true,
    seeded_time(n), seeded_time(n), seeded_time(n), 1, 1
FROM generate_series(1, %(rows)s) AS n;
INSERT INTO sessions (id, user_id, epoch, expires_at, last_used_at, ip, user_agent, refresh_jti, refresh_issued_at,
    refresh_expires_at, created_at, updated_at)
SELECT seeded_id('session', n), seeded_id('user', n), 1, now() + interval '90 days', now(), '203.0.113.7', 'bench',
    seeded_id('refresh', n), now(), now() + interval '14 days', now(), now()
FROM generate_series(1, %(rows)s) AS n;
INSERT INTO files (id, owner_id, status, filename, size, reserved, content_type, declared_type, sha256, storage_key,
    visibility, metadata, upload_method, version, ready_at, created_at, updated_at)
SELECT seeded_id('file', n), seeded_id('user', n), 'ready', 'report.pdf', 1000, 0, 'application/pdf',
    'application/pdf', repeat('0', 64), md5('file' || n), 'private', '{}', 'raw', 1, now(), now(), now()
FROM generate_series(1, %(rows)s) AS n;
"""
STAFF_EVERY = 10


def make_database(admin_url: str, name: str, *, rows: int) -> str:
    """Make a database with so many accounts, each with a session and a file, and give its URL."""
    url = create_database(admin_url, name)
    _migrate(url)
    with psycopg.connect(plain(url), autocommit=True) as connection:
        connection.execute("SET client_min_messages = warning")
        connection.execute(_FUNCTIONS)
        values = {"rows": rows, "hash": HASHER.hash(PASSWORD), "staff_every": STAFF_EVERY}
        for statement in _ROWS.strip().removesuffix(";").split(";\n"):
            connection.execute(statement, values)
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")
    return url


def plain(url: str) -> str:
    """Return a URL as drivers want it, without the name of one."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def _migrate(url: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "APP_ENV": "testing", "DATA_DIR": folder, "DATABASE_URL": url}
        command = [sys.executable, "-m", "flask", "--app", "wsgi", "db", "upgrade"]
        subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)


def seeded_ids(url: str, kind: str, count: int) -> list[str]:
    """Return the ids of the first so many accounts, sessions or files."""
    with psycopg.connect(plain(url)) as connection:
        query = "SELECT seeded_id(%s, n)::text FROM generate_series(1, %s) AS n"
        return [row[0] for row in connection.execute(query, (kind, count))]


def seeded_time(url: str, number: int) -> str:
    """Return when an account was made, as RFC 3339."""
    with psycopg.connect(plain(url)) as connection:
        row = connection.execute("SELECT seeded_time(%s)", (number,)).fetchone()
        return row[0].astimezone().isoformat() if row else ""


def forget_what_was_written(url: str) -> None:
    """Take away what a measurement has inserted, so that the next one finds the tables as this one did."""
    with psycopg.connect(plain(url), autocommit=True) as connection:
        connection.execute("TRUNCATE share_links")
