"""Fixtures for statements: a scene in which each route can be called, and what was sent to the database meanwhile."""

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from project.mail import Message
from tests.conftest import Caller
from tests.files.conftest import bucket, files_root, set_files
from tests.payments.conftest import set_payments
from tests.queries.scene import Scene

__all__ = ["bucket", "files_root", "set_files", "set_payments"]


@pytest.fixture
def scene(
    request: pytest.FixtureRequest,
    app: Flask,
    client: FlaskClient,
    as_user: Callable[..., Caller],
    in_app: Callable[..., Any],
    run_jobs: Callable[[], int],
    outbox: list[Message],
) -> Scene:
    """An application with whatever calling its routes takes."""
    return Scene(app, client, as_user, in_app, run_jobs, outbox, request.getfixturevalue)
