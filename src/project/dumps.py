"""Dumping objects through a schema whose fields were looked at once, and not again for every object.

marshmallow asks each field of each object where its value is, whether it is there and what becomes of it. The answers are
the same for every object, and most values become themselves: a list of 50 accounts takes a fifth of the time so.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from marshmallow import Schema, fields

# The types whose values a field dumps as they are, by the method that dumps so: a subclass with another has no entry.
_UNCHANGED: dict[Any, type] = {
    fields.String._serialize: str,
    fields.Integer._serialize: int,
    fields.Boolean._serialize: bool,
}


# What stands for the value of a computed field, which has none: every object has this.
_NOTHING = "__class__"


def compile_dump(schema: Schema) -> Callable[[Any], dict[str, Any]]:
    """Return a function that dumps one object, or one dict, as the schema itself would.

    Of an object that lacks a value it raises AttributeError or KeyError; a plain dump leaves the field out.
    """
    members = schema.dump_fields.items()
    sources = [(field.attribute or name) if field._CHECK_ATTRIBUTE else _NOTHING for name, field in members]
    plan = [
        (name if field.data_key is None else field.data_key, _unchanged(field), field._serialize, name)
        for name, field in members
    ]
    values_of = attrgetter(*sources, _NOTHING)  # of two names or more it gives a tuple

    def dump(obj: Any) -> dict[str, Any]:
        values = [obj[source] for source in sources] if isinstance(obj, dict) else values_of(obj)
        return {
            key: value if type(value) is unchanged else serialize(value, name, obj)
            for value, (key, unchanged, serialize, name) in zip(values, plan, strict=False)
        }

    return dump


def _unchanged(field: fields.Field[Any]) -> type | None:
    if getattr(field, "as_string", False):  # a number may be dumped as a text
        return None
    return _UNCHANGED.get(type(field)._serialize)
