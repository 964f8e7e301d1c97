"""nginx as it is installed (deploy/nginx), with TLS, before the application: what it refuses, adds and passes on."""

import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from project.errors import REGISTRY
from tests.conftest import ENV, migrated
from tests.http.client import MEMBERS
from tests.servers import NGINX, run_server
from tests.servers.app import ROOT
from tests.servers.process import free_port, running

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
]

HOST = "api.example.com"
HARDENED = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
}
STRICT = "max-age=31536000; includeSubDomains"
# Of what listen.conf allows to an address, as much as a test can open quickly.
ALLOWED = 5


@dataclass(frozen=True)
class Edge:
    """The ports without and with TLS, and what clients trust."""

    plain: int
    tls: int
    certificate: Path
    folder: Path

    def connect(self, name: str | None = HOST, *protocols: str) -> ssl.SSLSocket:
        """Connect with TLS and ask for a name."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        context.check_hostname = name is not None
        context.set_alpn_protocols(protocols)
        return context.wrap_socket(socket.create_connection(("127.0.0.1", self.tls), timeout=10), server_hostname=name)


@dataclass(frozen=True)
class Answer:
    """What nginx or the application said."""

    status: int
    headers: dict[str, str]
    body: bytes


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """nginx before the application."""
    env = {
        **ENV,
        "DATA_DIR": str(tmp_path_factory.mktemp("data")),
        "PUBLIC_URL": f"http://{HOST}",
        "PROXY_HOPS": "1",
    }
    migrated(env)
    with run_server(env) as app, run_edge(tmp_path_factory.mktemp("edge"), app.port) as found:
        yield found


@contextmanager
def run_edge(folder: Path, app_port: int) -> Iterator[Edge]:
    """Run the configuration of deploy/nginx; only ports, folders, the user and what an address may differ."""
    found = Edge(free_port(), free_port(), make_certificate(folder), folder)
    configure(found, app_port)
    command = [str(NGINX), "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with running(command, log=folder / "log", ready=lambda: listens(found.tls)):
        yield found


def make_certificate(folder: Path) -> Path:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
         "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}",
         "-keyout", folder / "privkey.pem", "-out", folder / "fullchain.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder / "fullchain.pem"


def configure(edge: Edge, app_port: int) -> None:
    for source in (ROOT / "deploy" / "nginx").glob("*.conf"):
        shutil.copy(source, edge.folder)
    listen = (edge.folder / "listen.conf").read_text()
    listen = re.sub(r"    listen \[::\].*\n", "", listen)
    listen = listen.replace("listen 80", f"listen {edge.plain}").replace("listen 443", f"listen {edge.tls}")
    listen = re.sub(r"/etc/letsencrypt/live/api.example.com|/var/(log/nginx|lib/project)", str(edge.folder), listen)
    assert listen.count("limit_conn ") == 2
    (edge.folder / "listen.conf").write_text(re.sub(r"(limit_conn \w+) \d+;", rf"\1 {ALLOWED};", listen))
    spools = "".join(
        f"{name}_temp_path {edge.folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (edge.folder / "upstream.conf").write_text(f"{spools}upstream project {{ server 127.0.0.1:{app_port}; }}\n")
    (edge.folder / "local.conf").write_text(f"daemon off;\npid {edge.folder}/pid;\nerror_log stderr crit;\n")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def read(connection: socket.socket) -> Answer:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


def ask(connection: socket.socket, head: str, host: str = HOST) -> Answer:
    with connection:
        connection.sendall(f"{head} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        return read(connection)


def in_clear(edge: Edge) -> socket.socket:
    return socket.create_connection(("127.0.0.1", edge.plain), timeout=10)


# --- TLS --------------------------------------------------------------------------------------------------------------


def test_over_tls_the_application_hears_of_https_and_says_hsts(edge):
    answer = ask(edge.connect(), "GET /v1/prices")
    assert (answer.status, answer.headers["strict-transport-security"]) == (200, STRICT)
    assert HARDENED.items() <= answer.headers.items()


def test_http_2_is_offered(edge):
    with edge.connect(HOST, "h2", "http/1.1") as connection:
        assert connection.selected_alpn_protocol() == "h2"
        assert connection.version() == "TLSv1.3"


@pytest.mark.parametrize("name", ["evil.example", None])
def test_a_name_that_is_not_ours_gets_no_certificate(edge, name):
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        edge.connect(name)


def test_a_host_other_than_that_of_the_handshake_is_refused(edge):
    answer = ask(edge.connect(), "GET /healthz", host="evil.example")
    assert (answer.status, answer.headers["strict-transport-security"]) == (400, STRICT)
    assert code(answer) == "bad_request"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_that_is_out_of_date_is_refused(edge):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", edge.tls), timeout=10) as bare, pytest.raises(ssl.SSLError):
        context.wrap_socket(bare, server_hostname=HOST)


def test_without_tls_a_page_leads_to_https_and_a_program_is_refused(edge):
    page = ask(in_clear(edge), "GET /docs?a=b")
    assert (page.status, page.headers["location"]) == (308, f"https://{HOST}/docs?a=b")
    assert HARDENED.items() <= page.headers.items()
    refused = ask(in_clear(edge), "POST /v1/auth/login")
    assert (refused.status, code(refused)) == (403, "https_required")
    assert "location" not in refused.headers


def test_without_tls_another_host_is_refused(edge):
    answer = ask(in_clear(edge), "GET /", host="evil.example")
    assert (answer.status, code(answer)) == (400, "bad_request")


def test_plain_http_at_the_port_of_tls_is_a_problem(edge):
    answer = ask(socket.create_connection(("127.0.0.1", edge.tls), timeout=10), "GET /healthz")
    assert (answer.status, code(answer)) == (400, "bad_request")


def code(answer: Answer) -> str:
    """Return the code of a problem of nginx, which is whole."""
    assert answer.headers["content-type"] == "application/problem+json"
    assert HARDENED.items() <= answer.headers.items()
    problem = json.loads(answer.body)
    assert set(problem) == MEMBERS - {"instance"}
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert REGISTRY[str(problem["code"])].title == problem["title"]
    assert problem["status"] == answer.status
    return str(problem["code"])


def test_without_a_server_behind_it_says_when_to_come_again(tmp_path):
    with run_edge(tmp_path, free_port()) as alone:
        answers = [ask(alone.connect(), line) for line in ("GET /v1/prices", "POST /v1/payments", "GET /readyz")]
    assert {(answer.status, code(answer), answer.headers["retry-after"]) for answer in answers} == {
        (503, "service_unavailable", "1")
    }


# --- requests that two servers could read differently -----------------------------------------------------------------

LOGIN = f"POST /v1/auth/login HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
HIDDEN = f"GET /v1/hidden HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
AMBIGUOUS = {
    "length and chunks": f"{LOGIN}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
    "chunks and length": f"{LOGIN}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "xchunked": f"{LOGIN}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked, identity": f"{LOGIN}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "two encodings": f"{LOGIN}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "a tab before chunked": f"{LOGIN}Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n",
    "a blank before the colon": f"{LOGIN}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded line": f"{LOGIN}Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": LOGIN.replace("1.1", "1.0") + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": f"{LOGIN}Content-Length: 2\r\nContent-Length: 5\r\n\r\n{{}}GET",
    "a length twice": f"{LOGIN}Content-Length: 2\r\nContent-Length: 2\r\n\r\n{{}}",
    "a length with a sign": f"{LOGIN}Content-Length: +2\r\n\r\n{{}}",
    "a list of lengths": f"{LOGIN}Content-Length: 2, 2\r\n\r\n{{}}",
    "a length below zero": f"{LOGIN}Content-Length: -1\r\n\r\n{{}}",
    "a length beyond numbers": f"{LOGIN}Content-Length: {'9' * 30}\r\n\r\n{{}}",
    "a chunk below zero": f"{LOGIN}Transfer-Encoding: chunked\r\n\r\n-2\r\n{{}}\r\n0\r\n\r\n",
    "a chunk beyond numbers": f"{LOGIN}Transfer-Encoding: chunked\r\n\r\nffffffffffffffff2\r\n{{}}\r\n0\r\n\r\n",
    "two hosts": f"GET / HTTP/1.1\r\nHost: {HOST}\r\nHost: evil.example\r\n\r\n",
    "no host": "GET / HTTP/1.1\r\n\r\n",
    "another host in the address": f"GET http://evil.example/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n",
    "a bare return": f"GET / HTTP/1.1\r\nHost: {HOST}\rX: y\r\n\r\n",
    "a header of nothing": f"GET / HTTP/1.1\r\nHost: {HOST}\r\nX: a\0b\r\n\r\n",
    "HTTP/2.0 in a line": f"GET / HTTP/2.0\r\nHost: {HOST}\r\n\r\n",
    "a tunnel": f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}\r\n\r\n",
}


@pytest.mark.parametrize("request_", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_an_ambiguous_request_is_refused_and_nothing_after_it_is_read(edge, request_):
    with edge.connect() as connection:
        connection.sendall((request_ + HIDDEN).encode())
        answer = read(connection)
        assert connection.recv(1000) == b""  # closed
    assert (answer.status, answer.headers["content-type"]) == (400, "application/problem+json")


@pytest.mark.parametrize("line", ["GET /v1/prices", "POST /v1/files", "POST /v1/files/raw", "DELETE /v1/files/x"])
def test_a_body_is_never_taken_for_a_request(edge, line):
    with edge.connect() as connection:
        head = f"{line} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(HIDDEN)}\r\n\r\n"
        last = f"GET /v1/last HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
        connection.sendall((head + HIDDEN + last).encode())
        said = b"".join(iter(lambda: connection.recv(65536), b""))
    assert said.count(b"HTTP/1.1 ") == 2
    assert b"/v1/last" in said
    assert b"hidden" not in said


def test_a_trailer_is_no_header(edge):
    body = "2\r\n{}\r\n0\r\nContent-Type: text/plain\r\nHost: evil.example\r\n\r\n"
    with edge.connect() as connection:
        connection.sendall(f"{LOGIN}Transfer-Encoding: chunked\r\n\r\n{body}".encode())
        assert read(connection).status == 422


UNREADABLE = {
    "a control character": (b"GET / HTTP/1.1\r\n", b"X: a\x01b\r\n", "bad_request"),
    "bytes in an address": (b"GET /\xff HTTP/1.1\r\n", b"", "bad_request"),
    "a long method": (b"X" * 30 + b" / HTTP/1.1\r\n", b"", "bad_request"),
    "many headers": (b"GET / HTTP/1.1\r\n", b"".join(b"X%d: 1\r\n" % n for n in range(200)), "headers_too_large"),
}


@pytest.mark.parametrize(("line", "headers", "expected"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_nginx_lets_through_and_gunicorn_does_not_is_a_problem_too(edge, line, headers, expected):
    with edge.connect() as connection:
        connection.sendall(line + f"Host: {HOST}\r\n".encode() + headers + b"\r\n")
        assert code(read(connection)) == expected


# --- what a client may not decide -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["X-Accel-Redirect", "X-Original-URL", "X-Rewrite-URL", "X-Sendfile", "Script_Name"])
def test_a_client_cannot_name_another_address_in_a_header(edge, name):
    with edge.connect() as connection:
        connection.sendall(f"GET /v1/nothing HTTP/1.1\r\nHost: {HOST}\r\n{name}: /healthz\r\n\r\n".encode())
        assert read(connection).status == 404


@pytest.mark.parametrize(
    "path",
    ["/metrics", "//metrics", "/%6detrics", "/./metrics", "/x/../metrics", "/metrics/", "/metrics?a", "/metrics;a",
     "/_files/", "/_files-whole/x", "/%5ffiles/x", "/_problem/not_found", "/v1/%2e%2e/metrics",
     "/v1/users/me/..;/x", "/V1/users/me", "/v1/users/me/", "/v1/users;a/me"],
)  # fmt: skip
def test_what_is_inside_has_no_address_outside(edge, path):
    assert ask(edge.connect(), f"GET {path}").status == 404


@pytest.mark.parametrize(
    "path", ["/v1/users/me", "//v1/users/me", "/v1//users/me", "/v1/./users/me", "/%76%31/users/me"]
)
def test_no_way_of_writing_an_address_leads_around_the_token(edge, path):
    assert ask(edge.connect(), f"GET {path}").status in {401, 404}


def test_an_address_with_a_host_does_not_replace_the_header(edge):
    assert ask(edge.connect(), f"GET http://{HOST}/", host="evil.example").status == 400


# --- how much an address may have at a time ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/auth/login", "/v1/files/raw?filename=a"])
def test_one_address_cannot_keep_everything_busy(edge, path):
    begun = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\r\na"
    with ExitStack() as slow:
        for _ in range(ALLOWED):
            slow.enter_context(edge.connect()).sendall(begun.encode())
        refused = until_refused(edge, begun)
    assert (code(refused), refused.headers["retry-after"]) == ("rate_limited", "1")


def until_refused(edge: Edge, begun: str) -> Answer:
    """Ask until nginx has counted the others."""
    while True:
        with edge.connect() as connection:
            connection.sendall(begun.encode())
            connection.settimeout(0.2)
            try:
                return read(connection)
            except TimeoutError:
                continue
