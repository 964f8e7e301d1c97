"""The log of a server: one JSON object a line, and no token even where the HTTP server refuses a request.

What the whole run has logged is checked when the servers of these tests stop, see conftest.check_log.
"""

import json
from uuid import uuid4

import pytest

from tests.http.client import Account, raw, raw_request
from tests.http.conftest import Cluster


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
        raw_request(url, f"/v1/users/me?access_token={token}").replace(b" HTTP/1.1", b""),
    ):
        assert 400 <= raw(url, request).status < 600
    assert token not in cluster.first.log
    assert token.rsplit(".", 1)[-1] not in cluster.first.log


@pytest.mark.parametrize("text", ["\\r\\n{}", "\x1b[31m", "\x85", "%0d%0a%7b%7d", '"}}\\n{{"', "\xe2\x80\xa8"])
def test_a_request_is_one_line_in_the_log_whatever_it_holds(cluster: Cluster, text: str) -> None:
    request_id = str(uuid4())
    headers = [f"User-Agent: {text}", f"X-Forwarded-For: {text}", f"X-Request-ID: {request_id}"]
    request = raw_request(cluster.first.url, "/v1/users/%0d%0a%7b%22event%22%3a1%7d", headers=headers)
    assert raw(cluster.first.url, request).status in {400, 404}
    lines = [line for line in cluster.first.log.splitlines() if request_id in line]
    assert len(lines) <= 1
    assert all(json.loads(line)["event"] == "request" for line in lines)
