from uuid import uuid4

import pytest

from project.security import Role

USERS = "/v1/users"


@pytest.mark.parametrize("role", [Role.STAFF, Role.ADMIN])
@pytest.mark.parametrize("attributes", [{}, {"is_active": False}, {"email_verified": False, "password": False}])
def test_staff_see_each_account_as_its_owner_does(client, as_user, role, attributes):
    other = as_user(email="ben@example.com", name="Ben", **attributes)
    response = client.get(f"{USERS}/{other.user.id}", headers=as_user(role=role))
    assert response.status_code == 200
    found = response.json["data"]
    assert (found["id"], found["email"], found["name"]) == (str(other.user.id), "ben@example.com", "Ben")
    assert found["is_active"] == other.user.is_active
    assert found["email_verified"] == other.user.email_verified
    me = client.get(f"{USERS}/me", headers=other)
    if me.status_code == 200:
        assert (me.json, me.headers["ETag"]) == (response.json, response.headers["ETag"])


def test_an_erased_account_is_not_told_from_one_that_never_was(client, as_staff, erased):
    answers = []
    for user_id in (erased.id, uuid4()):
        response = client.get(f"{USERS}/{user_id}", headers={**as_staff, "If-None-Match": "*"})
        assert response.status_code == 404
        own = {"request_id": None, "instance": response.json["instance"].replace(str(user_id), "")}
        answers.append({**response.json, **own})
    assert answers[0] == answers[1]
    assert answers[0]["code"] == "not_found"


@pytest.mark.parametrize(
    "spelling", ["{0.hex}", "{{{0}}}", "urn:uuid:{0}", "{0}/", "{0} ", "{0}%00", "0", "1", "-1", "me/{0}", "[]"]
)
def test_an_id_has_one_spelling(client, as_staff, as_user, spelling):
    path = spelling.format(as_user().user.id)
    assert client.get(f"{USERS}/{path}", headers=as_staff).status_code == 404


def test_an_id_in_upper_case_is_another_path(client, as_staff, as_user):
    path = str(as_user().user.id).upper()
    assert client.get(f"{USERS}/{path}", headers=as_staff).status_code == 404


def test_what_staff_have_is_not_sent_again_until_it_changes(client, as_staff, as_user):
    other = as_user()
    path = f"{USERS}/{other.user.id}"
    tag = client.get(path, headers=as_staff).headers["ETag"]
    having = {**as_staff, "If-None-Match": tag}
    response = client.get(path, headers=having)
    assert (response.status_code, response.data, response.headers["ETag"]) == (304, b"", tag)
    client.patch(f"{USERS}/me", json={"name": "Ben"}, headers=other)
    assert client.get(path, headers=having).json["data"]["name"] == "Ben"


@pytest.mark.parametrize("parameter", ["fields=password_hash", "include=sessions", "expand=links", "fields="])
def test_no_parameter_shows_more_of_an_account(client, as_staff, as_user, parameter):
    path = f"{USERS}/{as_user().user.id}"
    response = client.get(f"{path}?{parameter}", headers=as_staff)
    assert response.status_code == 422
    assert [error["code"] for error in response.json["errors"]] == ["unknown_field"]
