"""A compiled dump says what marshmallow's own would, for every schema there is and every kind of object."""

import enum
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from itertools import zip_longest
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
from marshmallow import Schema as PlainSchema
from marshmallow import fields
from sqlalchemy import String, Uuid, literal, select

from project import create_app
from project.dumps import compile_dump
from project.json import dumps
from project.schemas import Choice, Id, Metadata, Schema, Timestamp
from project.users.models import USERS
from tests.conftest import ENV


def _schemas(base: type[Schema] = Schema) -> Iterator[type[Schema]]:
    for schema in base.__subclasses__():
        yield schema
        yield from _schemas(schema)


# Those that the application makes by itself, such as queries, share a name; each is another schema.
SCHEMAS = sorted({schema for schema in _schemas() if schema.__module__.startswith("project")}, key=str)


class Word(enum.StrEnum):
    """A text that is more than a text."""

    ONE = "one"


class Many(int):
    """A number that is more than a number."""


@pytest.fixture(scope="module")
def context() -> Iterator[None]:
    """An application, whose settings some computed fields read."""
    with TemporaryDirectory() as folder, create_app({**ENV, "DATA_DIR": folder}).app_context():
        yield


def samples(field: Any) -> list[Any]:
    """Return values that a field may have to dump; the last is None."""
    for kind, values in SAMPLES.items():
        if isinstance(field, kind):
            return [*values(field), None]
    return ["a text", 7, None]


MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678900, UTC)
ELSEWHERE = timezone(timedelta(hours=-3))
# The first that fits counts.
SAMPLES: dict[Any, Callable[[Any], list[Any]]] = {
    fields.Nested: lambda field: [objects(field.schema)] if field.schema.many else objects(field.schema),
    fields.List: lambda field: [samples(field.inner)[:-1], []],
    Choice: lambda field: list(field.enum),
    Id: lambda _: [uuid.uuid4()],
    Timestamp: lambda _: [MOMENT, MOMENT.replace(microsecond=0), MOMENT.astimezone(ELSEWHERE)],
    (fields.Dict, Metadata): lambda _: [{"album": "summer"}, {}],
    fields.Integer: lambda _: [0, 2**63 - 1, True, Many(5)],
    fields.Boolean: lambda _: [True, False],
    fields.String: lambda _: ["a text", "", Word.ONE, uuid.uuid4()],
}


def objects(schema: Any) -> list[SimpleNamespace]:
    """Return objects that between them have all samples of each field."""
    names = [field.attribute or name for name, field in schema.fields.items()]
    rows = zip_longest(*(samples(field) for field in schema.fields.values()))
    return [SimpleNamespace(**dict(zip(names, row, strict=True))) for row in rows]


def plain(schema: Schema, obj: Any) -> Any:
    """Dump an object in marshmallow's own way."""
    return PlainSchema._serialize(schema, obj)


@pytest.mark.parametrize("kind", SCHEMAS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_it_equals_the_plain_dump(context, kind):
    schema = kind()
    for obj in objects(schema):
        if not _is_dumpable(schema, obj):
            continue
        assert compile_dump(schema)(obj) == plain(schema, obj)
        for form in (obj, vars(obj)):
            if _is_dumpable(schema, form):
                assert schema.dump(form) == plain(schema, form)
                assert dumps(schema.dump(form)) == dumps(plain(schema, form))


def _is_dumpable(schema: Schema, obj: Any) -> bool:
    try:
        plain(schema, obj)
    except (AttributeError, TypeError):  # such as a computed field that is made of another, which is None here
        return False
    return True


def test_most_schemas_are_compared_on_more_than_nothing(context):
    compared = [kind for kind in SCHEMAS if any(_is_dumpable(kind(), obj) for obj in objects(kind()))]
    assert len(compared) >= len(SCHEMAS) - 2


@pytest.mark.parametrize("kind", SCHEMAS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_a_value_that_is_missing_is_left_out(context, kind):
    schema = kind()
    for name, field in schema.fields.items():
        values = vars(objects(schema)[0])
        del values[field.attribute or name]
        for form in (values, SimpleNamespace(**values)):
            if _is_dumpable(schema, form):
                assert schema.dump(form) == plain(schema, form)


def test_a_row_is_dumped_as_an_object_with_its_values(session):
    class Out(Schema):
        name = fields.String()
        key = fields.String(attribute="id")

    class Missing(Out):
        other = fields.String()

    row = session.execute(select(USERS.c.id.label("name"), USERS.c.email.label("id")).union(_one_row())).first()
    assert Out().dump(row) == plain(Out(), row) == {"name": str(row.name), "key": "an id"}
    assert Missing().dump(row) == plain(Missing(), row)


def _one_row() -> Any:
    return select(literal(uuid.uuid4(), Uuid()).label("name"), literal("an id", String()).label("id"))


def test_only_some_fields_are_dumped_when_only_some_are_asked_for():
    class Out(Schema):
        name = fields.String()
        size = fields.Integer(data_key="bytes")

    obj = SimpleNamespace(name="a", size=1)
    assert Out(only=("size",)).dump(obj) == {"bytes": 1}
    assert Out(many=True).dump([obj, {"name": "b"}]) == [{"name": "a", "bytes": 1}, {"name": "b"}]
