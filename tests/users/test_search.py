from datetime import UTC, datetime, timedelta

import pytest

from project.database import transaction
from project.pagination import PageRequest
from project.security import Role
from project.users import service
from tests.factories import make_user

NOON = datetime(2030, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def people(session):
    """Four accounts, made a minute apart, the first at noon."""
    with transaction():
        make_user(email="ann@example.com", name="Ann Smith", role=Role.ADMIN, created_at=NOON)
        make_user(email="ben_b@example.com", name="Ben 100%", created_at=NOON + timedelta(minutes=1))
        make_user(
            email="benxb@example.org",
            name="back\\slash O'Neil",
            role=Role.STAFF,
            is_active=False,
            created_at=NOON + timedelta(minutes=2),
        )
        make_user(email="cat@example.net", email_verified=False, created_at=NOON + timedelta(minutes=3))


def found(*, sort: str = "created_at", **filters) -> list[str]:
    """The first names of who is found."""
    page = service.list_users(caller_id=None, page=PageRequest(limit=100, sort=sort), **filters)
    return [str(user.email)[:3] for user in page]


@pytest.mark.parametrize(
    ("q", "names"),
    [
        ("ann@example.com", ["ann"]),
        ("ANN@EXAMPLE", ["ann"]),
        ("aNN sMITH", ["ann"]),
        ("smith", ["ann"]),
        ("example", ["ann", "ben", "ben", "cat"]),
        (".org", ["ben"]),
        ("nobody", []),
        ("ann@example.com ", []),
        ("%", ["ben"]),
        ("100%", ["ben"]),
        ("1%0", []),
        ("_", ["ben"]),
        ("n_b", ["ben"]),
        ("\\", ["ben"]),
        ("\\s", ["ben"]),
        ("\\%", []),
        ("/", []),
        ("/%", []),
        ("'", ["ben"]),
        ("' OR 1=1 --", []),
    ],
)
def test_a_search_takes_its_text_literally_whatever_the_case(people, q, names):
    assert found(q=q) == names


@pytest.mark.parametrize("q", ["n_b", "0%", "\\"])
def test_each_of_the_signs_finds_its_own_account(people, q):
    (user,) = service.list_users(caller_id=None, page=PageRequest(), q=q)
    assert user.email == ("benxb@example.org" if q == "\\" else "ben_b@example.com")


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({"role": Role.USER}, ["ben", "cat"]),
        ({"role": Role.STAFF}, ["ben"]),
        ({"role": Role.ADMIN}, ["ann"]),
        ({"is_active": True}, ["ann", "ben", "cat"]),
        ({"is_active": False}, ["ben"]),
        ({"role": Role.USER, "is_active": False}, []),
        ({"role": Role.USER, "q": "ben"}, ["ben"]),
        ({"created_after": NOON}, ["ben", "ben", "cat"]),
        ({"created_after": NOON - timedelta(microseconds=1)}, ["ann", "ben", "ben", "cat"]),
        ({"created_after": NOON + timedelta(minutes=3)}, []),
        ({"created_after": NOON, "is_active": True, "q": "example.net"}, ["cat"]),
    ],
)
def test_filters_are_all_of_them_kept(people, filters, names):
    assert found(**filters) == names


@pytest.mark.parametrize("sort", ["created_at", "-created_at"])
def test_accounts_are_sorted_by_their_age(people, sort):
    users = service.list_users(caller_id=None, page=PageRequest(sort=sort))
    oldest_first = ["ann@example.com", "ben_b@example.com", "benxb@example.org", "cat@example.net"]
    assert [user.email for user in users] == (oldest_first[::-1] if sort.startswith("-") else oldest_first)


@pytest.mark.parametrize("sort", ["email", "-email"])
def test_accounts_are_sorted_by_their_address(session, sort):
    for name in ("cat", "ann", "dan", "ben"):
        make_user(email=f"{name}@example.com")
    assert found(sort=sort) == sorted(["ann", "ben", "cat", "dan"], reverse=sort.startswith("-"))


@pytest.mark.parametrize(
    "filters", [{}, {"is_active": False}, {"role": Role.USER}, {"q": "a"}, {"created_after": NOON}]
)
def test_erased_accounts_are_in_no_list_and_no_count(people, filters):
    erased = make_user(email="old@example.com", name="Old", created_at=NOON + timedelta(hours=1))
    service.erase_user(erased.id, actor_id=None)
    page = service.list_users(caller_id=None, page=PageRequest(limit=100, include_total=True), **filters)
    assert erased.id not in {user.id for user in page}
    assert page.total == len(page)


def test_the_total_counts_what_the_filters_leave(people):
    page = service.list_users(caller_id=None, page=PageRequest(limit=1, include_total=True), q="ben")
    assert (len(page), page.total) == (1, 2)
    assert service.list_users(caller_id=None, page=PageRequest(limit=1), q="ben").total is None
