"""The OpenAPI document of the whole application: valid, complete, and with examples that fit."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from flask import Flask
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from project import create_app
from project.errors import PROBLEM_TYPE, REGISTRY

METHODS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Flask:
    """The application without a database, which the document does not need."""
    return create_app({"APP_ENV": "testing", "DATA_DIR": str(tmp_path_factory.mktemp("data"))})


class Operation(NamedTuple):
    """One operation of the document beside the marks of its route."""

    path: str
    method: str
    doc: dict[str, Any]
    marks: dict[str, Any]

    def codes(self, status: int) -> set[str]:
        """The error codes documented for a status."""
        content = self.doc["responses"].get(str(status), {}).get("content", {})
        return set(content.get(PROBLEM_TYPE, {}).get("examples", {}))


@pytest.fixture(scope="module")
def document(app) -> dict[str, Any]:
    response = app.test_client().get("/openapi.json")
    assert response.mimetype == "application/json"
    return response.json


@pytest.fixture(scope="module")
def operations(app, document) -> list[Operation]:
    """Every route under /v1; a route that is not in the document is an error right here."""
    return [
        Operation(path, method, document["paths"][path][method.lower()], app.view_functions[rule.endpoint]._apidoc)
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith("/v1")
        for path in [re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)]
        for method in rule.methods - {"HEAD", "OPTIONS"}
    ]


def test_the_document_is_valid(document):
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_the_document_holds_the_api_and_nothing_else(document, operations):
    paths = document["paths"].items()
    documented = {(path, method.upper()) for path, item in paths for method in METHODS & item.keys()}

    assert documented == {(operation.path, operation.method) for operation in operations}


def test_operations_have_an_id_of_their_own_and_a_summary(operations):
    ids = Counter(operation.doc["operationId"] for operation in operations)

    assert [name for name, count in ids.items() if count > 1] == []
    assert [operation for operation in operations if not operation.doc.get("summary", "").endswith(".")] == []


def test_operations_say_what_they_refuse(operations):
    for operation in operations:
        auth = operation.marks["auth"]
        has_body = "requestBody" in operation.doc
        in_query = any(parameter.get("in") == "query" for parameter in operation.doc["parameters"])
        expected = {
            401: {"token_required", "token_expired", "invalid_token", "session_revoked"} if auth != "public" else set(),
            403: {"forbidden"} if auth in {"staff", "admin"} else set(),
            404: {"not_found"} if "{" in operation.path else set(),
            413: {"payload_too_large"} if has_body else set(),
            415: {"unsupported_media_type"} if has_body else set(),
            422: {"validation_error"} if has_body or in_query else set(),
            429: {"rate_limited"},
            500: {"internal_error"},
            503: {"service_unavailable"},
        }
        missing = {status: codes - operation.codes(status) for status, codes in expected.items()}
        assert not any(missing.values()), (operation.method, operation.path, missing)
        assert bool(operation.doc["security"]) == (auth != "public"), operation.path


def examples(content: dict[str, Any]) -> Iterator[Any]:
    """The examples of one media type; at least one, or None."""
    named = [example["value"] for example in content.get("examples", {}).values()]
    yield from named or [content.get("example")]


def test_every_body_has_examples_that_fit_its_schema(document, operations):
    components = {"components": document["components"]}
    for operation in operations:
        answers = operation.doc["responses"].values()
        bodies = [operation.doc.get("requestBody", {}), *(answer for answer in answers if "content" in answer)]
        for content in itertools.chain.from_iterable(body.get("content", {}).values() for body in bodies):
            validator = OAS31Validator({**content["schema"], **components})
            wrong = [error.message for example in examples(content) for error in validator.iter_errors(example)]
            assert wrong == [], (operation.method, operation.path)


def test_documented_errors_are_those_of_the_registry(operations):
    for operation in operations:
        for status in filter(lambda status: int(status) >= 400, operation.doc["responses"]):
            codes = operation.codes(int(status))
            assert codes, (operation.path, status)
            assert {REGISTRY[code].status for code in codes} == {int(status)}
