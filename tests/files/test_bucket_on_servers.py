"""Files in a bucket as real clients meet them: the server of production, S3, browsers' requests and curl."""

import hashlib
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import requests

from project import jobs
from tests.conftest import ENV, Caller, migrated
from tests.files.asking import FILES
from tests.files.buckets import Bucket, check_books, credentials, new_bucket, request
from tests.files.samples import picture
from tests.files.server.site import Site
from tests.http.client import Api, eventually, problem
from tests.servers import CREDENTIALS, AppServer, create_database, run_s3

pytestmark = pytest.mark.server

CURL = shutil.which("curl")
# More than fits into one packet; what comes after a picture's end does not matter.
CONTENT = picture("PNG", (40, 20)) + bytes(range(256)) * 1000


@dataclass(frozen=True)
class Place:
    """A server whose files are in a bucket."""

    site: Site
    server: AppServer
    bucket: Bucket

    def api_of(self, caller: Caller) -> Api:
        """A client of the server."""
        return Api(self.server.url, caller.access_token)


def settings_of(bucket: Bucket, data_dir: Path) -> dict[str, str]:
    return {
        **ENV,
        **CREDENTIALS,
        **credentials(),
        "DATA_DIR": str(data_dir),
        "STORAGE_URL": bucket.url,
        "RATE_LIMITS": "off",
    }


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, s3_url: str, worker_id: str
) -> Iterator[Place]:
    """One process on SQLite, two on PostgreSQL."""
    bucket = new_bucket(s3_url)
    env = settings_of(bucket, tmp_path_factory.mktemp("place"))
    if request.param == "postgresql":
        admin_url = request.getfixturevalue("postgres_url")
        env |= {"DATABASE_URL": create_database(admin_url, f"project_bucket_{worker_id}"), "WEB_CONCURRENCY": "2"}
    site = Site(migrated(env), env)
    with site.server() as server:
        yield Place(site, server, bucket)


def begin(api: Api, content: bytes = CONTENT, **told: str) -> dict[str, Any]:
    body = {
        "filename": "a b.png",
        "size": len(content),
        "content_type": "image/png",
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    response = api.post(f"{FILES}/direct", json={**body, **told}, headers={"Idempotency-Key": body["sha256"]})
    assert response.status_code == 201, response.text
    return dict(response.json()["data"])


def test_a_browser_sends_its_file_to_the_bucket_and_fetches_it_from_there(place, s3_credentials):
    caller = place.site.sign_up()
    api = place.api_of(caller)
    before = place.bucket.objects()
    begun = begin(api)
    permission = begun["upload"]
    # As `fetch` does, which sets the length itself and lets no script set it.
    headers = {name: value for name, value in permission["headers"].items() if name != "Content-Length"}
    put = request(permission["method"], permission["url"], headers=headers, data=CONTENT)
    assert put.status_code == 200
    assert put.request.headers["Content-Length"] == permission["headers"]["Content-Length"]
    path = f"{FILES}/{begun['file']['id']}"
    file = api.post(f"{path}/complete").json()["data"]
    assert (file["status"], file["content_type"], file["width"]) == ("ready", "image/png", 40)
    assert [entry["id"] for entry in api.get(FILES).json()["data"]] == [file["id"]]

    for part, status in (({}, 200), ({"Range": "bytes=1000-1999"}, 206)):
        came = request("GET", f"{place.server.url}{path}/content", headers={**caller, **part})
        [redirect] = came.history
        assert redirect.request.headers["Authorization"] == caller["Authorization"]
        # S3 refuses who comes with a signature and a token.
        assert "Authorization" not in came.request.headers
        assert (came.status_code, came.headers["Content-Type"]) == (status, "image/png")
        assert came.content == (CONTENT[1000:2000] if part else CONTENT)

    with place.site.looking():
        check_books(place.bucket)
    assert api.delete(path).status_code == 204
    with place.site.looking():
        jobs.run_pending(place.site.app)  # on SQLite the server may be at it already
    eventually(lambda: place.bucket.objects() == before or None, "the purge")


def curl(folder: Path, *arguments: str) -> str:
    """Run curl without anything of the developer's, and return what it says of the way."""
    command = [str(CURL), "--disable", "--noproxy", "*", "--silent", "--show-error", "--verbose", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.skipif(CURL is None, reason="curl is not installed")
def test_curl_sends_a_file_to_the_bucket_follows_there_and_continues_what_broke_off(place, tmp_path):
    caller = place.site.sign_up()
    api = place.api_of(caller)
    begun = begin(api)
    (tmp_path / "sent").write_bytes(CONTENT)
    headers = [word for name, value in begun["upload"]["headers"].items() for word in ("--header", f"{name}: {value}")]
    curl(tmp_path, "--fail", "--request", "PUT", "--data-binary", "@sent", *headers, begun["upload"]["url"])
    path = f"{FILES}/{begun['file']['id']}"
    assert api.post(f"{path}/complete").status_code == 200

    token = ("--header", f"Authorization: {caller['Authorization']}")
    url = f"{place.server.url}{path}/content"
    way = curl(tmp_path, "--fail", "--location", "--remote-name", "--remote-header-name", *token, url)
    assert (tmp_path / "a b.png").read_bytes() == CONTENT
    assert re.findall(r"^< HTTP/1.1 (\d+)", way, re.MULTILINE) == ["302", "200"]
    assert len(re.findall(r"^> Authorization:", way, re.MULTILINE)) == 1
    (tmp_path / "broken").write_bytes(CONTENT[:1000])
    way = curl(tmp_path, "--fail", "--location", "--continue-at", "-", "--output", "broken", *token, url)
    assert (tmp_path / "broken").read_bytes() == CONTENT
    assert re.findall(r"^< HTTP/1.1 (\d+)", way, re.MULTILINE) == ["302", "206"]


def test_of_many_completions_at_once_one_does_the_work(place):
    caller = place.site.sign_up()
    begun = begin(place.api_of(caller))
    permission = begun["upload"]
    request(permission["method"], permission["url"], headers=permission["headers"], data=CONTENT)
    path = f"{FILES}/{begun['file']['id']}/complete"
    barrier = Barrier(10)

    def complete(api: Api) -> requests.Response:
        api.get("/healthz")
        barrier.wait(30)
        return api.post(path)

    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(complete, [place.api_of(caller) for _ in range(10)]))
    counted = Counter(answer.status_code for answer in answers)
    assert set(counted) <= {200, 409}
    assert counted[200] >= 1
    for answer in answers:
        if answer.status_code == 409:
            problem(answer, 409, "upload_incomplete")
    assert place.api_of(caller).post(path).json()["data"]["status"] == "ready"
    usage = place.api_of(caller).get(f"{FILES}/usage").json()["data"]
    assert (usage["used"], usage["reserved"], usage["file_count"]) == (len(CONTENT), 0, 1)


def test_when_the_bucket_stops_uploads_are_refused_and_everything_else_goes_on(tmp_path):
    with ExitStack() as servers:
        with run_s3() as endpoint:
            bucket = new_bucket(endpoint)
            env = settings_of(bucket, tmp_path)
            site = Site(migrated(env), env)
            server = servers.enter_context(site.server())
            caller = site.sign_up()
            api = Api(server.url, caller.access_token)
            stored = api.post(f"{FILES}/raw", data=CONTENT, headers={"Content-Type": "image/png"}).json()["data"]
            begun = begin(api)
        problem(api.post(f"{FILES}/raw", data=b"x", headers={"Content-Type": "text/plain"}), 503, "service_unavailable")
        problem(api.post(FILES, files={"file": ("a.txt", b"x")}), 503, "service_unavailable")
        problem(api.post(f"{FILES}/{begun['file']['id']}/complete"), 503, "service_unavailable")
        usage = api.get(f"{FILES}/usage").json()["data"]
        assert (usage["used"], usage["reserved"], usage["file_count"]) == (len(CONTENT), len(CONTENT), 1)
        url = f"{server.url}{FILES}/{stored['id']}/content"
        assert request("GET", url, headers=caller, allow_redirects=False).status_code == 302
        assert [file["id"] for file in api.get(FILES).json()["data"]] == [stored["id"]]
        assert api.delete(f"{FILES}/{stored['id']}").status_code == 204
        assert "Traceback" not in server.log
