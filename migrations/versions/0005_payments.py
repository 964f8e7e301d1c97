"""Prices, payments, refunds, disputes, the books, which no statement may change afterwards, and the sandbox's rows."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# The function came with the audit log.
POSTGRESQL_APPEND_ONLY = """
CREATE TRIGGER ledger_entries_append_only BEFORE UPDATE OR DELETE ON ledger_entries
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER ledger_entries_not_emptied BEFORE TRUNCATE ON ledger_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""
SQLITE_APPEND_ONLY = """
CREATE TRIGGER ledger_entries_append_only_{event} BEFORE {event} ON ledger_entries
BEGIN SELECT RAISE(ABORT, 'ledger_entries is append-only'); END
"""


def upgrade() -> None:
    op.create_table(
        "prices",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("description", sa.String(length=500), nullable=True),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("unit_amount", sa.BigInteger(), nullable=True),
        sa.Column("min_amount", sa.BigInteger(), nullable=True),
        sa.Column("max_amount", sa.BigInteger(), nullable=True),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "(unit_amount > 0 AND min_amount IS NULL AND max_amount IS NULL) OR (unit_amount IS NULL AND min_amount > 0 AND max_amount >= min_amount)",
            name=op.f("ck_prices_fixed_or_open"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prices")),
    )
    with op.batch_alter_table("prices", schema=None) as batch_op:
        batch_op.create_index("ix_prices_active_created_at_id", ["active", "created_at", "id"], unique=False)

    op.create_table(
        "payments",
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("price_id", sa.Uuid(), nullable=False),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.Column("provider", sa.String(length=16), nullable=False),
        sa.Column("provider_ref", sa.String(length=255), nullable=True),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("reference", sa.String(length=64), nullable=True),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column(
            "capture_method",
            sa.Enum("automatic", "manual", name="capturemethod", native_enum=False, create_constraint=True, length=32),
            nullable=False,
        ),
        sa.Column(
            "status",
            sa.Enum(
                "created",
                "requires_payment_method",
                "requires_action",
                "processing",
                "requires_capture",
                "succeeded",
                "canceled",
                "failed",
                name="paymentstatus",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column(
            "pending_operation",
            sa.Enum("capture", "cancel", name="operation", native_enum=False, create_constraint=True, length=32),
            nullable=True,
        ),
        sa.Column("pending_amount", sa.BigInteger(), nullable=True),
        sa.Column("amount_capturable", sa.BigInteger(), nullable=False),
        sa.Column("amount_captured", sa.BigInteger(), nullable=False),
        sa.Column("amount_refunded", sa.BigInteger(), nullable=False),
        sa.Column("amount_refund_reserved", sa.BigInteger(), nullable=False),
        sa.Column(
            "dispute_status",
            sa.Enum(
                "none",
                "inquiry",
                "open",
                "won",
                "lost",
                name="disputestate",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("failure_code", sa.String(length=64), nullable=True),
        sa.Column("decline_code", sa.String(length=64), nullable=True),
        sa.Column("failure_message", sa.String(length=255), nullable=True),
        sa.Column("method_type", sa.String(length=32), nullable=True),
        sa.Column("method_brand", sa.String(length=32), nullable=True),
        sa.Column("method_last4", sa.String(length=4), nullable=True),
        sa.Column("description", sa.String(length=255), nullable=True),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("receipt_number", sa.String(length=32), nullable=True),
        sa.Column("needs_review", sa.Boolean(), nullable=False),
        sa.Column("review_reason", sa.String(length=64), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("authorized_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("succeeded_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("canceled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("synced_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "(status = 'succeeded') = (receipt_number IS NOT NULL)", name=op.f("ck_payments_succeeded_has_receipt")
        ),
        sa.CheckConstraint(
            "status <> 'succeeded' OR amount_captured > 0", name=op.f("ck_payments_succeeded_is_captured")
        ),
        sa.CheckConstraint("amount > 0 AND quantity > 0", name=op.f("ck_payments_amount")),
        sa.CheckConstraint("amount_capturable BETWEEN 0 AND amount", name=op.f("ck_payments_capturable")),
        sa.CheckConstraint("amount_captured BETWEEN 0 AND amount", name=op.f("ck_payments_captured")),
        sa.CheckConstraint(
            "amount_refunded >= 0 AND amount_refund_reserved >= 0 AND amount_refunded + amount_refund_reserved <= amount_captured",
            name=op.f("ck_payments_refunds"),
        ),
        sa.ForeignKeyConstraint(["price_id"], ["prices.id"], name=op.f("fk_payments_price_id_prices")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_payments")),
        sa.UniqueConstraint("livemode", "receipt_number", name=op.f("uq_payments_livemode_receipt_number")),
        sa.UniqueConstraint("provider", "provider_ref", name=op.f("uq_payments_provider_provider_ref")),
    )
    with op.batch_alter_table("payments", schema=None) as batch_op:
        batch_op.create_index("ix_payments_created_at_id", ["created_at", "id"], unique=False)
        batch_op.create_index("ix_payments_status_created_at_id", ["status", "created_at", "id"], unique=False)
        batch_op.create_index("ix_payments_user_id_created_at_id", ["user_id", "created_at", "id"], unique=False)
        batch_op.create_index(
            "uq_payments_user_id_reference_alive",
            ["user_id", "reference"],
            unique=True,
            sqlite_where=sa.text("status NOT IN ('canceled', 'failed')"),
            postgresql_where=sa.text("status NOT IN ('canceled', 'failed')"),
        )

    op.create_table(
        "refunds",
        sa.Column("payment_id", sa.Uuid(), nullable=False),
        sa.Column("provider_ref", sa.String(length=255), nullable=True),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column(
            "status",
            sa.Enum(
                "pending",
                "requires_action",
                "succeeded",
                "failed",
                "canceled",
                name="refundstatus",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column(
            "reason",
            sa.Enum(
                "requested_by_customer",
                "duplicate",
                "fraudulent",
                "other",
                name="refundreason",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=True,
        ),
        sa.Column("note", sa.String(length=500), nullable=True),
        sa.Column("failure_reason", sa.String(length=64), nullable=True),
        sa.Column(
            "origin",
            sa.Enum("api", "provider", name="refundorigin", native_enum=False, create_constraint=True, length=32),
            nullable=False,
        ),
        sa.Column("requested_by", sa.Uuid(), nullable=True),
        sa.Column("succeeded_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("amount > 0", name=op.f("ck_refunds_amount")),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_refunds_payment_id_payments")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refunds")),
        sa.UniqueConstraint("provider_ref", name=op.f("uq_refunds_provider_ref")),
    )
    with op.batch_alter_table("refunds", schema=None) as batch_op:
        batch_op.create_index("ix_refunds_payment_id_created_at_id", ["payment_id", "created_at", "id"], unique=False)
        batch_op.create_index("ix_refunds_status_created_at", ["status", "created_at"], unique=False)

    op.create_table(
        "disputes",
        sa.Column("payment_id", sa.Uuid(), nullable=False),
        sa.Column("provider_ref", sa.String(length=255), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("evidence_due_by", sa.DateTime(timezone=True), nullable=True),
        sa.Column("funds_withdrawn", sa.Boolean(), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("amount > 0", name=op.f("ck_disputes_amount")),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_disputes_payment_id_payments")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_disputes")),
        sa.UniqueConstraint("provider_ref", name=op.f("uq_disputes_provider_ref")),
    )
    with op.batch_alter_table("disputes", schema=None) as batch_op:
        batch_op.create_index("ix_disputes_created_at_id", ["created_at", "id"], unique=False)
        batch_op.create_index(batch_op.f("ix_disputes_payment_id"), ["payment_id"], unique=False)

    op.create_table(
        "webhook_events",
        sa.Column("provider", sa.String(length=16), nullable=False),
        sa.Column("event_id", sa.String(length=255), nullable=False),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("object_type", sa.String(length=32), nullable=False),
        sa.Column("object_ref", sa.String(length=255), nullable=False),
        sa.Column("payload", sa.String(), nullable=True),
        sa.Column(
            "status",
            sa.Enum(
                "received",
                "processed",
                "ignored",
                "failed",
                name="eventstatus",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.String(length=128), nullable=True),
        sa.Column("processed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_events")),
        sa.UniqueConstraint("provider", "event_id", name=op.f("uq_webhook_events_provider_event_id")),
    )
    with op.batch_alter_table("webhook_events", schema=None) as batch_op:
        batch_op.create_index("ix_webhook_events_created_at_id", ["created_at", "id"], unique=False)
        batch_op.create_index(batch_op.f("ix_webhook_events_object_ref"), ["object_ref"], unique=False)
        batch_op.create_index("ix_webhook_events_status_created_at_id", ["status", "created_at", "id"], unique=False)

    op.create_table(
        "payment_timeline",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("payment_id", sa.Uuid(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_payment_timeline_payment_id_payments")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_payment_timeline")),
    )
    with op.batch_alter_table("payment_timeline", schema=None) as batch_op:
        batch_op.create_index("ix_payment_timeline_payment_id_at_id", ["payment_id", "at", "id"], unique=False)

    op.create_table(
        "ledger_entries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("debit_account", sa.String(length=64), nullable=False),
        sa.Column("credit_account", sa.String(length=64), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("payment_id", sa.Uuid(), nullable=False),
        sa.Column("source_type", sa.String(length=16), nullable=False),
        sa.Column("source_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "amount > 0 AND debit_account <> credit_account", name=op.f("ck_ledger_entries_moves_money")
        ),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_ledger_entries_payment_id_payments")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_entries")),
        sa.UniqueConstraint(
            "kind", "source_type", "source_id", name=op.f("uq_ledger_entries_kind_source_type_source_id")
        ),
    )
    with op.batch_alter_table("ledger_entries", schema=None) as batch_op:
        batch_op.create_index("ix_ledger_entries_created_at_id", ["created_at", "id"], unique=False)
        batch_op.create_index(batch_op.f("ix_ledger_entries_payment_id"), ["payment_id"], unique=False)

    op.create_table(
        "receipt_counters",
        sa.Column("year", sa.Integer(), nullable=False),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("last", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("year", "livemode", name=op.f("pk_receipt_counters")),
    )

    op.create_table(
        "sandbox_intents",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("wire", sa.JSON(), nullable=False),
        sa.Column("charge", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("refundable", sa.BigInteger(), nullable=False),
        sa.Column("return_url", sa.Text(), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("refundable >= 0", name=op.f("ck_sandbox_intents_refundable")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sandbox_intents")),
    )
    with op.batch_alter_table("sandbox_intents", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_sandbox_intents_due_at"), ["due_at"], unique=False)

    op.create_table(
        "sandbox_refunds",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("intent_id", sa.String(length=64), nullable=False),
        sa.Column("wire", sa.JSON(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["intent_id"], ["sandbox_intents.id"], name=op.f("fk_sandbox_refunds_intent_id_sandbox_intents")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sandbox_refunds")),
    )
    with op.batch_alter_table("sandbox_refunds", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_sandbox_refunds_due_at"), ["due_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_sandbox_refunds_intent_id"), ["intent_id"], unique=False)

    op.create_table(
        "sandbox_disputes",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("intent_id", sa.String(length=64), nullable=False),
        sa.Column("wire", sa.JSON(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["intent_id"], ["sandbox_intents.id"], name=op.f("fk_sandbox_disputes_intent_id_sandbox_intents")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sandbox_disputes")),
    )
    with op.batch_alter_table("sandbox_disputes", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_sandbox_disputes_due_at"), ["due_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_sandbox_disputes_intent_id"), ["intent_id"], unique=False)

    op.create_table(
        "sandbox_events",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("fault", sa.String(length=32), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sandbox_events")),
    )
    with op.batch_alter_table("sandbox_events", schema=None) as batch_op:
        batch_op.create_index(
            "ix_sandbox_events_delivered_at_due_at_id", ["delivered_at", "due_at", "id"], unique=False
        )

    op.create_table(
        "sandbox_keys",
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("locked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("body", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_sandbox_keys")),
    )
    with op.batch_alter_table("sandbox_keys", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_sandbox_keys_created_at"), ["created_at"], unique=False)

    op.create_table(
        "sandbox_faults",
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("remaining", sa.Integer(), nullable=False),
        sa.CheckConstraint("remaining >= 0", name=op.f("ck_sandbox_faults_remaining")),
        sa.PrimaryKeyConstraint("kind", name=op.f("pk_sandbox_faults")),
    )

    if op.get_context().dialect.name == "postgresql":
        op.execute(POSTGRESQL_APPEND_ONLY)
    else:
        for event in ("UPDATE", "DELETE"):
            op.execute(SQLITE_APPEND_ONLY.format(event=event))


def downgrade() -> None:
    for table in (
        "sandbox_faults",
        "sandbox_keys",
        "sandbox_events",
        "sandbox_disputes",
        "sandbox_refunds",
        "sandbox_intents",
        "receipt_counters",
        "ledger_entries",
        "payment_timeline",
        "webhook_events",
        "disputes",
        "refunds",
        "payments",
        "prices",
    ):
        op.drop_table(table)
