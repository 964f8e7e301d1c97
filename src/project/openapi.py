"""The OpenAPI document: what each operation may answer, with examples, derived from its decorators."""

from http import HTTPStatus
from typing import Any

from marshmallow import Schema, fields

from project.errors import (
    PROBLEM_TYPE,
    REGISTRY,
    AppError,
    BadRequest,
    Forbidden,
    IncompleteBody,
    InternalError,
    Invalid,
    PayloadTooLarge,
    PreconditionFailed,
    RateLimited,
    Unavailable,
    UnsupportedMediaType,
)
from project.json import InvalidJson
from project.pagination import InvalidCursor
from project.schemas import OutSchema
from project.security import InvalidToken, SessionRevoked, TokenExpired, TokenRequired
from project.validation import FORMAT, REQUIRED, TYPE, UNKNOWN

_TOKEN_ERRORS = (TokenRequired, TokenExpired, InvalidToken, SessionRevoked)
_BODY_ERRORS = (IncompleteBody, PayloadTooLarge, UnsupportedMediaType, Invalid)
_JSON_ERRORS = (InvalidJson, *_BODY_ERRORS)
_BODY_CODES = (REQUIRED, TYPE, FORMAT, UNKNOWN)
_BYTES = {"type": "string", "format": "binary"}
_BYTES_EXAMPLE = "(the bytes of the file)"
_OTHER_EXAMPLE = "(the same in this type)"
_envelopes: dict[Any, type[Schema]] = {}


class FieldErrorOut(OutSchema):
    """What is wrong with one field."""

    pointer = fields.String(required=True, metadata={"example": "/email"})
    code = fields.String(required=True, metadata={"example": "required"})
    detail = fields.String(required=True, metadata={"example": "This field is required."})


class ProblemOut(OutSchema):
    """An error (RFC 9457). Switch on `code`."""

    type = fields.String(required=True, metadata={"format": "uri-reference"})
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    detail = fields.String(required=True)
    instance = fields.String(required=True, metadata={"format": "uri-reference"})
    code = fields.String(required=True)
    request_id = fields.String(required=True)
    errors = fields.List(fields.Nested(FieldErrorOut), metadata={"description": "With 422: each wrong field."})


class MetaOut(OutSchema):
    """About a page of a list."""

    limit = fields.Integer(required=True, metadata={"example": 20})
    next_cursor = fields.String(required=True, allow_none=True, metadata={"example": None})
    total = fields.Integer(metadata={"example": 1, "description": "With include_total=true."})


def envelope(schema: Schema) -> type[Schema]:
    """Return the documented schema of `{"data": …}` around another, made once."""
    key = (type(schema), schema.many)
    if key not in _envelopes:
        inner = fields.Nested(schema, required=True, metadata={"example": _example(schema)})
        members: dict[str, fields.Field[Any]] = {"data": inner}
        if schema.many:
            members["meta"] = fields.Nested(MetaOut, required=True)
        name = type(schema).__name__.removesuffix("Out") + ("List" if schema.many else "") + "Envelope"
        _envelopes[key] = type(name, (OutSchema,), members)
    return _envelopes[key]


def _instance(schema: type[Schema] | Schema) -> Schema:
    return schema() if isinstance(schema, type) else schema


def _example(schema: Schema) -> Any:
    """Build an example of a schema from the examples of its fields."""
    one = {
        field.data_key or name: _example(field.schema)
        if isinstance(field, fields.Nested)
        else field.metadata.get("example")
        for name, field in schema.fields.items()
        if isinstance(field, fields.Nested) or "example" in field.metadata
    }
    return [one] if schema.many else one


def _problem_example(error: type[AppError], field_codes: tuple[str, ...]) -> dict[str, Any]:
    body: dict[str, Any] = {
        "type": f"/errors#{error.code}",
        "title": error.message,
        "status": int(error.status),
        "detail": error.message,
        "instance": "/v1/example",
        "code": error.code,
        "request_id": "5f0c9d7e8b6a4c3d",
    }
    if error.status == HTTPStatus.UNPROCESSABLE_ENTITY:
        codes = field_codes or (REQUIRED,)
        body["errors"] = [{"pointer": "/field", "code": code, "detail": REGISTRY[code].title} for code in codes]
    return body


def _errors_of(doc: dict[str, Any], marks: dict[str, Any], method: str) -> list[type[AppError]]:
    """List what an operation can refuse with, from its input and the marks its decorators left."""
    # Any operation refuses unknown hosts and query parameters.
    found: list[type[AppError]] = [*marks.get("raises", ()), BadRequest, Invalid, InternalError, Unavailable]
    if "limit" in marks:
        found.append(RateLimited)
    found += marks.get("body_errors", ())
    if marks.get("auth", "public") != "public":
        found += _TOKEN_ERRORS
    if marks.get("auth") in {"staff", "admin"}:
        found.append(Forbidden)
    if "requestBody" in doc:
        found += _JSON_ERRORS if "application/json" in doc["requestBody"]["content"] else _BODY_ERRORS
    for parameter in doc["parameters"]:
        if parameter["in"] == "query" and "cursor" in _instance(parameter["schema"]).fields:
            found.append(InvalidCursor)
    if marks.get("if_match") or (marks.get("versioned") and method == "get"):
        found.append(PreconditionFailed)
    found += marks.get("idempotency_errors", ())
    return list(dict.fromkeys(found))


def _problem_responses(errors: list[type[AppError]], field_codes: tuple[str, ...]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for error in sorted(errors, key=lambda error: (error.status, error.code)):
        response = responses.setdefault(
            str(int(error.status)),
            {
                "description": error.status.phrase,
                "headers": {"X-Request-ID": {"$ref": "#/components/headers/X-Request-ID"}},
                "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
            },
        )
        examples = response["content"][PROBLEM_TYPE]["examples"]
        examples[error.code] = {"summary": error.message, "value": _problem_example(error, field_codes)}
        for name in _headers_of(error):
            response["headers"][name] = {"$ref": f"#/components/headers/{name}"}
    return responses


def _headers_of(error: type[AppError]) -> tuple[str, ...]:
    if error.status == HTTPStatus.UNAUTHORIZED:
        return ("WWW-Authenticate",)
    if error is RateLimited:
        return ("Retry-After", "RateLimit-Policy", "RateLimit")
    return ("Retry-After",) if error is Unavailable or error.code == "idempotency_in_progress" else ()


def document_operation(doc: dict[str, Any], marks: dict[str, Any], **context: Any) -> dict[str, Any]:
    """Complete one operation: id, security, examples, headers, every error (a callback of flask-smorest)."""
    doc["operationId"] = marks["operation_id"]
    doc["security"] = _security(marks.get("auth", "public"))
    field_codes = tuple(marks.get("field_codes", ()))
    if marks.get("raw_body"):
        doc["requestBody"] = {"required": True, "content": {"*/*": {"schema": _BYTES, "example": _BYTES_EXAMPLE}}}
    elif "requestBody" in doc:
        _add_request_example(doc["requestBody"], method=context["method"])
        field_codes = (*_BODY_CODES, *field_codes)
    # flask-smorest refers to its own description of a 422; ours comes below.
    doc["responses"] = {status: found for status, found in doc["responses"].items() if isinstance(found, dict)}
    if marks.get("unsettled"):
        [settled] = doc["responses"].values()
        doc["responses"][HTTPStatus.ACCEPTED] = {**settled, "description": "The outcome is not known yet"}
    for status, response in doc["responses"].items():
        _add_success_headers(response, marks, int(status))
    if marks.get("content"):
        _add_content_responses(doc["responses"])
    _add_other_answers(doc["responses"], marks)
    if marks.get("versioned") and context["method"] == "get":
        doc["responses"]["304"] = {"description": "Not modified", "headers": _refs("ETag", "X-Request-ID")}
    doc.setdefault("parameters", [])
    doc["responses"].update(_problem_responses(_errors_of(doc, marks, context["method"]), field_codes))
    doc["parameters"] += _header_parameters(marks, context["method"])
    return doc


def _add_other_answers(responses: dict[str, Any], marks: dict[str, Any]) -> None:
    """Add what a view may answer with instead: another media type, or an address to go on at."""
    if marks.get("also"):
        [only] = responses.values()
        only["content"][marks["also"]] = {"schema": {"type": "string"}, "example": _OTHER_EXAMPLE}
    if marks.get("redirects"):
        responses["303"] = {"description": "It goes on elsewhere", "headers": _refs("Location", "X-Request-ID")}


def _add_content_responses(responses: dict[str, Any]) -> None:
    """Add what else than 200 content is answered with, by conditions, ranges and the kind of storage."""
    names = ("ETag", "Last-Modified", "Content-Disposition", "Accept-Ranges", "Repr-Digest")
    ok = responses[HTTPStatus.OK]  # type: ignore[index]  # flask-smorest keys them by what the decorator was given
    ok["headers"] |= _refs(*names)
    for content in ok["content"].values():
        content["example"] = _BYTES_EXAMPLE
    part = {**ok, "description": "The range that was asked for"}
    responses["206"] = {**part, "headers": {**part["headers"], **_refs("Content-Range")}}
    responses["302"] = {"description": "Where storage gives the bytes itself", "headers": _refs("Location")}
    responses["304"] = {"description": "Not modified", "headers": _refs("ETag", "X-Request-ID")}


def _security(auth: str) -> list[dict[str, list[str]]]:
    if auth == "public":
        return []
    if auth == "optional":
        return [{}, {"access": []}]
    return [{kind: []} for kind in ("access", "refresh") if kind in auth] or [{"access": []}]


def _add_request_example(body: dict[str, Any], *, method: str) -> None:
    for content in body["content"].values():
        schema = _instance(content["schema"])
        content.setdefault("example", _example(schema))
        body["required"] = method != "post" or any(field.required for field in schema.fields.values())


def _refs(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _add_success_headers(response: dict[str, Any], marks: dict[str, Any], status: int) -> None:
    names = ["X-Request-ID", "RateLimit-Policy", "RateLimit"]
    names += ["Location"] if status == HTTPStatus.CREATED else []
    names += ["ETag"] if marks.get("versioned") else []
    names += ["Idempotent-Replayed"] if marks.get("idempotent") else []
    content = response.get("content", {}).get("application/json")
    if content is not None:
        members = _instance(content["schema"]).fields
        example = {"data": members["data"].metadata["example"]}
        if "meta" in members:
            example["meta"] = {"limit": 20, "next_cursor": None}
            names.append("Link")
        content.setdefault("example", example)
    response["headers"] = {**_refs(*names), **response.get("headers", {})}


def _header_parameters(marks: dict[str, Any], method: str) -> list[str]:
    names = ["If-None-Match", "If-Match"] if marks.get("versioned") and method == "get" else []
    names += ["If-Match"] if marks.get("if_match") else []
    names += ["Range", "If-Range", "If-None-Match", "If-Match"] if marks.get("content") else []
    names += ["Content-Digest"] if marks.get("raw_body") and not marks.get("signed") else []
    names += ["Stripe-Signature"] if marks.get("signed") else []
    names += ["Idempotency-Key"] if marks.get("idempotent") == "accepted" else []
    names += ["Idempotency-Key-Required"] if marks.get("idempotent") == "required" else []
    return names
