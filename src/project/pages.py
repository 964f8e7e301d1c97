"""The pages around the API: the index, the OpenAPI document, its documentation and the error codes."""

import hashlib
import re
from dataclasses import asdict, dataclass
from functools import cache
from http import HTTPStatus
from importlib.metadata import distribution
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import orjson
from flask import Flask, Response, current_app, jsonify, render_template, request, url_for
from markupsafe import Markup, escape

from project.errors import REGISTRY, Code, NotFound
from project.extensions import limiter

# All that /docs/assets/ serves: Swagger UI, which the flask-swagger-ui wheel only carries, and our own.
SWAGGER_UI = ("swagger-ui-bundle.js", "swagger-ui.css")
OWN = ("docs.css", "favicon.svg", "init.js", "page.css")
STATIC = Path(__file__).parent / "static"
CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_CLOSED = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; style-src 'self'"
ERRORS_CSP = f"{_CLOSED}; img-src 'self'"
# The icons in Swagger UI's style sheet are data: URLs; connect-src is for the requests of "Try it out".
DOCS_CSP = f"{_CLOSED}; img-src 'self' data:; script-src 'self'; connect-src 'self'"

REVALIDATE = "no-cache"
# For an address that names the digest of what it shows, and so never shows anything else.
FOREVER = "public, max-age=31536000, immutable"

_BACKTICKS = re.compile("`([^`]+)`")


@dataclass(frozen=True)
class Content:
    """Bytes that stay the same while the process runs, and their digest."""

    body: bytes
    content_type: str
    digest: str


def init_app(app: Flask) -> None:
    """Add the pages. The API has to be there already: its document is serialised here, once."""
    app.extensions["openapi_json"] = _content(orjson.dumps(app.extensions["openapi"]), "application/json")
    app.add_template_global(asset_url)
    app.add_template_filter(with_code)
    app.add_url_rule("/", view_func=limiter.exempt(index))
    app.add_url_rule("/openapi.json", view_func=limiter.exempt(openapi_json))
    app.add_url_rule("/docs", view_func=limiter.exempt(docs))
    app.add_url_rule("/docs/assets/<name>", view_func=limiter.exempt(docs_asset))
    app.add_url_rule("/errors", view_func=limiter.exempt(error_codes))


def index() -> dict[str, Any]:
    """Say what this is and where the rest is found."""
    info = current_app.extensions["openapi"]["info"]
    links = {
        "docs": url_for("docs"),
        "openapi": url_for("openapi_json"),
        "errors": url_for("error_codes"),
        "health": url_for("healthz"),
        "readiness": url_for("readyz"),
    }
    return {"data": {"name": info["title"], "version": info["version"], "links": links}}


def openapi_json() -> Response:
    """Serve the OpenAPI document."""
    return _send(current_app.extensions["openapi_json"], REVALIDATE)


def docs() -> Response:
    """Show the documentation, on which operations can be tried out."""
    return _page("docs.html", DOCS_CSP)


def docs_asset(name: str) -> Response:
    """Serve a script, style sheet or image of the pages.

    Raises:
        NotFound: it is not one of theirs.
    """
    asset = _assets().get(name)
    if asset is None:
        raise NotFound()
    return _send(asset, FOREVER if request.args.get("v") == asset.digest else REVALIDATE)


def error_codes() -> Response:
    """Show every error code with its meaning and cure; as JSON to clients that prefer it."""
    codes = sorted(REGISTRY.values(), key=attrgetter("status", "name"))
    if request.accept_mimetypes.best_match(["text/html", "application/json"]) == "application/json":
        response = jsonify(data=[_as_json(code) for code in codes])
    else:
        groups = [(HTTPStatus(status), list(group)) for status, group in groupby(codes, attrgetter("status"))]
        response = _page("errors.html", ERRORS_CSP, groups=groups)
    response.vary.add("Accept")
    return response


def asset_url(name: str) -> str:
    """Return the address of an asset, which changes with its content (for templates)."""
    return url_for("docs_asset", name=name, v=_assets()[name].digest)


def with_code(text: str) -> Markup:
    """Escape a text and set what is in backticks as code (for templates)."""
    return Markup(_BACKTICKS.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped just here  # nosec B704


def _as_json(code: Code) -> dict[str, Any]:
    fields = asdict(code)
    return {"code": fields.pop("name"), "type": f"/errors#{code.name}", **fields}


@cache
def _assets() -> dict[str, Content]:
    swagger_ui = Path(str(distribution("flask-swagger-ui").locate_file("flask_swagger_ui/dist")))
    paths = [*(swagger_ui / name for name in SWAGGER_UI), *(STATIC / name for name in OWN)]
    return {path.name: _content(path.read_bytes(), CONTENT_TYPES[path.suffix]) for path in paths}


def _content(body: bytes, content_type: str) -> Content:
    return Content(body, content_type, hashlib.sha256(body).hexdigest()[:32])


def _send(content: Content, cache_control: str) -> Response:
    response = Response(content.body, content_type=content.content_type)
    response.headers["Cache-Control"] = cache_control
    response.set_etag(content.digest)
    response.make_conditional(request)
    return response


def _page(template: str, policy: str, **context: Any) -> Response:
    html = render_template(template, info=current_app.extensions["openapi"]["info"], **context)
    response = _send(_content(html.encode(), "text/html; charset=utf-8"), REVALIDATE)
    response.headers["Content-Security-Policy"] = policy
    return response
