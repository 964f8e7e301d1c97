"""Lists as Stripe's API gives them: a page, the newest first, and whether there is more."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import Select

from project.database import db
from project.payments.sandbox.models import FRESH, SandboxDispute, SandboxIntent, SandboxRefund

DEFAULT_LIMIT = 10
MAX_LIMIT = 100

Row = TypeVar("Row", SandboxIntent, SandboxRefund, SandboxDispute)


def show_page(
    model: type[Row], statement: Select[Row], params: dict[str, Any], *, url: str, show: Callable[[Row], dict[str, Any]]
) -> dict[str, Any]:
    """Show a page of what the statement selects; `params` are those of the call."""
    statement = statement.order_by(model.id.desc())
    if "created" in params:
        statement = statement.where(model.created_at >= datetime.fromtimestamp(params["created"]["gte"], UTC))
    if "starting_after" in params:
        statement = statement.where(model.id < params["starting_after"])
    limit = min(params.get("limit", DEFAULT_LIMIT), MAX_LIMIT)
    found = db.session.scalars(statement.limit(limit + 1), execution_options=FRESH).all()
    return {"object": "list", "url": url, "has_more": len(found) > limit, "data": [show(row) for row in found[:limit]]}
