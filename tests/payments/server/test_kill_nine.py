"""kill -9 of the server at each point of a payment's way: the same request again does all of it, and does it once.

TEST_KILL_ROUNDS is how often at each point, on each database; the 20 of a round take ten seconds. Whether we find out
what became of it or the client does is another in each round, and on each database.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select

from project.database import db
from project.payments.models import Payment, PaymentStatus, Refund
from project.payments.sandbox import browser
from project.security import Role
from tests.conftest import Caller
from tests.payments import paying
from tests.payments.server.crowd import BUSY, LOST, Answer, Client
from tests.payments.server.points import Point, armed
from tests.payments.server.shop import Shop
from tests.servers import AppServer

ROUNDS = int(os.environ.get("TEST_KILL_ROUNDS", "1"))
IN_REQUEST = [
    Point.AFTER_KEY,
    Point.AFTER_ROW,
    Point.BEFORE_CALL,
    Point.AFTER_CALL,
    Point.AFTER_ANSWER,
    Point.AFTER_CLOSING,
]
IN_EVENT = [Point.AFTER_EVENT, Point.WHILE_APPLYING]
# Nothing may be stuck for longer.
SECONDS = 60
PART = 50

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 + 60 * ROUNDS)]


@dataclass(frozen=True)
class Victim:
    """A server whose process dies where it is told to; its master starts another in its place."""

    shop: Shop
    server: AppServer

    @property
    def _file(self) -> Path:
        return armed(Path(self.shop.env["DATA_DIR"]))

    def arm(self, point: Point) -> None:
        """Let the next process die that comes to this point."""
        self._file.write_text(point)

    def is_dead(self) -> bool:
        """Tell whether it has come there."""
        return not self._file.exists()

    def post(self, caller: Caller, path: str, body: Any, *, point: Point, number: int) -> Answer:
        """Send a request whose server dies, and the same again until it is answered."""
        key = f"request-{number}"
        self.arm(point)
        with suppress(*LOST):
            while (answer := self._try(caller, path, body, key)).said == BUSY:
                time.sleep(0.1)
            raise AssertionError((point, answer))
        assert self.is_dead()
        if by_ourselves(self.shop, number):
            self.shop.reconcile()
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            with suppress(*LOST):
                answer = self._try(caller, path, body, key)
                if answer.status not in {202, 409, 503}:
                    return answer
            time.sleep(0.1)
        raise AssertionError(f"killed {point}, the request was not answered again")

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Wait for what a job does; the first request of a process starts those of PostgreSQL."""
        deadline = time.monotonic() + SECONDS
        while not happened():
            assert time.monotonic() < deadline, "it does not happen"
            with suppress(*LOST), closing(Client(self.server.port, {})) as client:
                client.get("/healthz")
            time.sleep(0.1)

    def _try(self, caller: Caller, path: str, body: Any, key: str) -> Answer:
        with closing(Client(self.server.port, caller)) as client:
            return client.post(path, body, key=key)


def by_ourselves(shop: Shop, number: int) -> bool:
    """Tell whether we are to find out what became of something before anybody asks: half of the times at each point."""
    return (number % 4 in {1, 2}) == shop.on_sqlite


@contextmanager
def doomed(shop: Shop) -> Iterator[Victim]:
    """Run a server that dies where it is told to, with one process: made anew by a fork, it is back at once."""
    with shop.deadly_server("--preload", WEB_CONCURRENCY="1") as server:
        yield Victim(shop, server)


def test_a_payment_whose_server_was_killed_is_made_once(shop: Shop) -> None:
    customer = shop.sign_up()
    with shop.looking():
        price_id = str(paying.make_price().id)
    with doomed(shop) as victim:
        for number, point in enumerate(ROUNDS * IN_REQUEST):
            body = {"price_id": price_id, "reference": f"order-{number}"}
            answer = victim.post(customer, "/v1/payments", body, point=point, number=number)
            assert answer.status == 201, (point, answer.body)
            pay(shop, answer.data["client_secret"])
    assert end(shop) == (number + 1, 0)


def test_a_refund_whose_server_was_killed_is_made_once(shop: Shop) -> None:
    staff = shop.sign_up(Role.STAFF)
    with shop.looking():
        payment = paying.paid(price=paying.make_price(unit_amount=len(IN_REQUEST) * ROUNDS * PART))
    path = f"/v1/payments/{payment.id}/refunds"
    with doomed(shop) as victim:
        for number, point in enumerate(ROUNDS * IN_REQUEST):
            answer = victim.post(staff, path, {"amount": PART}, point=point, number=number)
            assert (answer.status, answer.data["status"]) == (201, "succeeded"), (point, answer.body)
    assert end(shop) == (1, number + 1)
    with shop.looking():
        assert paying.get(payment).amount_refunded == (number + 1) * PART


def test_a_capture_whose_server_was_killed_is_made_once(shop: Shop) -> None:
    staff = shop.sign_up(Role.STAFF)
    with doomed(shop) as victim:
        for number, point in enumerate(ROUNDS * IN_REQUEST):
            with shop.looking():
                path = f"/v1/payments/{paying.paid(manual=True).id}/capture"
            answer = victim.post(staff, path, {"amount": PART}, point=point, number=number)
            assert (answer.status, answer.data["amount_captured"]) == (200, PART), (point, answer.body)
    assert end(shop) == (number + 1, 0)


def test_an_event_whose_server_was_killed_is_applied_once(shop: Shop) -> None:
    customer = shop.sign_up()
    with doomed(shop) as victim:
        for number, point in enumerate(ROUNDS * IN_EVENT):
            with shop.looking():
                payment = paying.make_payment(customer.user)
            shop.run_jobs()
            victim.arm(point)
            with shop.looking():
                paying.pay(payment)
            victim.wait_until(victim.is_dead)
            if by_ourselves(shop, number):
                shop.reconcile()
            else:
                shop.free_jobs()
            victim.wait_until(partial(is_paid, shop, payment.id))
    assert end(shop) == (number + 1, 0)


def pay(shop: Shop, client_secret: str) -> None:
    """Pay as the customer's browser does."""
    with shop.looking():
        browser.confirm(client_secret.partition("_secret_")[0], client_secret=client_secret, payment_method=paying.VISA)


def is_paid(shop: Shop, payment_id: UUID) -> bool:
    """Tell whether we know that a payment was made."""
    with shop.looking():
        status = db.session.scalars(select(Payment.status).where(Payment.id == payment_id)).one()
    return status is PaymentStatus.SUCCEEDED


def end(shop: Shop) -> tuple[int, int]:
    """Check that all is done and paid, and count the payments and refunds, which the provider has as well."""
    shop.settle()
    with shop.looking():
        assert set(db.session.scalars(select(Payment.status))) == {PaymentStatus.SUCCEEDED}
        counts = [db.session.scalar(select(func.count()).select_from(model)) or 0 for model in (Payment, Refund)]
        return counts[0], counts[1]
