"""Memory: after many thousand requests no process is larger than when it was warm."""

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from tests.http.client import NEW_PASSWORD, Account, new_address
from tests.stack.running import RunningStack

# What is promised is said of 20,000; of fewer, more of what is measured is chance.
REQUESTS = int(os.environ.get("TEST_MEMORY_REQUESTS", "1000"))
WARM_UP = min(REQUESTS, 3000)
CLIENTS = 16
OURS = ("server1", "server2", "worker", "nginx")
GROWTH = 1.05 if REQUESTS >= 20_000 else 1.10
# Growth below this is that of an allocator that takes another piece, whatever part it is of a small process.
SLACK_KIB = 1024

Request = tuple[str, str, bytes, set[int]]  # method, path, body, the answers that it may have


def memory(stack: RunningStack) -> dict[str, int]:
    """How many KiB each process takes for itself alone (USS)."""
    found = {}
    for name in OURS:
        pid = stack.pids[name]
        for each in [pid, *children(pid)]:
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
            private = re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+) kB", text, re.MULTILINE)
            found[f"{name} {each}"] = sum(map(int, private))
    return found


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def requests_of(file_id: str) -> Iterator[Request]:
    """What clients ask, again and again: mostly reading, some writing, some of it wrong, and few passwords."""
    # Signing in is bounded for an address; this, too, takes the memory of a hash.
    wrong = json.dumps({"current_password": "x" * 12, "new_password": NEW_PASSWORD}).encode()
    mix: list[Request] = [
        ("GET", "/v1/users/me", b"", {200}),
        ("GET", "/v1/files?limit=20&include_total=true", b"", {200}),
        ("GET", f"/v1/files/{file_id}", b"", {200}),
        ("PATCH", "/v1/users/me", b'{"name": "Ann"}', {200}),
        ("GET", "/v1/payments?limit=20", b"", {200}),
        ("GET", f"/v1/files/{uuid4()}", b"", {404}),
        ("GET", "/v1/prices", b"", {200}),
        ("POST", "/v1/prices", b'{"name": 1}', {422}),
        ("GET", f"/v1/files/{file_id}/content", b"", {302}),
        ("GET", "/v1/auth/sessions?limit=20", b"", {200}),
        ("PATCH", "/v1/users/me", b"{", {400}),
        ("GET", "/v1/nothing", b"", {404}),
        ("GET", "/v1/users?limit=50&sort=-created_at", b"", {200}),
        ("POST", "/v1/users", b"", {201}),  # an invitation, with a job and a mail
        ("GET", "/v1/payments?include_total=true", b"", {200}),
    ]
    for number, request in enumerate(cycle(mix)):
        if number % 50 == 0:
            yield "POST", "/v1/auth/change-password", wrong, {422}
        elif request[1] == "/v1/users":
            yield *request[:2], json.dumps({"email": new_address(), "role": "user"}).encode(), {201}
        else:
            yield request


async def client(url: str, token: str, work: Iterator[Request], answers: Counter[tuple[str, int]]) -> None:
    """Send one request after the other over a connection that stays open."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    for method, path, body, expected in work:
        head = f"{method} {path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {token}\r\n"
        kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        writer.write(f"{head}{kind}\r\n".encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = re.search(r"^content-length: (\d+)", answer, re.MULTILINE)
        await reader.readexactly(int(length[1]) if length else 0)
        status = int(answer.split()[1])
        answers["as expected" if status in expected else f"{method} {path}", status] += 1
    writer.close()
    await writer.wait_closed()


async def clients(url: str, account: Account, file_id: str, count: int) -> Counter[tuple[str, int]]:
    """Send so many requests, and count the answers."""
    work = islice(requests_of(file_id), count)
    answers: Counter[tuple[str, int]] = Counter()
    await asyncio.gather(*(client(url, account.access_token, work, answers) for _ in range(CLIENTS)))
    return answers


@pytest.mark.timeout(1200)
def test_after_many_requests_no_process_is_larger(stack, admin):
    answer = admin.api.post("/v1/files", files={"file": ("some.txt", b"some")})
    file_id = answer.json()["data"]["id"]
    asyncio.run(clients(stack.url, admin, file_id, WARM_UP))
    before = memory(stack)
    answers = asyncio.run(clients(stack.url, admin, file_id, REQUESTS))
    after = memory(stack)
    assert {what for what, _ in answers} == {"as expected"}, answers
    assert after.keys() == before.keys(), "a process was started again"
    grown = {name: (before[name], size) for name, size in after.items() if size > before[name] * GROWTH + SLACK_KIB}
    assert not grown
