"""The tables of background jobs: Procrastinate's on PostgreSQL, our own small one on SQLite.

The schema of Procrastinate is a copy of the one in version 3.10 and not read from the installed library: a
migration has to make the same tables for ever. If it made newer ones after an upgrade of the library, the
migration that brings the older databases there would fail on the new ones. For such an upgrade copy the files
that are new in procrastinate/sql/migrations into a migration of their own.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

PROCRASTINATE = Path(__file__).with_name("0001_procrastinate.sql")
TABLES = ("events", "periodic_defers", "jobs", "workers")
FUNCTIONS = (
    "defer_jobs_v1",
    "defer_periodic_job_v2",
    "finish_job_v1",
    "cancel_job_v1",
    "retry_job_v1",
    "retry_job_v2",
    "notify_queue_job_inserted_v1",
    "notify_queue_abort_job_v1",
    "trigger_function_status_events_insert_v1",
    "trigger_function_status_events_update_v1",
    "trigger_function_scheduled_events_v1",
    "trigger_abort_requested_events_procedure_v1",
    "unlink_periodic_defers_v1",
    "register_worker_v1",
    "unregister_worker_v1",
    "update_heartbeat_v1",
    "prune_stalled_workers_v1",
)
TYPES = ("job_to_defer_v1", "job_status", "job_event_type")


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute(PROCRASTINATE.read_text(encoding="utf-8"))
        return
    op.create_table(
        "local_jobs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("task", sa.String(128), nullable=False),
        sa.Column("arguments", sa.JSON(), nullable=False),
        sa.Column("cron", sa.String(128), nullable=True),
        sa.Column("run_at", sa.DateTime(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("locked_until", sa.DateTime(), nullable=True),
        sa.Column("failed_at", sa.DateTime(), nullable=True),
        sa.Column("error", sa.String(256), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_local_jobs"),
        # An id is never given twice: it is in the logs.
        sqlite_autoincrement=True,
    )
    op.create_index("ix_local_jobs_run_at", "local_jobs", ["run_at"], sqlite_where=sa.text("failed_at IS NULL"))
    # A periodic task has one row, moved on to its next time.
    op.create_index(
        "uq_local_jobs_periodic", "local_jobs", ["task"], unique=True, sqlite_where=sa.text("cron IS NOT NULL")
    )


def downgrade() -> None:
    if op.get_context().dialect.name != "postgresql":
        op.drop_table("local_jobs")
        return
    # This one returns a row of the table, so it goes first; the triggers need the others until the tables are gone.
    op.execute("DROP FUNCTION procrastinate_fetch_job_v2")
    for table in TABLES:
        op.execute(f"DROP TABLE procrastinate_{table}")
    for function in FUNCTIONS:
        op.execute(f"DROP FUNCTION procrastinate_{function}")
    for kind in TYPES:
        op.execute(f"DROP TYPE procrastinate_{kind}")
