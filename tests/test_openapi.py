"""The OpenAPI document as a promise: the committed file is what the application says, and it only ever adds."""

import json
import math
import re
import subprocess
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from project import create_app
from tests.conftest import ENV

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "openapi.json"
METHODS = {"get", "post", "put", "patch", "delete"}
Node = dict[str, Any]


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Flask:
    """The application without a database, which the document does not need."""
    return create_app({**ENV, "DATA_DIR": str(tmp_path_factory.mktemp("openapi"))})


@pytest.fixture
def document(app) -> Node:
    """The document that the application makes."""
    made: Node = app.test_client().get("/openapi.json").json
    return made


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_committed_document_is_what_the_application_says(document):
    assert json.loads(FILE.read_text()) == document, "run `flask openapi write`"


def test_write_makes_the_file_and_check_compares_it(app, tmp_path):
    run = app.test_cli_runner().invoke
    path = tmp_path / "not" / "there" / "openapi.json"

    missing = run(args=["openapi", "write", "--check", str(path)])
    assert (missing.exit_code, path.exists()) == (1, False)
    written = run(args=["openapi", "write", str(path)])
    assert (written.exit_code, written.stdout) == (0, f"Wrote {path}.\n")
    assert path.read_bytes() == FILE.read_bytes()
    assert run(args=["openapi", "write", "--check", str(path)]).exit_code == 0

    path.write_text(path.read_text().replace('"Project"', '"Other"'))
    stale = run(args=["openapi", "write", "--check", str(path)])
    assert stale.exit_code == 1
    assert stale.stderr == f"Error: {path} is not up to date: run `flask openapi write`.\n"
    assert '"Other"' in path.read_text()


def test_operation_ids_are_camel_case_as_generated_clients_want_them(document):
    for path, method, operation in operations(document):
        assert re.fullmatch("[a-z]+([A-Z][a-z]+)*", operation["operationId"]), (method, path)


def test_money_and_counts_are_integers_never_floats(document):
    assert '"type": "number"' not in json.dumps(document["components"]["schemas"])


# --- only ever more ---------------------------------------------------------------------------------------------------


def operations(document: Node) -> Iterator[tuple[str, str, Node]]:
    """Every operation: path, method and what is said of it."""
    for path, item in document["paths"].items():
        for method in sorted(METHODS & item.keys()):
            yield path, method, item[method]


def breaking(old: Node, new: Node) -> list[str]:
    """List what a client of the old document would find broken in the new one."""
    found = []
    for path, method, before in operations(old):
        after = new["paths"].get(path, {}).get(method)
        where = f"{method.upper()} {path}"
        found += [f"{where}: gone"] if after is None else changes(before, after, old, new, where)
    return found


def changes(before: Node, after: Node, old: Node, new: Node, where: str) -> list[str]:
    """List what is broken in one operation: its parameters, its body and its successful answers."""
    before_parameters, after_parameters = parameters(before, old), parameters(after, new)
    found = [f"{where} {name}: gone" for name in before_parameters.keys() - after_parameters.keys()]
    for name, parameter in after_parameters.items():
        known = before_parameters.get(name, {})
        if parameter.get("required") and not known.get("required"):
            found.append(f"{where} {name}: required")
        found += list(narrowed(known.get("schema", {}), parameter["schema"], f"{where} {name}", taken=True))
    body_before, body_after = body(before.get("requestBody", {}), old), body(after.get("requestBody", {}), new)
    found += compare(body_before, body_after, (old, new), f"{where} body", taken=True)
    for status, answer in before["responses"].items():
        if status.startswith("2"):
            there = after["responses"].get(status)
            told = compare(body(answer, old), body(there or {}, new), (old, new), f"{where} {status}", taken=False)
            found += [f"{where} {status}: gone"] if there is None else told
    return found


def parameters(operation: Node, document: Node) -> dict[str, Node]:
    """The parameters of an operation by place and name."""
    found = [resolve(parameter, document) for parameter in operation.get("parameters", [])]
    return {f"{parameter['in']}/{parameter['name']}": parameter for parameter in found}


def resolve(node: Node, document: Node) -> Node:
    """Follow a reference."""
    for step in node["$ref"].removeprefix("#/").split("/") if "$ref" in node else ():
        document = document[step]
    return document if "$ref" in node else node


def body(content: Node, document: Node) -> Node:
    """The schema of a JSON body, or of none."""
    return resolve(content.get("content", {}).get("application/json", {}).get("schema", {}), document)


def compare(before: Node, after: Node, documents: tuple[Node, Node], where: str, *, taken: bool) -> list[str]:
    """List what is broken in a schema, of input that is taken or of an answer that is given."""
    before, after = resolve(before, documents[0]), resolve(after, documents[1])
    found = list(narrowed(before, after, where, taken=taken))
    of_before, of_after = before.get("properties", {}), after.get("properties", {})
    found += [f"{where}/{name}: gone" for name in of_before.keys() - of_after.keys()]
    for name in of_before.keys() & of_after.keys():
        found += compare(of_before[name], of_after[name], documents, f"{where}/{name}", taken=taken)
    must_before, must_after = set(before.get("required", [])), set(after.get("required", []))
    found += [f"{where}/{name}: required" for name in must_after - must_before if taken]
    found += [f"{where}/{name}: no longer certain" for name in must_before - must_after if not taken]
    if "items" in before and "items" in after:
        found += compare(before["items"], after["items"], documents, f"{where}/*", taken=taken)
    return found


def narrowed(before: Node, after: Node, where: str, *, taken: bool) -> Iterator[str]:
    """Name the limits of one value that have become tighter for the client, or its type if that is another."""
    types = [
        {node["type"]} if isinstance(node.get("type"), str) else set(node.get("type", ())) for node in (before, after)
    ]
    lost, added = types[0] - types[1], types[1] - types[0]
    if types[0] and (lost if taken else added):
        yield f"{where}: type"
    if taken and before and "enum" in after and not set(before.get("enum", [None])) <= set(after["enum"]):
        yield f"{where}: choices"
    if taken and before and after.get("maxLength", math.inf) < before.get("maxLength", math.inf):
        yield f"{where}: length"


def gone_path(document: Node) -> None:
    del document["paths"]["/v1/users/me"]


def gone_method(document: Node) -> None:
    del document["paths"]["/v1/users/me"]["patch"]


def gone_status(document: Node) -> None:
    operation = document["paths"]["/v1/users/me"]["get"]
    operation["responses"]["203"] = operation["responses"].pop("200")


def gone_query_parameter(document: Node) -> None:
    found = document["paths"]["/v1/users"]["get"]["parameters"]
    found[:] = [parameter for parameter in found if parameter.get("name") != "q"]


def new_required_parameter(document: Node) -> None:
    parameter = {"in": "query", "name": "new", "required": True, "schema": {"type": "string"}}
    document["paths"]["/v1/users"]["get"]["parameters"].append(parameter)


def fewer_choices(document: Node) -> None:
    [role] = [p for p in document["paths"]["/v1/users"]["get"]["parameters"] if p.get("name") == "role"]
    role["schema"]["enum"].remove("admin")


def gone_field_of_an_answer(document: Node) -> None:
    del document["components"]["schemas"]["User"]["properties"]["email"]


def other_type_in_an_answer(document: Node) -> None:
    document["components"]["schemas"]["User"]["properties"]["email"]["type"] = ["string", "null"]


def uncertain_field_of_an_answer(document: Node) -> None:
    document["components"]["schemas"]["User"]["required"].remove("email")


def new_required_field_of_a_body(document: Node) -> None:
    schema = document["components"]["schemas"]["UserCreate"]
    schema["properties"]["new"] = {"type": "string"}
    schema["required"].append("new")


def gone_field_of_a_body(document: Node) -> None:
    del document["components"]["schemas"]["UserUpdate"]["properties"]["is_active"]


def shorter_field_of_a_body(document: Node) -> None:
    document["components"]["schemas"]["MeUpdate"]["properties"]["name"]["maxLength"] = 100


def new_path(document: Node) -> None:
    document["paths"]["/v1/new"] = document["paths"]["/v1/users/me"]


def new_field_of_an_answer(document: Node) -> None:
    schema = document["components"]["schemas"]["User"]
    schema["properties"]["new"] = {"type": "string"}
    schema["required"].append("new")


def new_optional_field_of_a_body(document: Node) -> None:
    document["components"]["schemas"]["UserCreate"]["properties"]["new"] = {"type": "string"}


def new_optional_parameter(document: Node) -> None:
    parameter = {"in": "query", "name": "new", "schema": {"type": "string"}}
    document["paths"]["/v1/users"]["get"]["parameters"].append(parameter)


def longer_field_of_a_body(document: Node) -> None:
    document["components"]["schemas"]["MeUpdate"]["properties"]["name"]["maxLength"] = 300


def wider_type_of_a_body(document: Node) -> None:
    document["components"]["schemas"]["UserCreate"]["properties"]["email"]["type"] = ["string", "null"]


BREAKING = [
    (gone_path, "GET /v1/users/me: gone"),
    (gone_method, "PATCH /v1/users/me: gone"),
    (gone_status, "GET /v1/users/me 200: gone"),
    (gone_query_parameter, "GET /v1/users query/q: gone"),
    (new_required_parameter, "GET /v1/users query/new: required"),
    (fewer_choices, "GET /v1/users query/role: choices"),
    (gone_field_of_an_answer, "GET /v1/users 200/data/*/email: gone"),
    (other_type_in_an_answer, "GET /v1/users/me 200/data/email: type"),
    (uncertain_field_of_an_answer, "GET /v1/users/me 200/data/email: no longer certain"),
    (new_required_field_of_a_body, "POST /v1/users body/new: required"),
    (gone_field_of_a_body, "PATCH /v1/users/{user_id} body/is_active: gone"),
    (shorter_field_of_a_body, "PATCH /v1/users/me body/name: length"),
]
HARMLESS = [
    new_path,
    new_field_of_an_answer,
    new_optional_field_of_a_body,
    new_optional_parameter,
    longer_field_of_a_body,
    wider_type_of_a_body,
]


@pytest.mark.parametrize(("change", "told"), BREAKING)
def test_a_change_that_breaks_clients_is_found(document, change: Callable[[Node], None], told):
    changed = deepcopy(document)
    change(changed)

    assert told in breaking(document, changed)


@pytest.mark.parametrize("change", HARMLESS)
def test_an_addition_breaks_nobody(document, change: Callable[[Node], None]):
    changed = deepcopy(document)
    change(changed)

    assert changed != document
    assert breaking(document, changed) == []


def git(*arguments: str) -> str:
    """Ask git; nothing if this is no checkout."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=False, capture_output=True, text=True)
    return done.stdout


def test_the_api_breaks_no_client_of_the_version_before(document):
    """Compare with the last committed document that differs from what the application says now."""
    commits = git("log", "-2", "--format=%H", "--", str(FILE)).split()
    versions = [json.loads(git("show", f"{commit}:docs/openapi.json")) for commit in commits]
    others = [version for version in versions if version != document]
    if not others:
        pytest.skip("there is no other version in the history of this checkout")

    assert breaking(others[0], document) == []
