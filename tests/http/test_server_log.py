"""The log of a server: one JSON object a line, and no token even where the HTTP server refuses a request.

What the whole run has logged is checked when the servers of these tests stop, see conftest.check_log.
"""

import json
from contextlib import suppress
from http.client import BadStatusLine
from uuid import uuid4

import pytest

from tests.http.client import Account, Api, raw, raw_request
from tests.http.cluster import Cluster
from tests.http.document import file_of


def test_what_only_the_server_sees_stays_out_of_the_log_too(cluster: Cluster, user: Account) -> None:
    """A request that the HTTP server refuses is logged by it; the check of the whole log comes with the last test."""
    url, token = cluster.first.url, user.access_token
    for request in (
        raw_request(url, "/v1/users/me", headers=[f"Authorization Bearer {token}"]),
        raw_request(url, "/v1/users/me", headers=[f"Authorization : Bearer {token}"]),
        raw_request(url, "/v1/users/me", headers=[f"Authorization: Bearer {token}\x01"]),
        raw_request(url, f"/v1/users/me?access_token={token} x"),
        raw_request(url, f"/v1/users/me?access_token={token}", method="get it"),
        raw_request(url, f"/v1/users/me?access_token={token}").replace(b"HTTP/1.1", b"HTTP/9.9"),
    ):
        assert 400 <= raw(url, request).status < 600
    with suppress(BadStatusLine):  # in the manner of HTTP/0.9, which nginx answers in
        raw(url, raw_request(url, f"/v1/users/me?access_token={token}").replace(b" HTTP/1.1", b""))
    assert token not in cluster.first.whole_log
    assert token.rsplit(".", 1)[-1] not in cluster.first.whole_log


def test_what_opens_a_file_without_a_token_stays_out_of_the_log(
    cluster: Cluster, user: Account, anonymous: Api
) -> None:
    file = f"/v1/files/{file_of(user)}"
    share = user.api.post(f"{file}/shares", json={}).json()["data"]["url"]
    signed = user.api.post(f"{file}/signed-url", json={}).json()["data"]["url"]
    for url, secret in ((share, share.rpartition("/")[2]), (signed, signed.rpartition("sig=")[2])):
        path = url[url.index("/v1/") :]
        for answer in (
            anonymous.get(path),
            anonymous.get(f"{path}x"),
            anonymous.get(path, headers={"Range": "bytes=99-"}),
        ):
            assert cluster.first_logged(answer.headers["X-Request-ID"])["event"] == "request"
        assert answer.status_code == 416
        assert secret not in cluster.first.whole_log


@pytest.mark.parametrize("text", ["\\r\\n{}", "\x1b[31m", "\x85", "%0d%0a%7b%7d", '"}}\\n{{"', "\xe2\x80\xa8"])
def test_a_request_is_one_line_in_the_log_whatever_it_holds(cluster: Cluster, text: str) -> None:
    request_id = str(uuid4())
    headers = [f"User-Agent: {text}", f"X-Forwarded-For: {text}", f"X-Request-ID: {request_id}"]
    request = raw_request(cluster.first.url, "/v1/users/%0d%0a%7b%22event%22%3a1%7d", headers=headers)
    assert raw(cluster.first.url, request).status in {400, 404}
    lines = [line for line in cluster.first.log.splitlines() if request_id in line]
    assert len(lines) <= 1
    assert all(json.loads(line)["event"] == "request" for line in lines)
