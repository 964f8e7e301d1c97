"""The quota under the servers of production: one process on SQLite, two servers with three on PostgreSQL."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import cycle, islice
from threading import Barrier

import requests

from project.files import quota
from project.files.quota import Usage
from tests.conftest import Caller
from tests.files.server.site import SECONDS, Site
from tests.files.uploading import check_books

COUNT = 24
SIZE = 100_000
QUOTA = 5 * SIZE - 1


def send_raw(session: requests.Session, url: str) -> requests.Response:
    headers = {"Content-Type": "application/octet-stream"}
    return session.post(f"{url}/v1/files/raw", headers=headers, data=bytes(SIZE), timeout=SECONDS)


def send_form(session: requests.Session, url: str) -> requests.Response:
    return session.post(f"{url}/v1/files", files={"file": ("a.bin", bytes(SIZE))}, timeout=SECONDS)


def upload_at_once(urls: list[str], caller: Caller) -> Counter[str]:
    """Upload all at the same moment, half of them as forms, and count the statuses and codes of the answers."""
    barrier = Barrier(COUNT)

    def run(number: int, url: str) -> str:
        with requests.Session() as session:
            session.headers.update(caller)
            session.get(f"{url}/healthz", timeout=SECONDS)
            barrier.wait(SECONDS)
            response = (send_raw if number % 2 else send_form)(session, url)
            return str(response.json().get("code", response.status_code))

    with ThreadPoolExecutor(COUNT) as threads:
        return Counter(threads.map(run, range(COUNT), islice(cycle(urls), COUNT)))


def test_of_24_uploads_at_once_with_room_for_4_exactly_4_are_stored(site: Site) -> None:
    settings = {"FILES_QUOTA": str(QUOTA)}
    with ExitStack() as servers:
        started = [servers.enter_context(site.server(**settings))]
        if "DATABASE_URL" in site.env:
            started.append(servers.enter_context(site.server(**settings, WEB_CONCURRENCY="2")))
        for _ in range(3):
            caller = site.sign_up()
            answers = upload_at_once([server.url for server in started], caller)
            assert answers == {"201": 4, "quota_exceeded": COUNT - 4}
            with site.looking():
                assert quota.usage(caller.user.id) == Usage(4 * SIZE, 0, 1 << 30, 4)
    with site.looking():
        check_books(site.storage)
