"""What commands share: an expected failure is one line and an exit code."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click
from flask.cli import with_appcontext
from sqlalchemy.exc import DBAPIError

from project.errors import AppError, CommandRefused


def reports_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Print an expected failure as one line and exit with 1, as click does for its own."""

    @wraps(command)
    @with_appcontext
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except AppError as error:
            details = " ".join(field.detail for field in error.errors)
            raise click.ClickException(details or error.detail) from error
        except DBAPIError as error:
            cause = type(error.orig).__name__
            question = "Is it running, and did `flask db upgrade` run?"
            raise click.ClickException(f"The database refused ({cause}). {question}") from error
        except CommandRefused as error:
            raise click.ClickException(str(error)) from error

    return wrapper
