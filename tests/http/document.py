"""Reads the OpenAPI document, so that tests cover operations that did not exist when they were written."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import requests

from tests.http.client import Account, Api

METHODS = {"get", "put", "post", "patch", "delete"}


@dataclass(frozen=True)
class Operation:
    """One operation of the document.

    `optional` is true of one that can do without its token. `content_type` is that of its body, "" without one;
    `example` and `properties` are those of a JSON body.
    """

    id: str
    method: str
    path: str
    security: tuple[str, ...]
    optional: bool
    statuses: frozenset[int]
    content_type: str
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
            bodies = described.get("requestBody", {}).get("content", {})
            content = bodies.get("application/json", {})
            yield Operation(
                id=described["operationId"],
                method=method.upper(),
                path=path,
                optional={} in described["security"],
                security=tuple(scheme for alternative in described["security"] for scheme in alternative),
                statuses=frozenset(int(status) for status in described["responses"]),
                content_type=next(iter(bodies), ""),
                example=copy.deepcopy(content.get("example", {})),
                properties=_resolve(document, content.get("schema", {})).get("properties", {}),
            )


def _resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    return schema


def good_body(operation: Operation) -> dict[str, Any]:
    """The body that the document has as an example, as `requests` takes it."""
    match operation.content_type:
        case "":
            return {}
        case "application/json":
            return {"json": operation.example}
        case "multipart/form-data":
            return {"files": {"file": ("hello.txt", b"hello", "text/plain")}}
        case _:
            return {"data": b"hello", "headers": {"Content-Type": "text/plain"}}


@cache
def file_of(caller: Account) -> str:
    """The id of a file of somebody, uploaded when it is first asked for."""
    body = {"file": ("hello.txt", b"hello", "text/plain")}
    response = caller.api.post("/v1/files", files=body)
    assert response.status_code == 201, response.text
    return str(response.json()["data"]["id"])


def send(caller: Account, operation: Operation, **kwargs: Any) -> requests.Response:
    """Try an operation as somebody, on their own account or file where it is about one."""
    path = operation.path.replace("{user_id}", caller.id)
    path = path.replace("{file_id}", file_of(caller)) if "{file_id}" in path else path
    assert "{" not in path, f"say here which object {operation.name} is tried on"
    return caller.api.request(operation.method, path, **kwargs)
