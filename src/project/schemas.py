"""The strict base Schema and the field types of the API: no coercion, and a code for each refusal."""

import enum
import re
import uuid
from datetime import UTC, datetime
from typing import Any

import orjson
from marshmallow import EXCLUDE, RAISE, fields, validate
from marshmallow import Schema as MarshmallowSchema
from typing_extensions import override

from project.dumps import compile_dump
from project.email_addresses import normalize_email
from project.validation import CHOICE, CODE_OF_MESSAGE, FORMAT, LENGTH, RANGE, TYPE, UNKNOWN_FIELD, Message

MAX_INT64 = 2**63 - 1


class Schema(MarshmallowSchema):
    """Base of every schema. Input with unknown fields is refused; each error knows its code."""

    error_messages = {  # noqa: RUF012 - marshmallow merges this attribute of the class
        "unknown": UNKNOWN_FIELD,
        "type": Message("The body must be a JSON object.", TYPE),
    }

    class Meta:
        """Unknown fields are errors."""

        unknown = RAISE

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._dump_one = compile_dump(self)

    @override
    def _serialize(self, obj: Any, *, many: bool = False) -> Any:
        """Dump as marshmallow does, in less time."""
        if many and obj is not None:
            return [self._serialize(item) for item in obj]
        try:
            return self._dump_one(obj)
        except (AttributeError, KeyError, ValueError):  # a value is missing, and its field is left out
            return super()._serialize(obj)

    @override
    def on_bind_field(self, field_name: str, field_obj: Any) -> None:
        """Give each message of a field its code, also of what a list or an enumeration holds."""
        messages = field_obj.error_messages.items()
        field_obj.error_messages = {
            key: text if isinstance(text, Message) else Message(text, CODE_OF_MESSAGE.get(key, FORMAT))
            for key, text in messages
        }
        if isinstance(field_obj, fields.List):
            self.on_bind_field(field_name, field_obj.inner)
        if isinstance(field_obj, fields.Enum):
            self.on_bind_field(field_name, field_obj.field)


class OutSchema(Schema):
    """Base of answers. They may gain fields within /v1, so the documentation does not close them."""

    class Meta:
        """Readers ignore what they do not know."""

        unknown = EXCLUDE


class Length(validate.Length):
    """Length in code points or items."""

    def _format_error(self, value: Any, message: str) -> str:
        return Message(super()._format_error(value, message), LENGTH)


class Range(validate.Range):
    """Bounds of a number, both included."""

    def _format_error(self, value: Any, message: str) -> str:
        return Message(super()._format_error(value, message), RANGE)


class OneOf(validate.OneOf):
    """One of a list of values."""

    def _format_error(self, value: Any) -> str:
        return Message(super()._format_error(value), CHOICE)


class String(fields.String):
    """Text: a JSON string without NUL or unpaired surrogates, which no database would keep."""

    default_error_messages = {  # noqa: RUF012 - marshmallow merges this attribute of the classes
        "invalid": "This must be a string.",
        "characters": "This has characters that are not allowed.",
    }

    @override
    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str):
            raise self.make_error("invalid")
        if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
            raise self.make_error("characters")
        return value


class Boolean(fields.Boolean):
    """A JSON boolean, and nothing that looks like one."""

    @override
    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid")
        return value


class Integer(fields.Integer):
    """A JSON integer that fits 64 bits; `10.0`, `"10"` and `true` are refused."""

    @override
    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.make_error("invalid")
        if abs(value) > MAX_INT64:
            raise self.make_error("too_large")
        return value


class Choice(fields.Enum[Any]):
    """A member of an enumeration, by its value."""

    def __init__(self, choices: type[enum.Enum], **options: Any) -> None:
        super().__init__(choices, by_value=fields.String, **options)

    @override
    def _serialize(self, value: enum.Enum | None, attr: str | None, obj: Any, **kwargs: Any) -> Any:
        """Return the member's value, which is a text."""
        return value if value is None else value.value


class QueryInteger(Integer):
    """A number in a query string: ASCII digits only."""

    @override
    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        if not re.fullmatch(r"[0-9]{1,19}", value):
            raise self.make_error("invalid")
        return super()._deserialize(int(value), attr, data, **kwargs)


class QueryBoolean(fields.Boolean):
    """A switch in a query string: `true` or `false`."""

    @override
    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bool:
        if value not in {"true", "false"}:
            raise self.make_error("invalid")
        return bool(value == "true")


class Id(fields.UUID):
    """An id: a UUID in its canonical lower-case form."""

    @override
    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> uuid.UUID:
        if not isinstance(value, str):
            raise self.make_error("invalid_uuid")
        found: uuid.UUID = super()._deserialize(value, attr, data, **kwargs)
        if str(found) != value:
            raise self.make_error("invalid_uuid")
        return found

    @override
    def _serialize(self, value: uuid.UUID | None, attr: str | None, obj: Any, **kwargs: Any) -> Any:
        """Leave it to JSON, which writes ids (see json.py) in a tenth of the time."""
        return value


class Timestamp(fields.AwareDateTime):
    """A time in RFC 3339 with an offset; out in UTC with `Z`."""

    default_error_messages = {  # noqa: RUF012 - marshmallow merges this attribute of the classes
        "format": "This must be a time such as 2030-01-31T12:00:00Z.",
    }
    _RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)

    @override
    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> datetime:
        if not isinstance(value, str) or not self._RFC3339.fullmatch(value):
            raise self.make_error("format")
        try:
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
        except (ValueError, OverflowError) as error:
            raise self.make_error("format") from error

    @override
    def _serialize(self, value: datetime | None, attr: str | None, obj: Any, **kwargs: Any) -> Any:
        """Leave it to JSON as well."""
        return value if value is None or value.tzinfo is UTC else value.astimezone(UTC)


class Email(String):
    """An address in its one stored form: lower case, ASCII, international domains in Punycode.

    The case is folded although RFC 5321 would let a server tell the cases of a local part apart: none does,
    and two accounts for one mailbox would be worse. What NFKC would change is refused (look-alikes).
    """

    default_error_messages = {  # noqa: RUF012 - marshmallow merges this attribute of the classes
        "email": "This is not an e-mail address.",
    }

    @override
    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs).strip(" ")
        address = normalize_email(text)
        if address is None:
            raise self.make_error("email")
        return address


class Metadata(fields.Field[dict[str, str]]):
    """Data of the client's own about an object: a flat JSON object of texts, at most 4 KiB of JSON."""

    max_bytes = 4096
    default_error_messages = {  # noqa: RUF012 - marshmallow merges this attribute of the classes
        "invalid": "This must be an object whose values are texts.",
        "characters": "This has characters that are not allowed.",
        "length": "This has too many or too long texts.",
    }

    def __init__(self, **options: Any) -> None:
        documented = {"type": "object", "additionalProperties": {"type": "string"}, "example": {"album": "summer"}}
        super().__init__(metadata=documented, **options)

    @override
    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> dict[str, str]:
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            raise self.make_error("invalid")
        try:
            size = len(orjson.dumps(value))
        except TypeError as error:  # an unpaired surrogate
            raise self.make_error("characters") from error
        if any("\0" in text for pair in value.items() for text in pair):
            raise self.make_error("characters")
        if size > self.max_bytes:
            raise self.make_error("length")
        return value


class AcceptedOut(OutSchema):
    """The answer when nothing can be said yet."""

    status = fields.String(required=True, metadata={"example": "accepted"})
