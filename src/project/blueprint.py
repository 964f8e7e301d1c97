"""The Blueprint of every feature: strict parsing, the envelope, and what the OpenAPI document needs to know."""

from collections.abc import Callable, Mapping
from functools import wraps
from http import HTTPStatus
from typing import Any, ClassVar, NoReturn, TypeVar

import flask_smorest
from flask import Request, Response, current_app, g, request
from flask_smorest.utils import unpack_tuple_response
from marshmallow import RAISE, Schema, ValidationError
from typing_extensions import override
from webargs.flaskparser import FlaskParser
from werkzeug.routing import UUIDConverter

from project.errors import AppError, Invalid
from project.json import has_body, load_body
from project.marks import mark
from project.openapi import document_operation, envelope
from project.pagination import Page, next_link
from project.validation import REPEATED, UNKNOWN_FIELD, Message, field_errors

View = TypeVar("View", bound=Callable[..., Any])

_LOCATIONS = {
    "json": "",
    "json_or_form": "",
    "form": "",
    "files": "",
    "query": "/query",
    "headers": "/header",
    "upload": "",
}


class IdConverter(UUIDConverter):
    """Ids in paths have one spelling, lower case; any other is no such path."""

    regex = UUIDConverter.regex.replace("A-F", "")


class Parser(FlaskParser):
    """webargs with our loader, our errors, and no unknown or repeated parameter let through."""

    DEFAULT_UNKNOWN_BY_LOCATION: dict[str, str | None] = dict.fromkeys(FlaskParser.DEFAULT_UNKNOWN_BY_LOCATION, RAISE)

    @override
    def load_json(self, req: Request, schema: Schema) -> Any:
        """Return the strictly parsed body. A POST of which nothing is required may leave it out."""
        is_optional = req.method == "POST" and not any(field.required for field in schema.fields.values())
        if is_optional and not has_body(req):
            return {}
        return load_body(req)

    @override
    def load_json_or_form(self, req: Request, schema: Schema) -> Any:
        """Return the body of a page's form, or else the strictly parsed JSON."""
        is_form = req.mimetype == "application/x-www-form-urlencoded"
        return self.load_form(req, schema) if is_form else self.load_json(req, schema)

    @override
    def load_querystring(self, req: Request, schema: Schema) -> Any:
        """Return the query parameters.

        Raises:
            Invalid: one was sent more than once; which of them counts would be a guess.
        """
        repeated = {
            name: Message("Send this parameter once.", REPEATED) for name, values in req.args.lists() if len(values) > 1
        }
        if repeated:
            raise Invalid(errors=field_errors(repeated, _LOCATIONS["query"]))
        return super().load_querystring(req, schema)

    @override
    def handle_error(
        self,
        error: ValidationError,
        req: Request,
        schema: Schema,
        *,
        error_status_code: int | None,
        error_headers: Mapping[str, str] | None,
    ) -> NoReturn:
        """Turn marshmallow's messages, by location, into pointers."""
        messages: Any = error.messages
        found = [
            field
            for location, inner in messages.items()
            for field in field_errors(inner, _LOCATIONS.get(location, f"/{location}"))
        ]
        raise Invalid(errors=found) from error


def _refuse_unlisted_query() -> None:
    """Refuse query parameters of an operation that has none; where it has some, their schema does.

    Raises:
        Invalid: unknown_field.
    """
    if not request.query_string:
        return
    marks = current_app.view_functions[request.endpoint or ""].__dict__["_apidoc"]
    if not any(parameter["in"] == "query" for parameter in marks.get("arguments", {}).get("parameters", ())):
        raise Invalid(errors=field_errors(dict.fromkeys(request.args, UNKNOWN_FIELD), "/query"))


class Blueprint(flask_smorest.Blueprint):
    """A feature's routes. Success is `{"data": …}`, for a list with `meta`; failures are problems."""

    ARGUMENTS_PARSER = Parser()
    # A form with a file is a location of its own, since its fields and its file make one body.
    DEFAULT_LOCATION_CONTENT_TYPE_MAPPING: ClassVar = {
        **flask_smorest.Blueprint.DEFAULT_LOCATION_CONTENT_TYPE_MAPPING,
        "upload": "multipart/form-data",
        "json_or_form": "application/json",
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prepare_doc_cbks.append(document_operation)

    def add_url_rule(self, rule: str, endpoint: str | None = None, view_func: Any = None, **options: Any) -> None:
        """Register a route; its operationId is the function's name in camelCase."""
        first, *rest = view_func.__name__.split("_")
        operation_id = first + "".join(word.capitalize() for word in rest)
        mark(view_func, operation_id=operation_id)
        super().add_url_rule(rule, endpoint, view_func, **options)

    def arguments(self, schema: Any, **options: Any) -> Callable[[View], View]:
        """Load what was sent through a schema, which is made once and not for every request."""
        made = schema() if isinstance(schema, type) else schema
        return super().arguments(made, **options)  # type: ignore[no-any-return]  # flask-smorest is not typed

    def response(
        self,
        status_code: int,
        schema: Any = None,
        *,
        location: str | None = None,
        unsettled: bool = False,
        also: str | None = None,
        redirects: bool = False,
        **kwargs: Any,
    ) -> Callable[[View], View]:
        """Dump what the view returns into the envelope.

        A Page also gives `meta` and the Link header. `location` is a template over the returned object, such as
        `/v1/users/{0.id}`, for the Location header that every 201 carries. With `unsettled` the view may also
        answer 202 with the same object, while its outcome is not known. `also` is another media type that the view may
        answer with, by a Response of its own; with `redirects` that may be a 303.
        """
        dump = super().response(status_code, schema, **kwargs)

        def decorate(view: View) -> View:
            @wraps(view)
            def prepared(*args: Any, **kwargs: Any) -> Any:
                _refuse_unlisted_query()
                result, status, headers = unpack_tuple_response(view(*args, **kwargs))
                headers = dict(headers or {})
                if isinstance(result, Page):
                    g.page = result
                    headers.update({"Link": link} if (link := next_link(result)) else {})
                if location is not None:
                    headers["Location"] = location.format(result)
                if result is None and status_code == HTTPStatus.NO_CONTENT:
                    result = Response(status=status_code)
                    del result.headers["Content-Type"]
                return result, status, headers

            marks = {"unsettled": unsettled, "also": also, "redirects": redirects}
            return mark(dump(prepared), **marks)  # type: ignore[no-any-return]  # flask-smorest is not typed

        return decorate

    @staticmethod
    def raises(*errors: type[AppError], fields: tuple[str, ...] = ()) -> Callable[[View], View]:
        """Document the errors an operation has beyond those of its decorators, and codes of its 422."""

        def decorate(view: View) -> View:
            return mark(view, raises=errors, field_codes=fields)

        return decorate

    @staticmethod
    def _prepare_response_content(data: Any) -> dict[str, Any]:
        page: Page[Any] | None = g.pop("page", None)
        if page is None:
            return {"data": data}
        meta: dict[str, Any] = {"limit": page.limit, "next_cursor": page.next_cursor}
        if page.total is not None:
            meta["total"] = page.total
        return {"data": data, "meta": meta}

    @staticmethod
    def _make_doc_response_schema(schema: Any) -> Any:
        return envelope(schema) if isinstance(schema, Schema) else schema
