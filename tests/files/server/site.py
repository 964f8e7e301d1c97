"""An application that a test has to itself: its database, its folder, accounts that are signed in, its servers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from click.testing import Result
from flask import Flask

from project.auth import tokens
from project.auth.service import SignIn
from project.database import db
from project.users.models import User
from tests import factories
from tests.conftest import Caller
from tests.servers import AppServer, run_server

# For one request. What this bounds is hanging, on a machine that has other things to do.
SECONDS = 60


@dataclass(frozen=True)
class Site:
    """An application on a migrated database. `env` are the settings of its servers; `app` looks at what they do."""

    app: Flask
    env: Mapping[str, str]

    @property
    def storage(self) -> Path:
        """The folder of objects and parts."""
        return Path(self.env["DATA_DIR"]) / "files"

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Use the database as the application does; afterwards there is no connection to it from this process."""
        with self.app.app_context():
            yield
            db.session.remove()
            db.engine.dispose()

    def sign_up(self) -> Caller:
        """Make an account and sign it in."""
        with self.looking():
            return self._sign_in(factories.make_user())

    def sign_in(self, user: User) -> Caller:
        """Sign an account in again: an access token lives for ten minutes."""
        with self.looking():
            return self._sign_in(user)

    def _sign_in(self, user: User) -> Caller:
        return Caller(user, tokens.issue(SignIn(factories.make_session(user), user, fresh=True)))

    def flask(self, *arguments: str) -> Result:
        """Run a `flask` command."""
        result = self.app.test_cli_runner().invoke(args=arguments)
        with self.looking():
            return result

    @contextmanager
    def server(self, **settings: str) -> Iterator[AppServer]:
        """Run a server until the block ends."""
        with run_server({**self.env, **settings}) as server:
            yield server
