"""A worker that is killed again and again: every job is done, and what it does is done once."""

import email
import os
import signal
from collections import Counter
from threading import Thread

import psycopg
import pytest
import requests
from sqlalchemy.engine import make_url

from tests.http.client import PASSWORD, Account, Api, eventually, log_in, new_address
from tests.http.payments import make_payment
from tests.stack.running import RunningStack

# Of each kind: registrations, invitations, payments, deleted files. Payments make several jobs each.
JOBS = int(os.environ.get("TEST_KILL_JOBS", "25"))
KILLS = int(os.environ.get("TEST_KILL_ROUNDS", "3"))
# Beyond the time after which a worker that says nothing is held for dead, and its jobs run again.
SECONDS = 60


class Killing:
    """Kills the worker of a stack again and again, each time soon after it has begun to work."""

    def __init__(self, stack: RunningStack) -> None:
        self._stack = stack
        self.kills = 0

    def __enter__(self) -> "Killing":
        self._thread = Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def _run(self) -> None:
        for _ in range(KILLS):
            self._kill()

    def _kill(self) -> None:
        log = self._stack.folder / "logs" / "worker.log"
        done, pid = log.read_text().count('"job_done"'), self._stack.pids["worker"]
        eventually(lambda: log.read_text().count('"job_done"') > done + 5 or None, "jobs run", seconds=SECONDS)
        os.kill(pid, signal.SIGKILL)
        self.kills += 1
        eventually(lambda: self._stack.pids["worker"] != pid or None, "it was started again", seconds=SECONDS)


def new_mails(stack: RunningStack, before: set[str]) -> Counter[tuple[str, str]]:
    """Count the mails since then by template and recipient."""
    paths = [path for path in (stack.folder / "outbox").glob("*.eml") if path.name not in before]
    return Counter((path.name.split("-")[1], email.message_from_bytes(path.read_bytes())["To"]) for path in paths)


def register(stack: RunningStack, address: str, number: int) -> None:
    """Register from a network of its own: strangers are counted."""
    answer = requests.post(
        f"{stack.servers[number % 2]}/v1/auth/register",
        json={"email": address, "password": PASSWORD},
        headers={"X-Forwarded-For": f"203.0.113.{number}"},
        timeout=20,
    )
    assert answer.status_code == 202, answer.text


def invite(admin: Account, address: str) -> None:
    answer = admin.api.post("/v1/users", json={"email": address, "role": "user"})
    assert answer.status_code == 201, answer.text


def buy(admin: Account, price: str) -> str:
    """Pay in the sandbox, which tells of it by webhooks, and return the id of the payment."""
    payment = make_payment(admin, price)
    secret = payment["client_secret"]
    path = f"/v1/sandbox/payment-intents/{secret.partition('_secret_')[0]}/confirm"
    admin.api.post(path, token=None, json={"client_secret": secret, "payment_method": "pm_card_visa"})
    return str(payment["id"])


def upload_and_delete(admin: Account) -> str:
    answer = admin.api.post("/v1/files", files={"file": ("some.bin", b"x" * 1000)})
    assert answer.status_code == 201, answer.text
    file_id = str(answer.json()["data"]["id"])
    assert admin.api.delete(f"/v1/files/{file_id}").status_code == 204
    return file_id


def jobs_left(stack: RunningStack) -> int:
    """How many jobs wait, run or were given up."""
    url = make_url(stack.env["DATABASE_URL"]).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM procrastinate_jobs WHERE queue_name = 'default'").fetchone()
    assert row
    return int(row[0])


@pytest.fixture
def buyer(stack: RunningStack) -> Account:
    """An administrator of this test alone: others count what theirs has paid."""
    address = new_address()
    stack.flask("users", "create-admin", address, "--password-stdin", entered=PASSWORD)
    return log_in(Api(stack.url), address)


@pytest.mark.timeout(300)
def test_a_worker_that_is_killed_does_each_job_and_each_once(stack, buyer, price):
    before = {path.name for path in (stack.folder / "outbox").glob("*.eml")}
    used = buyer.api.get("/v1/files/usage").json()["data"]["used"]
    registered, invited = [[new_address() for _ in range(JOBS)] for _ in range(2)]
    payments, deleted = [], []
    with Killing(stack) as killing:
        for number in range(JOBS):
            register(stack, registered[number], number)
            invite(buyer, invited[number])
            payments.append(buy(buyer, price))
            deleted.append(upload_and_delete(buyer))
    assert killing.kills == KILLS
    eventually(lambda: jobs_left(stack) == 0 or None, "all jobs are done", seconds=SECONDS)

    mails = {("verify_email", address): 1 for address in registered} | {
        ("invitation", address): 1 for address in invited
    }
    assert new_mails(stack, before) == {**mails, ("receipt", buyer.email): JOBS}
    states = {buyer.api.get(f"/v1/payments/{payment}").json()["data"]["status"] for payment in payments}
    assert states == {"succeeded"}
    assert "The books agree" in stack.flask("ledger", "verify")
    assert buyer.api.get("/v1/files/usage").json()["data"]["used"] == used
    assert {buyer.api.get(f"/v1/files/{file_id}").status_code for file_id in deleted} == {404}
    stack.flask("files", "verify")
