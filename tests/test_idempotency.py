from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from http import HTTPStatus
from threading import Barrier, Event, Lock
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from flask import current_app, g, request
from marshmallow import Schema, fields
from sqlalchemy import delete, event, func, insert, select, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, registry
from werkzeug.exceptions import RequestEntityTooLarge

from project.blueprint import Blueprint
from project.database import COLUMN_TYPES, db, transaction, utcnow
from project.errors import AppError, BadRequest, Conflict, Forbidden, Invalid, NotFound, RateLimited, Unavailable
from project.idempotency import idempotent
from project.idempotency_keys import KEPT_FOR, LOCKED_FOR, PURGE_BATCH, IdempotencyKey, State, attach, purge
from project.security import Principal
from tests.small_app import BACKENDS, fresh_database, small_app

ANN = UUID(int=1)
BOB = UUID(int=2)
BODY = {"name": "x", "tags": ["a", "b"]}


class Base(DeclarativeBase):
    """Tables of this file only; the product's metadata stays what the migrations make."""

    registry = registry(type_annotation_map=COLUMN_TYPES)


class Thing(Base):
    __tablename__ = "idempotency_things"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str]


class ThingIn(Schema):
    name = fields.String(required=True)
    tags = fields.List(fields.String())


class ThingOut(Schema):
    id = fields.UUID()
    name = fields.String()


class Declined(AppError):
    """402, as payments have it."""

    status = HTTPStatus.PAYMENT_REQUIRED


class Killed(BaseException):
    """Stands for kill -9: nothing of ours runs after it."""


class Service:
    """What the routes call. A test says what happens before, inside and after the transaction."""

    def __init__(self) -> None:
        self.calls = 0
        self.before: Callable[[], Any] = lambda: None
        self.inside: Callable[[], Any] = lambda: None
        self.after: Callable[[], Any] = lambda: None
        self._lock = Lock()

    def create(self, *, name: str, tags: list[str] | None = None) -> Thing:
        with self._lock:
            self.calls += 1
        self.before()
        thing = Thing(name=name)
        with transaction():
            db.session.add(thing)
            db.session.flush()
            attach(thing.id)
            self.inside()
        self.after()
        return thing


blueprint = Blueprint("things", __name__)


def get_thing(thing_id: UUID) -> Thing:
    thing = db.session.get(Thing, thing_id)
    if thing is None:
        raise NotFound()
    return thing


@blueprint.post("/things")
@idempotent(resume=get_thing)
@blueprint.arguments(ThingIn)
@blueprint.response(201, ThingOut, location="/things/{0.id}")
def create_thing(data, resumed):
    return resumed or current_app.extensions["service"].create(**data), {"ETag": '"1"', "X-Other": "1"}


@blueprint.post("/payments")
@idempotent(resume=get_thing, required=True)
@blueprint.arguments(ThingIn)
@blueprint.response(201, ThingOut, location="/things/{0.id}")
def create_payment(data, resumed):
    return resumed or current_app.extensions["service"].create(**data)


@blueprint.put("/things")
@idempotent(resume=get_thing)
@blueprint.response(200, ThingOut)
def put_thing(resumed):
    return resumed or current_app.extensions["service"].create(name="put")


@pytest.fixture(params=BACKENDS)
def app(request, tmp_path, worker_id):
    url = ""
    if request.param == "postgresql":
        url = fresh_database(request.getfixturevalue("postgres_url"), f"idempotency_{worker_id}")
    with small_app(tmp_path, Thing, IdempotencyKey, database_url=url) as app:
        app.extensions["service"] = Service()
        app.before_request(sign_in)
        app.register_blueprint(blueprint)
        yield app


@pytest.fixture
def service(app) -> Service:
    return app.extensions["service"]


def sign_in() -> None:
    account = SimpleNamespace(id=UUID(request.headers["X-User"]), role="user")
    g.principal = Principal(account=account, session_id=uuid4())


def post(app, key: str | None = "key", body: Any = BODY, *, path: str = "/things", user: UUID = ANN, **options):
    headers = {"X-User": str(user)} | ({} if key is None else {"Idempotency-Key": key})
    options.setdefault("json", body)
    return app.test_client().open(path, method=options.pop("method", "POST"), headers=headers, **options)


def count_things(app) -> int:
    with app.app_context():
        return db.session.scalar(select(func.count()).select_from(Thing)) or 0


def states(app) -> list[State]:
    with app.app_context():
        return list(db.session.scalars(select(IdempotencyKey.state)))


def let_a_minute_pass(app) -> None:
    with app.app_context(), transaction():
        db.session.execute(update(IdempotencyKey).values(locked_at=utcnow() - LOCKED_FOR - timedelta(seconds=1)))


def raises(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def pause(service: Service, point: str) -> tuple[Event, Event]:
    """Make the request that comes to the point say so and wait."""
    started, go_on = Event(), Event()

    def wait() -> None:
        started.set()
        go_on.wait(30)

    setattr(service, point, wait)
    return started, go_on


# The header


def test_without_a_key_every_request_is_executed(app, service):
    assert post(app, None).json != post(app, None).json
    assert count_things(app) == service.calls == 2


def test_where_a_key_is_required_a_request_without_one_is_refused(app, service):
    response = post(app, None, path="/payments")
    assert (response.status_code, response.json["code"]) == (400, "idempotency_key_required")
    assert service.calls == 0


@pytest.mark.parametrize("path", ["/things", "/payments"])
@pytest.mark.parametrize("key", ["", "a b", "a\tb", "a" * 256, "\x7f", "\xe9", "a, b"])
def test_a_malformed_key_is_refused(app, service, path: str, key: str):
    response = post(app, key, path=path)
    assert (response.status_code, response.json["code"]) == (400, "idempotency_key_invalid")
    assert service.calls == 0


def test_two_keys_are_refused(app, service):
    headers = [("X-User", str(ANN)), ("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    response = app.test_client().post("/things", headers=headers, json=BODY)
    assert (response.status_code, response.json["code"]) == (400, "idempotency_key_invalid")
    assert service.calls == 0


@pytest.mark.parametrize("key", ["!", "~", "a" * 255, "".join(map(chr, range(0x21, 0x7F)))])
def test_any_visible_ascii_is_a_key(app, key: str):
    assert post(app, key).status_code == 201
    assert post(app, key).headers["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize(("first", "second"), [("a", "A"), ("a", '"a"'), ("%61", "a")])
def test_a_key_is_taken_literally(app, first: str, second: str):
    post(app, first)
    post(app, second)
    assert count_things(app) == 2


# Repetitions of a finished request


def test_a_repetition_gets_the_stored_answer_and_executes_nothing(app, service):
    first, second = post(app), post(app)
    assert first.status_code == second.status_code == 201
    assert first.data == second.data
    for name in ("Content-Type", "Location", "ETag"):
        assert first.headers[name] == second.headers[name]
    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true"
    assert "X-Other" not in second.headers
    assert count_things(app) == service.calls == 1


@pytest.mark.parametrize(
    "body",
    [
        b'{"tags":["a","b"],"name":"x"}',
        b' {\n "name" : "x", "tags": ["a", "b"] } ',
        rb'{"name":"\u0078","tags":["a","b"]}',
    ],
)
def test_the_spelling_of_the_json_makes_no_other_request(app, body: bytes):
    post(app)
    response = post(app, json=None, data=body, content_type="application/json; charset=utf-8")
    assert response.headers["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize(
    "other",
    [
        {"body": BODY | {"name": "y"}},
        {"body": {"name": "x"}},
        {"body": BODY | {"tags": ["b", "a"]}},
        {"body": BODY | {"name": True}},
        {"path": "/payments"},
        {"method": "PUT"},
    ],
)
def test_the_same_key_with_another_request_is_refused(app, service, other: dict):
    post(app)
    response = post(app, **other)
    assert (response.status_code, response.json["code"]) == (422, "idempotency_key_reused")
    assert [error["pointer"] for error in response.json["errors"]] == ["/header/Idempotency-Key"]
    assert service.calls == 1


def test_keys_of_two_users_have_nothing_to_do_with_each_other(app):
    mine = post(app, user=ANN)
    theirs = post(app, user=BOB, body={"name": "y"})
    assert theirs.status_code == 201
    assert theirs.json != mine.json


def test_a_request_without_a_body_has_a_key_as_well(app, service):
    first = post(app, method="PUT", json=None)
    assert first.status_code == 200
    assert post(app, method="PUT", json=None).data == first.data
    assert service.calls == 1


# Refusals


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"data": b"{", "content_type": "application/json", "json": None}, 400),
        ({"data": b"{}", "content_type": "text/plain", "json": None}, 415),
        ({"body": {"name": "x", "unknown": 1}}, 422),
        ({"body": {}}, 422),
        ({"json": None}, 400),
    ],
)
def test_a_request_that_is_not_understood_leaves_the_key_to_the_corrected_one(app, wrong: dict, status: int):
    assert post(app, **wrong).status_code == status
    assert states(app) == []
    assert post(app).status_code == 201


REFUSALS = [BadRequest(), Forbidden(), NotFound(), Invalid(), RateLimited(), RequestEntityTooLarge()]


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
def test_a_refusal_before_the_effect_leaves_the_key_to_the_corrected_request(app, service, error):
    service.before = raises(error)
    assert 400 <= post(app, body={"name": "wrong"}).status_code < 500
    assert states(app) == []
    service.before = lambda: None
    assert post(app).status_code == 201


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
def test_a_refusal_after_the_effect_is_a_result_and_keeps_the_key(app, service, error):
    service.after = raises(error)
    first, second = post(app), post(app)
    assert 400 <= first.status_code == second.status_code < 500
    assert first.data == second.data
    assert second.headers["Idempotent-Replayed"] == "true"
    assert count_things(app) == service.calls == 1


@pytest.mark.parametrize("error", [Declined(), Conflict()], ids=["402", "409"])
def test_results_of_the_business_are_told_again(app, service, error):
    service.before = raises(error)
    first = post(app)
    service.before = lambda: None
    second = post(app)
    assert first.status_code == second.status_code == error.status
    assert first.data == second.data
    assert second.content_type == "application/problem+json"
    assert second.headers["Idempotent-Replayed"] == "true"
    assert service.calls == 1


# Failures of ours


@pytest.mark.parametrize("error", [Unavailable(), RuntimeError("bug")], ids=["503", "500"])
@pytest.mark.parametrize("point", ["before", "inside"])
def test_after_a_failure_without_effect_a_repetition_executes_again(app, service, point: str, error):
    setattr(service, point, raises(error))
    assert post(app).status_code >= 500
    assert states(app) == [State.RETRYABLE]
    setattr(service, point, lambda: None)
    response = post(app)
    assert response.status_code == 201
    assert "Idempotent-Replayed" not in response.headers
    assert (count_things(app), service.calls) == (1, 2)


def test_after_a_failure_the_key_still_stands_for_its_request(app, service):
    service.before = raises(Unavailable())
    post(app)
    assert post(app, body={"name": "y"}).json["code"] == "idempotency_key_reused"


@pytest.mark.parametrize("error", [Unavailable(), RuntimeError("bug")], ids=["503", "500"])
def test_after_a_failure_with_effect_a_repetition_shows_what_was_made(app, service, error):
    service.after = raises(error)
    assert post(app).status_code >= 500
    second = post(app)
    assert second.status_code == 201
    assert second.headers["Location"] == f"/things/{second.json['data']['id']}"
    assert second.headers["ETag"] == '"1"'
    assert count_things(app) == service.calls == 1
    assert post(app).data == second.data


def test_a_repetition_that_fails_as_well_can_be_repeated(app, service):
    service.before = raises(Unavailable())
    assert [post(app).status_code for _ in range(3)] == [503, 503, 503]
    service.before = lambda: None
    assert post(app).status_code == 201


def test_an_answer_that_could_not_be_stored_is_sent_and_rendered_again_later(app, service):
    def break_storing(_connection, _cursor, statement, parameters, *_):
        if statement.startswith("UPDATE") and "response_body" in statement:
            raise OperationalError(statement, parameters, Exception("gone"))

    with app.app_context():
        engine = db.engine
    event.listen(engine, "before_cursor_execute", break_storing)
    first = post(app)
    event.remove(engine, "before_cursor_execute", break_storing)
    assert first.status_code == 201
    assert post(app).json["code"] == "idempotency_in_progress"
    let_a_minute_pass(app)
    assert post(app).data == first.data
    assert count_things(app) == service.calls == 1


@pytest.mark.parametrize(("point", "calls"), [("before", 2), ("inside", 2), ("after", 1)])
def test_a_key_whose_request_was_killed_is_taken_over_after_a_minute(app, service, point: str, calls: int):
    setattr(service, point, raises(Killed()))
    with pytest.raises(Killed):
        post(app)
    setattr(service, point, lambda: None)
    early = post(app)
    assert (early.status_code, early.json["code"]) == (409, "idempotency_in_progress")
    let_a_minute_pass(app)
    late = post(app)
    assert late.status_code == 201
    assert (count_things(app), service.calls) == (1, calls)
    assert post(app).data == late.data


def test_a_resource_that_is_gone_when_its_answer_is_rendered_again_is_404_for_good(app, service):
    service.after = raises(Unavailable())
    post(app)
    with app.app_context(), transaction():
        db.session.execute(delete(Thing))
    assert [post(app).status_code for _ in range(2)] == [404, 404]
    assert service.calls == 1


# Requests at the same time


def in_parallel(count: int, call: Callable[[], Any]) -> list[Any]:
    barrier = Barrier(count)

    def run(_: int) -> Any:
        barrier.wait(timeout=30)
        return call()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def check_one_execution(app, responses: list) -> None:
    """One was executed; the others were told to wait or got its answer."""
    done = [response for response in responses if response.status_code == 201]
    waiting = [response for response in responses if response.status_code == 409]
    assert len(done) + len(waiting) == len(responses)
    assert sum("Idempotent-Replayed" not in response.headers for response in done) == 1
    assert len({response.data for response in done}) == 1
    assert {response.json["code"] for response in waiting} <= {"idempotency_in_progress"}
    assert post(app).data == done[0].data
    assert count_things(app) == 1


def test_of_twenty_parallel_requests_with_one_key_one_is_executed(app, service):
    check_one_execution(app, in_parallel(20, lambda: post(app)))
    assert service.calls == 1


def test_of_twenty_parallel_repetitions_of_a_failed_request_one_is_executed(app, service):
    service.before = raises(Unavailable())
    post(app)
    service.before = lambda: None
    check_one_execution(app, in_parallel(20, lambda: post(app)))
    assert service.calls == 2


def test_of_twenty_parallel_repetitions_of_a_killed_request_one_takes_the_key_over(app, service):
    service.before = raises(Killed())
    with pytest.raises(Killed):
        post(app)
    service.before = lambda: None
    let_a_minute_pass(app)
    check_one_execution(app, in_parallel(20, lambda: post(app)))
    assert service.calls == 2


def test_a_request_that_comes_second_to_a_refused_one_is_told_to_come_again(app, service):
    # The other request takes the key between our look and our insert, and is refused before our second look.
    def be_second(_connection, _cursor, statement, parameters, *_):
        if statement.startswith("INSERT INTO idempotency_keys"):
            raise IntegrityError(statement, parameters, Exception("duplicate key"))

    with app.app_context():
        engine = db.engine
    event.listen(engine, "before_cursor_execute", be_second)
    response = post(app)
    event.remove(engine, "before_cursor_execute", be_second)
    assert (response.status_code, response.json["code"]) == (409, "idempotency_in_progress")
    assert service.calls == 0
    assert post(app).status_code == 201


def test_while_the_first_request_runs_a_repetition_is_told_when_to_come_again(app, service):
    started, go_on = pause(service, "before")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, app)
        assert started.wait(30)
        second = post(app)
        go_on.set()
        assert first.result().status_code == 201
    assert (second.status_code, second.json["code"]) == (409, "idempotency_in_progress")
    assert second.headers["Retry-After"] == "1"
    assert post(app).data == first.result().data
    assert service.calls == 1


def test_a_request_that_lost_its_key_undoes_its_effect(app, service):
    started, go_on = pause(service, "before")
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(post, app)
        assert started.wait(30)
        service.before = lambda: None
        let_a_minute_pass(app)
        fast = post(app)
        go_on.set()
        assert slow.result().json["code"] == "idempotency_in_progress"
    assert fast.status_code == 201
    assert post(app).data == fast.data
    assert count_things(app) == 1


def test_a_request_that_lost_its_key_undoes_its_effect_also_while_its_successor_works(app, service):
    started, go_on = pause(service, "before")
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(post, app)
        assert started.wait(30)
        let_a_minute_pass(app)
        successor_started, successor_goes_on = pause(service, "before")
        successor = pool.submit(post, app)
        assert successor_started.wait(30)
        go_on.set()
        assert slow.result().json["code"] == "idempotency_in_progress"
        assert count_things(app) == 0
        successor_goes_on.set()
        assert successor.result().status_code == 201
    assert post(app).data == successor.result().data
    assert count_things(app) == 1


def test_a_request_that_lost_its_key_after_its_effect_stores_no_answer(app, service):
    started, go_on = pause(service, "after")
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(post, app)
        assert started.wait(30)
        let_a_minute_pass(app)
        fast = post(app)
        with app.app_context(), transaction():
            db.session.execute(update(IdempotencyKey).values(response_body=b"of the new holder"))
        go_on.set()
        assert slow.result().data == fast.data
    assert post(app).data == b"of the new holder"
    assert count_things(app) == service.calls == 1


# Around it


def test_without_a_request_attach_does_nothing(app, service):
    with app.app_context():
        service.create(name="x")
    assert states(app) == []


def test_keys_are_kept_for_a_day(app):
    def row(key: str, created_at: datetime) -> dict:
        return {
            "user_id": ANN,
            "key": key,
            "method": "POST",
            "path": "/things",
            "fingerprint": "0" * 64,
            "state": State.IN_PROGRESS,
            "locked_at": created_at,
            "created_at": created_at,
        }

    now = utcnow()
    old = [row(f"old{i}", now - KEPT_FOR - timedelta(microseconds=1)) for i in range(PURGE_BATCH + 1)]
    with app.app_context():
        with transaction():
            db.session.execute(insert(IdempotencyKey), [*old, row("young", now - KEPT_FOR)])
        assert purge(now) == PURGE_BATCH + 1
        assert db.session.scalars(select(IdempotencyKey.key)).all() == ["young"]
        assert purge() == 1


def test_the_decorator_leaves_marks_for_the_openapi_document():
    assert create_thing._apidoc["idempotent"] == "accepted"
    assert create_payment._apidoc["idempotent"] == "required"
    codes = [error.code for error in create_payment._apidoc["idempotency_errors"]]
    assert codes == [
        "idempotency_key_invalid",
        "idempotency_in_progress",
        "idempotency_key_reused",
        "idempotency_key_required",
    ]
    assert "arguments" in create_thing._apidoc
