"""kill -9 in the middle of uploads: what was acknowledged holds, and a sweep clears all the rest away.

TEST_KILL_ROUNDS is how often, on each database; a round takes about three seconds.
"""

import hashlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from threading import Semaphore

import pytest
import requests

from project.cli import SWEPT
from tests.conftest import Caller
from tests.files.server.site import SECONDS, Site
from tests.files.uploading import check_books
from tests.servers import AppServer

ROUNDS = int(os.environ.get("TEST_KILL_ROUNDS", "5"))
CLIENTS = 8
SMALLEST, LARGEST = 1024, 2 * 1024 * 1024


@dataclass
class Told:
    """What clients were told: the files that are there, by id with their SHA-256, and those that are deleted."""

    there: dict[str, str] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)


@pytest.mark.slow
@pytest.mark.timeout(60 + 20 * ROUNDS)
def test_what_was_acknowledged_survives_kill_nine_and_a_sweep_clears_the_rest_away(site: Site) -> None:
    user = site.sign_up().user
    told, cleared = Told(), 0
    for number in range(ROUNDS):
        with site.server() as server:
            use_until_killed(server, site.sign_in(user), told, number)
        cleared += check_sweep(site)
    # Otherwise no upload was under way when the server died, and nothing was tried.
    assert cleared > 0

    with site.server() as server:
        caller = site.sign_in(user)
        for file_id, sha256 in told.there.items():
            response = download(server, caller, file_id)
            assert (response.status_code, hashlib.sha256(response.content).hexdigest()) == (200, sha256)
        assert all(download(server, caller, file_id).status_code == 404 for file_id in told.deleted)


def use_until_killed(server: AppServer, caller: Caller, told: Told, number: int) -> None:
    """Let clients upload and delete, and kill the whole server after some of its answers."""
    answers = Semaphore(0)
    with ThreadPoolExecutor(CLIENTS) as threads:
        clients = [
            threads.submit(use, server, caller, told, Random(f"{number}/{client}"), answers)
            for client in range(CLIENTS)
        ]
        for _ in range(Random(number).randint(1, 3 * CLIENTS)):
            assert answers.acquire(timeout=SECONDS)
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()
    for client in clients:
        client.result()


def use(server: AppServer, caller: Caller, told: Told, random: Random, answers: Semaphore) -> None:
    """Upload one file after the other until the server is gone, and delete one in four."""
    with suppress(requests.RequestException):
        while True:
            # As often 2 KB as 1 MB.
            content = random.randbytes(int(SMALLEST * (LARGEST / SMALLEST) ** random.random()))
            response = post(server, caller, content, as_form=random.random() < 0.5)
            assert response.status_code == 201, response.text
            file_id = response.json()["data"]["id"]
            told.there[file_id] = hashlib.sha256(content).hexdigest()
            answers.release()
            if random.random() < 0.25:
                # From now on it is uncertain, until there is an answer.
                del told.there[file_id]
                response = requests.delete(f"{server.url}/v1/files/{file_id}", headers=caller, timeout=SECONDS)
                assert response.status_code == 204, response.text
                told.deleted.add(file_id)


def post(server: AppServer, caller: Caller, content: bytes, *, as_form: bool) -> requests.Response:
    """Upload a file in one of two ways."""
    url = f"{server.url}/v1/files"
    if as_form:
        return requests.post(url, headers=caller, files={"file": ("a.bin", content)}, timeout=SECONDS)
    headers = {**caller, "Content-Type": "application/octet-stream"}
    return requests.post(f"{url}/raw?filename=a.bin", headers=headers, data=content, timeout=SECONDS)


def download(server: AppServer, caller: Caller, file_id: str) -> requests.Response:
    """Download a file."""
    return requests.get(f"{server.url}/v1/files/{file_id}/content", headers=caller, timeout=SECONDS)


def check_sweep(site: Site) -> int:
    """Check that one sweep makes good what the crash has left, and return how much there was."""
    swept = sweep(site)
    # No acknowledged file has lost its bytes, and no crash makes counters wrong.
    assert (swept["missing"], swept["recounted"]) == (0, 0)
    assert site.flask("files", "verify").exit_code == 0
    assert sum(sweep(site).values()) == 0
    with site.looking():
        check_books(site.storage)
    return sum(swept.values())


def sweep(site: Site) -> dict[str, int]:
    """Run `flask files sweep`, and return the numbers that it prints."""
    result = site.flask("files", "sweep", "--older-than", "0")
    assert result.exit_code == 0, result.output
    numbers = [int(line.split()[0]) for line in result.stdout.splitlines()[1:]]
    return dict(zip(SWEPT, numbers, strict=True))
