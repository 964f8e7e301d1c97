"""Reads the form-encoded parameters of Stripe's API, strictly: what we do not know is refused, so that drift shows."""

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from project.payments.sandbox.errors import WireError

# Takes the parameter's name and what was sent for it; returns its value.
Reader = Callable[[str, Any], Any]
Shape = Mapping[str, Reader]

_METADATA_KEYS = 50
_KEY_LENGTH = 40
_VALUE_LENGTH = 500


def read(encoded: str, shape: Shape, *, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the parameters of a form or a query.

    Raises:
        WireError: one is unknown, missing or of the wrong kind.
    """
    sent: dict[str, Any] = {}
    for name, text in parse_qsl(encoded, keep_blank_values=True):
        _put(sent, re.findall(r"[^\[\]]+", name), text)
    for name in required:
        if name not in sent:
            raise WireError(f"Missing required param: {name}.", code="parameter_missing", param=name)
    values: dict[str, Any] = nested(shape)("", sent)
    return values


def _put(into: dict[str, Any], path: list[str], text: str) -> None:
    """Put a[b][c]=text where it belongs."""
    for name in path[:-1]:
        inner = into.setdefault(name, {})
        if not isinstance(inner, dict):
            raise _invalid(path[0])
        into = inner
    into[path[-1]] = text


def _invalid(name: str) -> WireError:
    return WireError(f"Invalid value for {name}.", param=name)


def nested(shape: Shape) -> Reader:
    """Read an object that has these members."""

    def convert(name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _invalid(name)
        unknown = next((member for member in value if member not in shape), None)
        if unknown is not None:
            path = f"{name}[{unknown}]" if name else unknown
            raise WireError(f"Received unknown parameter: {path}", code="parameter_unknown", param=path)
        return {member: shape[member](f"{name}[{member}]" if name else member, sent) for member, sent in value.items()}

    return convert


def text(name: str, value: Any) -> str:
    """Read a text."""
    if not isinstance(value, str):
        raise _invalid(name)
    return value


def integer(name: str, value: Any) -> int:
    """Read a whole number of at most 18 digits."""
    if not re.fullmatch(r"-?[0-9]{1,18}", text(name, value)):
        raise WireError(f"Invalid integer: {value}", code="parameter_invalid_integer", param=name)
    return int(value)


def boolean(name: str, value: Any) -> bool:
    """Read true or false."""
    return bool(one_of("true", "false")(name, value) == "true")


def one_of(*choices: str) -> Reader:
    """Read one of these texts."""

    def convert(name: str, value: Any) -> str:
        if value not in choices:
            raise WireError(f"Invalid {name}: must be one of {', '.join(choices)}", param=name)
        return str(value)

    return convert


def list_of(*choices: str) -> Reader:
    """Read a list of some of these texts."""

    def convert(name: str, value: Any) -> list[str]:
        if not isinstance(value, dict):
            raise _invalid(name)
        return [one_of(*choices)(name, item) for item in value.values()]

    return convert


def metadata(name: str, value: Any) -> dict[str, str]:
    """Read labels, within Stripe's bounds."""
    if not isinstance(value, dict) or len(value) > _METADATA_KEYS:
        raise _invalid(name)
    labels = {key: text(name, item) for key, item in value.items()}
    if any(len(key) > _KEY_LENGTH or len(item) > _VALUE_LENGTH for key, item in labels.items()):
        raise _invalid(name)
    return labels
