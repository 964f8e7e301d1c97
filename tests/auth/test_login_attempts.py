from dataclasses import replace

import pytest

from project.auth import service
from project.auth.service import InvalidCredentials
from project.errors import RateLimited
from tests.auth.asking import ANN
from tests.factories import PASSWORD, make_user

OWNER = "203.0.113.7"
MINUTES = 60


@pytest.fixture(autouse=True)
def ann(in_app, hasher):
    """The account that is tried."""
    return in_app(make_user, email=ANN)


@pytest.fixture
def attempt(calling_from):
    """Try to sign in from an address, and tell how it went."""

    def sign_in(ip=OWNER, *, email=ANN, password="wrong horse battery staple") -> str:
        with calling_from(ip):
            try:
                service.login(email=email, password=password)
            except InvalidCredentials:
                return "refused"
            except RateLimited:
                return "throttled"
            return "signed in"

    return sign_in


def strangers(count: int) -> list[str]:
    """Addresses in networks of their own, ten attempts from each."""
    return [f"198.51.{number // 10}.{number % 10 + 1}" for number in range(count)]


@pytest.mark.parametrize("email", [ANN, "nobody@example.com"])
def test_after_ten_attempts_from_a_network_the_password_is_not_looked_at(attempt, hasher, email):
    assert [attempt(email=email) for _ in range(10)] == ["refused"] * 10
    verified = hasher.verified
    assert [attempt(email=email) for _ in range(3)] == ["throttled"] * 3
    assert attempt(email=email, password=PASSWORD) == "throttled"
    assert hasher.verified == verified == 10


def test_the_budget_is_back_when_the_throttled_answer_says(attempt, calling_from, time_machine):
    time_machine.move_to("2030-01-31T12:00:00Z", tick=False)
    for _ in range(10):
        attempt()
    time_machine.shift(15 * MINUTES - 20)
    with calling_from(OWNER), pytest.raises(RateLimited) as caught:
        service.login(email=ANN, password=PASSWORD)
    seconds = int(caught.value.headers["Retry-After"])
    assert 20 <= seconds <= 21
    time_machine.shift(19)
    assert attempt(password=PASSWORD) == "throttled"
    time_machine.shift(seconds - 19)
    assert attempt(password=PASSWORD) == "signed in"


def test_addresses_of_one_network_share_its_budget(attempt):
    assert [attempt(f"203.0.113.{host}") for host in range(1, 11)] == ["refused"] * 10
    assert attempt("203.0.113.250") == "throttled"
    assert attempt("203.0.114.1") == "refused"


def test_addresses_of_one_ipv6_customer_share_a_budget(attempt):
    assert [attempt(f"2001:db8:1:1::{host}") for host in range(1, 11)] == ["refused"] * 10
    assert attempt("2001:db8:1:1:ffff::1") == "throttled"
    assert attempt("2001:db8:1:2::1") == "refused"


def test_accounts_have_budgets_of_their_own(attempt):
    for _ in range(11):
        attempt()
    assert attempt(email="ben@example.com") == "refused"


def test_success_gives_the_budget_back(attempt):
    for _ in range(3):
        assert [attempt() for _ in range(9)] == ["refused"] * 9
        assert attempt(password=PASSWORD) == "signed in"


@pytest.mark.parametrize("email", [ANN, "nobody@example.com"])
def test_strangers_have_a_hundred_attempts_an_hour_at_an_account(attempt, time_machine, email):
    time_machine.move_to("2030-01-31T12:00:00Z", tick=False)
    assert [attempt(ip, email=email) for ip in strangers(100)] == ["refused"] * 100
    assert attempt("192.0.2.1", email=email) == attempt("192.0.2.1", email=email, password=PASSWORD) == "throttled"
    time_machine.shift(60 * MINUTES + 1)
    assert attempt("192.0.2.1", email=email) == "refused"


@pytest.fixture
def twenty_for_strangers(app, monkeypatch):
    """A smaller budget of the same kind, since each attempt takes its time."""
    settings = app.extensions["settings"]
    limits = replace(settings.limits, login_account="20/hour")
    monkeypatch.setitem(app.extensions, "settings", replace(settings, limits=limits))


@pytest.mark.usefixtures("twenty_for_strangers")
def test_strangers_cannot_lock_the_owner_out(attempt):
    assert attempt(OWNER, password=PASSWORD) == "signed in"
    for ip in strangers(21):
        attempt(ip)
    assert attempt("192.0.2.1", password=PASSWORD) == "throttled"
    assert attempt(OWNER) == "refused"
    assert attempt(OWNER, password=PASSWORD) == "signed in"


@pytest.mark.usefixtures("twenty_for_strangers")
def test_a_known_network_has_a_budget_too_and_spends_nobody_elses(attempt):
    for ip in strangers(8):
        attempt(ip)
    for _ in range(9):
        attempt(OWNER)
    assert attempt(OWNER, password=PASSWORD) == "signed in"
    assert [attempt(OWNER) for _ in range(10)] == ["refused"] * 10
    assert attempt(OWNER) == "throttled"
    assert [attempt("192.0.2.1") for _ in range(3)] == ["refused", "refused", "throttled"], "the 19th to the 21st"


@pytest.mark.usefixtures("twenty_for_strangers")
def test_a_network_is_known_for_one_account_only(attempt, in_app):
    in_app(make_user, email="ben@example.com")
    assert attempt(OWNER, password=PASSWORD) == "signed in"
    for ip in strangers(20):
        attempt(ip, email="ben@example.com")
    assert attempt(OWNER, email="ben@example.com") == "throttled"


@pytest.mark.usefixtures("twenty_for_strangers")
def test_a_network_is_known_for_30_days_after_the_last_sign_in(attempt, time_machine):
    time_machine.move_to("2030-01-01T12:00:00Z", tick=False)
    attempt(OWNER, password=PASSWORD)
    time_machine.move_to("2030-01-20T12:00:00Z", tick=False)
    attempt(OWNER, password=PASSWORD)
    time_machine.move_to("2030-02-19T11:59:00Z", tick=False)
    for ip in strangers(20):
        attempt(ip)
    assert attempt(OWNER) == "refused"
    time_machine.move_to("2030-02-19T12:00:01Z", tick=False)
    assert attempt(OWNER) == "throttled"
