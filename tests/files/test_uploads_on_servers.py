"""Uploads to the servers as they run in production: SQLite with one process, PostgreSQL with two servers and three."""

import os
import signal
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from flask import Flask
from requests import Response
from sqlalchemy import func, select

from project import create_app
from project.auth import tokens
from project.auth.service import SignIn
from project.database import db
from project.files import quota
from project.files.models import File
from project.files.quota import Usage
from project.files.storage import PARTS
from project.files.sweep import sweep
from tests import factories
from tests.conftest import ENV, migrated
from tests.files.asking import FILES, Part, a_file, form
from tests.files.uploading import check_books, check_nothing_stored, on_disk
from tests.http.client import Api, connect, eventually, problem, raw, raw_problem, raw_request
from tests.servers import AppServer, create_database, ensure_template, run_server

pytestmark = pytest.mark.server

RAW = f"{FILES}/raw"
# Larger than what the server reads at once, so that there are parts before a body is complete.
SIZE = 100_000
LIMIT = 200_000
QUOTA = 450_000
SETTINGS = {**ENV, "FILES_QUOTA": str(QUOTA), "FILES_MAX_SIZE": str(LIMIT), "LIMIT_WRITE": "100000/minute"}
CONTENT = bytes(range(250)) * (SIZE // 250)


@dataclass(frozen=True)
class Stage:
    """A database and a folder of files, with an application of ours beside those of the servers."""

    env: dict[str, str]
    app: Flask

    @property
    def root(self) -> Path:
        """Where the files are."""
        return Path(self.env["DATA_DIR"]) / "files"

    def inside(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function in our application."""
        with self.app.app_context():
            return function(*args, **kwargs)

    def new_account(self) -> tuple[Any, str]:
        """Make an account that is signed in, and return it with its access token."""
        with self.app.app_context():
            user = factories.make_user()
            signed_in = SignIn(factories.make_session(user), user, fresh=True)
            return user, tokens.issue(signed_in)["access_token"]

    def is_idle(self) -> bool | None:
        """Tell, for `eventually`, that nobody uploads any more."""
        parts = [name for name in on_disk(self.root) if name.startswith(PARTS)]
        return None if parts or self.inside(lambda: db.session.scalar(select(func.sum(File.reserved)))) else True


@contextmanager
def a_stage(kind: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    env = {**SETTINGS, "DATA_DIR": str(folder)}
    if kind == "sqlite":
        app = migrated(env)
    else:
        admin_url = request.getfixturevalue("postgres_url")
        template = ensure_template(admin_url, "project_template", make_template)
        name = f"project_uploads_{request.getfixturevalue('worker_id')}"
        env["DATABASE_URL"] = create_database(admin_url, name, template)
        app = create_app(env)
    yield Stage(env, app)
    with app.app_context():
        db.engine.dispose()


def make_template(url: str) -> None:
    app = migrated({**ENV, "DATABASE_URL": url})
    with app.app_context():
        db.engine.dispose()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The stage of these tests, on each database."""
    with a_stage(request.param, tmp_path_factory.mktemp("stage"), request) as made:
        yield made


@pytest.fixture(scope="module")
def servers(stage: Stage) -> Iterator[list[AppServer]]:
    """The servers of the stage."""
    with ExitStack() as stack:
        started = [stack.enter_context(run_server(stage.env))]
        if "DATABASE_URL" in stage.env:
            started.append(stack.enter_context(run_server({**stage.env, "WEB_CONCURRENCY": "2"})))
        yield started


@pytest.fixture
def account(stage: Stage) -> Iterator[tuple[Any, str]]:
    """A new account; whatever happens to it, the books are balanced at the end."""
    yield stage.new_account()
    eventually(stage.is_idle, "the end of all uploads")
    stage.inside(check_books, stage.root)


def spread(servers: Sequence[AppServer], token: str, count: int) -> list[Api]:
    """Clients on connections of their own, one server after the other."""
    return [Api(server.url, token) for server in islice(cycle(servers), count)]


def send_form(api: Api, content: bytes) -> Response:
    options = form(Part("purpose", "test"), a_file(content))
    return api.post(FILES, data=options["data"], headers={"Content-Type": options["content_type"]})


def send_raw(api: Api, content: bytes) -> Response:
    return api.post(RAW, data=content, headers={"Content-Type": "application/zip"})


def send_chunked(api: Api, content: bytes) -> Response:
    blocks = (content[start : start + 1000] for start in range(0, len(content), 1000))
    return api.post(RAW, data=blocks, headers={"Content-Type": "application/zip"})


SEND = {"raw": send_raw, "form": send_form, "chunked": send_chunked}


@pytest.mark.parametrize("way", ["raw", "form"])
def test_of_24_uploads_at_once_with_room_for_4_exactly_4_are_stored(stage, servers, account, way):
    user, token = account
    barrier = Barrier(24)

    def run(api: Api) -> Response:
        api.get("/healthz")
        barrier.wait(30)
        return SEND[way](api, CONTENT)

    with ThreadPoolExecutor(24) as pool:
        responses = list(pool.map(run, spread(servers, token, 24)))
    assert Counter(response.status_code for response in responses) == {201: 4, 413: 20}
    for response in responses:
        if response.status_code == 413:
            problem(response, 413, "quota_exceeded")
    assert stage.inside(quota.usage, user.id) == Usage(4 * SIZE, 0, QUOTA, 4)


@pytest.mark.parametrize("way", SEND)
def test_what_is_beyond_the_limit_hears_it_whatever_it_goes_on_sending(servers, account, way):
    _, token = account
    for server in servers:
        problem(SEND[way](Api(server.url, token), bytes(20 * LIMIT)), 413, "file_too_large")


def test_a_chunked_body_beyond_the_quota_hears_it(servers, account):
    _, token = account
    for api in spread(servers, token, 4):
        send_raw(api, CONTENT)
    for api in spread(servers, token, 2):
        problem(send_chunked(api, bytes(QUOTA - 4 * SIZE + 1)), 413, "quota_exceeded")


FORM = form(a_file(CONTENT))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


CHUNKED = "Transfer-Encoding: chunked"
CUTS = {
    "raw": (RAW, [f"Content-Length: {SIZE}"], CONTENT[:-1]),
    "raw, nothing": (RAW, [f"Content-Length: {SIZE}"], b""),
    "chunked raw, in a chunk": (RAW, [CHUNKED], chunk(CONTENT)[:-9]),
    "chunked raw, before the last chunk": (RAW, [CHUNKED], chunk(CONTENT)),
    "form": (FILES, [f"Content-Length: {len(FORM['data'])}"], FORM["data"][:-9]),
    "form, before the file": (FILES, [f"Content-Length: {len(FORM['data'])}"], FORM["data"][:9]),
    "chunked form, in a chunk": (FILES, [CHUNKED], chunk(FORM["data"])[:-20]),
    "chunked form, before the last chunk": (FILES, [CHUNKED], chunk(FORM["data"])),
}


def cut_request(url: str, token: str, path: str, headers: list[str], body: bytes) -> bytes:
    content_type = FORM["content_type"] if path == FILES else "application/zip"
    headers = [f"Authorization: Bearer {token}", f"Content-Type: {content_type}", *headers]
    return raw_request(url, path, method="POST", headers=headers, body=body)


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_body_is_400_and_leaves_nothing(stage, servers, account, cut):
    user, token = account
    path, headers, body = CUTS[cut]
    answer = raw(servers[0].url, cut_request(servers[0].url, token, path, headers, body), half_close=True)
    raw_problem(answer, path, 400, "incomplete_body")
    assert stage.inside(quota.usage, user.id) == Usage(0, 0, QUOTA, 0)


@pytest.mark.parametrize("cut", ["raw", "chunked raw, in a chunk", "form", "chunked form, in a chunk"])
def test_a_client_that_vanishes_leaves_nothing(stage, servers, account, cut):
    user, token = account
    path, headers, body = CUTS[cut]
    with connect(servers[0].url) as connection:
        connection.sendall(cut_request(servers[0].url, token, path, headers, body))
        eventually(lambda: not stage.is_idle() or None, "the upload to begin")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    eventually(stage.is_idle, "the upload to be undone")
    assert stage.inside(quota.usage, user.id) == Usage(0, 0, QUOTA, 0)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_what_a_killed_server_leaves_a_sweep_clears_away(request, tmp_path, kind):
    with a_stage(kind, tmp_path, request) as stage, run_server(stage.env) as server, ExitStack() as connections:
        user, token = stage.new_account()
        for cut in ("raw", "chunked raw, in a chunk", "form"):
            connection = connections.enter_context(connect(server.url))
            connection.sendall(cut_request(server.url, token, *CUTS[cut]))
        # The form has no row before it is complete.
        eventually(lambda: len(on_disk(stage.root)) == 3 or None, "three parts")
        eventually(lambda: all(on_disk(stage.root).values()) or None, "some of their bytes")
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait(30)
        assert stage.inside(quota.usage, user.id).reserved > 0
        swept = stage.inside(sweep, older_than=0)
        assert (swept.uploads, swept.parts) == (2, 3)
        stage.inside(check_nothing_stored, stage.root)
