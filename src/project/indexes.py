"""Kinds of indexes that each database is told of in words of its own."""

from typing import Any

from sqlalchemy import Index, text


def only(condition: str) -> dict[str, Any]:
    """Return the options of an index of the rows for which a condition, in SQL, holds.

    A query uses it where its own conditions say the same or more; the other rows cost nothing when they are written.
    """
    return {"postgresql_where": text(condition), "sqlite_where": text(condition)}


def trigrams(name: str, *columns: str) -> Index:
    """Return an index by which PostgreSQL finds a part of a text (extension pg_trgm); on SQLite there is none.

    A part of fewer than three characters has no trigram: a query for it goes through the rows in their order.
    """
    operators = dict.fromkeys(columns, "gin_trgm_ops")
    return Index(name, *columns, postgresql_using="gin", postgresql_ops=operators).ddl_if(dialect="postgresql")
