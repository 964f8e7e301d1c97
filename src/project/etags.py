"""ETags of objects that count their versions: the header, 304 for If-None-Match, the check of If-Match."""

import re
from collections.abc import Callable
from functools import wraps
from http import HTTPStatus
from typing import Any, Protocol
from uuid import UUID

from flask import Response, request
from flask_smorest.utils import unpack_tuple_response
from sqlalchemy import ColumnElement, true, tuple_

from project.errors import PreconditionFailed
from project.marks import mark

# RFC 9110 §8.8.3: an element of the list, weak or strong; anything else between the commas is no tag.
_TAG = re.compile(r'(?:^|,)[ \t]*(W/)?"([^"]*)"[ \t]*(?=,|$)')
# Nine digits fit any integer column; a longer number was never a version of ours.
_OURS = re.compile(r"([0-9a-f]{32})-([1-9][0-9]{0,8})")

# The (id, version) pairs a client will change; None when it does not care.
Expected = frozenset[tuple[UUID, int]] | None


class Versioned(Protocol):
    """An object with an id and a version that grows by one with every change."""

    @property
    def id(self) -> UUID:
        """The object's id."""

    @property
    def version(self) -> int:
        """The number of the present version."""


def etag(obj: Versioned) -> str:
    """Return the strong ETag, quoted. It holds the id, since one URL (`/users/me`) shows several objects."""
    return f'"{obj.id.hex}-{obj.version}"'


def if_match() -> Expected:
    """Return what the If-Match header accepts: None without one or with `*`.

    A weak or malformed tag matches nothing (strong comparison, RFC 9110 §13.1.1), so the set may be empty.
    """
    header = request.headers.get("If-Match")
    if header is None or header.strip() == "*":
        return None
    tags = [_OURS.fullmatch(opaque) for weak, opaque in _TAG.findall(header) if not weak]
    return frozenset((UUID(tag[1]), int(tag[2])) for tag in tags if tag)


def matches(model: type[Any], expected: Expected) -> ColumnElement[bool]:
    """Return the condition for a guarded UPDATE or DELETE: true for the rows that If-Match accepts.

    When no row was changed and the object exists, the service raises PreconditionFailed.
    """
    if expected is None:
        return true()
    return tuple_(model.id, model.version).in_(expected)


def check(obj: Versioned, expected: Expected) -> None:
    """Check an object in hand, for instance one that is locked.

    Raises:
        PreconditionFailed: If-Match named other versions only.
    """
    if expected is not None and (obj.id, obj.version) not in expected:
        raise PreconditionFailed()


def conditional(view: Callable[..., Any]) -> Callable[..., Any]:
    """Send the ETag of the object that the view returns; a GET or HEAD of what the client has is 304.

    Goes directly under `@blueprint.response(...)`. The view runs first, and all checks of who may read in it.
    """

    @wraps(view)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        obj, status, headers = unpack_tuple_response(view(*args, **kwargs))
        tag = etag(obj)
        if request.method in {"GET", "HEAD"}:
            check(obj, if_match())
            if _client_has(tag):
                return Response(status=HTTPStatus.NOT_MODIFIED, headers={"ETag": tag})
        return obj, status, {**(headers or {}), "ETag": tag}

    return mark(wrapper, versioned=True)


def precondition(view: Callable[..., Any]) -> Callable[..., Any]:
    """Pass the view what If-Match accepts, as `expected`, which its service hands to `matches` or `check`."""

    @wraps(view)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return view(*args, expected=if_match(), **kwargs)

    return mark(wrapper, if_match=True)


def _client_has(tag: str) -> bool:
    header = request.headers.get("If-None-Match", "")
    if header.strip() == "*":
        return True
    # Weak comparison (RFC 9110 §13.1.2): proxies that compress weaken our tag.
    return tag.strip('"') in {opaque for _, opaque in _TAG.findall(header)}
