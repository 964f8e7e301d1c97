"""The pages around the API: the index, the OpenAPI document, its documentation and the error codes."""

from collections import Counter
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import Flask

from project import create_app
from project.errors import PROBLEM_TYPE, REGISTRY
from project.pages import with_code

PAGES = ["/", "/openapi.json", "/docs", "/errors", "/docs/assets/init.js"]
CLOSED = {"default-src": "'none'", "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'"}
ERRORS_POLICY = {**CLOSED, "style-src": "'self'", "img-src": "'self'"}
DOCS_POLICY = {**ERRORS_POLICY, "img-src": "'self' data:", "script-src": "'self'", "connect-src": "'self'"}


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Flask:
    """The application without a database: no page needs one."""
    return create_app({"APP_ENV": "testing", "DATA_DIR": str(tmp_path_factory.mktemp("data"))})


class Page(HTMLParser):
    """The elements of a page, with their attributes, and the text in scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is not None:
            self.inline += data

    def values(self, *names: str) -> list[str]:
        """Every value of these attributes."""
        return [attributes[name] or "" for _, attributes in self.elements for name in names if name in attributes]


def policy(response: Any) -> dict[str, str]:
    directives = response.headers["Content-Security-Policy"].split("; ")
    return dict(directive.split(" ", 1) for directive in directives)


@pytest.mark.parametrize("path", PAGES)
def test_pages_are_for_everybody_and_not_counted(client, path):
    response = client.get(path, headers={"Authorization": "Bearer not.a.token"})

    assert response.status_code == 200
    assert not {"RateLimit", "RateLimit-Policy", "WWW-Authenticate"} & set(response.headers.keys())


@pytest.mark.parametrize("path", PAGES)
def test_pages_have_the_security_headers(client, path):
    response = client.get(path)

    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert policy(response)["default-src"] == "'none'"
    assert policy(response)["frame-ancestors"] == "'none'"


@pytest.mark.parametrize("path", PAGES)
def test_head_says_what_get_would(client, path):
    get, head = client.get(path), client.head(path)
    own = {"Date": "", "X-Request-ID": ""}

    assert head.status_code == 200
    assert head.data == b""
    assert {**head.headers, **own} == {**get.headers, **own}


@pytest.mark.parametrize(
    "path", ["/openapi.json/", "/docs/", "/errors/", "/docs/assets", "/docs/assets/", "/docs/assets//init.js"]
)
def test_there_is_one_spelling_of_each_address(client, path):
    response = client.get(path)

    assert (response.status_code, response.json["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", PAGES)
def test_pages_can_only_be_read(client, path):
    response = client.post(path)

    assert (response.status_code, response.mimetype) == (405, PROBLEM_TYPE)
    assert "GET" in response.headers["Allow"]


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/errors", "/docs/assets/init.js"])
def test_a_client_that_has_a_page_is_not_sent_it_again(client, path):
    first = client.get(path)
    again = client.get(path, headers={"If-None-Match": first.headers["ETag"]})

    assert first.headers["Cache-Control"] == "no-cache"
    assert (again.status_code, again.data) == (304, b"")
    assert policy(again) == policy(first)


def test_the_index_links_to_the_rest(client):
    data = client.get("/").json["data"]

    assert {"name", "version", "links"} == data.keys()
    assert {"docs", "openapi", "errors", "health", "readiness"} == data["links"].keys()
    for path in data["links"].values():
        # Without a database the application is not ready, which is an answer too.
        assert client.get(path).status_code == (503 if path == "/readyz" else 200)


def test_the_documentation_allows_only_what_swagger_ui_needs(client):
    assert policy(client.get("/docs")) == DOCS_POLICY


def test_the_list_of_errors_allows_no_scripts(client):
    assert policy(client.get("/errors")) == ERRORS_POLICY


@pytest.mark.parametrize("path", ["/docs", "/errors"])
def test_pages_hold_nothing_that_their_policy_would_block(client, path):
    page = Page(client.get(path).text)
    attributes = {name for _, found in page.elements for name in found}

    assert page.inline.strip() == ""
    assert "style" not in attributes
    assert not [name for name in attributes if name.startswith("on")]
    loaded = [found for tag, found in page.elements if tag in {"script", "link", "img"}]
    assert all((found.get("src") or found.get("href") or "").startswith("/docs/assets/") for found in loaded)


def test_the_addresses_of_assets_change_with_their_content_and_may_be_kept(client):
    linked = [url for path in ("/docs", "/errors") for url in Page(client.get(path).text).values("src", "href")]
    assets = {url for url in linked if url.startswith("/docs/assets/")}

    types = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    assert len(assets) == 6
    for url in assets:
        response = client.get(url)
        assert (response.status_code, response.mimetype) == (200, types[urlsplit(url).path.rpartition(".")[2]])
        assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert client.get(url + "0").headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize(
    "name",
    [
        "nothing.js",
        "LICENSE",  # beside Swagger UI's files, and not on the list
        "oauth2-redirect.html",
        "../../pages.py",
        "..%2f..%2fpages.py",
        "%2e%2e/%2e%2e/pages.py",
        "..%5c..%5cpages.py",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "init.js%00.css",
        "./init.js",
        "INIT.JS",
    ],
)
def test_only_the_listed_assets_are_served(client, name):
    response = client.get(f"/docs/assets/{name}")

    assert (response.status_code, response.mimetype) == (404, PROBLEM_TYPE)


def test_every_code_has_its_place_on_the_list_of_errors(client):
    html = client.get("/errors").text
    ids = Counter(Page(html).values("id"))

    assert {name: ids[name] for name in REGISTRY} == dict.fromkeys(REGISTRY, 1)
    assert {str(code.status) for code in REGISTRY.values()} <= ids.keys()
    for code in REGISTRY.values():
        section = html.split(f'<section id="{code.status}"')[1].split("</section>")[0]
        article = section.split(f'<article id="{code.name}"')[1].split("</article>")[0]
        assert with_code(code.title) in article
        assert with_code(code.cure) in article


def test_text_in_backticks_is_code_and_everything_is_escaped():
    assert with_code("`<a>` & <b>") == "<code>&lt;a&gt;</code> &amp; &lt;b&gt;"


def test_clients_that_prefer_json_get_the_codes_as_json(client):
    response = client.get("/errors", headers={"Accept": "application/json"})
    codes = {code["code"]: code for code in response.json["data"]}

    assert response.mimetype == "application/json"
    assert codes.keys() == REGISTRY.keys()
    assert codes["forbidden"] == {
        "code": "forbidden",
        "type": "/errors#forbidden",
        "status": 403,
        "title": REGISTRY["forbidden"].title,
        "cure": REGISTRY["forbidden"].cure,
    }


@pytest.mark.parametrize("accept", ["text/html,application/xhtml+xml,*/*;q=0.8", "*/*", "image/png", None])
def test_everybody_else_gets_the_page(client, accept):
    response = client.get("/errors", headers={"Accept": accept} if accept else {})

    assert response.mimetype == "text/html"
    assert response.vary.as_set() == {"accept"}
