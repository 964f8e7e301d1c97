"""Indexes for every list and lookup that would read a whole table.

On PostgreSQL they are built beside the running servers, outside of a transaction: what was built when one fails stays,
and the migration can simply be run again. Searching takes the extension pg_trgm, which comes with PostgreSQL; the owner
of the database may create it, and for anybody else an administrator does that before.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

INACTIVE = "erased_at IS NULL AND NOT is_active"
PRIVILEGED = "role <> 'user'"
READY = "status = 'ready'"
PATTERN = {"content_type": "varchar_pattern_ops"}

# name: (table, columns, condition, options)
ADDED: dict[str, tuple[str, list[str], str | None, dict[str, Any]]] = {
    "ix_users_created_at_id_alive": ("users", ["created_at", "id"], "erased_at IS NULL", {}),
    "ix_users_created_at_id_inactive": ("users", ["created_at", "id"], INACTIVE, {}),
    "ix_users_email_inactive": ("users", ["email"], INACTIVE, {}),
    "ix_users_role_created_at_id_privileged": ("users", ["role", "created_at", "id"], PRIVILEGED, {}),
    "ix_users_role_email_privileged": ("users", ["role", "email"], PRIVILEGED, {}),
    "ix_files_owner_id_size_id_ready": ("files", ["owner_id", "size", "id"], READY, {}),
    "ix_files_owner_id_filename_id_ready": ("files", ["owner_id", "filename", "id"], READY, {}),
    "ix_files_size_id_ready": ("files", ["size", "id"], READY, {}),
    "ix_files_filename_id_ready": ("files", ["filename", "id"], READY, {}),
    "ix_files_purpose_created_at_id": ("files", ["purpose", "created_at", "id"], "purpose IS NOT NULL", {}),
    "ix_files_created_at_id_public": ("files", ["created_at", "id"], "visibility = 'public'", {}),
    "ix_files_content_type_created_at_id_ready": (
        "files",
        ["content_type", "created_at", "id"],
        READY,
        {"postgresql_ops": PATTERN},
    ),
    "ix_payments_reference_created_at_id": (
        "payments",
        ["reference", "created_at", "id"],
        "reference IS NOT NULL",
        {},
    ),
    "ix_payments_created_at_asked": ("payments", ["created_at"], "pending_operation IS NOT NULL", {}),
    "ix_payments_created_at_review": ("payments", ["created_at"], "needs_review", {}),
    "ix_disputes_payment_id_open": ("disputes", ["payment_id"], "closed_at IS NULL", {}),
    "ix_webhook_events_created_at_payload": ("webhook_events", ["created_at"], "payload IS NOT NULL", {}),
    "ix_ledger_entries_debit_account_created_at_id": (
        "ledger_entries",
        ["debit_account", "created_at", "id"],
        None,
        {},
    ),
    "ix_ledger_entries_credit_account_created_at_id": (
        "ledger_entries",
        ["credit_account", "created_at", "id"],
        None,
        {},
    ),
    "ix_idempotency_keys_resource_id": ("idempotency_keys", ["resource_id"], "resource_id IS NOT NULL", {}),
}
TRIGRAMS = {
    "ix_users_email_name_trigrams": ("users", ["email", "name"]),
    "ix_files_filename_trigrams": ("files", ["filename"]),
}
# The new ones serve whatever these did.
REPLACED = {"ix_users_created_at_id": ("users", ["created_at", "id"]), "ix_users_role": ("users", ["role"])}


def upgrade() -> None:
    if op.get_context().dialect.name != "postgresql":
        make_all()
        for name, (table, _) in REPLACED.items():
            op.drop_index(name, table)
        return
    op.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
    with op.get_context().autocommit_block():
        take_time()
        make_all(postgresql_concurrently=True)
        for name, (table, columns) in TRIGRAMS.items():
            operators = dict.fromkeys(columns, "gin_trgm_ops")
            make(name, table, columns, postgresql_using="gin", postgresql_ops=operators, postgresql_concurrently=True)
        for name, (table, _) in REPLACED.items():
            op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
        take_no_time()


def downgrade() -> None:
    for name, (table, columns) in REPLACED.items():
        op.create_index(name, table, columns)
    for name, (table, *_) in ADDED.items():
        op.drop_index(name, table)
    if op.get_context().dialect.name == "postgresql":
        for name, (table, _) in TRIGRAMS.items():
            op.drop_index(name, table)
        # Somebody else may use the extension, and it does no harm: but what upgrade() makes, this undoes.
        op.execute("DROP EXTENSION IF EXISTS pg_trgm")


def make_all(**options: Any) -> None:
    for name, (table, columns, condition, special) in ADDED.items():
        where = {} if condition is None else {key: sa.text(condition) for key in ("postgresql_where", "sqlite_where")}
        make(name, table, columns, **where, **special, **options)


def make(name: str, table: str, columns: list[str], **options: Any) -> None:
    if options.get("postgresql_concurrently"):
        # One that was begun and not finished stays, and is of no use.
        op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
    op.create_index(name, table, columns, if_not_exists=True, **options)


def take_time() -> None:
    # Nobody waits for the lock that this takes, and building takes as long as the table is large.
    op.execute("SET lock_timeout = 0")
    op.execute("SET statement_timeout = 0")


def take_no_time() -> None:
    # As env.py has it for the migrations that follow.
    op.execute("SET lock_timeout = '2s'")
    op.execute("SET statement_timeout = '60s'")
