"""What `make run` does: prepare the database, tell the developer where everything is, and serve."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import flask_migrate
from sqlalchemy import exists, select

from project import seeds
from project.config import Server, settings
from project.database import db
from project.users.models import User

ROOT = Path(__file__).parents[2]
SERVERS = {
    Server.GUNICORN: [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "deploy" / "gunicorn.conf.py"), "wsgi:app"],
    Server.GRANIAN: [sys.executable, "-m", "deploy.granian_server"],
}
WORKER = [sys.executable, "-m", "flask", "worker"]
POLL_SECONDS = 0.2


def prepare() -> None:
    """Migrate the database, seed it when it has no account yet, and print how to go on.

    Raises:
        ClickException: the server is not installed, or something listens at its port already.
    """
    if settings.server is Server.GRANIAN and importlib.util.find_spec("granian") is None:
        raise click.ClickException("SERVER=granian is not installed: pip install -r requirements/granian.txt")
    _require_free_port()
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    flask_migrate.upgrade()
    is_new = not db.session.scalar(select(exists(select(User.id))))
    password = seeds.seed() if is_new and not settings.production else None
    # The server makes connections of its own, after it has forked.
    db.session.remove()
    db.engine.dispose()
    click.echo(
        f"API      {settings.public_url}/v1\n"
        f"Docs     {settings.public_url}/docs\n"
        f"Outbox   {settings.outbox} (mails as .eml files)\n"
        f"Sign in  {_sign_in(password)}"
    )


def _require_free_port() -> None:
    """Look before anything is made and shown; who takes the port in between is met by the server.

    Raises:
        ClickException: something listens there already.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", settings.port))
        except OSError as error:
            raise click.ClickException(f"PORT {settings.port} is in use; try another.") from error


def _sign_in(password: str | None) -> str:
    if settings.production:
        return "with an account from `flask users create-admin`"
    accounts = ", ".join(seeds.DEMO_ACCOUNTS)
    known = password or f"as shown on the first run (delete {settings.data_dir} to begin again)"
    return f"{accounts}\n         password {known}"


def serve() -> None:
    """Serve with what SERVER names until TERM or Ctrl-C; on PostgreSQL with a worker for jobs beside it."""
    sys.stdout.flush()
    os.chdir(ROOT)
    server = SERVERS[settings.server]
    if settings.sqlite:
        # SQLite's jobs run in a thread of the server, so this process can become it.
        os.execv(server[0], server)  # noqa: S606 - a fixed command without a shell
    _supervise([server, WORKER])


def _supervise(commands: list[list[str]]) -> None:
    """Run the commands until one ends or a signal comes, then end them all in good order."""
    children: list[subprocess.Popen[bytes]] = []

    def stop(*_: Any) -> None:
        for child in children:
            child.send_signal(signal.SIGTERM)

    # First the handlers: a signal that comes while the children are starting must not leave one of them behind.
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    for command in commands:
        children.append(subprocess.Popen(command))  # noqa: S603, PERF401 - fixed commands without a shell; one by one
    # Looked after rather than waited for: a signal that comes just before os.wait() is not heard until that returns.
    while all(child.poll() is None for child in children):
        time.sleep(POLL_SECONDS)
    failed = any(child.returncode for child in children)
    stop()
    for child in children:
        child.wait()
    sys.exit(failed)
