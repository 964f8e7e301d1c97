"""Payments as a machine that Hypothesis drives: customers, staff, the provider, its events, faults and time.

Each rule is something that somebody does, at the level of the services. After each, what is always true is checked,
and once everything is settled, our rows against the provider's. The clock is moved, so that nobody waits.
"""

import random
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, TypeVar
from uuid import UUID

import stripe
import time_machine
from flask import Flask
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, initialize, invariant, multiple, rule
from sqlalchemy import select, text

from project import jobs
from project.config import settings as app_settings
from project.database import db, give_back, transaction, utcnow
from project.errors import AppError
from project.payments import inbox, operations, reconcile, refunds, service
from project.payments.gateway import current_gateway
from project.payments.gateway_types import KEYS_LIVE, DisputeSnapshot, GatewayError, PaymentSnapshot, RefundSnapshot
from project.payments.journal import WebhookEvent
from project.payments.models import CaptureMethod, Payment, Refund
from project.payments.sandbox import browser, clock, delivery, disputes, faults, intents, keys
from project.payments.sandbox import refunds as sandbox_refunds
from project.payments.sandbox.errors import WireError
from project.payments.sandbox.methods import METHODS
from project.payments.sandbox.models import SandboxDispute, SandboxEvent, SandboxIntent
from project.payments.snapshots import apply_dispute, apply_payment, apply_refund
from project.security import Role
from project.users import service as users
from project.users.models import User
from tests.factories import make_user
from tests.payments import paying
from tests.payments.truths import check_against_provider, check_always

# Half of them succeed at once; else few payments would come so far that much can happen to them.
SUCCEEDING = ["pm_card_visa", "pm_card_pendingRefund", "pm_card_refundFail", "pm_card_createDispute"]
METHOD_NAMES = st.one_of(st.sampled_from(SUCCEEDING), st.sampled_from(sorted(METHODS)))
NEW = st.fixed_dictionaries(
    {
        "owner": st.integers(0, 1),
        "price": st.integers(0, 1),
        "amount": st.integers(40, 3000),
        "manual": st.booleans(),
        "reference": st.sampled_from([None, None, "order"]),
    }
)
DASHBOARD = ["refund", "refund", "capture", "cancel", "win", "lose"]
OPERATIONS = ["refund", "refund", "capture", "cancel"]
PARTS = st.sampled_from(["all", "some", "too much"])
SEEDS = st.integers(0, 20)
WAITS = [timedelta(seconds=10), timedelta(minutes=10), timedelta(hours=25), timedelta(days=3), timedelta(days=8)]
# The errors that a service may tell somebody. Anything else is a defect.
TOLD = (AppError, GatewayError)

T = TypeVar("T")
Snapshot = PaymentSnapshot | RefundSnapshot | DisputeSnapshot


class PaymentsMachine(RuleBasedStateMachine):
    """A shop with two customers and one member of staff, on an empty database."""

    open_app: ClassVar[Callable[[], Flask]]
    seen: ClassVar[Counter[str]] = Counter()

    payments: Bundle[UUID] = Bundle("payments")
    snapshots: Bundle[Snapshot] = Bundle("snapshots")

    def __init__(self) -> None:
        super().__init__()
        self.app = type(self).open_app()
        self.context = self.app.app_context()
        self.context.push()
        self.travel = time_machine.travel(datetime.now(UTC), tick=True)
        self.time = self.travel.start()
        self.staff = make_user(role=Role.STAFF).id
        self.owners = [make_user().id, make_user().id]
        self.prices = [paying.make_price(currency=code, min_amount=1, max_amount=10_000).id for code in ("USD", "JPY")]

    def teardown(self) -> None:
        """Settle everything at the end as well, unless something is wrong already."""
        try:
            if sys.exc_info()[0] is None:
                self.settle()
                check_always()
        finally:
            db.session.remove()
            self.travel.stop()
            self.context.pop()

    @invariant()
    def what_is_always_true(self) -> None:
        """Check it, with nothing of the step left in the session."""
        db.session.remove()
        check_always()
        db.session.remove()
        self.seen["steps"] += 1

    # --- the customer ---------------------------------------------------------------------------------------

    @initialize(target=payments, method=st.sampled_from(SUCCEEDING), new=NEW)
    def begin(self, method: str, new: dict[str, Any]) -> UUID | MultipleResults[UUID]:
        """Begin with a payment that was made, or authorised."""
        return self.buy(method, new)

    @rule(target=payments, new=NEW)
    def create(self, new: dict[str, Any]) -> UUID | MultipleResults[UUID]:
        """Make a payment; of one that the provider did not answer to, the row is there as well."""
        before = self.ids()
        try:
            made = service.create_payment(
                user_id=self.owners[new["owner"]],
                price_id=self.prices[new["price"]],
                amount=new["amount"],
                reference=new["reference"],
                capture_method=CaptureMethod.MANUAL if new["manual"] else CaptureMethod.AUTOMATIC,
            )
        except service.PaymentExists as error:
            return UUID(error.extra["payment_id"])
        except TOLD:
            return multiple(*(self.ids() - before))
        return made.id

    @rule(target=payments, method=METHOD_NAMES, new=NEW)
    def buy(self, method: str, new: dict[str, Any]) -> UUID | MultipleResults[UUID]:
        """Make a payment, confirm it, and let the events come."""
        made = self.create(new)
        if isinstance(made, UUID):
            self.confirm(made, method)
            self.run_jobs()
        return made

    @rule(payment=payments, method=METHOD_NAMES, outcome=st.sampled_from([None, "approve", "fail"]))
    def confirm(self, payment: UUID, method: str, outcome: Any = None) -> None:
        """Pay in the browser; where the bank asks for it, approve, fail to, or go away."""
        ref = self.row(payment).provider_ref
        if ref is None:
            return
        secret = service.fetch_client_secret(payment)
        confirmed = self.attempt(browser.confirm, ref, client_secret=secret, payment_method=method)
        if outcome and confirmed and confirmed.status == "requires_action":
            self.attempt(browser.authenticate, ref, client_secret=secret, outcome=outcome)

    @rule(payment=payments)
    def test_stolen_cards(self, payment: UUID) -> None:
        """Try so many cards that the payment is given up."""
        for _ in range(app_settings.payments.max_attempts):
            if self.row(payment).status.final:
                break
            self.confirm(payment, "pm_card_chargeDeclinedIncorrectCvc")

    @rule(payment=payments, how=st.sampled_from(["sync", "client secret", "same key"]))
    def come_back(self, payment: UUID, how: str) -> None:
        """Look at the provider, go on with a payment, or send again what had no answer, with the same key."""
        row = self.row(payment)
        if how == "sync":
            self.attempt(service.update_from_provider, row, actor="user")
        elif how == "client secret" and row.user_id is not None:
            self.attempt(service.get_client_secret, payment, user_id=row.user_id)
        else:
            self.attempt(service.resume_payment, payment)
            self.attempt(operations.resume_capture, payment)
            self.attempt(operations.resume_cancel, payment)
            # Our keys live no longer than the provider's.
            young = (Refund.payment_id == payment, Refund.created_at > utcnow() - KEYS_LIVE)
            for refund in db.session.scalars(select(Refund.id).where(*young)).all():
                self.attempt(refunds.resume_refund, refund)

    @rule(payment=payments, who=st.sampled_from(["owner", "staff"]))
    def cancel(self, payment: UUID, who: str) -> None:
        """Cancel, as the owner or as staff."""
        user_id = self.staff if who == "staff" else self.row(payment).user_id
        if user_id is not None:
            account = db.session.scalars(select(User).where(User.id == user_id)).one()
            self.attempt(operations.cancel_payment, payment, caller=paying.caller(account))

    @rule(owner=st.integers(0, 1))
    def leave(self, owner: int) -> None:
        """Erase an account; somebody else comes."""
        users.erase_user(self.owners[owner], actor_id=None)
        self.owners[owner] = make_user().id

    # --- staff, here and at the provider --------------------------------------------------------------------

    @rule(payment=payments, part=PARTS)
    def capture(self, payment: UUID, part: str) -> None:
        """Take what was authorised, a part of it, or more, which is refused."""
        capturable = self.row(payment).amount_capturable
        amount = part_of(capturable, part)
        done = self.attempt(operations.capture_payment, payment, staff_id=self.staff, amount=amount)
        assert part != "too much" or not done

    @rule(payment=payments, part=PARTS)
    def refund(self, payment: UUID, part: str) -> None:
        """Give back what is left, a part of it, or more, which is refused."""
        amount = part_of(self.row(payment).amount_refundable, part)
        done = self.attempt(refunds.create_refund, payment, staff_id=self.staff, amount=amount)
        assert part != "too much" or not done

    @rule(payment=payments, what=st.sampled_from(DASHBOARD), part=st.sampled_from(["all", "some"]))
    def use_the_dashboard(self, payment: UUID, what: str, part: str) -> None:
        """Do it at the provider, or let the bank decide there, which tells us by an event."""
        ref = self.row(payment).provider_ref
        if ref is None:
            return
        intent = db.session.scalars(select(SandboxIntent).where(SandboxIntent.id == ref)).one()
        if what == "refund":
            part_of_it = {"amount": part_of(intent.refundable, part)} if part == "some" else {}
            self.at_provider(sandbox_refunds.create, {"payment_intent": intent.id, **part_of_it})
        elif what == "capture":
            amount = part_of(intent.wire["amount_capturable"], part)
            self.at_provider(intents.capture, intent.id, {"amount_to_capture": amount} if amount else {})
        elif what == "cancel":
            self.at_provider(intents.cancel, intent.id, {})
        else:
            for ref in db.session.scalars(select(SandboxDispute.id).where(SandboxDispute.intent_id == intent.id)).all():
                disputes.decide(ref, won=what == "win")

    # --- events ---------------------------------------------------------------------------------------------

    @rule(order=st.sampled_from(["by the route", "as made", "backwards", "shuffled", "again"]), seed=SEEDS)
    def deliver(self, order: str, seed: int) -> None:
        """Deliver what waits, in any order and some of it twice, or again what came before, and act on it."""
        chance = random.Random(seed)
        if order == "by the route":
            self.run_jobs()
            return
        events = self.events(delivered=order == "again")
        if order == "backwards":
            events.reverse()
        elif order in {"shuffled", "again"}:
            events = chance.choices(events, k=len(events)) + events if order == "shuffled" else events[-seed:]
            chance.shuffle(events)
        self.take(events)

    @rule(seed=SEEDS)
    def lose_events(self, seed: int) -> None:
        """Lose some of what waits."""
        chance = random.Random(seed)
        with transaction():
            for event in self.events(delivered=False):
                if chance.random() < 0.5:
                    event.delivered_at = utcnow()
                    self.seen["events lost"] += 1

    @rule(target=snapshots, payment=payments)
    def look(self, payment: UUID) -> MultipleResults[Snapshot]:
        """Look at the provider as a slow worker does, whose news will be old when it writes them."""
        return multiple(*self.at_the_provider(payment))

    @rule(
        payment=payments, method=METHOD_NAMES, what=st.sampled_from([*OPERATIONS, *DASHBOARD, *["confirm"] * 4, "wait"])
    )
    def be_overtaken(self, payment: UUID, method: str, what: str) -> None:
        """Look at the provider and write it down only when more has happened."""
        seen = self.at_the_provider(payment)
        if what == "confirm":
            self.confirm(payment, method, "approve")
        elif what == "wait":
            self.wait(timedelta(minutes=10))
        elif what in OPERATIONS:
            self.fail_while(payment, None, what, "all")
        else:
            self.use_the_dashboard(payment, what, "all")
        self.run_jobs()
        for snapshot in seen:
            self.write_old_news(snapshot)

    @rule(snapshot=snapshots)
    def write_old_news(self, snapshot: Snapshot) -> None:
        """Apply what was seen before, whatever has happened since."""
        if isinstance(snapshot, PaymentSnapshot):
            assert snapshot.payment_id is not None
            self.attempt(apply_payment, snapshot.payment_id, snapshot, actor="webhook:late")
        elif isinstance(snapshot, RefundSnapshot):
            self.attempt(apply_refund, snapshot, actor="webhook:late")
        else:
            self.attempt(apply_dispute, snapshot, actor="webhook:late")

    # --- what goes wrong, time, and what puts it right ------------------------------------------------------

    @rule(
        payment=payments,
        fault=st.sampled_from(sorted(faults.CALL_FAULTS)),
        what=st.sampled_from(OPERATIONS),
        part=PARTS,
    )
    def fail_while(self, payment: UUID, fault: faults.Fault | None, what: str, part: str) -> None:
        """Let the provider fail with just this."""
        if fault:
            faults.set_fault(fault, count=1)
        if what == "cancel":
            self.cancel(payment, "staff")
        elif what == "capture":
            self.capture(payment, part)
        else:
            self.refund(payment, part)
        if fault:
            faults.set_fault(fault, count=0)

    @rule(fault=st.sampled_from(sorted(faults.Fault)), count=st.integers(1, 3))
    def fail(self, fault: faults.Fault, count: int) -> None:
        """Let the next calls or events go wrong."""
        faults.set_fault(fault, count=count)

    @rule(wait=st.sampled_from(WAITS))
    def wait(self, wait: timedelta) -> None:
        """Let time pass, and what happens in it."""
        self.time.shift(wait)
        keys.purge()
        clock.happen()

    @rule(settled=st.sampled_from([timedelta(seconds=-1), reconcile.SETTLED]))
    def reconcile(self, settled: timedelta) -> None:
        """Find out what became of what is not known."""
        reconcile.reconcile(settled=settled)

    def settle(self) -> None:
        """End all faults, let happen what is under way, and be reconciled: then the provider has what we have."""
        for fault in faults.Fault:
            faults.set_fault(fault, count=0)
        # What is made at the provider in the first round is told of by an event in the second, and as young as that it
        # is left alone until the third.
        for _ in range(3):
            self.time.shift(timedelta(hours=1, minutes=1))
            clock.happen()
            self.run_jobs()
            # Further back than by itself: what happened to an older payment and was not told is found only so.
            reconcile.reconcile(since=timedelta(days=365))
        db.session.remove()
        check_against_provider()
        self.seen["settled"] += 1

    # --- helpers --------------------------------------------------------------------------------------------

    def attempt(self, action: Callable[..., T], *args: Any, **values: Any) -> T | None:
        """Do something that may be refused; return what came of it, or None."""
        name = f"{action.__module__.removeprefix('project.')}.{action.__name__}"
        try:
            result = action(*args, **values)
        except TOLD as error:
            self.seen[f"{name}: {type(error).__name__}"] += 1
            return None
        self.seen[name] += 1
        return result

    def at_provider(self, action: Callable[..., Any], *args: Any) -> None:
        """Do something at the provider itself."""
        try:
            with transaction():
                action(*args)
        except WireError:
            self.seen["dashboard: refused"] += 1
        else:
            self.seen[f"dashboard: {action.__module__.rpartition('.')[2]}.{action.__name__}"] += 1

    def take(self, events: list[SandboxEvent]) -> None:
        """Take events as the route does, and act on them as the job does."""
        gateway = current_gateway()
        for event in events:
            secret = delivery.signing_secret()
            header = stripe.WebhookSignature.generate_signature_header(event.payload, secret)
            known = gateway.parse_webhook(event.payload.encode(), header, secrets=[secret], now=utcnow())
            inbox.receive(known, event.payload, provider="sandbox")
            with transaction():
                event.delivered_at = utcnow()
        give_back()
        for row in db.session.scalars(select(WebhookEvent.id).where(WebhookEvent.status == "received")).all():
            self.attempt(inbox.process, event_id=str(row))

    def run_jobs(self) -> None:
        """Run what is due, the delivery of events by their route included."""
        if db.engine.dialect.name == "postgresql":
            # The database goes by a clock that was not moved.
            due = text(
                "UPDATE procrastinate_jobs SET scheduled_at = NULL WHERE status = 'todo' AND scheduled_at <= :now"
            )
            with transaction():
                db.session.execute(due, {"now": utcnow()})
        give_back()
        self.attempt(jobs.run_pending, self.app)

    @staticmethod
    def events(*, delivered: bool) -> list[SandboxEvent]:
        """The events that were delivered, or not, in the order of their making."""
        state = SandboxEvent.delivered_at.is_not(None) if delivered else SandboxEvent.delivered_at.is_(None)
        return list(db.session.scalars(select(SandboxEvent).where(state).order_by(SandboxEvent.id)).all())

    def at_the_provider(self, payment: UUID) -> list[Snapshot]:
        """What the provider has of a payment, its refunds and its disputes."""
        ref = self.row(payment).provider_ref
        if ref is None:
            return []
        disputed = list(db.session.scalars(select(SandboxDispute.id).where(SandboxDispute.intent_id == ref)).all())
        gateway = current_gateway()
        give_back()
        disputes_seen = [gateway.retrieve_dispute(dispute) for dispute in disputed]
        return [gateway.retrieve_payment(ref), *gateway.list_refunds(ref), *disputes_seen]

    @staticmethod
    def ids() -> set[UUID]:
        """All payments."""
        return set(db.session.scalars(select(Payment.id)).all())

    @staticmethod
    def row(payment: UUID) -> Payment:
        """A payment as it is in the database."""
        return db.session.scalars(select(Payment).where(Payment.id == payment)).one()


def part_of(amount: int, part: str) -> int | None:
    """Return what to ask for: None for all that is there."""
    return {"all": None, "some": amount // 3 + 1, "too much": amount + 1}[part]
