"""Files in a real browser: what strangers uploaded runs nowhere, and pictures show where they should."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Browser, Dialog, Error, Page

from project.auth import tokens
from project.auth.service import SignIn
from project.database import db
from project.files import shares, signed_urls, uploads
from project.files.models import File, UploadMethod, Visibility
from tests.browser import PATIENCE, needs_chromium, run_browser
from tests.conftest import migrated
from tests.factories import make_session, make_user
from tests.files.samples import jpeg, jpeg_segment, picture, png, png_chunk
from tests.servers import run_server
from tests.servers.process import free_port

pytestmark = [pytest.mark.browser, pytest.mark.server, needs_chromium]

# Each tells in its own way that it ran: on the console of the page, whichever frame it is in, and at the canary.
SCRIPT = "console.log('ran CANARY'); document.title = 'ran'; new Image().src = 'ORIGIN/canary/CANARY'; alert('ran');"
HTML = f'<!DOCTYPE html><title>page</title><img src=x onerror="{SCRIPT}"><script>{SCRIPT}</script>'
SVG = f'<svg xmlns="http://www.w3.org/2000/svg" onload="{SCRIPT}"><script>{SCRIPT}</script></svg>'
XHTML = f'<html xmlns="http://www.w3.org/1999/xhtml"><body><script>{SCRIPT}</script></body></html>'
PDF = (
    "%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R/OpenAction<</S/JavaScript/JS(app.alert('ran'))>>>>endobj\n"
    "2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>endobj\n"
    "trailer<</Root 1 0 R>>\n%%EOF"
)
HTML_IN_JPEG = jpeg(extra=jpeg_segment(0xFE, HTML.encode()))
HTML_IN_PNG = png(extra=png_chunk(b"tEXt", b"a\0" + HTML.encode()))

HOSTILE: dict[str, tuple[str, bytes]] = {
    "html": ("text/html", HTML.encode()),
    "html-as-png": ("image/png", HTML.encode()),
    "html-as-text": ("text/plain", HTML.encode()),
    "html-in-jpeg": ("text/html", HTML_IN_JPEG),
    "html-in-png": ("text/html", HTML_IN_PNG),
    "svg": ("image/svg+xml", SVG.encode()),
    "svg-as-png": ("image/png", SVG.encode()),
    "xhtml": ("application/xhtml+xml", XHTML.encode()),
    "xml": ("text/xml", XHTML.encode()),
    "script": ("text/javascript", SCRIPT.encode()),
    "script-as-text": ("text/plain", SCRIPT.encode()),
    "gif-and-script": ("text/javascript", f"GIF89a=1;{SCRIPT}//".encode()),
    "script-as-json": ("application/json", f"0;{SCRIPT}".encode()),
    "pdf": ("application/pdf", PDF.encode()),
}
# What a browser does run when a server says of it what its sender did.
RUNS_ELSEWHERE = {"html", "html-in-jpeg", "html-in-png", "svg", "xhtml", "xml", "script", "gif-and-script"}
EMBEDDED = (
    '<img src="{0}"><iframe src="{0}"></iframe><script src="{0}"></script><script type="module" src="{0}"></script>'
    '<object data="{0}"></object><embed src="{0}"><link rel="stylesheet" href="{0}"><video src="{0}"></video>'
)

UPLOAD_AND_RESUME = """
async ([url, token]) => {
  const signedIn = { Authorization: `Bearer ${token}` };
  const body = new FormData();
  body.append("file", new File(["hello, world"], 'naïve "x".txt', { type: "text/plain" }));
  const upload = { method: "POST", headers: { ...signedIn, "Idempotency-Key": "k" }, body };
  const file = (await (await fetch(`${url}/v1/files`, upload)).json()).data;
  const rest = { ...signedIn, Range: "bytes=7-", "If-Range": `"${file.sha256}"` };
  const part = await fetch(file.content_url, { headers: rest });
  const told = ["Content-Range", "Content-Disposition"].map((name) => part.headers.get(name));
  return [file.filename, part.status, await part.text(), ...told];
}
"""


class Elsewhere(ThreadingHTTPServer):
    """Another origin: it has pages, serves what is hostile as what it claims to be, and hears canaries."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.page = ""
        self.canaries: list[str] = []
        # Of the application's site, which ports do not matter for. By address it is of none: addresses have no site.
        self.origin = f"http://localhost:{self.server_port}"
        self.foreign = f"http://127.0.0.1:{self.server_port}"

    def hostile(self, name: str) -> tuple[str, bytes]:
        """The declared type and the bytes of a hostile file, whose canary is ours."""
        declared, content = HOSTILE[name]
        return declared, content.replace(b"ORIGIN", self.origin.encode()).replace(b"CANARY", name.encode())


class Handler(BaseHTTPRequestHandler):
    server: Elsewhere

    def do_GET(self) -> None:
        kind, _, name = self.path.strip("/").partition("/")
        declared, content = "text/html", self.server.page.encode()
        if kind == "canary":
            self.server.canaries.append(name)
        elif kind == "hostile":
            declared, content = self.server.hostile(name)
        self.send_response(200)
        self.send_header("Content-Type", declared)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_args: object) -> None:
        """Print nothing."""


@dataclass(frozen=True)
class Links:
    """The ways to a file without a token."""

    public: str
    public_thumbnail: str
    signed: str
    signed_thumbnail: str
    shared: str

    @property
    def to_content(self) -> list[str]:
        """Every way to the content, wanted inline and not."""
        wanted = ("", "?disposition=inline")
        return [self.signed, *(link + how for link in (self.public, self.shared) for how in wanted)]


@dataclass(frozen=True)
class Site:
    """The application, with hostile files and a picture in it, and somebody who is signed in."""

    url: str
    token: str
    hostile: dict[str, Links]
    picture: Links


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere]:
    with Elsewhere() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, elsewhere: Elsewhere) -> Iterator[Site]:
    port = free_port()
    url = f"http://localhost:{port}"
    data_dir = str(tmp_path_factory.mktemp("data"))
    env = {"APP_ENV": "testing", "DATA_DIR": data_dir, "PUBLIC_URL": url}
    env |= {"CORS_ORIGINS": elsewhere.origin, "RATE_LIMITS": "off"}
    app = migrated(env)
    with app.app_context():
        hostile = {name: stored(url, name, *elsewhere.hostile(name)) for name in HOSTILE}
        shown = stored(url, "picture.png", "image/png", picture("PNG", (400, 200)))
        user = make_user()
        token = tokens.issue(SignIn(make_session(user), user, fresh=True))["access_token"]
        db.engine.dispose()
    with run_server(env, port):
        yield Site(url, token, hostile, shown)


def stored(url: str, name: str, declared: str, content: bytes) -> Links:
    """Upload a file twice, for everybody and for its owner, and make all links to it."""
    public = upload(name, declared, content, Visibility.PUBLIC)
    private = upload(name, declared, content, Visibility.PRIVATE)
    assert private.owner_id
    return Links(
        public=f"{url}/v1/files/{public.id}/content",
        public_thumbnail=f"{url}/v1/files/{public.id}/thumbnail?size=64",
        signed=signed_urls.sign(private.id, disposition="inline").url,
        signed_thumbnail=signed_urls.sign(private.id, size=64).url,
        shared=shares.create(private.id, owner_id=private.owner_id, expires_in=3600).url,
    )


def upload(name: str, declared: str, content: bytes, visibility: Visibility) -> File:
    told = uploads.Description(UploadMethod.RAW, name, declared, visibility=visibility)
    return uploads.upload_raw(told, [content], owner_id=make_user().id, length=len(content))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with run_browser() as running:
        yield running


@contextmanager
def watched(browser: Browser, elsewhere: Elsewhere) -> Iterator[tuple[Page, list[str], set[str]]]:
    """Open a tab, and give with it what ran in it and what it asked for; both are complete when the block ends."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(3 * PATIENCE)
    ran: list[str] = []
    asked: set[str] = set()
    elsewhere.canaries.clear()

    def heard(dialog: Dialog) -> None:
        ran.append(dialog.message)
        dialog.dismiss()

    context.on("console", lambda message: ran.append(message.text) if message.text.startswith("ran") else None)
    context.on("dialog", heard)
    context.on("request", lambda request: asked.add(request.url))
    yield page, ran, asked
    page.goto("about:blank")
    context.close()
    ran += elsewhere.canaries


def open_page(page: Page, elsewhere: Elsewhere, origin: str, body: str) -> None:
    """Open a page of another origin that consists of this, and wait until everything in it is there."""
    elsewhere.page = f"<!DOCTYPE html><title>page</title><body>{body}"
    page.goto(f"{origin}/page")


def run_alone(page: Page, url: str) -> None:
    """Open an address as if it had been typed in; a download leaves the tab where it was."""
    with suppress(Error):
        page.goto(url)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_runs_nothing_when_it_is_opened(browser, elsewhere, site, name):
    with watched(browser, elsewhere) as (page, ran, asked):
        for url in site.hostile[name].to_content:
            run_alone(page, url)
            assert page.title() != "ran"
    assert asked >= set(site.hostile[name].to_content)
    assert ran == []


@pytest.mark.parametrize("origin", ["origin", "foreign"])
def test_no_hostile_file_runs_in_a_page_of_another_origin(browser, elsewhere, site, origin):
    with watched(browser, elsewhere) as (page, ran, asked):
        for hostile in site.hostile.values():
            embedded = [EMBEDDED.format(link.replace("&", "&amp;")) for link in hostile.to_content]
            open_page(page, elsewhere, getattr(elsewhere, origin), "".join(embedded))
            assert page.title() == "page"
    assert asked >= {link for hostile in site.hostile.values() for link in hostile.to_content}
    assert ran == []


@pytest.mark.parametrize("name", sorted(RUNS_ELSEWHERE))
def test_the_same_file_runs_where_a_server_believes_its_sender(browser, elsewhere, name):
    """Else the tests above would hear nothing, whatever ran."""
    url = f"{elsewhere.origin}/hostile/{name}"
    with watched(browser, elsewhere) as (page, ran, _):
        run_alone(page, url)
        open_page(page, elsewhere, elsewhere.foreign, EMBEDDED.format(url))
    assert f"ran {name}" in ran
    assert "ran" in ran
    assert name in ran


def widths(page: Page) -> list[int]:
    return page.evaluate("Array.from(document.images, (image) => image.naturalWidth)")


def images(*urls: str) -> str:
    return "".join(f'<img src="{url.replace("&", "&amp;")}">' for url in urls)


def test_a_signed_picture_shows_on_the_same_site_only(browser, elsewhere, site):
    shown = images(site.picture.signed, site.picture.signed_thumbnail, f"{site.picture.shared}?disposition=inline")
    with watched(browser, elsewhere) as (page, _, _):
        open_page(page, elsewhere, elsewhere.origin, shown)
        assert widths(page) == [400, 64, 400]
        open_page(page, elsewhere, elsewhere.foreign, shown)
        assert widths(page) == [0, 0, 0]


def test_a_public_picture_and_its_thumbnail_show_everywhere(browser, elsewhere, site):
    for origin in (elsewhere.origin, elsewhere.foreign):
        with watched(browser, elsewhere) as (page, _, _):
            open_page(page, elsewhere, origin, images(site.picture.public, site.picture.public_thumbnail))
            assert widths(page) == [400, 64]


def test_a_picture_opens_in_a_tab_and_everything_else_is_saved(browser, elsewhere, site):
    with watched(browser, elsewhere) as (page, _, _):
        page.goto(site.picture.signed)
        assert widths(page) == [400]
        for url, name in ((site.picture.public, "picture.png"), (site.hostile["html"].signed, "html")):
            with page.expect_download() as download:
                run_alone(page, url)
            assert re.fullmatch(rf"{name}(\.\w+)?", download.value.suggested_filename)


def test_a_page_that_may_call_the_api_uploads_a_form_and_resumes_a_download(browser, elsewhere, site):
    with watched(browser, elsewhere) as (page, _, _):
        open_page(page, elsewhere, elsewhere.origin, "")
        told = page.evaluate(UPLOAD_AND_RESUME, [site.url, site.token])
    disposition = "attachment; filename=\"naive _x_.txt\"; filename*=UTF-8''na%C3%AFve%20%22x%22.txt"
    assert told == ['naïve "x".txt', 206, "world", "bytes 7-11/12", disposition]
