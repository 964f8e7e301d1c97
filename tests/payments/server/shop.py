"""An application in which is paid, on a database that a test has to itself, and what holds of it when all is quiet."""

from dataclasses import dataclass

from sqlalchemy import func, select

from project import jobs
from project.database import db
from project.payments import ledger_check
from project.payments.models import Payment, PaymentStatus, Refund, RefundStatus
from project.payments.sandbox.models import SandboxIntent, SandboxRefund
from project.security import Role
from tests.conftest import Caller
from tests.factories import make_user
from tests.files.server.site import Site


@dataclass(frozen=True)
class Shop(Site):
    """An application on a migrated database, whose provider is the sandbox in the same database."""

    @property
    def on_sqlite(self) -> bool:
        """True on SQLite, where one process serves and runs the jobs too."""
        return "DATABASE_URL" not in self.env

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

    def check_books(self) -> None:
        """Check that the ledger is right, that nothing is under way, and that the provider has done what we say."""
        with self.looking():
            assert ledger_check.verify() == []
            assert _ours() == _theirs()
            assert not db.session.scalar(select(func.count()).where(Payment.pending_operation.is_not(None)))


def _ours() -> dict[str | None, tuple[object, ...]]:
    """Return each payment and refund by the provider's id, with its amounts, as we have it."""
    payments = select(Payment).where(Payment.status != PaymentStatus.FAILED)
    refunds = select(Refund).where(Refund.status != RefundStatus.FAILED)
    return {
        row.provider_ref: (str(row.id), row.status.value, row.amount, row.amount_captured, row.amount_refunded)
        for row in db.session.scalars(payments)
    } | {row.provider_ref: (str(row.id), row.status.value, row.amount) for row in db.session.scalars(refunds)}


def _theirs() -> dict[str | None, tuple[object, ...]]:
    """Return the same as the provider has it; what failed never reached it."""
    return {row.id: _intent(row) for row in db.session.scalars(select(SandboxIntent))} | {
        row.id: (row.wire["metadata"]["refund_id"], row.wire["status"], row.wire["amount"])
        for row in db.session.scalars(select(SandboxRefund))
    }


def _intent(row: SandboxIntent) -> tuple[object, ...]:
    captured = row.wire["amount_received"]
    given_back = captured - row.refundable if captured else 0
    return row.wire["metadata"]["payment_id"], row.wire["status"], row.wire["amount"], captured, given_back
