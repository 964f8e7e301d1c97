"""Rate limits: what counts against which budget, what clients are told, and what happens without Redis."""

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest
import requests
import time_machine
from flask import Flask
from limits.storage import Storage

from project import create_app, limits
from project.auth import tokens
from project.auth.service import SignIn
from project.database import db, utcnow
from project.errors import RateLimited
from project.extensions import limiter
from tests import factories
from tests.conftest import ENV, migrated
from tests.servers import run_server, run_valkey
from tests.servers.process import free_port
from tests.servers.valkey import Valkey

MEMBERS = {"type", "title", "status", "detail", "instance", "code", "request_id"}
TIGHT = {"LIMIT_READ": "3/minute", "LIMIT_WRITE": "2/minute", "LIMIT_ANONYMOUS": "2/15 minutes"}
ME = "/v1/users/me"
LOGIN = "/v1/auth/login"
HERE = "192.0.2.1"
THERE = "198.51.100.1"
MakeApp = Callable[..., Flask]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    """The folder of a migrated SQLite database."""
    folder = str(tmp_path_factory.mktemp("limits"))
    with migrated({**ENV, "DATA_DIR": folder}).app_context():
        db.engine.dispose()
    return folder


@pytest.fixture
def make_app(data_dir) -> Iterator[MakeApp]:
    """Make an application with tight limits or others. The limiter is one object per process, so it is put back."""
    made: list[Flask] = []

    def make(**settings: str) -> Flask:
        made.append(create_app({**ENV, **TIGHT, "DATA_DIR": data_dir, **settings}))
        return made[-1]

    yield make
    for app in made:
        with app.app_context():
            db.engine.dispose()
    others = Flask("limits")
    others.config.update(RATELIMIT_ENABLED=True, RATELIMIT_STORAGE_URI="memory://")
    limiter.init_app(others)
    limiter._storage_dead = False


class Caller:
    """A client at an address, signed in or not, of which only the answers' status matters."""

    def __init__(self, app: Flask, address: str = HERE, token: str = "") -> None:
        self._client = app.test_client()
        self._address = address
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def send(self, method: str = "GET", path: str = ME, **kwargs: Any) -> Any:
        """Send a request and return the answer."""
        headers = {**self._headers, **kwargs.pop("headers", {})}
        environ = {"REMOTE_ADDR": self._address}
        return self._client.open(path, method=method, headers=headers, environ_base=environ, **kwargs)

    def statuses(self, count: int, method: str = "GET", path: str = ME, **kwargs: Any) -> list[int]:
        """Send the same request several times."""
        return [self.send(method, path, **kwargs).status_code for _ in range(count)]


def sign_in(app: Flask) -> str:
    """Return the access token of a new account."""
    with app.app_context():
        user = factories.make_user()
        token: str = tokens.issue(SignIn(factories.make_session(user), user, fresh=True))["access_token"]
    return token


def structured(header: str) -> dict[str, dict[str, int]]:
    """Parse a list of strings with integer parameters (RFC 9651), which is all that these headers may be."""
    item = r'"([a-z._]+)"((?:;[a-z]=\d+)+)'
    assert re.fullmatch(f"{item}(, {item})*", header)
    found = re.findall(item, header)
    return {name: {k: int(v) for k, v in re.findall(r";([a-z])=(\d+)", rest)} for name, rest in found}


# --- what a refusal looks like ----------------------------------------------------------------------------------------


def test_beyond_the_limit_every_request_is_refused_with_a_problem(make_app):
    caller = Caller(make_app(LIMIT_READ="3/minute"))

    assert caller.statuses(3) == [401, 401, 401]
    response = caller.send()
    assert response.status_code == 429
    assert response.content_type == "application/problem+json"
    assert set(response.json) == MEMBERS
    assert response.json["code"] == "rate_limited"
    assert 1 <= int(response.headers["Retry-After"]) <= 61


def test_after_the_seconds_of_retry_after_the_next_request_passes(make_app):
    caller = Caller(make_app(LIMIT_READ="3/minute"))
    with time_machine.travel(utcnow(), tick=False) as traveller:
        caller.statuses(3)
        traveller.shift(timedelta(seconds=17.25))
        refused = caller.send()
        wait = int(refused.headers["Retry-After"])
        traveller.shift(timedelta(seconds=wait))

        assert caller.statuses(4) == [401, 401, 401, 429]
    assert 43 <= wait <= 44


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "name", "policy"),
    [
        ("GET", ME, None, 200, "read", {"q": 3, "w": 60}),
        ("PATCH", ME, {"name": "Ann"}, 200, "write", {"q": 2, "w": 60}),
        ("PATCH", ME, {"name": 1}, 422, "write", {"q": 2, "w": 60}),
        ("GET", "/v1/users", None, 403, "read", {"q": 3, "w": 60}),
        ("POST", LOGIN, {}, 422, "auth.login", {"q": 2, "w": 900}),
    ],
)
def test_every_answer_says_what_the_limit_is_and_what_is_left(make_app, method, path, body, status, name, policy):
    app = make_app()
    response = Caller(app, token=sign_in(app)).send(method, path, json=body)

    assert response.status_code == status
    assert "Retry-After" not in response.headers
    assert structured(response.headers["RateLimit-Policy"]) == {name: policy}
    [(left_name, left)] = structured(response.headers["RateLimit"]).items()
    assert (left_name, left["r"]) == (name, policy["q"] - 1)
    assert policy["w"] - 1 <= left["t"] <= policy["w"]


def test_what_is_left_counts_down_to_nothing_and_stays_there(make_app):
    caller = Caller(make_app())

    left = [structured(caller.send().headers["RateLimit"])["read"]["r"] for _ in range(5)]

    assert left == [2, 1, 0, 0, 0]


def test_a_refusal_for_a_missing_token_says_it_too(make_app):
    response = Caller(make_app()).send()

    assert response.status_code == 401
    assert structured(response.headers["RateLimit-Policy"]) == {"read": {"q": 3, "w": 60}}


# --- what counts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer forged"}, {"Authorization": "Basic YTpi"}])
def test_refused_tokens_count(make_app, headers):
    assert Caller(make_app()).statuses(4, headers=headers) == [401, 401, 401, 429]


@pytest.mark.parametrize(
    ("body", "status"),
    [({"data": b"{"}, 400), ({"data": b"{}", "content_type": "text/plain"}, 415), ({"json": {}}, 422)],
)
def test_boththat_are_not_understood_count(make_app, body, status):
    body = {"content_type": "application/json", **body} if "data" in body else body

    assert Caller(make_app()).statuses(3, "POST", LOGIN, **body) == [status, status, 429]


def test_head_counts_as_get_and_options_and_health_do_not_count(make_app):
    caller = Caller(make_app())

    assert caller.statuses(5, "OPTIONS") == [200] * 5
    assert caller.statuses(5, path="/healthz") == [200] * 5
    assert caller.statuses(5, path="/readyz") == [200] * 5
    assert caller.statuses(2, "HEAD") == [401, 401]
    assert caller.statuses(2) == [401, 429]
    assert caller.statuses(2, "OPTIONS") == [200] * 2
    assert "RateLimit" not in caller.send("OPTIONS").headers


def test_a_preflight_is_answered_when_the_limit_is_spent(make_app):
    caller = Caller(make_app())
    caller.statuses(4)
    headers = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "GET"}

    response = caller.send("OPTIONS", headers=headers)

    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"


def test_reading_and_writing_are_counted_apart_and_over_all_routes(make_app):
    app = make_app()
    caller = Caller(app, token=sign_in(app))

    assert caller.statuses(2) == [200, 200]
    assert caller.statuses(2, path="/v1/auth/sessions") == [200, 429]
    assert caller.statuses(1) == [429]
    assert caller.statuses(1, "PATCH", json={}) == [200]
    assert caller.statuses(2, "DELETE", "/v1/auth/sessions?others=true") == [204, 429]


def test_each_route_without_a_token_has_a_budget_of_its_own(make_app):
    caller = Caller(make_app())

    assert caller.statuses(3, "POST", LOGIN, json={}) == [422, 422, 429]
    assert caller.statuses(3, "POST", "/v1/auth/register", json={}) == [422, 422, 429]


def test_a_path_that_does_not_exist_is_not_counted(make_app):
    caller = Caller(make_app())

    assert caller.statuses(5, path="/v1/nothing") == [404] * 5
    assert caller.statuses(5, "PUT") == [405] * 5
    assert caller.statuses(1) == [401]


# --- whose budget it is -----------------------------------------------------------------------------------------------


def test_one_user_cannot_exhaust_another_or_the_address(make_app):
    app = make_app()
    ann, ben, nobody = Caller(app, token=sign_in(app)), Caller(app, token=sign_in(app)), Caller(app)

    assert ann.statuses(4) == [200, 200, 200, 429]
    assert ben.statuses(3) == [200, 200, 200]
    assert nobody.statuses(4) == [401, 401, 401, 429]


def test_a_user_has_one_budget_at_all_addresses_and_sessions(make_app):
    app = make_app()
    token = sign_in(app)

    assert Caller(app, HERE, token).statuses(2) == [200, 200]
    assert Caller(app, THERE, token).statuses(2) == [200, 429]


def test_a_token_that_was_tampered_with_does_not_spend_its_owners_budget(make_app):
    app = make_app()
    token = sign_in(app)
    header, payload, signature = token.split(".")
    forged = f"{header}.{payload}.{signature[::-1]}"

    assert Caller(app, THERE, forged).statuses(4) == [401, 401, 401, 429]
    assert Caller(app, HERE, token).statuses(1) == [200]


def test_a_refresh_token_spends_the_budget_of_its_session_and_not_of_its_user(make_app):
    """It lives for weeks, and nobody has looked yet whether its session has ended: a stolen one must do no harm."""
    app = make_app()
    with app.app_context():
        user = factories.make_user()
        issued = tokens.issue(SignIn(factories.make_session(user), user, fresh=True))

    assert Caller(app, THERE, issued["refresh_token"]).statuses(4) == [401, 401, 401, 429]
    assert Caller(app, HERE, issued["refresh_token"]).statuses(1) == [429]
    assert Caller(app, HERE, issued["access_token"]).statuses(3) == [200, 200, 200]


SAME_BUDGET = [
    (HERE, HERE),
    ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9"),
    (HERE, f"::ffff:{HERE}"),
    ("fe80::1%eth0", "fe80::1"),
]
OTHER_BUDGET = [
    (HERE, "192.0.2.2"),
    (HERE, "::ffff:192.0.2.2"),
    ("::ffff:192.0.2.1", "::ffff:192.0.2.2"),
    ("2001:db8:1:2::1", "2001:db8:1:3::1"),
]


@pytest.mark.parametrize(("first", "second"), SAME_BUDGET)
def test_addresses_of_one_customer_share_a_budget(make_app, first, second):
    app = make_app()

    assert Caller(app, first).statuses(3) == [401] * 3
    assert Caller(app, second).statuses(1) == [429]
    assert Caller(app, first).statuses(2, "POST", LOGIN, json={}) == [422, 422]
    assert Caller(app, second).statuses(1, "POST", LOGIN, json={}) == [429]


@pytest.mark.parametrize(("first", "second"), OTHER_BUDGET)
def test_addresses_of_others_have_budgets_of_their_own(make_app, first, second):
    app = make_app()

    assert Caller(app, first).statuses(4) == [401, 401, 401, 429]
    assert Caller(app, second).statuses(1) == [401]


@pytest.mark.parametrize("address", ["", "unix:", "localhost", "1.2.3.4:5678", "a:b"])
def test_what_is_no_address_is_counted_as_well(make_app, address):
    caller = Caller(make_app(), address)

    assert caller.statuses(4) == [401, 401, 401, 429]
    assert caller.statuses(3, "POST", LOGIN, json={}) == [422, 422, 429]


NETWORKS = [
    ("192.0.2.77", "192.0.2.0/24"),
    ("::ffff:192.0.2.77", "192.0.2.0/24"),
    ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
    ("fe80::1%eth0", "fe80::/64"),
    ("::1", "::/64"),
    ("nonsense", "nonsense"),
    ("", ""),
    (None, ""),
]


@pytest.mark.parametrize(("ip", "network"), NETWORKS)
def test_the_network_of_an_address_is_what_one_customer_has(ip, network):
    assert limits.network(ip) == network


SPOOFABLE = ["X-Forwarded-For", "X-Real-IP", "Forwarded", "CF-Connecting-IP", "True-Client-IP", "X-Client-IP"]


@pytest.mark.parametrize("header", SPOOFABLE)
def test_without_a_proxy_no_header_changes_the_address(make_app, header):
    caller = Caller(make_app(PROXY_HOPS="0"))

    statuses = [caller.send(headers={header: f"203.0.113.{number}"}).status_code for number in range(5)]

    assert statuses == [401, 401, 401, 429, 429]


@pytest.mark.parametrize("header", SPOOFABLE)
def test_behind_one_proxy_only_what_the_proxy_added_counts(make_app, header):
    caller = Caller(make_app(PROXY_HOPS="1"), "127.0.0.1")

    def status(number: int, client: str) -> int:
        spoofed, added = f"203.0.113.{number}", {"X-Forwarded-For": client}
        if header == "X-Forwarded-For":
            return caller.send(headers={header: f"{spoofed}, {client}"}).status_code
        return caller.send(headers={header: spoofed, **added}).status_code

    assert [status(number, HERE) for number in range(5)] == [401, 401, 401, 429, 429]
    assert status(0, THERE) == 401


@pytest.mark.parametrize("value", ["a:b", "", "unknown", "192.0.2.1:1234", "é", "1" * 5000])
def test_nonsense_from_a_proxy_is_no_error(make_app, value):
    caller = Caller(make_app(PROXY_HOPS="1"), "127.0.0.1")

    assert caller.statuses(4, headers={"X-Forwarded-For": value}) == [401, 401, 401, 429]


# --- budgets of services ----------------------------------------------------------------------------------------------


def test_a_budget_can_be_spent_once_per_key_and_given_back(make_app):
    with make_app(LIMIT_PASSWORD="2/10 minutes").app_context():
        limits.spend("password", "ann")
        limits.spend("password", "ann")
        with pytest.raises(RateLimited) as caught:
            limits.spend("password", "ann")
        limits.spend("password", "ben")
        limits.refill("password", "ann")
        limits.spend("password", "ann")

    assert 599 <= int(caught.value.headers["Retry-After"]) <= 601


def test_a_budget_can_be_looked_at_before_something_is_done_and_counted_after(make_app):
    with make_app(LIMIT_MAILBOX="2/hour").app_context():
        assert [limits.has_room("mailbox", "ann") for _ in range(5)] == [True] * 5
        limits.count("mailbox", "ann")
        assert limits.has_room("mailbox", "ann")
        limits.count("mailbox", "ann")
        assert not limits.has_room("mailbox", "ann")
        assert limits.has_room("mailbox", "ben")


def test_budgets_of_different_names_and_keys_do_not_touch(make_app):
    with make_app(LIMIT_PASSWORD="1/minute", LIMIT_MAILBOX="1/minute").app_context():
        limits.spend("password", "a", "b")
        limits.spend("mailbox", "a", "b")
        limits.spend("password", "a")
        limits.spend("password", "b", "a")


# --- off --------------------------------------------------------------------------------------------------------------


def test_limits_can_be_switched_off_for_load_tests(make_app):
    app = make_app(RATE_LIMITS="off", LIMIT_PASSWORD="1/minute")
    caller = Caller(app)

    assert caller.statuses(6) == [401] * 6
    assert "RateLimit" not in caller.send().headers
    with app.app_context():
        limits.spend("password", "ann")
        limits.spend("password", "ann")
        limits.refill("password", "ann")
        limits.count("password", "ann")
        assert limits.has_room("password", "ann")


def test_an_application_without_limits_does_not_take_them_from_the_next_one(make_app):
    make_app(RATE_LIMITS="off")

    assert Caller(make_app()).statuses(4) == [401, 401, 401, 429]


# --- Redis ------------------------------------------------------------------------------------------------------------


class DyingStorage(Storage):
    """A storage that goes away while two requests are waiting for it, of which one hears of it later."""

    STORAGE_SCHEME = ["dying"]  # noqa: RUF012 - as the library wants it
    both_are_waiting = threading.Barrier(2)
    first_was_answered = threading.Event()

    @property
    def base_exceptions(self) -> type[Exception]:
        """What the library takes for a failure."""
        return OSError

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Fail for both."""
        if self.both_are_waiting.wait(10) == 1:
            self.first_was_answered.wait(10)
        raise OSError("gone")

    def get(self, key: str) -> int:
        """Fail."""
        raise OSError("gone")

    def get_expiry(self, key: str) -> float:
        """Fail."""
        raise OSError("gone")

    def check(self) -> bool:
        """It is gone."""
        return False

    def reset(self) -> int | None:
        """Nothing is there."""
        return None

    def clear(self, key: str) -> None:
        """Fail."""
        raise OSError("gone")


def test_boththat_wait_while_the_storage_dies_are_counted_in_memory(make_app):
    app = make_app(LIMIT_READ="100/hour")
    app.config.update(RATELIMIT_STORAGE_URI="dying://", RATELIMIT_STORAGE_OPTIONS={"wrap_exceptions": True})
    limiter.init_app(app)

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(Caller(app).statuses, 1) for _ in range(2)]
        wait(both, return_when=FIRST_COMPLETED)
        DyingStorage.first_was_answered.set()

    assert [request.result() for request in both] == [[401], [401]]
    assert structured(Caller(app).send().headers["RateLimit"])["read"]["r"] == 97


def test_services_count_in_memory_when_the_storage_is_away(make_app):
    with make_app(REDIS_URL=f"redis://127.0.0.1:{free_port()}", LIMIT_PASSWORD="2/hour").app_context():
        limits.spend("password", "dead storage")
        limits.spend("password", "dead storage")
        with pytest.raises(RateLimited):
            limits.spend("password", "dead storage")
        limits.refill("password", "dead storage")
        limits.spend("password", "dead storage")


def test_the_wait_is_long_enough_though_redis_rounds_it(make_app, valkey_url):
    caller = Caller(make_app(REDIS_URL=valkey_url, LIMIT_READ="1/minute"))
    limiter.reset()
    caller.send()
    storage: Any = limiter.storage
    [key] = storage.storage.keys("*")
    storage.storage.pexpire(key, 10_400)

    # Redis would say 10 seconds.
    assert int(caller.send().headers["Retry-After"]) >= 11


def test_a_storage_that_comes_back_counts_again(make_app, monkeypatch):
    monkeypatch.setattr(limits, "RETRY_SECONDS", 0)
    valkey = Valkey()
    try:
        caller = Caller(make_app(REDIS_URL=valkey.url, LIMIT_READ="100/hour"))
        left = [structured(caller.send().headers["RateLimit"])["read"]["r"] for _ in range(3)]
        valkey.stop()
        left += [structured(caller.send().headers["RateLimit"])["read"]["r"] for _ in range(2)]
        valkey.start()  # and has forgotten everything
        left += [structured(caller.send().headers["RateLimit"])["read"]["r"] for _ in range(2)]
    finally:
        valkey.stop()

    assert left == [99, 98, 97, 99, 98, 99, 98]


PER_HOUR = 25


@pytest.mark.server
def test_processes_share_limits_exactly_and_count_alone_when_the_storage_is_gone(data_dir):
    """Two servers, three times as many requests as the limit allows; then Valkey is stopped."""
    env = {**ENV, "DATA_DIR": data_dir, "LIMIT_READ": f"{PER_HOUR}/hour", "LIMIT_WRITE": f"{PER_HOUR}/hour"}
    with ExitStack() as servers, ExitStack() as storage:
        env["REDIS_URL"] = storage.enter_context(run_valkey())
        urls = [servers.enter_context(run_server(env)).url for _ in range(2)]

        assert ask(urls, "GET", "/v1/users/me") == {401: PER_HOUR, 429: 2 * PER_HOUR}

        assert ask(urls, "POST", "/v1/auth/logout", count=10) == {401: 10}
        storage.close()
        # Each counts on its own and from zero. The library's counter in memory may miss one when a window begins.
        answers = ask(urls, "POST", "/v1/auth/logout", count=4 * PER_HOUR)
        assert answers.keys() == {401, 429}
        assert answers[401] == pytest.approx(2 * PER_HOUR, abs=4)


def ask(urls: list[str], method: str, path: str, *, count: int = 3 * PER_HOUR) -> Counter[int]:
    """Send the same request many times at once, to each server in turn, and count the answers by status."""

    def status(number: int) -> int:
        return requests.request(method, urls[number % len(urls)] + path, timeout=30).status_code

    with ThreadPoolExecutor(8) as pool:
        return Counter(pool.map(status, range(count)))
