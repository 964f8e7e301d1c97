from dataclasses import dataclass
from uuid import UUID

import pytest
from flask import Flask
from flask_smorest import Api, Blueprint
from marshmallow import Schema, fields
from sqlalchemy import select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, registry

from project import etags
from project.database import COLUMN_TYPES, db, transaction
from project.errors import NotFound, PreconditionFailed
from tests.small_app import BACKENDS, fresh_database, small_app

ID = UUID(int=1)
OTHER_ID = UUID(int=2)
TAG = f'"{ID.hex}-3"'
OLD = f'"{ID.hex}-2"'
FOREIGN = f'"{OTHER_ID.hex}-3"'


@dataclass
class Note:
    id: UUID = ID
    version: int = 3
    text: str = "hello"


class NoteOut(Schema):
    id = fields.UUID()
    text = fields.String()


class Base(DeclarativeBase):
    """Tables of this file only; the product's metadata stays what the migrations make."""

    registry = registry(type_annotation_map=COLUMN_TYPES)


class Row(Base):
    __tablename__ = "etag_rows"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    version: Mapped[int]


blueprint = Blueprint("notes", __name__)


@blueprint.route("/notes/<int:number>", methods=["GET"])
@blueprint.response(200, NoteOut)
@etags.conditional
def get_note(number):
    if number != 1:
        raise NotFound()
    return Note()


@blueprint.route("/notes", methods=["POST"])
@blueprint.response(201, NoteOut)
@etags.conditional
def create_note():
    return Note(version=1), {"Location": "/notes/1"}


@blueprint.route("/notes/<int:number>", methods=["PATCH"])
@blueprint.response(200, NoteOut)
@etags.conditional
@etags.precondition
def update_note(number, *, expected):
    etags.check(Note(), expected)
    return Note(version=4), 202


@pytest.fixture
def client():
    app = Flask("etags")
    app.config.update(API_TITLE="t", API_VERSION="1", OPENAPI_VERSION="3.1.0")
    Api(app).register_blueprint(blueprint)
    app.register_error_handler(NotFound, lambda error: ("", error.status))
    app.register_error_handler(PreconditionFailed, lambda error: ("", error.status))
    return app.test_client()


@pytest.fixture(params=BACKENDS)
def app(request, tmp_path, worker_id):
    url = ""
    if request.param == "postgresql":
        url = fresh_database(request.getfixturevalue("postgres_url"), f"etags_{worker_id}")
    with small_app(tmp_path, Row, database_url=url) as app, app.app_context():
        yield app


def test_the_tag_is_strong_and_quoted():
    assert etags.etag(Note()) == TAG == '"00000000000000000000000000000001-3"'


def test_two_objects_of_the_same_version_have_different_tags():
    assert etags.etag(Note()) != etags.etag(Note(id=OTHER_ID))


def test_every_version_has_a_tag_of_its_own():
    assert etags.etag(Note(version=3)) != etags.etag(Note(version=4))


def test_a_get_sends_the_tag(client):
    assert client.get("/notes/1").headers["ETag"] == TAG


def test_a_post_keeps_its_status_and_its_own_headers_beside_the_tag(client):
    response = client.post("/notes")
    assert response.status_code == 201
    assert response.headers["Location"] == "/notes/1"
    assert response.headers["ETag"] == f'"{ID.hex}-1"'


def test_a_status_that_the_view_chose_stays(client):
    response = client.patch("/notes/1")
    assert (response.status_code, response.headers["ETag"]) == (202, f'"{ID.hex}-4"')


@pytest.mark.parametrize(
    "header",
    [
        TAG,
        f"W/{TAG}",
        "*",
        " * ",
        f"{OLD}, {TAG}",
        f"{TAG},{OLD}",
        f'"a,b", {TAG}',
        f"junk, {TAG}",
        f"{OLD} , W/{TAG}",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_the_client_has_is_not_sent_again(client, method: str, header: str):
    response = client.open("/notes/1", method=method, headers={"If-None-Match": header})
    assert response.status_code == 304
    assert response.data == b""
    assert response.headers["ETag"] == TAG
    assert "Content-Type" not in response.headers


@pytest.mark.parametrize(
    "header",
    ["", OLD, FOREIGN, TAG.strip('"'), TAG[:-1], f'"{TAG}', f"x{TAG}", f"w/{TAG}", '"*"', f"{TAG} x"],
)
def test_what_the_client_does_not_have_is_sent(client, header: str):
    response = client.get("/notes/1", headers={"If-None-Match": header})
    assert response.status_code == 200
    assert response.json == {"id": str(ID), "text": "hello"}


@pytest.mark.parametrize("header", ["*", TAG])
def test_what_the_caller_may_not_see_is_404_whatever_tag_is_sent(client, header: str):
    assert client.get("/notes/2", headers={"If-None-Match": header}).status_code == 404


def test_if_none_match_does_not_stop_a_change(client):
    assert client.patch("/notes/1", headers={"If-None-Match": "*"}).status_code == 202


ACCEPTED = ["*", " * ", TAG, f"{OLD}, {TAG}", f"{TAG},{OLD}", f"junk, {TAG}", f"W/{OLD}, {TAG}"]
REFUSED = [
    "",
    OLD,
    FOREIGN,
    f"W/{TAG}",
    TAG.strip('"'),
    TAG[:-1],
    f"x{TAG}",
    f"{TAG} x",
    '"*"',
    "junk",
    "junk, *",
    f'"{ID.hex}-03"',
    f'"{ID.hex}-+3"',
    f'"{ID.hex}-٣"',
    f'"{ID}-3"',
    f'"{ID.hex}-"',
    f'"{ID.hex}-{10**40}"',
    '"' * 5000,
    ',"' * 5000,
]


@pytest.mark.parametrize("header", ACCEPTED)
@pytest.mark.parametrize("method", ["PATCH", "GET"])
def test_if_match_lets_the_present_version_pass(client, method: str, header: str):
    response = client.open("/notes/1", method=method, headers={"If-Match": header})
    assert response.status_code in {200, 202}


@pytest.mark.parametrize("header", REFUSED)
@pytest.mark.parametrize("method", ["PATCH", "GET"])
def test_if_match_stops_at_any_other_tag(client, method: str, header: str):
    headers = {"If-Match": header.encode().decode("latin-1")}
    assert client.open("/notes/1", method=method, headers=headers).status_code == 412


def test_a_number_that_no_column_holds_never_reaches_the_database():
    with Flask("etags").test_request_context(headers={"If-Match": f'"{ID.hex}-{10**40}"'}):
        assert etags.if_match() == frozenset()


def test_if_match_comes_before_if_none_match(client):
    headers = {"If-Match": OLD, "If-None-Match": TAG}
    assert client.get("/notes/1", headers=headers).status_code == 412


@pytest.mark.parametrize(
    ("expected", "changed"),
    [
        (None, [ID]),
        (frozenset(), []),
        (frozenset({(ID, 3)}), [ID]),
        (frozenset({(ID, 2), (ID, 3)}), [ID]),
        (frozenset({(ID, 2)}), []),
        (frozenset({(OTHER_ID, 3)}), []),
        (frozenset({(ID, 999_999_999)}), []),
    ],
)
def test_a_guarded_update_changes_only_the_versions_that_if_match_names(app, expected, changed):
    with transaction():
        db.session.add_all([Row(id=ID, version=3), Row(id=OTHER_ID, version=3)])
    with transaction():
        db.session.execute(
            update(Row).where(Row.id == ID, etags.matches(Row, expected)).values(version=Row.version + 1)
        )
    assert db.session.scalars(select(Row.id).where(Row.version == 4)).all() == changed


def test_the_decorators_leave_marks_for_the_openapi_document():
    assert get_note._apidoc["versioned"] is True
    assert "if_match" not in get_note._apidoc
    assert update_note._apidoc["versioned"] is update_note._apidoc["if_match"] is True
    assert update_note._apidoc["response"]["responses"].keys() == {200}


def test_a_mark_does_not_reach_the_function_below():
    def view() -> None: ...

    view._apidoc = {"manual_doc": {}}  # type: ignore[attr-defined]
    assert etags.conditional(view).__dict__["_apidoc"] == {"manual_doc": {}, "versioned": True}
    assert view._apidoc == {"manual_doc": {}}  # type: ignore[attr-defined]
