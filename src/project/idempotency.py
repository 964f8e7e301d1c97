"""Idempotency-Key for routes: run a request once, answer its repetitions with what the first was told."""

import hashlib
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from http import HTTPStatus
from typing import Any
from uuid import UUID

import orjson
from flask import Response, current_app, request
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import HTTPException

from project.errors import AppError, BadRequest
from project.idempotency_keys import (
    Answer,
    Claim,
    IdempotencyInProgress,
    IdempotencyKeyReused,
    claim,
    complete,
    executing,
    fail,
    release,
)
from project.json import has_body, load_body
from project.marks import mark
from project.security import principal

logger = logging.getLogger(__name__)

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_KEPT_HEADERS = ("Content-Type", "Location", "ETag")
# Results of the business, told again to whoever repeats the request; every other refusal leaves the key free.
_KEPT_REFUSALS = {HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.CONFLICT}


class IdempotencyKeyRequired(BadRequest):
    """400: the operation moves money and the header is missing."""

    code = "idempotency_key_required"
    message = "This operation needs an Idempotency-Key."
    cure = "Send a new random `Idempotency-Key`, and the same one when you repeat the request."


class IdempotencyKeyInvalid(BadRequest):
    """400: the header is there and is no key."""

    code = "idempotency_key_invalid"
    message = "The Idempotency-Key is malformed."
    cure = "Send one header with 1 to 255 visible ASCII characters, for example a UUID."


@dataclass(frozen=True)
class Secret:
    """A member of `data` that is not stored with the answer; a repetition fetches it by the resource's id."""

    member: str
    fetch: Callable[[UUID], str]


def _parsed_body() -> object:
    """Return the parsed JSON body, so that its spelling makes no difference; none is as good as an empty one."""
    return load_body(request) if has_body(request) else {}


def idempotent(
    *,
    resume: Callable[[UUID], object],
    required: bool = False,
    sent: Callable[[], object] = _parsed_body,
    secret: Secret | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Run the route once for each key of a user. Stands below the role and above `arguments`.

    The service of the route calls `attach(resource_id)` in the transaction of its effect. The route takes a
    keyword `resumed`. It is None, unless an earlier request with this key made its resource and then failed
    or died before the answer was stored: then it is what `resume(resource_id)` returned, and the route
    answers with it as if it were new: `return resumed or service.create(...)`.

    `required` is for what moves money. A 202 then means that the outcome is unknown: it is not stored, and a
    repetition resumes. `sent` returns what, beside method and path, makes two requests the same, as far as JSON can
    carry it.
    """
    refusals = [*_REFUSALS, IdempotencyKeyRequired] if required else _REFUSALS

    def decorate(view: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(view)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            key = _key(required=required)
            if key is None:
                return view(*args, resumed=None, **kwargs)
            claimed = claim(user_id=principal().id, key=key, **_identity(sent()))
            if isinstance(claimed, Answer):
                return _replay(claimed, secret)
            response = _execute(claimed, view, resume, args, kwargs)
            if required and response.status_code == HTTPStatus.ACCEPTED:
                fail(claimed)
            else:
                _store(claimed, response, secret)
            return response

        return mark(wrapper, idempotent="required" if required else "accepted", idempotency_errors=refusals)

    return decorate


_REFUSALS: list[type[AppError]] = [IdempotencyKeyInvalid, IdempotencyInProgress, IdempotencyKeyReused]


def _key(*, required: bool) -> str | None:
    header = request.headers.get("Idempotency-Key")
    if header is None:
        if required:
            raise IdempotencyKeyRequired()
        return None
    if not _KEY.fullmatch(header):
        raise IdempotencyKeyInvalid()
    return header


def _identity(sent: object) -> dict[str, str]:
    canonical = json.dumps([request.method, request.path, sent], sort_keys=True, separators=(",", ":"))
    fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
    return {"method": request.method, "path": request.path, "fingerprint": fingerprint}


def _execute(
    claimed: Claim,
    view: Callable[..., Any],
    resume: Callable[[UUID], object],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Response:
    try:
        with executing(claimed):
            resumed = None if claimed.resource_id is None else resume(claimed.resource_id)
            response = current_app.make_response(view(*args, resumed=resumed, **kwargs))
    except Exception as error:
        status = _status(error)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            fail(claimed)
            raise
        # release() refuses once the effect is committed: what follows is then a result, not a refusal.
        if status not in _KEPT_REFUSALS and release(claimed):
            raise
        response = current_app.make_response(current_app.handle_user_exception(error))
    return response


def _status(error: Exception) -> int:
    if isinstance(error, AppError):
        return error.status
    code = error.code if isinstance(error, HTTPException) else None
    return code or HTTPStatus.INTERNAL_SERVER_ERROR


def _store(claimed: Claim, response: Response, secret: Secret | None) -> None:
    headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
    body = response.get_data()
    if secret is not None and response.status_code == HTTPStatus.CREATED:
        body = _with_member(body, secret.member, None)
    try:
        complete(claimed, Answer(response.status_code, headers, body))
    except SQLAlchemyError as error:
        # The effect is committed and the answer is true: an error now would be a lie. A repetition resumes.
        logger.warning("idempotent_answer_not_stored", extra={"error": type(error).__name__})


def _with_member(body: bytes, name: str, value: str | None) -> bytes:
    parsed = orjson.loads(body)
    parsed["data"][name] = value
    return orjson.dumps(parsed)


def _replay(answer: Answer, secret: Secret | None) -> Response:
    body = answer.body
    if secret is not None and answer.status == HTTPStatus.CREATED and answer.resource_id is not None:
        body = _with_member(body, secret.member, secret.fetch(answer.resource_id))
    response = Response(body, status=answer.status, headers=answer.headers)
    response.headers["Idempotent-Replayed"] = "true"
    return response
