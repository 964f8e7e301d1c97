"""Paths, methods, hosts and headers that are refused over HTTP, in one shape and with the right code."""

from collections.abc import Callable
from http.client import BadStatusLine
from uuid import UUID

import pytest

from tests.http.client import PROXIED, Account, Api, Outbox, problem, raw, raw_problem, raw_request

MISSING = "0190f8e2-5a3b-7c4d-8e9f-0a1b2c3d4e5f"


def bearer(account: Account) -> str:
    return f"Authorization: Bearer {account.access_token}"


# --- paths and methods -----------------------------------------------------------------------------------------------

NOWHERE = [
    "/v1",
    "/v1/",
    "/v2/users/me",
    "/v1/nothing",
    "/v1/users/",
    "/v1/users/me/",
    "/v1/auth/login/",
    "/v1//users/me",
    "/v1/users//me",
    "/v1/./users/me",
    "/v1/users/../users/me",
    "/v1/users/me/..;/me",
    "/v1/%2e%2e/v1/users/me",
    "/v1/users/me;param",
    "/v1/users;param/me",
    "/v1/users/me%00",
    "/v1/users/me%20",
    "/v1/users/me%ff",
    "/v1/users/me%0d%0aX-Evil:1",
    "/v1/users/me%E2%80%AE",
    "/V1/users/me",
    "/v1/Users/me",
    "/v1/users/ME",
    "/v1/users/1",
    "/v1/users/0",
    "/v1/users/-1",
    "/v1/users/null",
    f"/v1/users/{MISSING.upper()}",
    f"/v1/users/urn:uuid:{MISSING}",
    f"/v1/users/{{{MISSING}}}",
    f"/v1/users/%7B{MISSING}%7D",
    f"/v1/users/{MISSING.replace('-', '')}",
    f"/v1/users/{MISSING}%0a",
    f"/v1/users/{MISSING}.json",
    "/.env",
    "/.git/HEAD",
    "/console",
    "/debug",
    "/server-status",
    "/admin",
    "/static/x",
]


@pytest.mark.parametrize("target", NOWHERE)
@pytest.mark.parametrize("caller", ["anonymous", "admin"])
def test_a_path_that_does_not_exist_is_404_for_everybody(
    base_url: str, admin: Account, caller: str, target: str
) -> None:
    headers = [bearer(admin)] if caller == "admin" else []
    answer = raw(base_url, raw_request(base_url, target, headers=headers))
    if PROXIED and "%00" in target:
        raw_problem(answer, target, 400, "bad_request")
        return
    path = target.replace("%ff", "%EF%BF%BD")  # what is not UTF-8 is told back as U+FFFD
    raw_problem(answer, path, 404, "not_found")


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "TRACE", "CONNECT", "PROPFIND", "FOO", "PATCHY"])
@pytest.mark.parametrize("caller", ["anonymous", "admin"])
def test_a_method_that_does_not_exist_is_405_for_everybody(
    base_url: str, admin: Account, caller: str, method: str
) -> None:
    headers = [bearer(admin)] if caller == "admin" else []
    answer = raw(base_url, raw_request(base_url, "/v1/users/me", method=method, headers=headers))
    raw_problem(answer, "/v1/users/me", 405, "method_not_allowed")
    if PROXIED and method in {"TRACE", "CONNECT"}:
        return  # nginx refuses them for every path
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS", "PATCH"}


@pytest.mark.parametrize("header", ["X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"])
def test_a_method_cannot_be_overridden(user: Account, header: str) -> None:
    response = user.api.post("/v1/users/me?_method=PATCH", headers={header: "PATCH"}, json={"name": "Overridden"})
    problem(response, 405, "method_not_allowed")
    assert user.api.get("/v1/users/me").json()["data"]["name"] != "Overridden"


@pytest.mark.parametrize("header", ["X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Prefix", "SCRIPT_NAME"])
def test_a_path_cannot_be_overridden(anonymous: Api, header: str) -> None:
    assert anonymous.get("/healthz", headers={header: "/v1/users/me"}).status_code == 200
    problem(anonymous.get("/v1/nothing", headers={header: "/v1"}), 404, "not_found")


def test_head_is_get_without_a_body(user: Account, anonymous: Api) -> None:
    got, head = user.api.get("/v1/users/me"), user.api.request("HEAD", "/v1/users/me")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["ETag"] == got.headers["ETag"]
    assert anonymous.request("HEAD", "/v1/users/me").status_code == 401
    assert anonymous.request("HEAD", "/v1/nothing").status_code == 404


def test_options_needs_no_token_and_names_the_methods(anonymous: Api) -> None:
    response = anonymous.request("OPTIONS", "/v1/users/me")
    assert response.status_code in {200, 204}
    assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS", "PATCH"}


def test_an_encoded_path_is_the_same_path(base_url: str, user: Account) -> None:
    answer = raw(base_url, raw_request(base_url, "/v1/%75sers/m%65", headers=[bearer(user)]))
    assert answer.status == 200
    assert raw(base_url, raw_request(base_url, "/v1/%75sers/m%65")).status == 401


def test_slashes_before_a_path_open_no_other_door(base_url: str, user: Account) -> None:
    # Werkzeug takes them for one, as nginx does.
    assert raw(base_url, raw_request(base_url, "//v1/users/me")).status == 401
    assert raw(base_url, raw_request(base_url, "//v1/users/me", headers=[bearer(user)])).status == 200
    assert raw(base_url, raw_request(base_url, "//v1/users", headers=[bearer(user)])).status == 403


def test_an_absolute_target_is_its_path(base_url: str, user: Account) -> None:
    answer = raw(base_url, raw_request(base_url, f"{base_url}/v1/users/me", headers=[bearer(user)]))
    assert answer.status == 200


# --- the Host header and the request id -------------------------------------------------------------------------------


def test_a_request_without_host_is_400(base_url: str) -> None:
    answer = raw(base_url, raw_request(base_url, "/v1/users/me", host=None))
    raw_problem(answer, "/v1/users/me", 400, "bad_request")


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "local_host", ""])
def test_an_unknown_host_is_400(base_url: str, host: str) -> None:
    raw_host = f"Host: {host}"
    answer = raw(base_url, raw_request(base_url, "/v1/users/me", host=None, headers=[raw_host]))
    raw_problem(answer, "/v1/users/me", 400, "bad_request")


def test_two_hosts_are_400(base_url: str) -> None:
    request = raw_request(base_url, "/v1/users/me", headers=["Host: evil.example"])
    assert raw(base_url, request).status == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-Host": "evil.example"},
        {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https", "X-Forwarded-Port": "1"},
        {"Forwarded": "host=evil.example;proto=https"},
        {"X-Original-Host": "evil.example", "X-Host": "evil.example", "Origin": "https://evil.example"},
        {"Referer": "https://evil.example/"},
    ],
)
def test_no_header_decides_where_a_mail_leads(
    anonymous: Api, outbox: Outbox, new_user: Callable[[], Account], headers: dict[str, str]
) -> None:
    address = new_user().email
    assert anonymous.post("/v1/auth/forgot-password", json={"email": address}, headers=headers).status_code == 202
    mail = outbox.wait_for("reset_password", address)[-1]
    assert "evil" not in mail.as_string()
    assert "#token=" in mail.as_string()


@pytest.mark.parametrize("protocol", ["h2c", "TLS/1.2"])
def test_an_upgrade_is_declined(base_url: str, protocol: str) -> None:
    headers = [f"Upgrade: {protocol}", "HTTP2-Settings: AAMAAABkAAQAAP__"]
    request = raw_request(base_url, "/v1/users/me", headers=headers).replace(b": close", b": Upgrade, HTTP2-Settings")
    # nginx gives a client up that says it has no more to send.
    raw_problem(raw(base_url, request, half_close=not PROXIED), "/v1/users/me", 401, "token_required")


def test_http_1_0_is_served_and_0_9_is_not(base_url: str) -> None:
    request = raw_request(base_url, "/v1/users/me")
    raw_problem(raw(base_url, request.replace(b"HTTP/1.1", b"HTTP/1.0")), "/v1/users/me", 401, "token_required")
    if PROXIED:
        # In the manner of 0.9, whose answers have no status.
        with pytest.raises(BadStatusLine, match="bad_request"):
            raw(base_url, request.replace(b" HTTP/1.1", b""))
        return
    assert raw(base_url, request.replace(b" HTTP/1.1", b"")).status == 400


@pytest.mark.parametrize("given", ["short", "x" * 65, "with space in it", "a;b;c;d;e", "ünicode-id", "<script>alert"])
def test_a_request_id_that_could_do_harm_is_replaced(base_url: str, given: str) -> None:
    request = raw_request(base_url, "/v1/users/me", headers=[f"X-Request-ID: {given}"])
    answer = raw(base_url, request)
    assert str(UUID(answer.headers["X-Request-ID"])) != given
    raw_problem(answer, "/v1/users/me", 401, "token_required")


def test_a_good_request_id_is_kept(anonymous: Api) -> None:
    response = anonymous.get("/v1/users/me", headers={"X-Request-ID": "0123-client-ID"})
    assert problem(response, 401, "token_required")["request_id"] == "0123-client-ID"


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("X-Large: " + "x" * 20_000, 431),
        ("\r\n".join(f"X-{number}: 1" for number in range(1_000)), 431),
        ("No colon here", 400),
        ("X-Folded: 1\r\n  2", 400),
        ("X-Space : 1", 400),
        ("Transfer-Encoding: xchunked", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5", 400),
        ("Content-Length: 5\r\nContent-Length: 6", 400),
        ("Content-Length: +5", 400),
        ("Content-Length: -5", 400),
    ],
)
def test_broken_headers_never_reach_the_application(base_url: str, header: str, status: int) -> None:
    request = raw_request(base_url, "/v1/users/me", method="PATCH", headers=[header], body=b"{}...")
    assert raw(base_url, request).status == status


def test_a_long_target_is_414(base_url: str) -> None:
    assert raw(base_url, raw_request(base_url, "/v1/users?q=" + "x" * 60_000)).status == 414
