"""What PostgreSQL does for a statement: EXPLAIN, and how much of the tables it has to look at."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

PARAMETER = re.compile(r"%\((\w+)\)s")
PLAN = "EXPLAIN (FORMAT JSON) "
ANALYZE = "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) "


@dataclass(frozen=True)
class Plan:
    """A plan that was carried out."""

    root: dict[str, Any]

    @property
    def cost(self) -> float:
        """What the planner expects it to cost."""
        return float(self.root["Total Cost"])

    @property
    def nodes(self) -> Iterator[dict[str, Any]]:
        """Every step."""
        return _walk(self.root)

    @property
    def rows_read(self) -> int:
        """How many rows and entries of indexes were looked at, whatever came of them."""
        return sum(_rows(node) for node in self.nodes if "Scan" in node["Node Type"])

    @property
    def blocks_read(self) -> int:
        """How many pages of 8 KiB were looked at; where it was not carried out, the cost, which is counted in pages."""
        if "Shared Hit Blocks" not in self.root:
            return int(self.cost)
        return int(self.root["Shared Hit Blocks"] + self.root["Shared Read Blocks"])

    @property
    def scans(self) -> list[str]:
        """How each table is read."""
        steps = [node for node in self.nodes if "Relation Name" in node or "Index Name" in node]
        return [f"{step['Node Type']} {step.get('Index Name') or step['Relation Name']}" for step in steps]


def _walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _walk(child)


def _rows(node: dict[str, Any]) -> int:
    removed = ("Rows Removed by Filter", "Rows Removed by Index Recheck")
    return int((node.get("Actual Rows", 0) + sum(node.get(name, 0) for name in removed)) * node.get("Actual Loops", 1))


def explain(connection: psycopg.Connection, statement: str, parameters: Mapping[str, Any]) -> Plan:
    """Carry a statement out for these values, and undo it; only plan it if that is not possible a second time."""
    try:
        with connection.transaction(force_rollback=True):
            return _plan(connection, ANALYZE + statement, parameters)
    except psycopg.IntegrityError:
        return _plan(connection, PLAN + statement, parameters)


def explain_for_any(connection: psycopg.Connection, statement: str, parameters: Mapping[str, Any]) -> Plan | None:
    """Carry it out by the plan for any values, if PostgreSQL may come to use that: it does where it looks cheaper.

    A statement that comes again and again is prepared, and from the sixth time on the planner compares what it
    expects of a plan for any values with what it expected of those for the values that came:
    https://www.postgresql.org/docs/current/sql-prepare.html
    """
    names = list(dict.fromkeys(PARAMETER.findall(statement)))
    numbered = PARAMETER.sub(lambda found: f"${names.index(found[1]) + 1}", statement).replace("%%", "%")
    values = sql.SQL(", ").join(sql.Literal(parameters[name]) for name in names)
    execute = sql.SQL("EXECUTE a_statement({})").format(values) if names else sql.SQL("EXECUTE a_statement")
    connection.execute(f"PREPARE a_statement AS {numbered}")
    try:
        connection.execute("SET plan_cache_mode = force_custom_plan")
        custom = _plan(connection, sql.SQL(PLAN) + execute)
        connection.execute("SET plan_cache_mode = force_generic_plan")
        if _plan(connection, sql.SQL(PLAN) + execute).cost >= custom.cost:
            return None
        with connection.transaction(force_rollback=True):
            return _plan(connection, sql.SQL(ANALYZE) + execute)
    except psycopg.IntegrityError:
        return None
    finally:
        connection.execute("RESET plan_cache_mode; DEALLOCATE a_statement")


def _plan(connection: psycopg.Connection, statement: Any, parameters: Mapping[str, Any] | None = None) -> Plan:
    row = connection.execute(statement, parameters).fetchone()
    assert row is not None
    found = row[0] if isinstance(row[0], list) else json.loads(row[0])
    return Plan(found[0]["Plan"])
