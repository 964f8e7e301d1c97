"""What is true of all indexes: none is missing where rows go with others, and none says what another says."""

from typing import Any

import pytest
from sqlalchemy import PrimaryKeyConstraint, Table, UniqueConstraint

from project.database import Base

# Prices are never deleted, so nobody asks what refers to one.
KEPT = {"payments.price_id"}
TABLES = list(Base.metadata.sorted_tables)


def indexed(table: Table) -> list[tuple[str, ...]]:
    """Return the columns of each index of all rows of a table."""
    made: list[Any] = [rule for rule in table.constraints if isinstance(rule, PrimaryKeyConstraint | UniqueConstraint)]
    made += [
        index
        for index in table.indexes
        if index.dialect_options["postgresql"]["where"] is None and not index.dialect_options["postgresql"]["using"]
    ]
    return [tuple(column.name for column in index.columns) for index in made]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_what_refers_to_a_row_is_found_by_an_index(table):
    # Whoever deletes a row looks for what refers to it, and deletes that as well or is refused.
    beginnings = {columns[0] for columns in indexed(table)}
    referring = {key.parent.name for key in table.foreign_keys if str(key.parent) not in KEPT}
    assert referring <= beginnings


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_no_index_is_the_beginning_of_another(table):
    all_columns = indexed(table)
    for columns in all_columns:
        longer = [other for other in all_columns if other != columns and other[: len(columns)] == columns]
        assert not longer
        assert all_columns.count(columns) == 1
