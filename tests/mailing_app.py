"""An application that sends mail, and how a mail program reads what it sent."""

import email
import email.policy
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage, MIMEPart
from pathlib import Path

from flask import Flask

from project import mail
from project.config import load_config

LINK = "http://localhost:5173/verify-email#token=" + "q7-_" * 22


@contextmanager
def make_app(data_dir: Path, **env: str) -> Iterator[Flask]:
    """An application that has settings and mail, and nothing else."""
    app = Flask("small")
    app.extensions["settings"] = load_config({"APP_ENV": "testing", "DATA_DIR": str(data_dir), **env})
    mail.init_app(app)
    with app.app_context():
        yield app


def parse(data: bytes) -> EmailMessage:
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    return message


def part(message: EmailMessage, subtype: str) -> MIMEPart:
    found = message.get_body((subtype,))
    assert found is not None
    return found
