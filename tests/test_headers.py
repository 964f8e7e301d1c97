from pathlib import Path

import pytest
from flask import Flask, Response, request
from werkzeug.test import TestResponse, create_environ, run_wsgi_app

from project import errors, headers, observability
from project.config import load_config
from project.json import OrjsonProvider

SITE = "https://app.example.com"
CORS = (
    "Access-Control-Allow-Origin",
    "Access-Control-Allow-Methods",
    "Access-Control-Allow-Headers",
    "Access-Control-Allow-Credentials",
    "Access-Control-Allow-Private-Network",
    "Access-Control-Expose-Headers",
    "Access-Control-Max-Age",
)


class Client:
    """Requests with headers given as words: `origin="x"` sends `Origin: x`."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self._client = app.test_client()

    def __call__(self, path: str, method: str = "GET", **sent: str) -> TestResponse:
        """Send a request."""
        named = {name.replace("_", "-"): value for name, value in sent.items()}
        base_url = "https://localhost" if sent.pop("scheme", "") else None
        return self._client.open(path, method=method, headers=named, base_url=base_url)


def make_client(data_dir: Path, **env: str) -> Client:
    """An application that has settings, errors and headers, and nothing else."""
    app = Flask("project", static_folder=None)
    app.json = OrjsonProvider(app)
    config = load_config({"APP_ENV": "testing", "DATA_DIR": str(data_dir), "CORS_ORIGINS": SITE, **env})
    app.extensions["settings"] = config
    app.config["TRUSTED_HOSTS"] = config.trusted_hosts
    observability.init_app(app)
    headers.init_app(app)
    errors.register_error_handlers(app)
    _add_routes(app)
    return Client(app)


def _add_routes(app: Flask) -> None:
    ran: list[str] = []
    app.extensions["ran"] = ran

    @app.route("/v1/things", methods=["GET", "POST", "DELETE"])
    def things() -> dict[str, str]:
        ran.append(request.method)
        return {"data": "x"}

    @app.get("/v1/empty")
    def empty() -> Response:
        return Response(status=204)

    @app.get("/v1/not-modified")
    def not_modified() -> Response:
        return Response(status=304, headers={"ETag": '"x"'})

    @app.get("/v1/boom")
    def boom() -> Response:
        raise RuntimeError

    @app.get("/v1/limited")
    def limited() -> Response:
        raise errors.RateLimited

    @app.get("/v1/own")
    def own() -> Response:
        response = Response("<p>")
        response.headers["Content-Security-Policy"] = "sandbox"
        response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        response.headers["Cache-Control"] = "private, max-age=60"
        response.vary.add("Accept")
        return response

    @app.get("/page")
    def page() -> str:
        return "<p>"


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return make_client(tmp_path)


ANSWERS = [
    ("/v1/things", 200),
    ("/v1/empty", 204),
    ("/v1/not-modified", 304),
    ("/v1/nope", 404),
    ("/v1/boom", 500),
    ("/v1/limited", 429),
    ("/healthz", 200),
    ("/page", 200),
    ("/nope", 404),
]


@pytest.mark.parametrize(("path", "status"), ANSWERS)
def test_every_answer_has_the_security_headers(client, path, status):
    response = client(path)
    assert response.status_code == status
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert response.headers["X-Request-ID"]
    assert not {"Server", "X-Powered-By"} & set(response.headers.keys())


def test_a_wrong_method_and_a_refused_host_have_them_too(client):
    for response in (client("/v1/empty", "POST"), client("/v1/things", host="evil.example")):
        assert response.status_code in {400, 405}
        assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_a_view_keeps_what_it_set_itself(client):
    response = client("/v1/own")
    assert response.headers.getlist("Content-Security-Policy") == ["sandbox"]
    assert response.headers.getlist("Cross-Origin-Resource-Policy") == ["cross-origin"]
    assert response.headers.getlist("Cache-Control") == ["private, max-age=60"]


def test_plain_http_promises_no_https(client):
    assert "Strict-Transport-Security" not in client("/v1/things").headers


def test_https_is_promised_for_a_year(client):
    response = client("/v1/nope", scheme="https")
    assert response.headers["Strict-Transport-Security"] == "max-age=31536000; includeSubDomains"


def test_https_is_promised_where_the_public_address_has_it(tmp_path):
    client = make_client(tmp_path, PUBLIC_URL="https://localhost")
    assert client("/v1/things").headers["Strict-Transport-Security"]


@pytest.mark.parametrize(("path", "status"), ANSWERS)
def test_api_answers_and_json_are_never_stored(client, path, status):
    stored = path == "/page"
    assert client(path).headers.get("Cache-Control") == (None if stored else "no-store")


@pytest.mark.parametrize("path", ["/v1/things", "/v1/nope", "/healthz", "/page"])
@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "evil-localhost", "localhost@evil.example", "localhost/x", "*"]
)
def test_an_unknown_host_is_refused_for_every_path(client, path, host):
    response = client(path, host=host)
    assert response.status_code == 400
    assert response.content_type == "application/problem+json"
    assert "Traceback" not in response.text
    assert client.app.extensions["ran"] == []


@pytest.mark.parametrize("sent", [{}, {"HTTP_HOST": ""}])
@pytest.mark.parametrize("path", ["/v1/things", "/healthz"])
def test_a_missing_host_is_refused(client, path, sent):
    environ = create_environ(path)
    del environ["HTTP_HOST"]
    body, status, _ = run_wsgi_app(client.app, environ | sent)
    assert status == "400 BAD REQUEST"
    assert b"The Host header is missing." in b"".join(body)


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "api.example.com"])
def test_known_hosts_are_served(tmp_path, host):
    client = make_client(tmp_path, PUBLIC_URL="http://api.example.com")
    assert client("/healthz", host=host).status_code == 200


def allowed(response: TestResponse) -> set[str]:
    return {name for name in CORS if name in response.headers}


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "*",
        "https://app.example.com.",
        "https://app.example.com.evil.example",
        "https://evil-app.example.com",
        "https://evilapp.example.com",
        "https://app-example.com",
        "https://appxexample.com",
        "https://example.com",
        "http://app.example.com",
        "https://app.example.com:443",
        "https://app.example.com:8443",
        "https://app.example.com/",
        "https://APP.example.com",
        "HTTPS://app.example.com",
        "https://app.example.com\n",
        " https://app.example.com",
        "https://app.example.com https://evil.example",
        "https://user@app.example.com",
        "",
    ],
)
@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
def test_no_other_origin_is_allowed(client, method, origin):
    environ = {"HTTP_ORIGIN": origin, "HTTP_ACCESS_CONTROL_REQUEST_METHOD": "GET"}
    response = client.app.test_client().open("/v1/things", method=method, environ_overrides=environ)
    assert response.status_code == 200
    assert not allowed(response)
    assert response.headers["Vary"] == "Origin"


@pytest.mark.parametrize(
    "configured", ["https://app.example.com", "https://[::1]:3000", "http://localhost:3000", "http://a.b+c(d)$"]
)
def test_an_origin_with_signs_of_patterns_is_compared_literally(tmp_path, configured):
    client = make_client(tmp_path, CORS_ORIGINS=f"http://other,{configured}")
    assert client("/v1/things", origin=configured).headers["Access-Control-Allow-Origin"] == configured
    assert not allowed(client("/v1/things", origin=configured.replace(".", "x").replace("[::1]", ":")[:-1] + "y"))


@pytest.mark.parametrize(("path", "status"), [answer for answer in ANSWERS if answer[0].startswith("/v1/")])
def test_the_allowed_origin_may_read_every_answer_of_the_api(client, path, status):
    response = client(path, origin=SITE)
    assert response.status_code == status
    assert response.headers.getlist("Access-Control-Allow-Origin") == [SITE]
    assert response.headers["Vary"] == "Origin"
    assert set(response.headers["Access-Control-Expose-Headers"].split(", ")) >= {
        *("ETag", "Link", "Location", "Retry-After", "RateLimit", "RateLimit-Policy"),
        *("Idempotent-Replayed", "X-Request-ID", "Content-Disposition", "Content-Range"),
    }
    assert "Access-Control-Allow-Credentials" not in response.headers


@pytest.mark.parametrize("path", ["/healthz", "/page", "/nope", "/V1/things", "/v1things", "/x/v1/things"])
def test_nothing_outside_the_api_is_shared(client, path):
    response = client(path, origin=SITE)
    assert not allowed(response)
    assert "Vary" not in response.headers


def test_vary_is_added_to_what_the_view_said(client):
    assert client("/v1/own", origin=SITE).headers.getlist("Vary") == ["Accept, Origin"]


def test_without_an_origin_nothing_is_allowed_but_caches_are_warned(client):
    response = client("/v1/things")
    assert not allowed(response)
    assert response.headers["Vary"] == "Origin"


def preflight(client: Client, method: str, wanted: str = "", **sent: str) -> TestResponse:
    asked = {"Access_Control_Request_Method": method, "Access_Control_Request_Headers": wanted, "origin": SITE}
    return client("/v1/things", "OPTIONS", **asked, **sent)


@pytest.mark.parametrize("method", ["FOO", "TRACE", "CONNECT", "PROPFIND", ""])
def test_a_preflight_for_another_method_is_not_granted(client, method):
    response = preflight(client, method, "Authorization")
    granted = {"Access-Control-Allow-Methods", "Access-Control-Allow-Headers", "Access-Control-Max-Age"}
    assert not granted & allowed(response)


def test_a_preflight_for_another_header_does_not_grant_it(client):
    response = preflight(client, "POST", "X-Evil, Cookie, Content-Type.")
    assert "Access-Control-Allow-Headers" not in response.headers
    assert preflight(client, "POST", "X-Evil, If-Match").headers["Access-Control-Allow-Headers"] == "If-Match"


@pytest.mark.parametrize("method", headers.ALLOWED_METHODS)
def test_a_preflight_grants_what_the_api_uses_and_runs_no_view(client, method):
    wanted = "authorization,content-digest,content-type,idempotency-key,if-match,if-none-match,range,x-request-id"
    response = preflight(client, method, wanted)
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == SITE
    assert method in response.headers["Access-Control-Allow-Methods"].split(", ")
    assert set(response.headers["Access-Control-Allow-Headers"].split(", ")) == set(wanted.split(","))
    assert 0 < int(response.headers["Access-Control-Max-Age"]) <= 7200
    assert client.app.extensions["ran"] == []


def test_private_networks_are_not_mentioned(client):
    response = preflight(client, "GET", Access_Control_Request_Private_Network="true")
    assert response.headers["Access-Control-Allow-Origin"] == SITE
    assert "Access-Control-Allow-Private-Network" not in response.headers


def test_a_wildcard_never_comes_with_credentials(tmp_path):
    response = make_client(tmp_path, CORS_ORIGINS="*")("/v1/things", origin="https://any.example")
    assert response.headers["Access-Control-Allow-Origin"] == "https://any.example"
    assert "Access-Control-Allow-Credentials" not in response.headers
