"""Reads the OpenAPI document, so that tests cover operations that did not exist when they were written."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import uuid4

from requests import Response

from tests.http.client import Account, Api

KEY_REQUIRED = "#/components/parameters/Idempotency-Key-Required"
MISSING = "0190f8e2-5a3b-7c4d-8e9f-0a1b2c3d4e5f"
METHODS = {"get", "put", "post", "patch", "delete"}


@dataclass(frozen=True)
class Operation:
    """One operation of the document.

    `optional` is true of one that can do without its token. `content_type` is that of its body, "" without one;
    `example` and `properties` are those of a JSON body. `needs_key` is true of one that moves money.
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
    needs_key: bool

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
                needs_key={"$ref": KEY_REQUIRED} in described["parameters"],
            )


def _resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    return schema


def good_request(operation: Operation) -> dict[str, Any]:
    """The body that the document has as an example, and a new key where one is needed, as `requests` takes them."""
    found = good_body(operation)
    return {**found, "headers": {**found.get("headers", {}), **new_key(operation)}}


def new_key(operation: Operation) -> dict[str, str]:
    """The Idempotency-Key of an operation that needs one."""
    return {"Idempotency-Key": str(uuid4())} if operation.needs_key else {}


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


@cache
def price_of(caller: Account) -> str:
    """The id of a price of an administrator's, at which payments can be made."""
    return make_price(caller)


@cache
def spare_price_of(caller: Account) -> str:
    """The id of a price of an administrator's that may be changed and retired."""
    return make_price(caller)


def make_price(caller: Account) -> str:
    """Make a price."""
    response = caller.api.post("/v1/prices", json={"name": "Lesson", "currency": "EUR", "unit_amount": 1250})
    assert response.status_code == 201, response.text
    return str(response.json()["data"]["id"])


# Which object of a caller an operation is tried on.
OBJECTS: dict[str, Callable[[Account], str]] = {
    "{user_id}": lambda caller: caller.id,
    "{file_id}": file_of,
    "{price_id}": spare_price_of,
    # Most refusals come before anybody looks for it.
    "{payment_id}": lambda _: MISSING,
    "{ref}": lambda _: "pi_sbx_missing",
}


def send(caller: Account, operation: Operation, *, headers: Mapping[str, Any] | None = None, **kwargs: Any) -> Response:
    """Try an operation as somebody, on their own account or things where it is about one."""
    path = operation.path
    for name in re.findall("{[^}]*}", path):
        path = path.replace(name, OBJECTS[name](caller))
    return caller.api.request(operation.method, path, headers={**new_key(operation), **(headers or {})}, **kwargs)
