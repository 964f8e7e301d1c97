from functools import partial

import pytest
from sqlalchemy import func, select, update

from project.database import db, transaction
from project.security import Role
from project.users import service
from project.users.models import User
from project.users.service import LastAdmin
from tests.factories import PASSWORD, make_user

USERS = "/v1/users"
WAYS = {
    "demoting to user": ("PATCH", USERS + "/{}", {"role": "user"}),
    "demoting to staff": ("PATCH", USERS + "/{}", {"role": "staff"}),
    "deactivating": ("PATCH", USERS + "/{}", {"is_active": False}),
    "both": ("PATCH", USERS + "/{}", {"role": "user", "is_active": False, "name": "After"}),
    "deleting": ("DELETE", USERS + "/{}", None),
    "erasing oneself": ("POST", USERS + "/me/erase", {"password": PASSWORD}),
}
every_way = pytest.mark.parametrize(("method", "path", "body"), WAYS.values(), ids=WAYS)


@every_way
@pytest.mark.parametrize("others", [[], [{"is_active": False, "role": Role.ADMIN}], [{"role": Role.STAFF}]])
def test_the_last_active_admin_stays(client, as_user, as_admin, stored, audited, method, path, body, others):
    for attributes in others:
        as_user(**attributes)
    response = client.open(path.format(as_admin.user.id), method=method, json=body, headers=as_admin)
    assert (response.status_code, response.json["code"]) == (409, "last_admin")
    found = stored(as_admin.user)
    assert (found.role, found.is_active, found.name, found.version) == (Role.ADMIN, True, None, 1)
    assert client.get("/v1/audit-events", headers=as_admin).status_code == 200
    assert audited() == []


@every_way
def test_an_admin_may_go_while_another_is_active(client, as_user, as_admin, audited, method, path, body):
    as_user(role=Role.ADMIN)
    response = client.open(path.format(as_admin.user.id), method=method, json=body, headers=as_admin)
    assert response.status_code in {200, 204}
    assert audited()


@every_way
def test_an_erased_admin_does_not_count(client, as_user, as_admin, in_app, method, path, body):
    gone = as_user(role=Role.ADMIN)
    in_app(service.erase_user, gone.user.id, actor_id=None)
    response = client.open(path.format(as_admin.user.id), method=method, json=body, headers=as_admin)
    assert (response.status_code, response.json["code"]) == (409, "last_admin")


@pytest.mark.parametrize("body", [{"role": "admin"}, {"is_active": True}, {"name": "After"}, {}])
def test_the_last_admin_may_be_changed_otherwise(client, as_admin, body):
    response = client.patch(f"{USERS}/{as_admin.user.id}", json=body, headers=as_admin)
    assert response.status_code == 200


def test_the_last_admin_may_end_their_own_sessions(client, as_admin):
    assert client.delete(f"{USERS}/{as_admin.user.id}/sessions", headers=as_admin).status_code == 204
    assert client.get(f"{USERS}/me", headers=as_admin).status_code == 401


@pytest.mark.parametrize("body", [{"role": "user"}, {"is_active": False}])
def test_others_may_be_changed_by_the_last_admin(client, as_admin, as_user, body):
    for role in (Role.USER, Role.STAFF):
        response = client.patch(f"{USERS}/{as_user(role=role).user.id}", json=body, headers=as_admin)
        assert response.status_code == 200


@pytest.mark.parametrize(("method", "body"), [("PATCH", {"role": "user"}), ("DELETE", None)])
def test_a_failed_precondition_is_told_before_the_conflict(client, as_admin, method, body):
    path = f"{USERS}/{as_admin.user.id}"
    response = client.open(path, method=method, json=body, headers={**as_admin, "If-Match": '"other"'})
    assert (response.status_code, response.json["code"]) == (412, "precondition_failed")


def test_a_wrong_password_is_told_before_the_conflict(client, as_admin):
    response = client.post(f"{USERS}/me/erase", json={"password": "wrong"}, headers=as_admin)
    assert response.status_code == 422


def test_without_any_admin_other_accounts_can_be_changed(session):
    """Before the first one is made on the command line."""
    user = make_user()
    assert service.update_user(user.id, actor_id=None, is_active=False).is_active is False


DEMOTE = partial(service.update_user, role=Role.USER)
DEACTIVATE = partial(service.update_user, is_active=False)


def make_admins(count: int) -> list[User]:
    """Make new admins; all others are demoted."""
    with transaction():
        db.session.execute(update(User).values(role=Role.USER))
        return [make_user(role=Role.ADMIN) for _ in range(count)]


def count_admins() -> int:
    is_admin = (User.role == Role.ADMIN, User.is_active, User.erased_at.is_(None))
    return db.session.scalar(select(func.count()).select_from(User).where(*is_admin)) or 0


@pytest.mark.parametrize(
    ("first", "second", "rounds"),
    [(DEMOTE, DEMOTE, 20), (DEACTIVATE, service.erase_user, 10), (DEMOTE, service.erase_user, 10)],
)
def test_of_two_admins_who_remove_each_other_one_remains(in_app, at_once, first, second, rounds):
    for _ in range(rounds):
        ann, ben = in_app(make_admins, 2)
        results = at_once(partial(first, ben.id, actor_id=ann.id), partial(second, ann.id, actor_id=ben.id))
        assert in_app(count_admins) == 1
        assert [isinstance(result, LastAdmin) for result in results].count(True) == 1


def test_of_many_admins_who_remove_one_another_one_remains(in_app, at_once):
    for _ in range(3):
        admins = in_app(make_admins, 5)
        results = at_once(*(partial(DEMOTE, admin.id, actor_id=None) for admin in admins))
        assert in_app(count_admins) == 1
        assert [isinstance(result, LastAdmin) for result in results].count(True) == 1
