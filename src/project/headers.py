"""Headers of every answer: what browsers may do with it, and which other sites may read it."""

import re
from collections.abc import Sequence
from http import HTTPStatus

from flask import Flask, Response, request

from project.config import Settings
from project.errors import BadRequest, register_code
from project.extensions import cors

API_PREFIX = "/v1/"

# A view that sets one of these itself keeps its own.
DEFAULTS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    # Refuses only embedding (<img>, <script>) by other sites; a fetch is what CORS decides about.
    "Cross-Origin-Resource-Policy": "same-origin",
}
STRICT_TRANSPORT = "max-age=31536000; includeSubDomains"  # a year, in seconds

ALLOWED_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
ALLOWED_HEADERS = [
    "Authorization",
    "Content-Digest",
    "Content-Type",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
    "If-Range",
    "Range",
    "Repr-Digest",
    "X-Request-ID",
]
EXPOSED_HEADERS = [
    "Content-Disposition",
    "Content-Range",
    "ETag",
    "Idempotent-Replayed",
    "Link",
    "Location",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "X-Request-ID",
]
PREFLIGHT_SECONDS = 7200

# What nginx refuses before the application hears of it (deploy/nginx/problems.conf).
register_code("uri_too_long", HTTPStatus.REQUEST_URI_TOO_LONG, "The address is too long.", "Send less in the query.")
register_code(
    "headers_too_large",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "The headers are too large.",
    "Send fewer and shorter headers; cookies are not needed here.",
)
register_code(
    "https_required",
    HTTPStatus.FORBIDDEN,
    "This can only be asked over HTTPS.",
    "Use https. Everybody on the way could read what was sent: end the session whose token was in it.",
)


def init_app(app: Flask) -> None:
    """Refuse requests without a host, and put our headers on every answer."""
    config: Settings = app.extensions["settings"]
    always_https = config.public_url.startswith("https:")

    def harden(response: Response) -> Response:
        headers = response.headers
        present = {name.lower() for name in headers.keys()}  # noqa: SIM118 - these headers iterate over pairs
        for name, value in DEFAULTS.items():
            if name.lower() not in present:
                headers.add(name, value)
        if always_https or request.is_secure:
            headers.setdefault("Strict-Transport-Security", STRICT_TRANSPORT)
        return response

    app.before_request(_require_host)
    # The last one registered runs first, so these see what flask-cors did.
    app.after_request(harden)
    app.after_request(_keep_private)
    cors.init_app(
        app,
        resources=[re.compile(re.escape(API_PREFIX))],
        origins=_exactly(config.cors_origins),
        methods=ALLOWED_METHODS,
        allow_headers=ALLOWED_HEADERS,
        expose_headers=EXPOSED_HEADERS,
        max_age=PREFLIGHT_SECONDS,
        supports_credentials=False,
        # Our error handlers make responses, which pass the hook like all others.
        intercept_exceptions=False,
        vary_header=False,
    )


def _exactly(origins: Sequence[str]) -> list[re.Pattern[str]] | str:
    """Return what makes flask-cors compare exactly: it reads strings as patterns and ignores their case.

    `*`, which production refuses, stays a wildcard.
    """
    return "*" if "*" in origins else [re.compile(re.escape(origin) + r"\Z") for origin in origins]


def _require_host() -> None:
    # RFC 9112 §3.2. Flask checks TRUSTED_HOSTS, but without the header takes the server's own name.
    if not request.environ.get("HTTP_HOST"):
        raise BadRequest("The Host header is missing.")


def _keep_private(response: Response) -> Response:
    """Keep answers out of caches, and those for one site from another."""
    headers = response.headers
    in_api = request.path.startswith(API_PREFIX)
    if in_api:
        # Always, since a cache may have stored the answer to a request without Origin.
        if "Vary" in headers:
            response.vary.add("Origin")
        else:
            headers.add("Vary", "Origin")
    if in_api or response.is_json:
        headers.setdefault("Cache-Control", "no-store")
    # flask-cors answers "false", but nobody outside has to hear of private networks.
    headers.pop("Access-Control-Allow-Private-Network", None)
    return response
