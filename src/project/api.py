"""The REST API: which features are mounted under /v1, and the frame of its OpenAPI document."""

from typing import Any

import flask_smorest
from apispec.ext.marshmallow import MarshmallowPlugin, resolver
from flask import Flask
from marshmallow import Schema

from project.auth.routes import blueprint as auth
from project.blueprint import Blueprint, IdConverter
from project.files.content_routes import blueprint as contents
from project.files.content_routes import share_blueprint as shares
from project.files.routes import blueprint as files
from project.openapi import ProblemOut
from project.payments import erasure  # noqa: F401 - says what is left of payments when an account is erased
from project.payments.price_routes import blueprint as prices
from project.payments.routes import blueprint as payments
from project.payments.sandbox.routes import blueprint as sandbox
from project.payments.staff_routes import blueprint as payment_records
from project.payments.staff_routes import ledger_blueprint as ledger
from project.users.routes import audit_blueprint as audit
from project.users.routes import blueprint as users

PREFIX = "/v1"
VERSION = "0.1.0"

BLUEPRINTS: list[Blueprint] = [
    auth,
    users,
    audit,
    files,
    contents,
    shares,
    prices,
    payments,
    payment_records,
    ledger,
    sandbox,
]

DESCRIPTION = """Accounts, files and payments behind one REST API.

Success is `{"data": …}`; a list adds `meta`. Every failure is `application/problem+json` with a `code` from
[/errors](/errors). Sign in at `POST /v1/auth/login`; on this page the token is then used by itself. Amounts are
integers in the minor unit of their currency, and what moves money needs an `Idempotency-Key`: a repetition with the
same key happens once.
"""


def _header(description: str, **schema: Any) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string", **schema}}


HEADERS = {
    "Accept-Ranges": _header("`bytes`: parts can be asked for.", enum=["bytes"]),
    "Content-Disposition": _header("Whether to show the file or to save it, and under which name (RFC 6266)."),
    "Content-Range": _header("Which bytes these are, and of how many."),
    "ETag": _header("The version of the object, for If-Match and If-None-Match."),
    "Idempotent-Replayed": _header("`true` when this is the stored answer to an earlier request.", enum=["true"]),
    "Last-Modified": _header("When the file was stored."),
    "Link": _header('The next page, `rel="next"` (RFC 8288); absent on the last.'),
    "Location": _header("Where the new object is.", format="uri-reference"),
    "RateLimit": _header("What is left of each limit (r) and the seconds until it is full again (t)."),
    "RateLimit-Policy": _header("The limits that apply: quota (q) in a window of seconds (w)."),
    "Repr-Digest": _header("The SHA-256 of the whole file, also with a part of it (RFC 9530)."),
    "Retry-After": _header("Seconds to wait.", pattern="^[0-9]+$"),
    "WWW-Authenticate": _header("The challenge (RFC 6750)."),
    "X-Request-ID": _header("The request's id in our logs."),
}


def _parameter(name: str, description: str, *, required: bool = False, **schema: Any) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "description": description,
        "required": required,
        "schema": {"type": "string", **schema},
    }


KEY: dict[str, Any] = {"minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"}
PARAMETERS = {
    "Content-Digest": _parameter("Content-Digest", "`sha-256=:<base64>:`; other bytes are refused (RFC 9530)."),
    "If-Match": _parameter("If-Match", "Go on only if this is the current version; else 412."),
    "If-None-Match": _parameter("If-None-Match", "The version you have; 304 when it is the current one."),
    "If-Range": _parameter("If-Range", "Send the range only of this version; else the whole."),
    "Stripe-Signature": _parameter(
        "Stripe-Signature", "`t=<seconds>,v1=<HMAC-SHA256>` over the raw body.", required=True
    ),
    "Range": _parameter("Range", "One range of bytes; several, or another unit, give the whole."),
    "Idempotency-Key": _parameter("Idempotency-Key", "A repeated request with the same key runs once.", **KEY),
    "Idempotency-Key-Required": _parameter(
        "Idempotency-Key", "A repeated request with the same key runs once.", required=True, **KEY
    ),
}

SECURITY_SCHEMES = {
    "access": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "An access token."},
    "refresh": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "A refresh token."},
}


def _schema_name(schema: type[Schema]) -> str:
    return str(resolver(schema)).removesuffix("Out")


class Api(flask_smorest.Api):
    """flask-smorest without its own error body, and without pages of its own."""

    ERROR_SCHEMA = ProblemOut
    DEFAULT_ERROR_RESPONSE_NAME = None

    def _register_error_handlers(self) -> None:
        """Leave errors to errors.py."""

    def _register_responses(self) -> None:
        """Leave the documentation of errors to openapi.py."""

    def _register_etag_headers(self) -> None:
        """Leave ETags to openapi.py."""

    def _register_pagination_header(self) -> None:
        """Lists have a cursor instead."""


def init_app(app: Flask) -> None:
    """Mount the features under /v1 and build the document, kept as `app.extensions["openapi"]`."""
    app.url_map.converters["uuid"] = IdConverter
    app.config.update(
        API_TITLE="Project",
        API_VERSION=VERSION,
        OPENAPI_VERSION="3.1.0",
        API_SPEC_OPTIONS={
            "info": {"description": DESCRIPTION},
            "servers": [{"url": "/"}],
            "components": {"headers": HEADERS, "parameters": PARAMETERS, "securitySchemes": SECURITY_SCHEMES},
        },
    )
    plugin = MarshmallowPlugin(schema_name_resolver=_schema_name)
    api = Api(app, spec_kwargs={"marshmallow_plugin": plugin})
    api.spec.components.schema("Problem", schema=ProblemOut)
    for blueprint in BLUEPRINTS:
        api.register_blueprint(blueprint, url_prefix=PREFIX + (blueprint.url_prefix or ""))
    app.extensions["openapi"] = api.spec.to_dict()
