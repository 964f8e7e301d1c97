"""Reads the OpenAPI document, so that tests cover operations that did not exist when they were written."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import requests

from tests.http.client import Account, Api

METHODS = {"get", "put", "post", "patch", "delete"}


@dataclass(frozen=True)
class Operation:
    """One operation of the document; `example` is its example body, `properties` those of a JSON body."""

    id: str
    method: str
    path: str
    security: tuple[str, ...]
    statuses: frozenset[int]
    example: dict[str, Any]
    properties: dict[str, dict[str, Any]]

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.method} {self.path}"


def read_operations(api: Api) -> list[Operation]:
    """The operations that the API says it has."""
    document = api.get("/openapi.json", token=None).json()
    return list(_operations(document))


def _operations(document: dict[str, Any]) -> Iterator[Operation]:
    for path, item in document["paths"].items():
        for method in METHODS & set(item):
            described = item[method]
            content = described.get("requestBody", {}).get("content", {}).get("application/json", {})
            yield Operation(
                id=described["operationId"],
                method=method.upper(),
                path=path,
                security=tuple(scheme for alternative in described["security"] for scheme in alternative),
                statuses=frozenset(int(status) for status in described["responses"]),
                example=copy.deepcopy(content.get("example", {})),
                properties=_resolve(document, content.get("schema", {})).get("properties", {}),
            )


def _resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    return schema


def send(caller: Account, operation: Operation, **kwargs: Any) -> requests.Response:
    """Try an operation as somebody, on their own account where it is about one."""
    path = operation.path.replace("{user_id}", caller.id)
    assert "{" not in path, f"say here which object {operation.name} is tried on"
    return caller.api.request(operation.method, path, **kwargs)
