"""Downloads that mean harm or come at the wrong moment: ranges, links that were tampered with, files that go away."""

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, urlencode, urlsplit
from uuid import uuid4

import pytest

from tests.files.samples import picture
from tests.http.client import Account, Api, RawAnswer, eventually, problem
from tests.http.cluster import Cluster
from tests.http.files import FILES, fetch, sound_storage, upload

SIZE = 1000
CONTENT = bytes(range(250)) * 4
TAG = f'"{hashlib.sha256(CONTENT).hexdigest()}"'
MEGABYTE = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def sound(cluster: Cluster) -> Iterator[None]:
    yield from sound_storage(cluster)


@pytest.fixture(scope="module")
def url(user: Account) -> str:
    """The content of a private file of SIZE bytes."""
    return str(upload(user, CONTENT)["content_url"])


def code(answer: RawAnswer) -> tuple[int, str]:
    """The status and code of a problem."""
    body = json.loads(answer.body)
    assert answer.headers["Content-Type"] == "application/problem+json"
    return answer.status, body["code"]


# --- ranges ----------------------------------------------------------------------------------------------------------

PARTS = {
    "bytes=0-0": (0, 0),
    "bytes=0-": (0, 999),
    "bytes=0-999": (0, 999),
    "bytes=0-9990": (0, 999),
    "bytes=7-100": (7, 100),
    "bytes=999-": (999, 999),
    "bytes=999-999999999999999999": (999, 999),
    "bytes=-1": (999, 999),
    "bytes=-1000": (0, 999),
    "bytes=-99999": (0, 999),
    "Bytes=5-6": (5, 6),
}
OUTSIDE = ["bytes=1000-", "bytes=1000-2000", "bytes=-0", "bytes=999999999999999999-"]
IGNORED = [
    "items=0-1",
    "bytes=abc",
    "bytes=5-1",
    "bytes=0-0,",
    "bytes=,0-0",
    "bytes=",
    "bytes=-",
    "bytes=--1",
    "bytes=0-0-0",
    "bytes=+1-2",
    "bytes=0x1-2",
    "bytes=1_0-20",
    "bytes:0-1",
    "bytes",
    "0-1",
    "bytes=0-1;bytes=2-3",
    "bytes=0-0,2-3",
    "bytes=0-,0-,0-",
    "bytes=99999999999999999999999-",
    "bytes=0-" + "9" * 8000,
    "bytes=\xb2-\xb3",
]


@pytest.mark.parametrize("header", PARTS)
def test_a_range_gives_exactly_these_bytes(user: Account, url: str, header: str) -> None:
    first, last = PARTS[header]
    answer = fetch(user.api, url, headers=[f"Range: {header}"])
    assert answer.status == 206
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{SIZE}"
    assert answer.headers["Content-Length"] == str(last - first + 1)
    assert answer.body == CONTENT[first : last + 1]


@pytest.mark.parametrize("header", OUTSIDE)
def test_a_range_outside_of_the_file_is_a_problem_that_tells_the_size(user: Account, url: str, header: str) -> None:
    answer = fetch(user.api, url, headers=[f"Range: {header}"])
    assert code(answer) == (416, "range_not_satisfiable")
    assert answer.headers["Content-Range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize("header", IGNORED, ids=lambda header: header[:30])
def test_what_is_not_one_range_gets_the_whole(user: Account, url: str, header: str) -> None:
    answer = fetch(user.api, url, headers=[f"Range: {header}"])
    assert (answer.status, answer.body) == (200, CONTENT)
    assert "Content-Range" not in answer.headers


@pytest.mark.parametrize("one", ["0-,", "0-0,", "-1,", "0-999,"])
def test_5000_ranges_cost_nothing(user: Account, url: str, one: str) -> None:
    # As many as fit a header, in as many headers as it takes, which the server joins.
    headers = ["Range: bytes=" + one * 1250, *[f"Range: {one * 1250}"] * 3]
    started = time.monotonic()
    answer = fetch(user.api, url, headers=headers)
    assert (answer.status, answer.body) == (200, CONTENT)
    assert time.monotonic() - started < 1


def test_a_range_of_another_version_gets_the_whole(cluster: Cluster, user: Account, url: str) -> None:
    same = 200 if cluster.in_bucket else 206
    for tag, status in ((TAG, same), (f"W/{TAG}", 200), ('"0"', 200), ("Thu, 01 Jan 1998 00:00:00 GMT", 200)):
        assert fetch(user.api, url, headers=["Range: bytes=0-0", f"If-Range: {tag}"]).status == status


def test_whoever_has_the_content_gets_neither_a_part_nor_the_whole(user: Account, url: str) -> None:
    answer = fetch(user.api, url, headers=["Range: bytes=0-0", f"If-None-Match: {TAG}"])
    assert (answer.status, answer.body) == (304, b"")
    assert answer.headers["ETag"] == TAG


def test_head_says_what_get_would_and_ignores_ranges(cluster: Cluster, user: Account, url: str) -> None:
    whole = fetch(user.api, url)
    answer = fetch(user.api, url, method="HEAD", headers=["Range: bytes=0-0"])
    assert (answer.status, answer.body) == (200, b"")
    compared = {*answer.headers, *whole.headers} - {"Date", "X-Request-ID", "RateLimit"}
    if cluster.in_bucket:
        compared = {"Accept-Ranges", "Content-Disposition", "Content-Length", "Content-Type"}
    assert {name: answer.headers.get(name) for name in compared} == {name: whole.headers.get(name) for name in compared}


def test_content_is_never_compressed_on_the_way(user: Account) -> None:
    text = upload(user, b"a" * 100_000, declared="text/plain")
    for header in ("Range: bytes=0-9999", "X: y"):
        answer = fetch(user.api, text["content_url"], headers=["Accept-Encoding: gzip, br, deflate", header])
        assert set(answer.body) == {ord("a")}
        assert "Content-Encoding" not in answer.headers


# --- files that go away ----------------------------------------------------------------------------------------------


def test_a_download_of_a_file_that_is_deleted_meanwhile_is_whole_or_not_at_all(new_user: Callable[[], Account]) -> None:
    owner = new_user()
    content = uuid4().bytes * (MEGABYTE // 8)
    digest = hashlib.sha256(content).digest()

    def download_until_it_is_gone(url: str) -> list[int]:
        sizes = []
        while (answer := fetch(owner.api, url)).status == 200:  # http.client raises for fewer bytes than were promised
            assert hashlib.sha256(answer.body).digest() == digest
            sizes.append(len(answer.body))
        assert code(answer) == (404, "not_found")
        return sizes

    with ThreadPoolExecutor(4) as pool:
        for _ in range(8):
            file = upload(owner, content)
            downloads = [pool.submit(download_until_it_is_gone, file["content_url"]) for _ in range(4)]
            assert owner.api.delete(f"{FILES}/{file['id']}").status_code == 204
            assert all(set(download.result()) <= {len(content)} for download in downloads)
    # With the last download its bytes have gone, and with them what they took of the quota.
    eventually(lambda: owner.api.get(f"{FILES}/usage").json()["data"]["used"] == 0 or None, "an empty account")


def test_a_deleted_file_is_gone_by_every_way_to_it(user: Account) -> None:
    file = upload(user, picture("PNG"), declared="image/png", query="?visibility=public")
    address = f"{FILES}/{file['id']}"
    signed = user.api.post(f"{address}/signed-url", json={}).json()["data"]["url"]
    small = user.api.post(f"{address}/signed-url", json={"thumbnail": 64}).json()["data"]["url"]
    shared = user.api.post(f"{address}/shares", json={}).json()["data"]["url"]
    ways = [file["content_url"], file["thumbnail_url"], signed, small, shared]
    assert [fetch(user.api, way, token=None).status for way in ways] == [200] * 5
    assert user.api.delete(address).status_code == 204
    for way in ways:
        assert code(fetch(user.api, way, token=None)) == (404, "not_found")
        tagged = [f'If-None-Match: "{file["sha256"]}"', "Range: bytes=0-0"]
        assert fetch(user.api, way, token=None, headers=tagged).status == 404


# --- links and ids ---------------------------------------------------------------------------------------------------


def signed_url(user: Account, **options: object) -> str:
    file = upload(user, picture("PNG"), declared="image/png")
    return str(user.api.post(f"{FILES}/{file['id']}/signed-url", json=options).json()["data"]["url"])


def with_query(url: str, **changes: str) -> str:
    parts = urlsplit(url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()} | changes
    return parts._replace(query=urlencode(query)).geturl()


@pytest.mark.parametrize("options", [{}, {"disposition": "inline"}, {"thumbnail": 128}], ids=str)
def test_one_changed_character_of_a_signed_url_leads_nowhere(user: Account, options: dict[str, object]) -> None:
    url = signed_url(user, **options)
    assert fetch(user.api, url, token=None).status == 200
    query = parse_qs(urlsplit(url).query)
    signature, end = query["sig"][0], query["exp"][0]
    others = [signature[:n] + ("A" if char != "A" else "B") + signature[n + 1 :] for n, char in enumerate(signature)]
    others += ["", signature + "A", signature + "=", signature[:-1], "ß"]
    ends = [str(int(end) + 1), f"{end}0", f"0{end}", f"+{end}", f" {end}", f"{end}.0", "-1", "", "x", "٣", "1e99"]
    changed = [with_query(url, sig=other) for other in others] + [with_query(url, exp=other) for other in ends]
    changed.append(with_query(url, disposition="attachment"))
    changed.append(url.replace(f"sig={signature}", ""))
    for other in changed:
        assert code(fetch(user.api, other, token=None)) == (404, "not_found"), other


def test_a_signature_is_good_for_its_file_variant_and_size_only(user: Account) -> None:
    url, small = signed_url(user), signed_url(user, thumbnail=128)
    other = upload(user, picture("JPEG"), declared="image/jpeg")["id"]
    elsewhere = [
        re.sub(r"(?<=files/)[0-9a-f-]{36}", other, url),
        url.replace("/content", "/thumbnail"),
        small.replace("/thumbnail", "/content").replace("size=128&", ""),
        with_query(small, size="256"),
        with_query(small, format="jpeg"),
    ]
    for changed in elsewhere:
        assert code(fetch(user.api, changed, token=None)) == (404, "not_found"), changed


def test_a_signed_url_ends_in_time_and_is_of_no_use_to_a_token(user: Account) -> None:
    url = signed_url(user, expires_in=1)
    gone = eventually(lambda: a if (a := fetch(user.api, url, token=None)).status != 200 else None, "the end of a URL")
    assert code(gone) == (404, "not_found")
    # Not even for the owner, whose token alone would do: what is signed is what is asked for.
    assert code(fetch(user.api, url)) == (404, "not_found")


def test_signatures_and_tokens_of_links_are_not_logged(user: Account, cluster: Cluster) -> None:
    url = signed_url(user)
    file = upload(user, CONTENT)
    shared = user.api.post(f"{FILES}/{file['id']}/shares", json={}).json()["data"]["url"]
    last = [fetch(user.api, link, token=None) for link in (url, shared)][-1]
    cluster.first_logged(last.headers["X-Request-ID"])
    assert parse_qs(urlsplit(url).query)["sig"][0] not in cluster.first.whole_log
    assert shared.rpartition("/")[2] not in cluster.first.whole_log


def test_ids_and_tokens_cannot_be_guessed(user: Account, anonymous: Api) -> None:
    for number in range(300):
        caller = user.api if number % 2 else anonymous
        what = ("/content", "/thumbnail", "/content?exp=9999999999&sig=x")[number % 3]
        assert code(fetch(caller, f"{FILES}/{uuid4()}{what}")) == (404, "not_found")
    for _ in range(100):
        token = base64.urlsafe_b64encode(uuid4().bytes * 2).rstrip(b"=").decode()
        assert code(fetch(anonymous, f"/v1/shares/{token}")) == (404, "not_found")


def test_anothers_private_file_looks_like_none(user: Account, new_user: Callable[[], Account], url: str) -> None:
    stranger = new_user()
    for path in ("", "/content", "/thumbnail", "/shares"):
        file = urlsplit(url).path.removesuffix("/content")
        real, random = (stranger.api.get(at + path) for at in (file, f"{FILES}/{uuid4()}"))
        for response in (real, random):
            problem(response, 404, "not_found")
        assert real.json()["detail"] == random.json()["detail"]
        assert set(real.headers) == set(random.headers)
    problem(stranger.api.get(FILES, token=None), 401, "token_required")
    assert stranger.api.get(FILES).json()["data"] == []
