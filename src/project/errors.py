"""Every refusal a client can see: the error classes, the registry of codes, and the one body they are sent in."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any, ClassVar
from urllib.parse import quote

import orjson
from flask import Flask, Response, g, has_request_context, request
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import HTTPException, SecurityError

logger = logging.getLogger(__name__)

PROBLEM_TYPE = "application/problem+json"
MAX_FIELD_ERRORS = 100


@dataclass(frozen=True)
class Code:
    """One entry of the registry: what a code means and what the client can do about it."""

    name: str
    status: int
    title: str
    cure: str


REGISTRY: dict[str, Code] = {}


def register_code(name: str, status: int, title: str, cure: str) -> str:
    """Add a code to the registry and return its name; the same name with another meaning is a programming error."""
    code = Code(name, int(status), title, cure)
    if REGISTRY.setdefault(name, code) != code:
        raise ValueError(f"the error code {name} is declared twice")
    return name


def field_code(name: str, title: str, cure: str) -> str:
    """Declare a code that appears only inside the `errors` of a 422."""
    return register_code(name, HTTPStatus.UNPROCESSABLE_ENTITY, title, cure)


@dataclass(frozen=True)
class FieldError:
    """What is wrong with one input: `/field` in a body, `/query/name` or `/header/Name`."""

    pointer: str
    code: str
    detail: str


class AppError(Exception):
    """Base of every expected failure. Subclasses that set `code` are published in the registry."""

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    code: ClassVar[str] = "internal_error"
    message: ClassVar[str] = "Something went wrong on our side."
    cure: ClassVar[str] = "Try again later; if it persists, report the request_id."

    def __init__(
        self,
        detail: str | None = None,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail or self.message)
        self.detail = detail or self.message
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        self.extra = extra

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "code" in cls.__dict__:
            register_code(cls.code, cls.status, cls.message, cls.cure)


class InternalError(AppError):
    """A fault of ours. The text is constant: nothing internal leaks."""

    code = "internal_error"


class BadRequest(AppError):
    """400: the request cannot be parsed."""

    status = HTTPStatus.BAD_REQUEST
    code = "bad_request"
    message = "The request could not be understood."
    cure = "Check the request line, the headers and the encoding."


class IncompleteBody(BadRequest):
    """400: the connection ended before Content-Length bytes had arrived."""

    code = "incomplete_body"
    message = "The body ended before it was complete."
    cure = "Send the whole body again; nothing of the first try was kept."


class Unauthorized(AppError):
    """401: base of the token refusals. RFC 6750 §3 wants the challenge on each."""

    status = HTTPStatus.UNAUTHORIZED

    def __init__(self, detail: str | None = None) -> None:
        challenge = f'Bearer realm="api", error="{self.code}"'
        super().__init__(detail, headers={"WWW-Authenticate": challenge})


class Forbidden(AppError):
    """403: a whole function the role may not use."""

    status = HTTPStatus.FORBIDDEN
    code = "forbidden"
    message = "Your role does not allow this."
    cure = "Use an account with the role that the documentation names for this operation."


class CommandRefused(Exception):
    """A command cannot do what it was asked to, and its text says why. No request meets it."""


class NotFound(AppError):
    """404: no such thing, or not the caller's."""

    status = HTTPStatus.NOT_FOUND
    code = "not_found"
    message = "There is nothing here."
    cure = "Check the path and the id. Another user's objects answer the same."


class MethodNotAllowed(AppError):
    """405: the path exists, the method does not."""

    status = HTTPStatus.METHOD_NOT_ALLOWED
    code = "method_not_allowed"
    message = "This path does not support that method."
    cure = "Use one of the methods in the Allow header."


class Conflict(AppError):
    """409: base of the refusals that the present state of the object causes."""

    status = HTTPStatus.CONFLICT


class PreconditionFailed(AppError):
    """412: If-Match named another version than the current one."""

    status = HTTPStatus.PRECONDITION_FAILED
    code = "precondition_failed"
    message = "The object has changed since you read it."
    cure = "Read it again, apply your change to the new version and send its ETag."


class PayloadTooLarge(AppError):
    """413: more bytes than the operation accepts."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    code = "payload_too_large"
    message = "The body is too large."
    cure = "Send at most 256 KiB of JSON."


class UnsupportedMediaType(AppError):
    """415: a body of another Content-Type or with a Content-Encoding."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    code = "unsupported_media_type"
    message = "The body's Content-Type is missing or not supported here."
    cure = "Send `Content-Type: application/json`, UTF-8, not compressed."


class Invalid(AppError):
    """422: parsed, but not acceptable; `errors` says where."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "validation_error"
    message = "The request is not valid."
    cure = "Correct the fields listed in `errors`."

    @classmethod
    def field(cls, pointer: str, code: str, detail: str | None = None) -> "Invalid":
        """Make the error for a single field; the code's title is the default detail."""
        return cls(errors=[FieldError(pointer, code, detail or REGISTRY[code].title)])


class RateLimited(AppError):
    """429: the budget of an address, an account or a user is spent."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    code = "rate_limited"
    message = "Too many requests."
    cure = "Wait for the seconds in Retry-After, then try again."


class Unavailable(AppError):
    """503: something we depend on is down or busy; nothing is half done."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "service_unavailable"
    message = "The service cannot answer right now."
    cure = "Try again after the seconds in Retry-After."

    def __init__(self, detail: str | None = None, *, retry_after: int = 2) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after)})


# What Flask, Werkzeug and the extensions raise on their own, by status.
_BY_STATUS: dict[int, type[AppError]] = {
    error.status: error
    for error in (
        BadRequest,
        Forbidden,
        NotFound,
        MethodNotAllowed,
        PreconditionFailed,
        PayloadTooLarge,
        UnsupportedMediaType,
        Invalid,
        RateLimited,
        Unavailable,
    )
}


def problem_response(error: AppError) -> Response:
    """Render an error as `application/problem+json` (RFC 9457), the only error body there is."""
    body: dict[str, Any] = {
        "type": f"/errors#{error.code}",
        "title": REGISTRY[error.code].title,
        "status": int(error.status),
        "detail": error.detail,
        "code": error.code,
    }
    if has_request_context():
        body["instance"] = quote(request.path)
        body["request_id"] = g.get("request_id", "")
    if error.errors or error.status == HTTPStatus.UNPROCESSABLE_ENTITY:
        body["errors"] = [asdict(field) for field in error.errors[:MAX_FIELD_ERRORS]]
    body.update(error.extra)
    response = Response(orjson.dumps(body), status=error.status, content_type=PROBLEM_TYPE)
    response.headers.update(error.headers)
    return response


def _http_error(error: HTTPException) -> Response:
    """Give an exception of Flask or Werkzeug our body, keeping the headers that mean something (Allow)."""
    if error.response is not None or error.code is None or error.code < HTTPStatus.BAD_REQUEST:
        return error.get_response()  # type: ignore[return-value]  # a redirect, or a response of its own
    if isinstance(error, SecurityError):
        # Whoever opens the server by another name looks for this line.
        logger.warning("untrusted_host")
        return problem_response(BadRequest("This host name is not served here (TRUSTED_HOSTS)."))
    kept = {name: value for name, value in error.get_headers() if name in {"Allow", "Retry-After"}}
    other = InternalError if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR else BadRequest
    app_error = _BY_STATUS.get(error.code, other)()
    app_error.headers.update(kept)
    return problem_response(app_error)


def _database_error(error: DBAPIError | PoolTimeout) -> Response:
    """Answer 503 when the database is away, busy or too slow; anything else it says is a bug of ours."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    connection_lost = isinstance(error, DBAPIError) and error.connection_invalidated
    # PostgreSQL's code of a server that has become, or not yet ceased to be, a standby.
    read_only = getattr(cause, "sqlstate", None) == "25006"
    if connection_lost or read_only or isinstance(error, OperationalError | PoolTimeout):
        logger.warning("database_unavailable", extra={"error": type(cause).__name__})
        return problem_response(Unavailable("The database cannot be reached right now."))
    return _unexpected_error(error)


def _unexpected_error(error: Exception) -> Response:
    logger.error("unhandled_error", exc_info=error)
    return problem_response(InternalError())


def register_error_handlers(app: Flask) -> None:
    """Make every failure, expected or not, leave the application as a problem."""
    app.register_error_handler(AppError, problem_response)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(DBAPIError, _database_error)
    app.register_error_handler(PoolTimeout, _database_error)
    app.register_error_handler(Exception, _unexpected_error)
