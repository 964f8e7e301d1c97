"""Two servers, three processes, one database: what one of them does holds at the other on the very next request."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
from requests import Response

from tests.http.client import NEW_PASSWORD, PASSWORD, Account, Api, Outbox, codes, log_in, new_address, problem
from tests.http.cluster import Cluster, flask
from tests.http.conftest import Start
from tests.http.tokens import claims_of

ROUNDS = 50
Call = Callable[[Api], Response]


@pytest.fixture(scope="module")
def first(cluster: Cluster) -> Api:
    """A client of the first server."""
    return Api(cluster.first.url)


@pytest.fixture(scope="module")
def second(cluster: Cluster) -> Api:
    """A client of the second server."""
    return Api(cluster.second.url)


def at_once(callers: Sequence[Api], call: Call) -> list[Response]:
    """Let each caller, on a connection of its own, make the call at the same moment."""
    barrier = Barrier(len(callers))

    def run(caller: Api) -> Response:
        own = caller.with_token(caller.token)
        own.get("/healthz")
        barrier.wait()
        return call(own)

    with ThreadPoolExecutor(len(callers)) as pool:
        return list(pool.map(run, callers))


def spread(count: int, *callers: Api) -> list[Api]:
    return list(islice(cycle(callers), count))


def statuses(responses: Sequence[Response]) -> Counter[int]:
    return Counter(response.status_code for response in responses)


# --- revocation ------------------------------------------------------------------------------------------------------


def test_signing_out_here_is_signed_out_there(first: Api, second: Api, user: Account) -> None:
    for _ in range(ROUNDS):
        leaving = log_in(first, user.email)
        there = second.with_token(leaving.access_token)
        assert there.get("/v1/users/me").status_code == 200
        assert leaving.api.post("/v1/auth/logout").status_code == 204
        problem(there.get("/v1/users/me"), 401, "session_revoked")
        problem(there.post("/v1/auth/refresh", token=leaving.refresh_token), 401, "session_revoked")
        problem(there.post("/v1/auth/logout"), 401, "session_revoked")


def test_a_session_ended_here_is_ended_there(first: Api, second: Api, user: Account) -> None:
    for _ in range(ROUNDS):
        stolen = log_in(second, user.email)
        session_id = claims_of(stolen.access_token)["sid"]
        assert user.api.at(first.base_url).delete(f"/v1/auth/sessions/{session_id}").status_code == 204
        problem(stolen.api.get("/v1/users/me"), 401, "session_revoked")


def test_deactivated_here_is_out_there(
    first: Api, admin: Account, second: Api, new_user: Callable[[], Account]
) -> None:
    account = new_user()
    path = f"/v1/users/{account.id}"
    here = admin.api.at(first.base_url)
    for _ in range(ROUNDS):
        there = log_in(second, account.email)
        assert here.patch(path, json={"is_active": False}).status_code == 200
        problem(there.api.get("/v1/users/me"), 401, "session_revoked")
        assert here.patch(path, json={"is_active": True}).status_code == 200
        problem(there.api.get("/v1/users/me"), 401, "session_revoked")


def test_a_role_given_or_taken_here_counts_there(
    first: Api, admin: Account, second: Api, new_user: Callable[[], Account]
) -> None:
    account = new_user()
    here, there = admin.api.at(first.base_url), account.api.at(second.base_url)
    for _ in range(ROUNDS):
        for role, status in (("staff", 200), ("user", 403)):
            assert here.patch(f"/v1/users/{account.id}", json={"role": role}).status_code == 200
            assert there.get("/v1/users").status_code == status


# --- refresh tokens --------------------------------------------------------------------------------------------------


def test_fifty_refreshes_at_once_get_the_identical_successor(
    first: Api, second: Api, new_user: Callable[[], Account]
) -> None:
    account = new_user()
    callers = spread(50, *(api.with_token(account.refresh_token) for api in (first, second)))
    responses = at_once(callers, lambda api: api.post("/v1/auth/refresh"))
    assert statuses(responses) == {200: 50}
    answers = [response.json()["data"] for response in responses]
    successors = {answer["refresh_token"] for answer in answers}
    assert len(successors) == 1
    for answer in answers:
        assert first.get("/v1/users/me", token=answer["access_token"]).status_code == 200
    sessions = second.get("/v1/auth/sessions?include_total=true", token=account.access_token).json()
    assert sessions["meta"]["total"] == 1
    assert second.post("/v1/auth/refresh", token=successors.pop()).status_code == 200


def test_a_refresh_token_replaced_twice_ends_its_session_everywhere_and_no_other(
    first: Api, second: Api, new_user: Callable[[], Account], admin: Account
) -> None:
    account = new_user()
    other = log_in(second, account.email)
    newer = first.post("/v1/auth/refresh", token=account.refresh_token).json()["data"]
    newest = second.post("/v1/auth/refresh", token=newer["refresh_token"]).json()["data"]
    problem(first.post("/v1/auth/refresh", token=account.refresh_token), 401, "token_reused")
    for server in (first, second):
        for token in (account.access_token, newer["access_token"], newest["access_token"]):
            problem(server.get("/v1/users/me", token=token), 401, "session_revoked")
        problem(server.post("/v1/auth/refresh", token=newest["refresh_token"]), 401, "session_revoked")
    assert other.api.get("/v1/users/me").status_code == 200
    events = admin.api.get(f"/v1/audit-events?action=token_reused&actor_id={account.id}").json()["data"]
    assert [event["target_id"] for event in events] == [claims_of(account.access_token)["sid"]]


# --- races -----------------------------------------------------------------------------------------------------------


def test_fifty_registrations_of_an_address_at_once_are_one_account(
    first: Api, second: Api, admin: Account, outbox: Outbox
) -> None:
    address = new_address()

    def register(api: Api) -> Response:
        return patiently(lambda: api.post("/v1/auth/register", json={"email": address, "password": PASSWORD}))

    assert statuses(at_once(spread(50, first, second), register)) == {202: 50}
    outbox.wait_for("verify_email", address, at_least=5)
    found = admin.api.get("/v1/users", params={"q": address}).json()["data"]
    assert [user["email"] for user in found] == [address]
    body = {"token": outbox.token("verify_email", address)}
    assert first.post("/v1/auth/verify-email", json=body).status_code == 200
    assert log_in(second, address).email == address


def patiently(call: Callable[[], Response]) -> Response:
    """Come again while the server says that it is busy: it hashes only a few passwords at a time."""
    while (response := call()).status_code == 503:
        time.sleep(int(response.headers["Retry-After"]))
    return response


def test_of_two_changes_of_one_version_one_is_made(first: Api, second: Api, new_user: Callable[[], Account]) -> None:
    account = new_user()
    callers = [account.api.at(server.base_url) for server in (first, second)]
    for _ in range(20):
        version = callers[0].get("/v1/users/me").headers["ETag"]
        responses = at_once(callers, rename({"If-Match": version}))
        assert statuses(responses) == {200: 1, 412: 1}
        made = next(response for response in responses if response.status_code == 200)
        assert callers[1].get("/v1/users/me").json() == made.json()


def rename(headers: dict[str, str]) -> Call:
    return lambda api: api.patch("/v1/users/me", json={"name": uuid4().hex}, headers=headers)


def test_one_idempotency_key_makes_one_account(first: Api, second: Api, admin: Account) -> None:
    body, headers = {"email": new_address(), "role": "user"}, {"Idempotency-Key": str(uuid4())}
    callers = spread(20, *(admin.api.at(server.base_url) for server in (first, second)))
    responses = at_once(callers, lambda api: api.post("/v1/users", json=body, headers=headers))
    made = [response for response in responses if response.status_code == 201]
    assert len({response.json()["data"]["id"] for response in made}) == 1
    assert [response.headers.get("Idempotent-Replayed") for response in made].count(None) == 1
    for response in responses:
        if response not in made:
            problem(response, 409, "idempotency_in_progress")
    again = callers[1].post("/v1/users", json=body, headers=headers)
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (201, "true")
    assert again.content == made[0].content
    found = callers[0].get("/v1/users", params={"q": body["email"]}).json()["data"]
    assert [user["id"] for user in found] == [again.json()["data"]["id"]]


def test_a_reset_link_works_once_also_at_two_servers(
    first: Api, second: Api, new_user: Callable[[], Account], outbox: Outbox
) -> None:
    account = new_user()
    for round_number in range(1, 6):
        assert first.post("/v1/auth/forgot-password", json={"email": account.email}).status_code == 202
        outbox.wait_for("reset_password", account.email, at_least=round_number)
        body = {"token": outbox.token("reset_password", account.email), "password": NEW_PASSWORD}
        responses = at_once([first, second], reset_password(body))
        assert statuses(responses) == {204: 1, 400: 1}
        problem(max(responses, key=lambda response: response.status_code), 400, "invalid_link")
    problem(account.api.get("/v1/users/me"), 401, "session_revoked")
    assert log_in(second, account.email, NEW_PASSWORD).id == account.id


def reset_password(body: dict[str, str]) -> Call:
    return lambda api: api.post("/v1/auth/reset-password", json=body)


def test_administrators_who_demote_each_other_leave_one(
    cluster: Cluster, first: Api, second: Api, admin: Account, invite: Callable[[str], Account]
) -> None:
    one, other = invite("admin"), invite("admin")
    victims = {one.access_token: other.id, other.access_token: one.id}
    callers = [one.api.at(first.base_url), other.api.at(second.base_url)]
    others = [found["id"] for found in administrators(one.api) if found["id"] not in {one.id, other.id}]
    try:
        for account_id in others:
            set_role(one.api, account_id, "user")
        for _ in range(10):
            responses = at_once(callers, lambda api: set_role(api, victims[api.token or ""], "user"))
            refused = max(responses, key=lambda response: response.status_code)
            assert (statuses(responses)[200], refused.json().get("code")) in {(1, "last_admin"), (1, "forbidden")}
            winner = callers[1 - responses.index(refused)]
            assert [found["id"] for found in administrators(winner)] == [claims_of(winner.token or "")["sub"]]
            set_role(winner, victims[winner.token or ""], "admin")
    finally:
        flask(cluster.env, "users", "set-role", admin.email, "admin")
        for account_id in others:
            set_role(admin.api, account_id, "admin")


def administrators(api: Api) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.get("/v1/users?role=admin&is_active=true&limit=100").json()["data"]
    return found


def set_role(api: Api, account_id: str, role: str) -> Response:
    return api.patch(f"/v1/users/{account_id}", json={"role": role})


def test_a_limit_is_one_for_all_processes(run_with: Start, new_user: Callable[[], Account]) -> None:
    account = new_user()
    server = run_with(WEB_CONCURRENCY="2", LIMIT_WRITE="10/hour").with_token(account.access_token)
    responses = at_once([server] * 40, lambda api: api.patch("/v1/users/me", json={"name": "Counted"}))
    assert statuses(responses) == {200: 10, 429: 30}


# --- the worker ------------------------------------------------------------------------------------------------------


def test_the_worker_sends_the_mails(
    cluster: Cluster, first: Api, outbox: Outbox, new_user: Callable[[], Account]
) -> None:
    account = new_user()
    body = {"current_password": account.password, "new_password": NEW_PASSWORD}
    assert account.api.at(first.base_url).post("/v1/auth/change-password", json=body).status_code == 204
    outbox.wait_for("password_changed", account.email)
    assert "mail_written" not in cluster.first.log + cluster.second.log
    assert "mail_written" in cluster.worker_log.read_text()
    wrong = account.api.post("/v1/auth/change-password", json=body)
    assert codes(problem(wrong, 422, "validation_error")) == {"/current_password": "invalid_credentials"}
