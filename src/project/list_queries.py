"""The query parameters of lists: paging, sorting, filters, and whose things they show."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import orjson
from marshmallow import fields, post_load

from project.errors import Forbidden
from project.pagination import PageRequest
from project.schemas import Id, OneOf, QueryBoolean, QueryInteger, Range, Schema, String
from project.security import Principal, Role


def page_query(sorts: Mapping[str, Any], **filters: fields.Field[Any]) -> type[Schema]:
    """Make the query schema of a list: paging, a whitelist of sorts, and the list's own filters.

    It loads into `page`, a PageRequest bound to the filters' values, and the filters by name.
    """
    choices = [direction + name for name in sorts for direction in ("", "-")]

    class PageQuery(Schema):
        limit = QueryInteger(load_default=20, validate=Range(1, 100), metadata={"description": "Page size."})
        # Of any characters: what is no cursor of ours is refused as such.
        cursor = fields.String(metadata={"description": "`next_cursor` of the page before; keep the other parameters."})
        include_total = QueryBoolean(load_default=False, metadata={"description": "Count all; slow on long lists."})
        sort = String(
            load_default="-created_at",
            validate=OneOf(choices),
            metadata={"description": "A field, descending with `-`."},
        )

        @post_load
        def gather(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
            paging = {name: data.pop(name) for name in ("limit", "cursor", "include_total", "sort") if name in data}
            bound_to = orjson.dumps(data, default=str, option=orjson.OPT_SORT_KEYS).decode()
            return {"page": PageRequest(bound_to=bound_to, **paging), **data}

    return type("PageQuery", (PageQuery,), dict(filters))


def scope_filters() -> dict[str, fields.Field[Any]]:
    """Return the parameters with which staff see more than their own: everybody's things, or somebody's."""
    return {
        "scope": String(validate=OneOf(["mine", "all"]), metadata={"description": "`all`: everybody's (staff)."}),
        "user_id": Id(metadata={"description": "Those of one account (staff)."}),
    }


def whose(caller: Principal, query: dict[str, Any]) -> UUID | None:
    """Take the scope out of a query and return whose things are asked for, None for everybody's.

    Raises:
        Forbidden: only staff see those of others.
    """
    scope, user_id = query.pop("scope", "mine"), query.pop("user_id", None)
    if scope == "mine" and user_id is None:
        return caller.id
    if not caller.role.covers(Role.STAFF):
        raise Forbidden()
    owner: UUID | None = user_id
    return owner
