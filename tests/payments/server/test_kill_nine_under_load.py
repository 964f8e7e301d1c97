"""kill -9 of whole servers while customers buy and staff captures and refunds: what was told holds, and nothing twice.

TEST_KILL_ROUNDS is how often, on each database; a round takes about five seconds.
"""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from random import Random
from threading import Semaphore
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select

from project.database import db
from project.payments.models import Payment, Refund, RefundStatus
from project.security import Role
from tests.conftest import Caller
from tests.files.server.site import SECONDS
from tests.payments import paying
from tests.payments.server.crowd import LOST, Answer, Client
from tests.payments.server.shop import Shop
from tests.servers import AppServer

ROUNDS = int(os.environ.get("TEST_KILL_ROUNDS", "2"))
CLIENTS = 12
AMOUNT = 1000


@dataclass(frozen=True)
class Request:
    """A request with its Idempotency-Key."""

    caller: Caller
    path: str
    body: Any
    key: str = field(default_factory=lambda: str(uuid4()))


@dataclass
class Told:
    """What clients were told, by id, and the requests that nobody has answered."""

    payments: set[str] = field(default_factory=set)
    captured: dict[str, int] = field(default_factory=dict)
    refunds: set[str] = field(default_factory=set)
    unanswered: list[Request] = field(default_factory=list)

    def note(self, request: Request, answer: Answer) -> None:
        """Note what an answer promises."""
        if request.path.endswith("/refunds"):
            self.refunds.add(answer.data["id"])
        elif request.path.endswith("/capture"):
            self.captured[answer.data["id"]] = answer.data["amount_captured"]
        else:
            self.payments.add(answer.data["id"])


@pytest.mark.slow
@pytest.mark.timeout(120 + 60 * ROUNDS)
def test_what_was_told_survives_kill_nine_and_nothing_is_done_twice(shop: Shop) -> None:
    told, unanswered = Told(), 0
    with shop.looking():
        price_id = str(paying.make_price(unit_amount=AMOUNT).id)
    for number in range(ROUNDS):
        customer, staff = shop.sign_up(), shop.sign_up(Role.STAFF)
        with shop.deadly_server(WEB_CONCURRENCY="1" if shop.on_sqlite else "4") as server:
            repeat(server, told)
            use_until_killed(server, [customer, staff], price_id, told, number)
        unanswered += len(told.unanswered)
    # Otherwise nothing was under way when the servers died, and nothing was tried.
    assert unanswered > ROUNDS
    with shop.deadly_server() as server:
        repeat(server, told)
    shop.settle()
    with shop.looking():
        check_told(told)


def use_until_killed(server: AppServer, callers: list[Caller], price_id: str, told: Told, number: int) -> None:
    """Let customers and staff work, and kill all processes of the server after some of its answers."""
    answers = Semaphore(0)
    with ThreadPoolExecutor(CLIENTS) as threads:
        clients = [
            threads.submit(use, server, callers, price_id, told, Random(f"{number}/{client}"), answers)
            for client in range(CLIENTS)
        ]
        for _ in range(Random(number).randint(CLIENTS, 10 * CLIENTS)):
            assert answers.acquire(timeout=SECONDS)
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()
    for client in clients:
        client.result()


def use(
    server: AppServer, callers: list[Caller], price_id: str, told: Told, random: Random, answers: Semaphore
) -> None:
    """Buy one thing after the other until the server is gone; capture what is to be captured, and refund a part."""
    customer, staff = callers
    with suppress(*LOST), closing(Client(server.port, customer)) as buyer, closing(Client(server.port, staff)) as clerk:

        def ask(client: Client, caller: Caller, path: str, **body: Any) -> dict[str, Any]:
            request = Request(caller, path, body)
            told.unanswered.append(request)
            answer = client.post_until_answered(path, body, key=request.key)
            assert answer.status in {200, 201}, answer.body
            told.unanswered.remove(request)
            told.note(request, answer)
            answers.release()
            return answer.data

        while True:
            manual = random.random() < 0.5
            method = "manual" if manual else "automatic"
            payment = ask(buyer, customer, "/v1/payments", price_id=price_id, capture_method=method)
            confirm(buyer, payment["client_secret"])
            path = f"/v1/payments/{payment['id']}"
            assert buyer.get(f"{path}?sync=true").data["status"] == ("requires_capture" if manual else "succeeded")
            if manual:
                ask(clerk, staff, f"{path}/capture", amount=random.randint(AMOUNT // 2, AMOUNT))
            ask(clerk, staff, f"{path}/refunds", amount=random.randint(1, AMOUNT // 2))


def confirm(client: Client, client_secret: str) -> None:
    """Pay as the customer's browser does."""
    body = {"client_secret": client_secret, "payment_method": paying.VISA}
    answer = client.post(f"/v1/sandbox/payment-intents/{client_secret.partition('_secret_')[0]}/confirm", body)
    assert answer.status == 200, answer.body


def repeat(server: AppServer, told: Told) -> None:
    """Send again what was not answered, with the same keys."""
    deadline = time.monotonic() + SECONDS
    while told.unanswered:
        request = told.unanswered[-1]
        with closing(Client(server.port, request.caller)) as client:
            answer = client.post_until_answered(request.path, request.body, key=request.key)
        if answer.status not in {202, 503}:
            assert answer.status in {200, 201}, answer.body
            told.note(request, answer)
            told.unanswered.pop()
        assert time.monotonic() < deadline, "requests stay unanswered"


def check_told(told: Told) -> None:
    """Check that all of what clients were told is so, and that there is nothing else."""
    payments = {str(row.id): row for row in db.session.scalars(select(Payment))}
    assert set(payments) == told.payments
    assert {key: payments[key].amount_captured for key in told.captured} == told.captured
    assert not any(row.needs_review for row in payments.values())
    refunds = {str(row.id): row.status for row in db.session.scalars(select(Refund))}
    assert refunds == dict.fromkeys(told.refunds, RefundStatus.SUCCEEDED)
