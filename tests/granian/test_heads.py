"""Lines and headers under granian: who is believed about what, and what is refused by whom (docs/operations.md)."""

import json
import os
import socket
import subprocess

import pytest
import requests

from tests.granian.client import ME, OWN
from tests.http.client import eventually, raw
from tests.servers import AppServer
from tests.servers.app import COMMANDS, ROOT

pytestmark = [pytest.mark.server, pytest.mark.xdist_group("granian")]


def test_the_environment_of_the_process_is_no_part_of_a_request(server):
    answer = requests.get(f"{server.url}{ME}", timeout=10)
    assert (answer.status_code, answer.json()["code"]) == (401, "token_required")
    assert answer.headers["X-Request-ID"] != OWN["HTTP_X_REQUEST_ID"]


@pytest.mark.parametrize("name", ["X-Forwarded-For", "X_Forwarded_For", "Forwarded"])
def test_without_proxies_nobody_is_believed_about_addresses(server, name):
    request_id = f"forged-{name.replace('_', '-underscored-')}"
    requests.get(f"{server.url}/healthz", headers={name: "203.0.113.7", "X-Request-ID": request_id}, timeout=10)
    assert ip_of(server, request_id) == "127.0.0.1"


def ip_of(server: AppServer, request_id: str) -> str:
    def look() -> str | None:
        lines = [line for line in server.log.splitlines() if request_id in line and '"event": "request"' in line]
        return lines[0] if lines else None

    return str(json.loads(eventually(look, "the line of the request"))["ip"])


FORGED = {"X_Forwarded_For": "203.0.113.7", "X_Forwarded_Host": "evil.example"}


def test_nginx_lets_no_underscore_pass(front, behind):
    answer = requests.get(f"{front}/healthz", headers={**FORGED, "X-Request-ID": "through-nginx"}, timeout=10)
    assert (answer.status_code, ip_of(behind, "through-nginx")) == (200, "127.0.0.1")


def test_without_a_proxy_that_drops_underscores_one_could_forge_addresses(behind):
    """Which is why it has to be said that there is one."""
    answer = requests.get(f"{behind.url}/healthz", headers={**FORGED, "X-Request-ID": "by-itself"}, timeout=10)
    assert (answer.status_code, ip_of(behind, "by-itself")) == (400, "203.0.113.7")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"PROXY_HOPS": "1"}, "PROXY_DROPS_UNDERSCORES"),
        ({"WEB_CONCURRENCY": "none"}, "WEB_CONCURRENCY must be"),
        ({"PORT": "taken"}, "is in use"),
    ],
)
def test_what_cannot_be_served_well_is_refused_in_one_line(env, settings, said):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wrong = {**os.environ, **env, **settings, "PORT": str(taken.getsockname()[1])}
        found = subprocess.run(
            COMMANDS["granian"], cwd=ROOT, env=wrong, capture_output=True, text=True, timeout=60, check=False
        )
    assert (found.returncode, found.stdout, found.stderr.count("\n")) == (1, "", 1)
    assert found.stderr.startswith("Refusing to start: ")
    assert said in found.stderr


# Of these granian answers the first six by itself, without a body. Through nginx clients see problems all the same.
HEADS = {
    "a version that is not": (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", 400, None),
    "a line that is none": (b"GET\r\n\r\n", 400, None),
    "a blank before a colon": (b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", 400, None),
    "two lengths": (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, None),
    "many headers": (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431, None),
    "long headers": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 200_000 + b"\r\n\r\n", 431, None),
    "a long address": (b"GET /?" + b"a" * 8190 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414, "uri_too_long"),
    "no host": (b"GET /healthz HTTP/1.1\r\n\r\n", 400, "bad_request"),
    "two hosts": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", 400, "bad_request"),
    "lines that end early": (b"GET /healthz HTTP/1.1\nHost: localhost\n\n", 200, None),
}


@pytest.mark.parametrize(("request_", "status", "code"), HEADS.values(), ids=HEADS)
def test_what_becomes_of_a_head_that_is_not_right(server, request_, status, code):
    answer = raw(server.url, request_)
    assert answer.status == status
    if status >= 400:
        assert (json.loads(answer.body)["code"] if answer.body else None) == code


def test_head_has_the_length_and_no_body(server):
    whole, head = (requests.request(method, f"{server.url}/openapi.json", timeout=10) for method in ("GET", "HEAD"))
    assert head.headers["Content-Length"] == whole.headers["Content-Length"] == str(len(whole.content))
    assert head.content == b""
