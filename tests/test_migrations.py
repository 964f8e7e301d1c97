import os
import shutil
import subprocess
import sys
from pathlib import Path

import flask_migrate
import psycopg
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.engine import make_url

from project import create_app
from project.auth.models import Session
from project.database import db
from tests import factories
from tests.conftest import ENV
from tests.servers import create_database, drop_database

ROOT = Path(__file__).parent.parent
MIGRATIONS = ROOT / "migrations"
HEAD = ScriptDirectory(str(MIGRATIONS)).get_current_head()
UPGRADE = """
import flask_migrate, project
with project.create_app().app_context():
    flask_migrate.upgrade()
"""
FAILING = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "9999", {head!r}
def upgrade():
    op.create_table("half_done", sa.Column("id", sa.Integer()))
    raise RuntimeError("and so on")
"""
REBUILDING = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "9999", {head!r}
def upgrade():
    with op.batch_alter_table("users", recreate="always") as batch:
        batch.add_column(sa.Column("nickname", sa.String(50)))
"""
ORPHANING = """
from alembic import op
revision, down_revision = "9999", {head!r}
def upgrade():
    op.execute("DELETE FROM users")
"""
on_sqlite_only = pytest.mark.parametrize("env", ["sqlite"], indirect=True)
on_postgresql_only = pytest.mark.parametrize("env", ["postgresql"], indirect=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def env(request, tmp_path, worker_id):
    """The settings of an application on an empty database."""
    settings = {**ENV, "DATA_DIR": str(tmp_path)}
    if request.param == "postgresql":
        admin = request.getfixturevalue("postgres_url")
        settings["DATABASE_URL"] = create_database(admin, f"migrations_{worker_id}")
    return settings


@pytest.fixture
def context(env):
    """The context of an application on an empty database, whose connections are closed at the end."""
    with create_app(env).app_context():
        yield
        db.engine.dispose()


def objects():
    """What the database contains."""
    tables = sorted(inspect(db.engine).get_table_names())
    if db.engine.dialect.name == "sqlite":
        return tables
    with db.engine.connect() as connection:
        functions = "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1"
        types = "SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace ORDER BY 1"
        return [*tables, *connection.scalars(text(functions)), *connection.scalars(text(types))]


def with_one_more(tmp_path, source):
    """A copy of the migrations with one more at the end."""
    folder = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, folder)
    (folder / "versions" / "9999_one_more.py").write_text(source.format(head=HEAD))
    return str(folder)


def test_there_is_one_line_of_migrations():
    assert len(ScriptDirectory(str(MIGRATIONS)).get_heads()) == 1


def test_migrations_make_what_the_models_say(context):
    flask_migrate.upgrade()
    flask_migrate.check()  # exits with what is missing


def test_downgrade_leaves_nothing_and_upgrade_makes_it_again(context):
    flask_migrate.upgrade()
    made = objects()
    flask_migrate.downgrade(revision="base")
    assert not [name for name in objects() if "alembic_version" not in name]
    flask_migrate.upgrade()
    assert objects() == made


def test_processes_that_start_together_migrate_a_new_database_once(env, context):
    command = [sys.executable, "-c", UPGRADE]
    environment = os.environ | env | {"PYTHONPATH": str(ROOT / "src"), "LOG_LEVEL": "DEBUG"}
    together = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(3)
    ]
    outputs = [process.communicate()[0].decode() for process in together]
    assert [process.returncode for process in together] == [0, 0, 0], outputs
    with db.engine.connect() as connection:
        assert connection.scalars(text("SELECT version_num FROM alembic_version")).all() == [HEAD]


def test_migration_that_fails_leaves_nothing(context, tmp_path):
    flask_migrate.upgrade()
    made = objects()
    with pytest.raises(SystemExit):
        flask_migrate.upgrade(directory=with_one_more(tmp_path, FAILING))
    assert objects() == made


def test_connections_after_a_migration_have_their_usual_settings(context):
    flask_migrate.upgrade()
    setting = "PRAGMA foreign_keys" if db.engine.dialect.name == "sqlite" else "SHOW statement_timeout"
    with db.engine.connect() as connection:
        assert connection.scalar(text(setting)) in {1, "10s"}


@on_postgresql_only
def test_owner_of_the_database_needs_no_other_rights(env, worker_id):
    admin, role = make_url(env["DATABASE_URL"]), f"owner_{worker_id}"
    with psycopg.connect(admin.set(drivername="postgresql").render_as_string(), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN")
        connection.execute(f"ALTER DATABASE {admin.database} OWNER TO {role}")
    with create_app({**env, "DATABASE_URL": admin.set(username=role).render_as_string()}).app_context():
        flask_migrate.upgrade()
        db.engine.dispose()
    drop_database(admin.set(database="postgres").render_as_string(), str(admin.database))
    with psycopg.connect(
        admin.set(drivername="postgresql", database="postgres").render_as_string(), autocommit=True
    ) as connection:
        connection.execute(f"DROP ROLE {role}")


@on_postgresql_only
def test_index_that_was_begun_and_not_finished_is_made_anew(context):
    flask_migrate.upgrade(revision="0005")
    with db.engine.connect() as connection:
        connection.execute(text("CREATE INDEX ix_users_created_at_id_alive ON users (name)"))
    flask_migrate.upgrade()
    flask_migrate.check()


@on_sqlite_only
def test_table_that_is_rebuilt_keeps_the_rows_that_refer_to_it(context, tmp_path):
    flask_migrate.upgrade()
    session = factories.make_session(factories.make_user(password=False))
    flask_migrate.upgrade(directory=with_one_more(tmp_path, REBUILDING))
    assert [found.id for found in db.session.query(Session)] == [session.id]


@on_sqlite_only
def test_migration_that_leaves_rows_without_what_they_refer_to_is_undone(context, tmp_path):
    flask_migrate.upgrade()
    factories.make_session(factories.make_user(password=False))
    with pytest.raises(SystemExit):
        flask_migrate.upgrade(directory=with_one_more(tmp_path, ORPHANING))
    with db.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM users")) == 1
