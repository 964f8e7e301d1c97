import pytest

from project.security import Role

ME = "/v1/users/me"
# Not a set: pytest-xdist wants the same order of the tests everywhere.
FIELDS = ["id", "email", "name", "role", "is_active", "email_verified", "created_at", "updated_at", "last_login_at"]


def errors(response) -> dict[str, str]:
    return {error["pointer"]: error["code"] for error in response.json["errors"]}


@pytest.mark.parametrize("method", ["GET", "PATCH"])
def test_me_needs_a_token(client, method):
    response = client.open(ME, method=method)
    assert (response.status_code, response.json["code"]) == (401, "token_required")
    assert response.headers["WWW-Authenticate"].startswith("Bearer ")


@pytest.mark.parametrize("method", ["GET", "PATCH"])
def test_a_refresh_token_is_no_access_token(client, as_user, method):
    response = client.open(ME, method=method, headers=as_user().refreshing)
    assert (response.status_code, response.json["code"]) == (401, "invalid_token")


@pytest.mark.parametrize("method", ["GET", "PATCH"])
def test_an_inactive_account_does_not_even_see_itself(client, as_user, method):
    response = client.open(ME, method=method, headers=as_user(is_active=False))
    assert (response.status_code, response.json["code"]) == (401, "session_revoked")


@pytest.mark.parametrize("role", list(Role))
def test_everybody_sees_their_own_account(client, as_user, role):
    caller = as_user(email="ann@example.com", name="Ann", role=role)
    as_user(email="ben@example.com")
    response = client.get(ME, headers=caller)
    assert response.status_code == 200
    assert set(response.json) == {"data"}
    found = response.json["data"]
    assert sorted(found) == sorted(FIELDS)
    assert (found["id"], found["email"], found["name"]) == (str(caller.user.id), "ann@example.com", "Ann")
    assert (found["role"], found["is_active"], found["email_verified"]) == (role.value, True, True)
    assert found["last_login_at"] is None
    assert found["created_at"] == caller.user.created_at.isoformat().replace("+00:00", "Z")


def test_get_me_takes_one_query(client, as_user, statements):
    caller = as_user()
    statements.clear()
    assert client.get(ME, headers=caller).status_code == 200
    assert len(statements) == 1, statements


@pytest.mark.parametrize("header", ["{tag}", "W/{tag}", '"other", {tag}', 'W/"other",W/{tag}', "*"])
def test_what_the_client_has_is_not_sent_again(client, as_user, header):
    caller = as_user()
    tag = client.get(ME, headers=caller).headers["ETag"]
    response = client.get(ME, headers={**caller, "If-None-Match": header.format(tag=tag)})
    assert (response.status_code, response.data) == (304, b"")
    assert response.headers["ETag"] == tag
    assert not tag.startswith("W/")


def test_what_the_client_no_longer_has_is_sent(client, as_user):
    caller = as_user()
    tag = client.get(ME, headers=caller).headers["ETag"]
    client.patch(ME, json={"name": "Ann"}, headers=caller)
    response = client.get(ME, headers={**caller, "If-None-Match": tag})
    assert (response.status_code, response.json["data"]["name"]) == (200, "Ann")
    assert response.headers["ETag"] != tag


def test_the_etag_of_another_account_is_not_mine(client, as_user):
    tag = client.get(ME, headers=as_user()).headers["ETag"]
    assert client.get(ME, headers={**as_user(), "If-None-Match": tag}).status_code == 200


def test_a_revoked_session_gets_no_304(client, as_user):
    response = client.get(ME, headers={**as_user(is_active=False), "If-None-Match": "*"})
    assert response.status_code == 401


@pytest.mark.parametrize("name", ["Ann", "A", None, "é" * 200, "\N{GRINNING FACE}" * 200, "<b>Ann</b>", "א ב"])
def test_the_name_is_kept_as_it_was_sent(client, as_user, name):
    caller = as_user(name="Before")
    response = client.patch(ME, json={"name": name}, headers=caller)
    assert (response.status_code, response.json["data"]["name"]) == (200, name)
    assert client.get(ME, headers=caller).json == response.json


def test_blanks_around_a_name_are_no_part_of_it(client, as_user):
    response = client.patch(ME, json={"name": "  Ann Lee "}, headers=as_user())
    assert response.json["data"]["name"] == "Ann Lee"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("", "invalid_length"),
        ("a" * 201, "invalid_length"),
        (1, "invalid_type"),
        (True, "invalid_type"),
        (["Ann"], "invalid_type"),
        ({"first": "Ann"}, "invalid_type"),
        ("   ", "invalid_length"),
        ("A\0nn", "invalid_characters"),
        ("A\nnn", "invalid_characters"),
        ("A\u2028nn", "invalid_characters"),
        ("\u202ennA", "invalid_characters"),
    ],
)
def test_what_is_no_name_is_refused(client, as_user, stored, name, code):
    caller = as_user(name="Before")
    response = client.patch(ME, json={"name": name}, headers=caller)
    assert (response.status_code, response.json["code"]) == (422, "validation_error")
    assert errors(response) == {"/name": code}
    assert stored(caller.user).name == "Before"


@pytest.mark.parametrize(
    "field",
    [
        *(field for field in FIELDS if field != "name"),
        *("password", "password_hash", "version", "session_epoch", "erased_at", "sessions"),
        *("roles", "is_admin", "_id", "__class__", "Name", ""),
    ],
)
def test_nobody_changes_more_of_themselves_than_the_name(client, as_user, stored, field):
    caller = as_user(name="Before")
    response = client.patch(ME, json={"name": "After", field: "admin"}, headers=caller)
    assert response.status_code == 422
    assert errors(response) == {f"/{field}": "unknown_field"}
    found = stored(caller.user)
    assert (found.name, found.role, found.version) == ("Before", Role.USER, 1)


@pytest.mark.parametrize(
    "body", ["null", "[]", '"name"', "1", '[{"op": "replace", "path": "/role", "value": "admin"}]']
)
def test_a_change_is_an_object(client, as_user, body):
    response = client.patch(ME, data=body, content_type="application/json", headers=as_user())
    assert response.status_code == 422
    assert errors(response) == {"": "invalid_type"}


def test_a_change_makes_a_new_version_and_one_event(client, as_user, stored, audited):
    caller = as_user()
    response = client.patch(ME, json={"name": "Ann Canary"}, headers=caller)
    found = stored(caller.user)
    assert found.version == caller.user.version + 1
    assert found.updated_at > caller.user.updated_at
    assert response.headers["ETag"] == client.get(ME, headers=caller).headers["ETag"]
    (event,) = audited()
    assert (event.actor_id, event.target_type, event.target_id) == (caller.user.id, "user", caller.user.id)
    assert "Canary" not in str(event.data)


def test_nobody_elses_account_changes(client, as_user, stored):
    other = as_user(name="Ben")
    client.patch(ME, json={"name": "Ann"}, headers=as_user())
    assert stored(other.user).name == "Ben"
    assert stored(other.user).version == 1


def test_an_empty_change_keeps_the_version_and_is_no_event(client, as_user, stored, audited):
    caller = as_user(name="Ann")
    before = client.get(ME, headers=caller)
    response = client.patch(ME, json={}, headers=caller)
    assert response.status_code == 200
    assert response.json == before.json
    assert response.headers["ETag"] == before.headers["ETag"]
    assert stored(caller.user).updated_at == caller.user.updated_at
    assert audited() == []


MATCHING = ["{tag}", "*", '"other", {tag}', '{tag}, "other"', 'W/"other",{tag}', " {tag} "]
NOT_MATCHING = ["W/{tag}", '"other"', "{bare}", "", '"{bare}x"', "{old}", "{others}", '{old}, W/{tag}, "*"']


@pytest.fixture
def tags(client, as_user):
    """A caller, and what an If-Match header of theirs may be made of."""
    caller = as_user(name="First")
    old = client.get(ME, headers=caller).headers["ETag"]
    tag = client.patch(ME, json={"name": "Before"}, headers=caller).headers["ETag"]
    other = as_user()
    others = client.patch(ME, json={"name": "Other"}, headers=other).headers["ETag"]
    return caller, {"tag": tag, "bare": tag.strip('"'), "old": old, "others": others}


@pytest.mark.parametrize("header", MATCHING)
def test_a_change_of_the_version_that_was_read_passes(client, tags, header):
    caller, parts = tags
    response = client.patch(ME, json={"name": "After"}, headers={**caller, "If-Match": header.format(**parts)})
    assert (response.status_code, response.json["data"]["name"]) == (200, "After")


@pytest.mark.parametrize("body", [{"name": "After"}, {}], ids=["a change", "an empty change"])
@pytest.mark.parametrize("header", NOT_MATCHING)
def test_a_change_of_another_version_is_refused(client, tags, stored, header, body):
    caller, parts = tags
    response = client.patch(ME, json=body, headers={**caller, "If-Match": header.format(**parts)})
    assert (response.status_code, response.json["code"]) == (412, "precondition_failed")
    assert stored(caller.user).name == "Before"
    assert client.get(ME, headers=caller).headers["ETag"] == parts["tag"]


def test_an_invalid_change_is_told_before_a_failed_precondition(client, as_user):
    response = client.patch(ME, json={"name": ""}, headers={**as_user(), "If-Match": '"other"'})
    assert response.status_code == 422
