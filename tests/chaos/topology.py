"""The whole topology, with a way to break each of its parts."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.http.client import PASSWORD, Account, Api, log_in
from tests.servers import CREDENTIALS, create_database, make_bucket, run_s3
from tests.servers.faults import Link, run_link
from tests.servers.postgres import SAFE, Postgres, run_cluster
from tests.servers.process import free_port
from tests.servers.valkey import Valkey
from tests.stack.running import RunningStack, run_stack

ADMIN_EMAIL = "canary-admin@example.com"
PLENTY = "1000000/minute"
LIMITED = ("READ", "WRITE", "DOWNLOAD", "ANONYMOUS", "LOGIN_ACCOUNT", "PASSWORD", "MAILBOX", "WEBHOOK", "SYNC")
# The one that is not out of the way: attempts to sign in to an account from one network.
LOGINS = 10


@dataclass
class Mailbox:
    """What the mail server has taken, by address."""

    mails: Counter[str] = field(default_factory=Counter)

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Take a mail."""
        self.mails.update(envelope.rcpt_tos)
        return "250 OK"


@dataclass(frozen=True)
class Topology:
    """What runs, and the links between the product and what it needs."""

    stack: RunningStack
    postgres: Postgres
    valkey: Valkey
    mailbox: Mailbox
    database: Link
    limits: Link
    storage: Link
    mail: Link
    disk: Path | None  # where the files are, if they are in no bucket
    admin: Account
    price_id: str

    def connect(self) -> psycopg.Connection:
        """A connection to the database past the link."""
        return psycopg.connect(self.postgres.url.replace("+psycopg", ""), autocommit=True)

    def errors(self) -> str:
        """What the servers and the worker have logged of what should not happen."""
        logs = sorted(self.stack.folder.glob("logs/*.log"))
        lines = (line for log in logs for line in log.read_text(errors="replace").splitlines())
        return "\n".join(line for line in lines if '"level": "error"' in line or '"level":"error"' in line)


@contextmanager
def run_topology(disk: Path | None = None) -> Iterator[Topology]:
    """Run the whole topology until the block ends, with a bucket or with a disk for files."""
    with ExitStack() as running:
        start = running.enter_context
        postgres = start(run_cluster({**SAFE, "max_connections": "150"}))
        valkey = Valkey()
        running.callback(valkey.stop)
        s3 = start(run_s3())
        mailbox = Mailbox()
        smtp = start(_run_smtp(mailbox))
        ports = {"database": postgres.port, "limits": valkey.port, "storage": _port(s3), "mail": smtp}
        links = {name: start(run_link(port)) for name, port in ports.items()}
        settings = {
            "DATABASE_URL": create_database(postgres.url, "project").replace(
                f":{postgres.port}/", f":{links['database'].port}/"
            ),
            "REDIS_URL": f"redis://127.0.0.1:{links['limits'].port}/0",
            "STORAGE_URL": _storage_url(s3, links["storage"], disk),
            "MAIL_URL": f"smtp://127.0.0.1:{links['mail'].port}",
            **CREDENTIALS,
            **{f"LIMIT_{name}": PLENTY for name in LIMITED},
            "LIMIT_LOGIN_NETWORK": f"{LOGINS}/hour",
            "FILES_QUOTA": str(10**12),
        }
        stack = start(run_stack(settings))
        stack.flask("users", "create-admin", ADMIN_EMAIL, "--password-stdin", entered=PASSWORD)
        admin = log_in(Api(stack.url), ADMIN_EMAIL)
        yield Topology(stack, postgres, valkey, mailbox, disk=disk, admin=admin, price_id=_make_price(admin), **links)


def _storage_url(s3: str, link: Link, disk: Path | None) -> str:
    if disk is None:
        return make_bucket(s3, "project").replace(str(_port(s3)), str(link.port))
    (disk / "files").mkdir()
    return f"file://{disk}/files"


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


def _make_price(admin: Account) -> str:
    body = {"name": "Lesson", "currency": "USD", "unit_amount": 1000}
    response = admin.api.post("/v1/prices", json=body)
    assert response.status_code == 201, response.text
    return str(response.json()["data"]["id"])


@contextmanager
def _run_smtp(mailbox: Mailbox) -> Iterator[int]:
    port = free_port()
    controller = Controller(mailbox, hostname="127.0.0.1", port=port, server_hostname="localhost")
    controller.start()
    try:
        yield port
    finally:
        controller.stop()
