"""The production topology as clients and operators meet it: nginx, two servers of two processes, and what is shared."""

import os
import re
import signal
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
import requests

from project.errors import REGISTRY
from tests.http.client import MEMBERS, Account, Api, eventually, log_in
from tests.servers.app import INHERITED, ROOT
from tests.stack.conftest import ANONYMOUS
from tests.stack.running import COMMAND, run_stack

PROBLEMS = ROOT / "deploy" / "nginx" / "problems.conf"


def get(url: str, headers: dict[str, str] | None = None) -> requests.Response:
    return requests.get(url, headers=headers, timeout=20, allow_redirects=False)


# --- what nginx says by itself ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [
        ("/healthz", {"Host": "evil.example"}, 400, "bad_request"),
        ("/v1/prices", {"Host": "localhost.evil.example"}, 400, "bad_request"),
        ("/metrics", {}, 404, "not_found"),
        ("/" + "a" * 9000, {}, 414, "uri_too_long"),
        ("/healthz", {"X-Long": "a" * 40_000}, 431, "headers_too_large"),
        ("/%00", {}, 400, "bad_request"),
    ],
)
def test_nginx_answers_with_problems(stack, path, headers, status, code):
    answer = get(stack.url + path, headers=headers)
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
    body = answer.json()
    assert set(body) == MEMBERS - {"instance"}
    assert (body["code"], body["status"], body["request_id"]) == (code, status, answer.headers["X-Request-ID"])
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert not re.search("[0-9]", answer.headers["Server"])


def test_a_body_beyond_the_bound_is_refused_by_a_problem(stack):
    answer = requests.post(f"{stack.url}/v1/auth/login", data=bytes(1_200_000), timeout=20)
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")


def test_the_problems_of_nginx_are_those_of_the_registry():
    found = re.findall(
        r'return (\d+) \'\{"type":"/errors#(\w+)","title":"([^"]+)","status":(\d+)', PROBLEMS.read_text()
    )
    assert len(found) == 12
    for status, code, title, told in found:
        assert (REGISTRY[code].status, REGISTRY[code].title) == (int(status), title)
        assert status == told


# --- what a client claims of itself ----------------------------------------------------------------------------------


def test_an_address_that_a_client_claims_is_not_counted_as_another(stack):
    def ask(number: int) -> int:
        claims = {
            "X-Forwarded-For": f"203.0.{number // 250}.{number % 250}",
            "X-Real-IP": f"203.0.{number // 250}.{number % 250}",
            "Forwarded": "for=_x",
        }
        return requests.post(
            f"{stack.url}/v1/auth/verify-email", json={"token": "x"}, headers=claims, timeout=20
        ).status_code

    with ThreadPoolExecutor(16) as pool:
        answers = Counter(pool.map(ask, range(ANONYMOUS + 60)))
    # So many over all four processes, exactly.
    assert answers == {400: ANONYMOUS, 429: 60}


def test_a_scheme_and_a_host_that_a_client_claims_are_not_believed(stack, admin):
    claims = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example", "X-Forwarded-Prefix": "/evil"}
    answer = get(f"{stack.url}/v1/prices?limit=1", headers=claims)
    assert answer.status_code == 200
    assert "Strict-Transport-Security" not in answer.headers
    assert "evil" not in str(answer.headers) + answer.text
    requests.post(f"{stack.url}/v1/auth/forgot-password", json={"email": admin.email}, headers=claims, timeout=20)
    outbox = stack.folder / "outbox"
    mail = eventually(lambda: next(iter(outbox.glob("*reset_password*.eml")), None), "the mail was written")
    assert "evil" not in mail.read_text()


# --- two servers, one truth ------------------------------------------------------------------------------------------


def test_the_settings_of_the_stack_are_those_of_its_commands(stack, admin):
    assert admin.email in stack.flask("users", "list")
    assert "The books agree" in stack.flask("ledger", "verify")
    assert stack.env["APP_ENV"] == "production"
    assert (stack.folder / "stack.env").stat().st_mode & 0o077 == 0


def test_a_session_that_ends_at_one_server_is_over_at_the_other(stack, admin):
    one, other = stack.servers
    session = log_in(Api(one), admin.email)
    assert get(f"{other}/v1/users/me", headers=bearer(session)).status_code == 200
    assert requests.post(f"{one}/v1/auth/logout", headers=bearer(session), timeout=20).status_code == 204
    assert get(f"{other}/v1/users/me", headers=bearer(session)).status_code == 401


def test_one_key_sent_to_both_servers_at_once_is_one_payment(stack, admin, price):
    headers = bearer(admin) | {"Idempotency-Key": str(uuid4())}

    def buy(number: int) -> tuple[int, str]:
        server = stack.servers[number % 2]
        answer = requests.post(f"{server}/v1/payments", json={"price_id": price}, headers=headers, timeout=30)
        body = answer.json()
        return answer.status_code, body["data"]["id"] if "data" in body else body["code"]

    with ThreadPoolExecutor(16) as pool:
        answers = set(pool.map(buy, range(32)))
    made = {found for status, found in answers if status == 201}
    assert len(made) == 1
    assert {found for status, found in answers if status != 201} <= {"idempotency_in_progress"}
    listed = admin.api.get("/v1/payments?include_total=true&limit=1").json()
    assert listed["meta"]["total"] == 1


def bearer(account: Account) -> dict[str, str]:
    return {"Authorization": f"Bearer {account.access_token}"}


@pytest.mark.parametrize("part", ["postgresql", "valkey", "worker", "nginx"])
def test_a_part_that_is_killed_is_started_again_with_what_it_had(stack, admin, part):
    before = stack.pids[part]
    os.kill(before, signal.SIGKILL)
    eventually(lambda: stack.pids[part] != before or None, f"{part} was started again", seconds=60)

    eventually(lambda: answers(f"{stack.url}/readyz") or None, "all is well again", seconds=60)
    assert get(f"{stack.url}/v1/users/me", headers=bearer(admin)).status_code == 200


def answers(url: str) -> bool:
    try:
        return get(url).ok
    except requests.ConnectionError:
        return False


# --- starting and stopping -------------------------------------------------------------------------------------------


def test_ctrl_c_stops_it_with_all_its_parts():
    # On SIGTERM each stack of these tests does (run_stack).
    with run_stack() as stack:
        stack.process.send_signal(signal.SIGINT)
        assert stack.process.wait(60) == 0


def test_a_port_that_is_taken_is_named(stack):
    port = stack.url.rpartition(":")[2]
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    env = {**inherited, "PORT": port, "DATA_DIR": str(stack.folder / "other")}
    done = subprocess.run(COMMAND, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (1, f"stack: PORT {port} is in use; try another.")
