"""Files, what accounts have stored, direct uploads, links that share, and thumbnails."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "files",
        sa.Column("owner_id", sa.Uuid(), nullable=True),
        sa.Column(
            "status",
            sa.Enum(
                "pending",
                "ready",
                "deleting",
                "missing",
                name="filestatus",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("filename", sa.String(length=255), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.Column("content_type", sa.String(length=255), nullable=False),
        sa.Column("declared_type", sa.String(length=255), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("storage_key", sa.String(length=64), nullable=False),
        sa.Column(
            "visibility",
            sa.Enum("private", "public", name="visibility", native_enum=False, create_constraint=True, length=32),
            nullable=False,
        ),
        sa.Column("purpose", sa.String(length=40), nullable=True),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=True),
        sa.Column("height", sa.Integer(), nullable=True),
        sa.Column(
            "upload_method",
            sa.Enum(
                "multipart", "raw", "direct", name="uploadmethod", native_enum=False, create_constraint=True, length=32
            ),
            nullable=False,
        ),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("ready_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "status <> 'ready' OR (sha256 IS NOT NULL AND ready_at IS NOT NULL)", name=op.f("ck_files_ready_is_whole")
        ),
        sa.CheckConstraint("status = 'pending' OR reserved = 0", name=op.f("ck_files_only_pending_reserves")),
        sa.CheckConstraint("size >= 0 AND reserved >= 0", name=op.f("ck_files_sizes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
        sa.UniqueConstraint("storage_key", name=op.f("uq_files_storage_key")),
    )
    with op.batch_alter_table("files", schema=None) as batch_op:
        batch_op.create_index(
            "ix_files_owner_id_status_created_at_id", ["owner_id", "status", "created_at", "id"], unique=False
        )
        batch_op.create_index("ix_files_status_created_at_id", ["status", "created_at", "id"], unique=False)
        batch_op.create_index("ix_files_status_updated_at", ["status", "updated_at"], unique=False)

    op.create_table(
        "storage_usage",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.Column("file_count", sa.Integer(), nullable=False),
        sa.Column("quota", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "used >= 0 AND reserved >= 0 AND file_count >= 0 AND quota >= 0", name=op.f("ck_storage_usage_counts")
        ),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_storage_usage")),
    )
    op.create_table(
        "direct_uploads",
        sa.Column("file_id", sa.Uuid(), nullable=False),
        sa.Column("incoming_key", sa.String(length=80), nullable=False),
        sa.Column("completing_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["file_id"], ["files.id"], name=op.f("fk_direct_uploads_file_id_files"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("file_id", name=op.f("pk_direct_uploads")),
        sa.UniqueConstraint("incoming_key", name=op.f("uq_direct_uploads_incoming_key")),
    )
    op.create_table(
        "file_variants",
        sa.Column("file_id", sa.Uuid(), nullable=False),
        sa.Column("spec", sa.String(length=16), nullable=False),
        sa.Column("storage_key", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("content_type", sa.String(length=255), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["file_id"], ["files.id"], name=op.f("fk_file_variants_file_id_files"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_file_variants")),
        sa.UniqueConstraint("file_id", "spec", name=op.f("uq_file_variants_file_id_spec")),
        sa.UniqueConstraint("storage_key", name=op.f("uq_file_variants_storage_key")),
    )
    op.create_table(
        "share_links",
        sa.Column("file_id", sa.Uuid(), nullable=False),
        sa.Column("token_sha256", sa.String(length=64), nullable=False),
        sa.Column("label", sa.String(length=100), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("max_downloads", sa.Integer(), nullable=True),
        sa.Column("downloads", sa.Integer(), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("max_downloads > 0 AND downloads <= max_downloads", name=op.f("ck_share_links_downloads")),
        sa.ForeignKeyConstraint(
            ["file_id"], ["files.id"], name=op.f("fk_share_links_file_id_files"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_share_links")),
        sa.UniqueConstraint("token_sha256", name=op.f("uq_share_links_token_sha256")),
    )
    with op.batch_alter_table("share_links", schema=None) as batch_op:
        batch_op.create_index("ix_share_links_file_id_created_at_id", ["file_id", "created_at", "id"], unique=False)


def downgrade() -> None:
    for table in ("share_links", "file_variants", "direct_uploads", "storage_usage", "files"):
        op.drop_table(table)
