"""What is wrong with what was sent: a code for each refusal, and marshmallow's messages as errors with pointers."""

from collections.abc import Mapping
from typing import Any

from project.errors import FieldError, field_code

REQUIRED = field_code("required", "This field is required.", "Send the field.")
NULL = field_code("null_not_allowed", "This field may not be null.", "Send a value or leave the field out.")
UNKNOWN = field_code("unknown_field", "There is no such field here.", "Leave the field out; check its spelling.")
TYPE = field_code("invalid_type", "The value has the wrong type.", "Send the JSON type of the documentation.")
FORMAT = field_code("invalid_format", "The value has the wrong format.", "Send the format of the documentation.")
CHOICE = field_code("invalid_choice", "The value is not one of the choices.", "Send one of the listed values.")
RANGE = field_code("out_of_range", "The value is too small or too large.", "Stay within the documented bounds.")
LENGTH = field_code("invalid_length", "The value is too short or too long.", "Stay within the documented length.")
REPEATED = field_code("repeated_parameter", "The parameter was sent twice.", "Send each query parameter once.")
CHARACTERS = field_code(
    "invalid_characters", "The text has characters that are not allowed.", "Remove control characters."
)
EMAIL = field_code("invalid_email", "This is not an e-mail address.", "Send one plain address such as ann@example.com.")

# marshmallow names its own messages; each stands for one of our codes.
CODE_OF_MESSAGE = {
    "required": REQUIRED,
    "null": NULL,
    "unknown": CHOICE,
    "type": TYPE,
    "invalid": TYPE,
    "invalid_uuid": FORMAT,
    "too_large": RANGE,
    "format": FORMAT,
    "length": LENGTH,
    "range": RANGE,
    "characters": CHARACTERS,
    "email": EMAIL,
}


class Message(str):
    """A validation message that carries its code."""

    __slots__ = ("code",)

    code: str

    def __new__(cls, text: str, code: str) -> "Message":
        """Make a message for a code of the registry."""
        message = super().__new__(cls, text)
        message.code = code
        return message

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        """Say what a copy is made of."""
        return str(self), self.code

    def format(self, *args: object, **kwargs: object) -> "Message":
        """Fill in the placeholders and keep the code."""
        return Message(super().format(*args, **kwargs), self.code)


UNKNOWN_FIELD = Message("There is no such field here.", UNKNOWN)


def field_errors(messages: Any, pointer: str = "") -> list[FieldError]:
    """Flatten marshmallow's nested messages into field errors with JSON pointers (RFC 6901)."""
    if isinstance(messages, Mapping):
        found: list[FieldError] = []
        for key, inner in messages.items():
            step = "" if key == "_schema" else "/" + str(key).replace("~", "~0").replace("/", "~1")
            found += field_errors(inner, pointer + step)
        return found
    return [
        FieldError(pointer, getattr(text, "code", FORMAT), str(text))
        for text in (messages if isinstance(messages, list) else [messages])
    ]
