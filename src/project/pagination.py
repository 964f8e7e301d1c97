"""Keyset pages: a bounded list, and a signed cursor that says where the next page begins."""

import base64
import hmac
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, TypeVar
from urllib.parse import quote, urlencode
from uuid import UUID

from flask import request
from sqlalchemy import Column, ColumnElement, Select, Uuid, bindparam, func, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute

from project import signing
from project.config import settings
from project.database import UtcDateTime, db, run
from project.errors import BadRequest

# A file name of 255 characters is the longest value sorted by: about 1,400 characters of cursor.
MAX_CURSOR_LENGTH = 4096
_SIGNATURE_BYTES = 16
# JSON has numbers and texts; values of these column types are written with str() and read back so.
_PARSERS: dict[type, Callable[[str], Any]] = {UtcDateTime: datetime.fromisoformat, Uuid: UUID}

T = TypeVar("T")


class InvalidCursor(BadRequest):
    """400: the cursor was changed, or belongs to another query or another caller."""

    code = "invalid_cursor"
    message = "The cursor does not belong to this request."
    cure = "Follow the Link header, or start again without `cursor`; keep the other parameters the same."


@dataclass(frozen=True)
class PageRequest:
    """What a client asked for; `bound_to` is a canonical text of the filters, which a cursor is tied to."""

    limit: int = 20
    cursor: str | None = None
    include_total: bool = False
    sort: str = "-created_at"
    bound_to: str = ""


class Page(list[T]):
    """The items of one page; `next_cursor` is None on the last, `total` unless it was asked for."""

    def __init__(
        self, items: Iterable[T], *, limit: int, next_cursor: str | None = None, total: int | None = None
    ) -> None:
        super().__init__(items)
        self.limit = limit
        self.next_cursor = next_cursor
        self.total = total


# Where a page begins: the last value of the page before, and the id that goes with it.
_HERE = ("cursor_value", "cursor_id")

# The columns of an entity, or of a table when rows are read.
Key = InstrumentedAttribute[Any] | Column[Any]


def paginate(
    statement: Select[Any],
    page: PageRequest,
    *,
    sorts: Mapping[str, Key],
    tiebreaker: Key,
    owner: object = None,
) -> Page[Any]:
    """Return one page of the statement's rows, which must have no order of their own.

    Rows inserted meanwhile neither repeat nor hide others: a page begins after values, not at a number.

    Args:
        statement: selects one entity; or the columns of its table, and rows come in half the time.
        page: what the client asked for; its sort must be in `sorts`, with `-` for descending.
        sorts: the columns that may be sorted by, by public name; columns of that entity or table, never null.
        tiebreaker: its id, which makes the order total.
        owner: the caller's id, or a tuple with whatever else the list depends on that is not in the query string.

    Raises:
        InvalidCursor: the cursor was not made for exactly this list.
    """
    descending = page.sort.startswith("-")
    column = sorts[page.sort.removeprefix("-")]
    position = (column, tiebreaker)
    scope = [page.sort, page.bound_to, str(tiebreaker), str(owner)]
    order, is_beyond = _order(position, descending=descending)
    # One row more than asked tells whether there is a next page.
    rows, values = statement.order_by(*order).limit(page.limit + 1), {}
    if page.cursor is not None:
        rows = rows.where(is_beyond)
        values = dict(zip(_HERE, _read_cursor(page.cursor, scope, position), strict=True))
    items = run(rows, values) if isinstance(tiebreaker, Column) else db.session.scalars(rows, values).all()
    next_cursor = None
    if len(items) > page.limit:
        last = items[page.limit - 1]
        next_cursor = _make_cursor([getattr(last, key.key) for key in position], scope)
    total = _count(statement, tiebreaker) if page.include_total else None
    return Page(items[: page.limit], limit=page.limit, next_cursor=next_cursor, total=total)


@cache
def _order(position: tuple[Key, Key], *, descending: bool) -> tuple[Sequence[ColumnElement[Any]], ColumnElement[bool]]:
    """Return how a list is sorted, and the condition for what comes after the values named in _HERE; made once."""
    here = tuple_(*(bindparam(name, type_=key.type) for name, key in zip(_HERE, position, strict=True)))
    order = [key.desc() if descending else key.asc() for key in position]
    return order, tuple_(*position) < here if descending else tuple_(*position) > here


def next_link(page: Page[Any]) -> str | None:
    """Return the Link header (RFC 8288) that leads from this request to the next page, if there is one."""
    if page.next_cursor is None:
        return None
    query = [(name, value) for name, value in request.args.items(multi=True) if name != "cursor"]
    query.append(("cursor", page.next_cursor))
    return f'<{settings.public_url}{quote(request.path)}?{urlencode(query)}>; rel="next"'


def contains(column: Key, text: str) -> ColumnElement[bool]:
    """Match rows whose column contains the text; `%`, `_` and a backslash are ordinary characters.

    Case is ignored as far as the database's lower() goes: everywhere in ASCII, beyond it as its locale says.
    """
    return column.icontains(text, autoescape=True)


def _count(statement: Select[Any], tiebreaker: Key) -> int:
    # Over a subquery: a count put in place of the columns would lose the FROM clause.
    ids = statement.with_only_columns(tiebreaker, maintain_column_froms=True).subquery()
    return db.session.scalar(select(func.count()).select_from(ids)) or 0


def _make_cursor(values: list[Any], scope: list[str]) -> str:
    payload = json.dumps(values, default=str, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_sign(payload, scope) + payload).rstrip(b"=").decode()


def _read_cursor(cursor: str, scope: list[str], position: Sequence[Key]) -> list[Any]:
    """Check the signature before anything is parsed: what passes was written by `_make_cursor`."""
    if len(cursor) > MAX_CURSOR_LENGTH:
        raise InvalidCursor()
    try:
        data = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
    except ValueError as error:
        raise InvalidCursor() from error
    signature, payload = data[:_SIGNATURE_BYTES], data[_SIGNATURE_BYTES:]
    if not hmac.compare_digest(signature, _sign(payload, scope)):
        raise InvalidCursor()
    # The decoder skips foreign characters and spare bits; a cursor has exactly one spelling.
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != cursor:
        raise InvalidCursor()
    values = json.loads(payload)
    return [_parse(value, key) for value, key in zip(values, position, strict=True)]


def _parse(value: Any, column: Key) -> Any:
    parser = _PARSERS.get(type(column.type))
    return parser(value) if parser else value


def _sign(payload: bytes, scope: list[str]) -> bytes:
    # JSON holds no raw NUL, so scope and payload cannot be shifted into each other.
    message = json.dumps(scope).encode() + b"\0" + payload
    return signing.digest("pagination cursor", message)[:_SIGNATURE_BYTES]
