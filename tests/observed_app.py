"""An application that is observed: request ids, logs and health, and nothing else."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, g

from project import errors, observability
from project.config import load_config
from project.json import OrjsonProvider
from project.observability import origin

ID = "0123abcd-EF"


def make_app(data_dir: Path, environment: str = "testing", **env: str) -> Flask:
    """An application that has settings, errors and what is tested here, and nothing else."""
    app = Flask("project", static_folder=None)
    app.json = OrjsonProvider(app)
    app.extensions["settings"] = load_config({"APP_ENV": environment, "DATA_DIR": str(data_dir), **env})
    observability.init_app(app)
    errors.register_error_handlers(app)
    _add_routes(app)
    return app


def _add_routes(app: Flask) -> None:
    @app.get("/things/<name>")
    def thing(name: str) -> dict[str, Any]:
        where = origin()
        return {"ip": where.ip, "user_agent": where.user_agent, "request_id": where.request_id}

    @app.get("/user")
    def user() -> str:
        g.user_id = uuid.UUID(int=7)
        return ""

    @app.get("/boom")
    def boom() -> str:
        secret = "hunter2"
        raise RuntimeError(f"ann@example.com knows {secret}\nforged")

    @app.post("/unserialisable")
    def unserialisable() -> dict[str, Any]:
        return {"value": object()}


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The log lines so far, each parsed alone."""
    return [json.loads(line) for line in capsys.readouterr().out.split("\n")[:-1]]
