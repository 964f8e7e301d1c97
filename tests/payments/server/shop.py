"""An application in which is paid, on a database that a test has to itself, and what holds of it when all is quiet."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from procrastinate import sql
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import DBAPIError

from project import jobs
from project.database import db, transaction, utcnow
from project.idempotency_keys import IdempotencyKey, State
from project.payments.journal import EventStatus, WebhookEvent
from project.payments.models import Payment, PaymentStatus, Refund, RefundStatus
from project.payments.sandbox.models import SandboxEvent, SandboxIntent, SandboxRefund
from project.queues import local_jobs
from project.security import Role
from tests.conftest import Caller
from tests.factories import make_user
from tests.files.server.site import Site
from tests.http.client import eventually
from tests.payments import paying
from tests.servers import AppServer, run_server


@dataclass(frozen=True)
class Shop(Site):
    """An application on a migrated database, whose provider is the sandbox in the same database."""

    @property
    def on_sqlite(self) -> bool:
        """True on SQLite, where one process serves and runs the jobs too."""
        return "DATABASE_URL" not in self.env

    @contextmanager
    def deadly_server(self, *arguments: str, **settings: str) -> Iterator[AppServer]:
        """Run a server that does not wait long for the dead, and dies itself where it is told to (deadly.py)."""
        with run_server(
            {**self.env, **settings}, app="tests.payments.server.deadly:app", arguments=arguments
        ) as server:
            yield server

    def sign_up(self, role: Role = Role.USER) -> Caller:
        """Make an account and sign it in."""
        with self.looking():
            user = make_user(role=role)
        return self.sign_in(user)

    def run_jobs(self) -> int:
        """Run the jobs that are due, as a worker does; the first error is raised."""
        count = jobs.run_pending(self.app)
        with self.looking():
            return count

    def free_jobs(self) -> None:
        """Let the jobs of the dead run again, which a worker does when it has not heard of them for half a minute."""
        with self.looking():
            if self.on_sqlite:
                with transaction():
                    db.session.execute(update(local_jobs).values(locked_until=None))
                return
            for number in db.session.scalars(text("SELECT id FROM procrastinate_jobs WHERE status = 'doing'")).all():
                again = {"job_id": number, "retry_at": utcnow()}
                again |= {"new_priority": None, "new_queue_name": None, "new_lock": None}
                # It was not dead, and has ended the job meanwhile.
                with suppress(DBAPIError), transaction():
                    db.session.connection().exec_driver_sql(sql.queries["retry_job"], again)

    def reconcile(self) -> None:
        """Find out what became of everything that is under way. It is told to come again while the server does so."""
        eventually(lambda: self._succeeds("payments", "reconcile", "--settled", "0") or None, "all to be reconciled")

    def _succeeds(self, *arguments: str) -> bool:
        return self.flask(*arguments).exit_code == 0

    def settle(self) -> None:
        """Let all that was deferred happen, and check that then nothing is under way and the books are right."""
        self.free_jobs()
        self.run_jobs()
        with self.looking():
            paying.advance()
        self.run_jobs()
        self.reconcile()
        self.check_books()

    def check_books(self) -> None:
        """Check that the ledger is right, that nothing is under way, and that the provider has done what we say."""
        assert self._succeeds("ledger", "verify")
        with self.looking():
            assert _ours() == _theirs()
            assert _waiting() == (0, 0, 0, 0)


def _waiting() -> tuple[int, ...]:
    """Count the operations whose outcome is unknown, and the keys and events that nobody has ended."""
    counts = (
        select(Payment.id).where(Payment.pending_operation.is_not(None)),
        select(IdempotencyKey.key).where(IdempotencyKey.state != State.COMPLETED),
        select(WebhookEvent.id).where(WebhookEvent.status != EventStatus.PROCESSED),
        select(SandboxEvent.id).where(SandboxEvent.delivered_at.is_(None)),
    )
    return tuple(db.session.scalar(select(func.count()).select_from(rows.subquery())) or 0 for rows in counts)


def _ours() -> dict[object, tuple[object, ...]]:
    """Return each payment and refund by the provider's id, with its amounts, as we have it."""
    payments = select(Payment).where(Payment.status != PaymentStatus.FAILED)
    refunds = select(Refund).where(Refund.status != RefundStatus.FAILED)
    found: dict[object, tuple[object, ...]] = {
        row.provider_ref: (str(row.id), row.status.value, row.amount, row.amount_captured, row.amount_refunded)
        for row in db.session.scalars(payments)
    }
    for row in db.session.scalars(refunds):
        found[row.provider_ref] = (str(row.id), row.status.value, row.amount)
    return found


def _theirs() -> dict[object, tuple[object, ...]]:
    """Return the same as the provider has it; what failed never reached it."""
    found: dict[object, tuple[object, ...]] = {
        row.id: _intent(row) for row in db.session.scalars(select(SandboxIntent))
    }
    for row in db.session.scalars(select(SandboxRefund)):
        found[row.id] = (row.wire["metadata"]["refund_id"], row.wire["status"], row.wire["amount"])
    return found


def _intent(row: SandboxIntent) -> tuple[object, ...]:
    captured = row.wire["amount_received"]
    given_back = captured - row.refundable if captured else 0
    return row.wire["metadata"]["payment_id"], row.wire["status"], row.wire["amount"], captured, given_back
