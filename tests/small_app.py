"""A small application on a database of its own, for tests of one shared module."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flask import Flask
from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase

from project import database
from project.config import load_config
from project.database import db, engine_options
from project.errors import register_error_handlers
from project.json import OrjsonProvider

BACKENDS = ["sqlite", "postgresql"]


def fresh_database(postgres_url: str, name: str) -> str:
    """Make an empty PostgreSQL database and return its URL."""
    server = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    server.dispose()
    return server.url.set(database=name).render_as_string(hide_password=False)


@contextmanager
def small_app(data_dir: Path, *models: type[DeclarativeBase], database_url: str = "") -> Iterator[Flask]:
    """An application with settings, the database and our errors, and nothing else; SQLite unless told."""
    app = Flask("small")
    app.json = OrjsonProvider(app)
    settings = load_config(
        {
            "APP_ENV": "testing",
            "DATA_DIR": str(data_dir),
            "DATABASE_URL": database_url,
            "PUBLIC_URL": "https://api.example.com",
        }
    )
    app.extensions["settings"] = settings
    app.config["SQLALCHEMY_DATABASE_URI"] = settings.database_url
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = engine_options(settings.database_url, pool_size=20)
    database.init_app(app)
    register_error_handlers(app)
    with app.app_context():
        engine = db.engine
        for model in models:
            model.metadata.create_all(engine, [model.metadata.tables[model.__tablename__]])
    yield app
    engine.dispose()
