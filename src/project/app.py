"""The application factory: the list of what the application is made of."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flask import Flask
from flask.sessions import SecureCookieSession, SessionInterface
from werkzeug.middleware.proxy_fix import ProxyFix

from project import api, cli, database, errors, headers, jobs, limits, mail, metrics, observability, pages
from project.auth import tokens
from project.config import flask_config, load_config
from project.extensions import migrate
from project.files.sweep import storage_answers
from project.json import OrjsonProvider
from project.middleware import BodyLength

MIGRATIONS = Path(__file__).parents[2] / "migrations"


class _NoSessions(SessionInterface):
    """Nothing is kept in cookies, so none is looked for."""

    def open_session(self, app: Flask, _request: Any) -> SecureCookieSession:
        """Return the session that cannot be written to."""
        return self.make_null_session(app)


class _Application(Flask):
    """Flask without what it would do for every request and nothing here uses."""

    session_interface = _NoSessions()

    def ensure_sync(self, func: Any) -> Any:
        """Return the function, which is no coroutine."""
        return func


def create_app(env: Mapping[str, str] = os.environ) -> Flask:
    """Build the application from environment variables.

    Raises:
        ConfigError: naming the setting that is missing or wrong.
    """
    settings = load_config(env)
    app = _Application("project", static_folder=None)
    app.extensions["settings"] = settings
    app.config.update(flask_config(settings))
    app.json = OrjsonProvider(app)
    app.url_map.merge_slashes = False
    observability.init_app(app)
    database.init_app(app)
    metrics.init_app(app)
    migrate.init_app(app, database.db, directory=str(MIGRATIONS))
    tokens.init_app(app)
    limits.init_app(app)
    mail.init_app(app)
    jobs.init_app(app)
    headers.init_app(app)
    errors.register_error_handlers(app)
    observability.readiness_check(app, "storage", storage_answers, essential=False)
    observability.readiness_check(app, "jobs", jobs.queue_moves, essential=False)
    api.init_app(app)
    pages.init_app(app)
    cli.init_app(app)
    app.wsgi_app = BodyLength(app.wsgi_app)  # type: ignore[method-assign]
    if settings.proxy_hops:
        hops = settings.proxy_hops
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops)  # type: ignore[method-assign]
    return app
