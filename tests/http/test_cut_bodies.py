"""Bodies that are too large or end too early: refused, without effect, whatever their framing."""

import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from http.client import RemoteDisconnected
from uuid import uuid4

import pytest

from tests.http.client import PROXIED, Account, connect, problem, raw, raw_problem, raw_request, read_answer
from tests.http.cluster import Cluster
from tests.http.document import Operation, send

JSON = "application/json"
LIMIT = 256 * 1024


def chunks(body: bytes, size: int = 10_000) -> Iterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


def padded(size: int) -> bytes:
    return b'{"name": "Padded"}'.ljust(size)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("size", "status"), [(LIMIT, 200), (LIMIT + 1, 413), (LIMIT * 4, 413)])
def test_a_body_of_256_kib_is_accepted_and_one_byte_more_is_not(
    user: Account, size: int, status: int, chunked: bool
) -> None:
    body = chunks(padded(size)) if chunked else padded(size)
    # A connection of its own: the server ends one on which much was left unread.
    fresh = user.api.with_token(user.access_token)
    assert fresh.patch("/v1/users/me", data=body, headers={"Content-Type": JSON}).status_code == status


def test_every_operation_refuses_a_body_that_is_too_large(admin: Account, json_operations: list[Operation]) -> None:
    million_digits = b'{"name": ' + b"9" * 1_000_000 + b"}"
    for operation in json_operations:
        for body in (million_digits, chunks(million_digits)):
            fresh = replace(admin, api=admin.api.with_token(admin.access_token))
            response = send(fresh, operation, data=body, headers={"Content-Type": JSON})
            problem(response, 413, "payload_too_large")


def test_a_length_beyond_the_limit_is_refused_before_the_body_comes(base_url: str, user: Account) -> None:
    headers = [*json_headers(user), "Content-Length: 1000000000000"]
    answer = raw(base_url, raw_request(base_url, "/v1/users/me", method="PATCH", headers=headers))
    raw_problem(answer, "/v1/users/me", 413, "payload_too_large")


def json_headers(account: Account, **more: str) -> list[str]:
    fields = {"Authorization": f"Bearer {account.access_token}", "Content-Type": JSON, **more}
    return [f"{name}: {value}" for name, value in fields.items()]


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


COMPLETE = b'{"name": "Cut"}'
CUTS = {
    "half of the length": (["Content-Length: 100"], b'{"name'),
    "valid JSON, and less than the length": (["Content-Length: 100"], COMPLETE),
    "nothing of the length": (["Content-Length: 100"], b""),
    "half a chunk": (["Transfer-Encoding: chunked"], b'f\r\n{"name'),
    "valid JSON without the last chunk": (["Transfer-Encoding: chunked"], chunk(COMPLETE)),
    "no chunk": (["Transfer-Encoding: chunked"], b""),
}


@pytest.mark.parametrize(("framing", "body"), CUTS.values(), ids=list(CUTS))
def test_a_body_cut_by_fin_is_400_and_has_no_effect(
    base_url: str, user: Account, framing: list[str], body: bytes
) -> None:
    headers = [*json_headers(user), *framing]
    request = raw_request(base_url, "/v1/users/me", method="PATCH", headers=headers, body=body)
    try:
        raw_problem(raw(base_url, request, half_close=True), "/v1/users/me", 400, "incomplete_body")
    except RemoteDisconnected:
        assert PROXIED
    assert user.api.get("/v1/users/me").json()["data"]["name"] != "Cut"


@pytest.mark.parametrize(("framing", "body"), CUTS.values(), ids=list(CUTS))
def test_a_body_cut_by_rst_is_refused_and_has_no_effect(
    cluster: Cluster, user: Account, framing: list[str], body: bytes
) -> None:
    request_id, url = str(uuid4()), cluster.first.url
    headers = [*json_headers(user, **{"X-Request-ID": request_id}), "Expect: 100-continue", *framing]
    with connect(url) as connection:
        connection.sendall(raw_request(url, "/v1/users/me", method="PATCH", headers=headers))
        assert connection.recv(25) == CONTINUE
        connection.sendall(body)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    cluster.check_refused(request_id)
    assert user.api.get("/v1/users/me").json()["data"]["name"] != "Cut"


@pytest.mark.parametrize("size", [b"zz", b"-1", b"+f", b"0x0f", b"ffffffffffffffffffff", b"f" * 10_000])
def test_a_broken_chunk_is_400_and_has_no_effect(base_url: str, user: Account, size: bytes) -> None:
    headers = [*json_headers(user), "Transfer-Encoding: chunked"]
    body = size + b"\r\n" + COMPLETE + b"\r\n" + LAST_CHUNK
    request = raw_request(base_url, "/v1/users/me", method="PATCH", headers=headers, body=body)
    assert raw(base_url, request, half_close=True).status == 400
    assert user.api.get("/v1/users/me").json()["data"]["name"] != "Cut"


def test_a_client_that_says_it_will_send_the_body_is_told_to_go_on(base_url: str, user: Account) -> None:
    headers = [*json_headers(user), "Content-Length: 18", "Expect: 100-continue"]
    with connect(base_url) as connection:
        connection.sendall(raw_request(base_url, "/v1/users/me", method="PATCH", headers=headers))
        assert connection.recv(25) == CONTINUE
        connection.sendall(b'{"name": "Waited"}')
        assert read_answer(connection, method="PATCH").status == 200
