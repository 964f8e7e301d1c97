"""A database of many rows, written by a statement for each table: in it, a plan that reads a whole table shows.

What is rare is very rare, and what is common is nearly all; one account has many of all files.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from uuid import UUID

import psycopg
from sqlalchemy.engine import make_url

from project.database import db
from tests.conftest import migrated
from tests.servers.postgres import create_database, run_cluster

HEAVY = 7  # the account that has much
ADMIN = 100_000  # one of few
STAFF = 1_000
ERASED = 50  # each such account is erased, and many of the latest are as well


def numbered(number: int) -> UUID:
    """Return the id of the row with this number in every table; ids grow with time, as UUIDv7 does."""
    return UUID(int=number)


# {n} is how many rows there are. Those with higher numbers are younger.
ID = "lpad(to_hex(g), 32, '0')::uuid"
AT = "now() - ({n} - g) * interval '30 s'"
OWNER = f"lpad(to_hex(CASE WHEN g % 50 = 10 THEN {HEAVY} ELSE g / 10 + 1 END), 32, '0')::uuid"
PAYER = f"lpad(to_hex(CASE WHEN g % 10000 = 0 THEN {HEAVY} ELSE g END), 32, '0')::uuid"
HASH = "lpad(to_hex(g), 64, '0')"
KEY = "'00/00/' || lpad(to_hex(g), 32, '0')"

ROWS = {
    "users": f"""
        (id, email, name, role, is_active, email_verified, erased_at, session_epoch, version, created_at, updated_at)
        SELECT {ID}, CASE WHEN gone IS NULL THEN 'u' || g::bigint * 7919 % {{n}} || '@x.org' END,
               CASE WHEN g = 4711 THEN 'Zebulon Quixote' WHEN gone IS NULL THEN 'Ann' END,
               CASE WHEN g % {ADMIN} = 0 THEN 'admin' WHEN g % {STAFF} = 0 THEN 'staff' ELSE 'user' END,
               gone IS NULL AND g % 5000 <> 2, g % 20 <> 3, gone, 1, 1, at, at
        FROM generate_series(1, {{n}}) g, LATERAL (SELECT {AT} AS at) t, LATERAL (
            SELECT CASE WHEN g % {STAFF} <> 0 AND (g % {ERASED} = 1 OR g > {{n}} * 0.98) THEN now() END AS gone) e""",
    "sessions": f"""
        (id, user_id, epoch, expires_at, last_used_at, refresh_jti, refresh_issued_at, refresh_expires_at, revoked_at,
         created_at, updated_at)
        SELECT {ID}, lpad(to_hex(CASE WHEN g % 1000 = 0 THEN {HEAVY} ELSE g END), 32, '0')::uuid, 1,
               now() + (g + 60) * interval '1 s', now(), {ID}, now(), now() + interval '14 days',
               CASE WHEN g / 1000 % 2 = 0 THEN now() END, at, at
        FROM generate_series(1, {{n}}) g, LATERAL (SELECT {AT} AS at) t""",
    "links": f"""
        (id, user_id, purpose, token_hash, expires_at, created_at, updated_at)
        SELECT {ID}, {ID}, 'verify_email', {HASH}, now() + g * interval '1 s', {AT}, now()
        FROM generate_series(1, {{n}}) g""",
    "known_networks": f"""
        (user_id, network, last_login_at)
        SELECT {ID}, '192.0.2.0/24', now() + g * interval '1 s' FROM generate_series(1, {{n}}) g""",
    "audit_events": f"""
        (id, at, action, actor_id, target_type, target_id, data)
        SELECT {ID}, {AT}, CASE WHEN g % 50000 = 0 THEN 'role_changed' ELSE 'login' END,
               lpad(to_hex(CASE WHEN g % 3 = 0 THEN {ADMIN} ELSE g END), 32, '0')::uuid, 'user', {ID}, '{{{{}}}}'
        FROM generate_series(1, {{n}}) g""",
    "idempotency_keys": f"""
        (user_id, key, method, path, fingerprint, state, resource_id, locked_at, created_at)
        SELECT {ID}, 'key', 'POST', '/v1/files', {HASH}, 'completed', {ID}, now(), now() + g * interval '10 ms'
        FROM generate_series(1, {{n}}) g""",
    "files": f"""
        (id, owner_id, status, filename, size, reserved, content_type, declared_type, sha256, storage_key, visibility,
         purpose, metadata, upload_method, version, ready_at, created_at, updated_at)
        SELECT {ID}, {OWNER},
               CASE g % 100000 WHEN 1 THEN 'pending' WHEN 2 THEN 'deleting' WHEN 3 THEN 'missing' ELSE 'ready' END,
               CASE WHEN g = 4710 THEN 'zebulon-quixote.txt' ELSE 'r' || g::bigint * 7919 % {{n}} || '.pdf' END,
               g::bigint * 104729 % {{n}}, 0,
               CASE WHEN g % 50000 = 4 THEN 'font/woff2' WHEN g % 50000 = 5 THEN 'model/step'
                    WHEN g % 2 = 0 THEN 'image/png' ELSE 'application/pdf' END,
               '*/*', {HASH}, {KEY}, CASE WHEN g % 20000 = 6 THEN 'public' ELSE 'private' END,
               CASE WHEN g % 50000 = 7 THEN 'avatar' END, '{{{{}}}}', 'raw', 1, at, at, at
        FROM generate_series(1, {{n}}) g, LATERAL (SELECT {AT} AS at) t""",
    "direct_uploads": f"""
        (file_id, incoming_key, expires_at)
        SELECT {ID}, {KEY}, now() FROM generate_series(1, {{n}}, 100000) g""",
    "storage_usage": f"""
        (user_id, used, reserved, file_count) SELECT {ID}, 1e12, 0, 1e6 FROM generate_series(1, {{n}}) g""",
    "share_links": f"""
        (id, file_id, token_sha256, expires_at, downloads, created_at, updated_at)
        SELECT {ID}, {ID}, {HASH}, now() + interval '1 day', 0, {AT}, now() FROM generate_series(1, {{n}}) g""",
    "file_variants": f"""
        (id, file_id, spec, storage_key, size, content_type, created_at, updated_at)
        SELECT {ID}, {ID}, '256-webp', {KEY}, 1, 'image/webp', now(), now() FROM generate_series(1, {{n}}) g""",
    "prices": f"""
        (id, name, currency, unit_amount, active, version, created_at, updated_at)
        SELECT {ID}, 'Lesson', 'USD', 1000, g % 2 = 0, 1, {AT}, now() FROM generate_series(1, 100) g""",
    "payments": f"""
        (id, user_id, price_id, quantity, provider, provider_ref, livemode, reference, amount, currency, capture_method,
         status, pending_operation, amount_capturable, amount_captured, amount_refunded, amount_refund_reserved,
         dispute_status, attempts, metadata, receipt_number, needs_review, version, created_at, updated_at, synced_at)
        SELECT {ID}, {PAYER}, lpad('2', 32, '0')::uuid, 1, 'sandbox', 'pi_' || g, false, 'order-' || g, 1000, 'USD',
               'automatic', status, CASE WHEN g % 100000 = 4 THEN 'capture' END, 0,
               CASE status WHEN 'succeeded' THEN 1000 ELSE 0 END, 0, 0, 'none', 0, '{{{{}}}}',
               CASE status WHEN 'succeeded' THEN 'R-' || g END, g % 100000 = 5, 1, at, at, at
        FROM generate_series(1, {{n}}) g, LATERAL (SELECT {AT} AS at) t, LATERAL (
            SELECT CASE g % 100000 WHEN 1 THEN 'created' WHEN 2 THEN 'requires_action' WHEN 3 THEN 'processing'
                        WHEN 4 THEN 'requires_capture' ELSE 'succeeded' END AS status) s""",
    "refunds": f"""
        (id, payment_id, provider_ref, amount, currency, status, origin, created_at, updated_at)
        SELECT {ID}, {ID}, 're_' || g, 1, 'USD', CASE g % 100000 WHEN 1 THEN 'pending' ELSE 'succeeded' END, 'api',
               {AT}, now()
        FROM generate_series(1, {{n}}) g""",
    "disputes": f"""
        (id, payment_id, provider_ref, amount, currency, reason, status, funds_withdrawn, closed_at,
         created_at, updated_at)
        SELECT {ID}, {ID}, 'dp_' || g, 1, 'USD', 'fraudulent', 'won', false, CASE WHEN g % 10000 > 0 THEN now() END,
               {AT}, now()
        FROM generate_series(1, {{n}}) g""",
    "webhook_events": f"""
        (id, provider, event_id, type, livemode, object_type, object_ref, payload, status, attempts,
         created_at, updated_at)
        SELECT {ID}, 'sandbox', 'evt_' || g, 'payment_intent.succeeded', false, 'payment_intent', 'pi_' || g,
               CASE WHEN at > now() - interval '80 days' THEN '{{{{}}}}' END,
               CASE g % 100000 WHEN 1 THEN 'failed' ELSE 'processed' END, 1, at, at
        FROM generate_series(1, {{n}}) g, LATERAL (SELECT now() - ({{n}} - g) * interval '5 min' AS at) t""",
    "payment_timeline": f"""
        (id, payment_id, at, actor, type, data)
        SELECT {ID}, {ID}, {AT}, 'user', 'created', '{{{{}}}}' FROM generate_series(1, {{n}}) g""",
    "ledger_entries": f"""
        (id, kind, debit_account, credit_account, amount, currency, livemode, payment_id, source_type, source_id,
         created_at)
        SELECT {ID}, 'capture', 'assets:provider:sandbox',
               CASE WHEN g % 100000 = 1 THEN 'assets:disputes_held' ELSE 'income:payments' END, 1000, 'USD', false,
               {ID}, 'payment', {ID}, {AT}
        FROM generate_series(1, {{n}}) g""",
    "procrastinate_jobs": """
        (queue_name, task_name, args, status, scheduled_at)
        SELECT 'default', 'files.service.purge', '{{"file_id": "00000000-0000-0000-0000-000000000000"}}'::jsonb,
               (CASE g % 100000 WHEN 1 THEN 'todo' ELSE 'failed' END)::procrastinate_job_status,
               now() + g * interval '1 s'
        FROM generate_series(1, {n}, 100) g""",
    "procrastinate_events": """
        (job_id, type, at)
        SELECT id, 'deferred', now() - id * interval '1 s' FROM procrastinate_jobs""",
}
# Of these a tenth is enough: to read all of them would still be wrong by far.
FEWER = {
    "links",
    "known_networks",
    "idempotency_keys",
    "storage_usage",
    "share_links",
    "file_variants",
    "refunds",
    "disputes",
    "webhook_events",
    "payment_timeline",
}
# What is dropped before rows come and made again afterwards: kept, it would take several times as long.
INDEXES = """
    SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid)
    FROM pg_index JOIN pg_class ON pg_class.oid = indrelid
    WHERE relname = ANY(%s) AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
"""
CONSTRAINTS = """
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
    FROM pg_constraint WHERE conrelid = ANY(%s::regclass[]) AND contype IN ('f', 'p', 'u')
    ORDER BY contype = 'f' DESC
"""


@contextmanager
def _indexes_made_last(connection: psycopg.Connection, tables: list[str]) -> Iterator[None]:
    indexes = connection.execute(INDEXES, [tables]).fetchall()
    constraints = connection.execute(CONSTRAINTS, [tables]).fetchall()
    for table, name, _ in constraints:
        connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name} CASCADE")
    for name, _ in indexes:
        connection.execute(f"DROP INDEX {name}")
    yield
    for _, definition in indexes:
        connection.execute(definition)
    for table, name, definition in reversed(constraints):
        # Not all rows refer to something, and to look for it would take long.
        unchecked = "NOT VALID" if definition.startswith("FOREIGN KEY") else ""
        connection.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition} {unchecked}")


def seed(url: str, rows: int) -> None:
    """Fill a migrated database that is empty."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as connection:
        connection.execute("SET session_replication_role = replica")  # without the triggers of the audit log
        connection.execute("SET maintenance_work_mem = '256MB'; SET max_parallel_maintenance_workers = 0")
        # What is written into a table that was emptied in the same transaction goes round the log.
        connection.execute(f"TRUNCATE {', '.join(ROWS)}, procrastinate_periodic_defers CASCADE")
        with _indexes_made_last(connection, list(ROWS)):
            for table, statement in ROWS.items():
                count = rows // 10 if table in FEWER else rows
                connection.execute(f"INSERT INTO {table} {statement.format(n=count)}")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f"ANALYZE {', '.join(ROWS)}")


@contextmanager
def many_rows(rows: int, environment: Mapping[str, str]) -> Iterator[str]:
    """Run a PostgreSQL of its own and give the URL of a database with so many rows."""
    with run_cluster({"shared_buffers": "256MB", "max_wal_size": "4GB"}) as cluster:
        url = create_database(cluster.url, "many_rows")
        app = migrated({**environment, "DATABASE_URL": url})
        with app.app_context():
            db.engine.dispose()
        seed(url, rows)
        yield url
