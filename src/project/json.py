"""JSON in and out: a loader that refuses what other parsers would guess at, and orjson for answers."""

import json
import re
from typing import Any, NoReturn

import orjson
from flask import Request, Response, g
from flask.json.provider import JSONProvider

from project.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType

MAX_BODY_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_INTEGER_DIGITS = 19
_READ_BLOCK = 64 * 1024
# Possessive, and the last quote optional: no part of the text is ever looked at twice, whatever is left unclosed.
_STRINGS = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = re.compile(r"[^\[\]{}]+")


class InvalidJson(BadRequest):
    """400: the body is not JSON, or JSON that parsers disagree about."""

    code = "invalid_json"
    message = "The body is not valid JSON."
    cure = "Send one UTF-8 JSON value without duplicate keys, NaN, deep nesting or integers over 19 digits."


def _refuse_deep_nesting(text: str) -> None:
    # Depth is counted before parsing, since the parser recurses. Few brackets cannot be deep.
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in _NOT_BRACKETS.sub("", _STRINGS.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise InvalidJson(f"The body is nested deeper than {MAX_DEPTH} levels.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise InvalidJson("An object in the body has a key twice.")
    return result


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_INTEGER_DIGITS:
        raise InvalidJson(f"An integer in the body has more than {MAX_INTEGER_DIGITS} digits.")
    return int(digits)


def _number(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise InvalidJson("A number in the body is too large.")
    return number


def _constant(name: str) -> NoReturn:
    raise InvalidJson(f"{name} is not JSON.")


_decoder = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_constant
)


def loads(data: bytes | str) -> Any:
    """Parse one JSON text strictly (RFC 8259, and the advice of RFC 7493 on duplicates and surrogates).

    Raises:
        InvalidJson: bad syntax or UTF-8, a byte order mark, duplicate keys, NaN or infinities, more than
            32 levels, integers of more than 19 digits, lone surrogates.
    """
    try:
        text = data if isinstance(data, str) else data.decode()
        _refuse_deep_nesting(text)
        value = _decoder.decode(text)
        if "\\u" in text:
            # Only an escape can make a lone surrogate, and only encoding shows it.
            json.dumps(value, ensure_ascii=False).encode()
    except ValueError as error:
        raise InvalidJson() from error
    return value


def read_body(request: Request, *, limit: int = MAX_BODY_BYTES) -> bytes:
    """Read a request's body up to `limit` bytes, whatever its framing.

    Raises:
        PayloadTooLarge: the body is, or says it is, larger.
        IncompleteBody: it ended early.
    """
    if (request.content_length or 0) > limit:
        raise PayloadTooLarge()
    body = bytearray()
    while block := request.stream.read(_READ_BLOCK):
        body += block
        if len(body) > limit:
            raise PayloadTooLarge()
    return bytes(body)


def load_body(request: Request) -> Any:
    """Return the parsed JSON body of the current request; it is read and parsed once, then kept.

    Raises:
        UnsupportedMediaType: Content-Type is not JSON in UTF-8, or there is a Content-Encoding.
        BadRequest: it cannot be parsed or is cut; PayloadTooLarge: it is over 256 KiB.
    """
    if "json_body" not in g:
        _require_json(request)
        g.json_body = loads(read_body(request))
    return g.json_body


def has_body(request: Request) -> bool:
    """Tell whether a request has a body, or says of what type it would be."""
    return bool(request.content_type or request.content_length) or "Transfer-Encoding" in request.headers


def _require_json(request: Request) -> None:
    if not has_body(request):
        raise InvalidJson("A JSON body is required.")
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if request.mimetype != "application/json" or charset not in {"utf-8", "utf8"}:
        raise UnsupportedMediaType()
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("Compressed bodies are not accepted.")


def dumps(value: Any, *, indent: bool = False) -> bytes:
    """Serialise; ids become texts and times RFC 3339 in UTC with `Z`, and non-finite floats null: never NaN."""
    return orjson.dumps(value, option=orjson.OPT_UTC_Z | (orjson.OPT_INDENT_2 if indent else 0))


class OrjsonProvider(JSONProvider):
    """Flask's JSON interface: strict in, orjson out."""

    def loads(self, s: str | bytes, **_kwargs: Any) -> Any:
        """Parse strictly, see `loads`."""
        return loads(s)

    def dumps(self, obj: Any, **_kwargs: Any) -> str:
        """Serialise, see `dumps`."""
        return dumps(obj).decode()

    def response(self, *args: Any, **kwargs: Any) -> Response:
        """Build a JSON response without a detour over text."""
        obj = self._prepare_response_obj(args, kwargs)
        return Response(dumps(obj), mimetype="application/json")
