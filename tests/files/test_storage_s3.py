"""Objects in a bucket: signed URLs, failures on the way."""

import hashlib
import http.client
import resource
import socket
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen

import pytest

from project.errors import Unavailable
from project.files import s3
from project.files.storage import ObjectMissing, new_incoming_key, new_key
from tests.files.storages import FOREIGN_KEYS, KEY, limited, put, read, run_child


@pytest.fixture
def bucket(tmp_path, bucket_url) -> s3.S3Storage:
    return s3.from_url(bucket_url, parts=tmp_path / "files" / "tmp")


def fetch(url: str, *, method: str = "GET", data: bytes | None = None, headers: dict[str, str] | None = None):
    with urlopen(Request(url, data, headers or {}, method=method), timeout=10) as response:
        return response.read(), response.headers


def upload(url: str, data: bytes, headers: dict[str, str]) -> int:
    # Exactly these headers, which urllib would add to.
    parts = urlsplit(url)
    with closing(http.client.HTTPConnection(parts.netloc, timeout=10)) as connection:
        connection.request("PUT", f"{parts.path}?{parts.query}", data, headers)
        return connection.getresponse().status


def signed_headers(url: str) -> list[str]:
    [names] = parse_qs(urlsplit(url).query)["X-Amz-SignedHeaders"]
    return names.split(";")


def test_a_download_url_gives_the_bytes_with_the_headers_that_were_asked_for(bucket):
    disposition = "attachment; filename=\"a b.txt\"; filename*=UTF-8''%C3%A4.txt"
    url = bucket.download_url(put(bucket), content_type="application/pdf", disposition=disposition, seconds=60)

    content, headers = fetch(url)

    assert content == b"content"
    assert headers["Content-Type"] == "application/pdf"
    assert headers["Content-Disposition"] == disposition
    assert headers["Cache-Control"] == "private, no-store"
    assert parse_qs(urlsplit(url).query)["X-Amz-Expires"] == ["60"]


def test_a_client_can_put_what_it_declared_with_the_headers_that_it_was_given(bucket):
    key = new_incoming_key()
    sha256 = hashlib.sha256(b"content").hexdigest()
    url, headers = bucket.upload_target(key, size=7, content_type="text/plain", sha256=sha256, seconds=900)

    assert upload(url, b"content", headers) == 200

    assert read(bucket, key) == b"content"
    assert bucket.find(key).size == 7


def test_a_client_cannot_put_a_second_time(bucket):
    key = new_incoming_key()
    sha256 = hashlib.sha256(b"content").hexdigest()
    url, headers = bucket.upload_target(key, size=7, content_type="text/plain", sha256=sha256, seconds=900)

    assert [upload(url, content, headers) for content in (b"content", b"CONTENT")] == [200, 412]
    assert read(bucket, key) == b"content"


def test_an_upload_url_binds_the_size_the_type_the_bytes_and_that_there_is_nothing_yet(bucket):
    # The server of these tests does not check all of them; S3 refuses a request that lacks a signed header.
    sha256 = hashlib.sha256(b"content").hexdigest()
    url, headers = bucket.upload_target(
        new_incoming_key(), size=7, content_type="text/plain; charset=utf-8", sha256=sha256, seconds=900
    )

    assert signed_headers(url) == ["content-length", "content-type", "host", "if-none-match", "x-amz-checksum-sha256"]
    assert headers == {
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Length": "7",
        "x-amz-checksum-sha256": b64encode(hashlib.sha256(b"content").digest()).decode(),
        "If-None-Match": "*",
    }
    query = parse_qs(urlsplit(url).query)
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    assert query["X-Amz-Expires"] == ["900"]


@pytest.mark.parametrize(
    "other", [{"size": 8}, {"content_type": "text/html"}, {"sha256": "11" * 32}], ids=["size", "type", "bytes"]
)
def test_each_declared_value_changes_the_signature(bucket, monkeypatch, other):
    key = new_incoming_key()
    declared = {"size": 7, "content_type": "text/plain", "sha256": "00" * 32, "seconds": 900}

    signatures = {
        (query["X-Amz-Date"][0], query["X-Amz-Signature"][0])
        for values in (declared, {**declared, **other})
        for query in [parse_qs(urlsplit(bucket.upload_target(key, **values)[0]).query)]
    }

    assert len({signature for _, signature in signatures}) == 2


def test_an_upload_keeps_the_type_and_a_moved_object_too(bucket):
    key, target = put(bucket), new_key()

    bucket.move(key, target)

    found = bucket._client.head_object(Bucket=bucket._bucket, Key=f"files/{target}")
    assert found["ContentType"] == "text/plain"


def test_a_moved_object_is_at_its_new_key_only(bucket):
    source, target = put(bucket, key=new_incoming_key()), new_key()

    bucket.move(source, target)

    assert read(bucket, target) == b"content"
    assert bucket.find(source) is None


def test_a_missing_object_cannot_be_moved(bucket):
    with pytest.raises(ObjectMissing):
        bucket.move(new_incoming_key(), KEY)
    assert bucket.find(KEY) is None


def test_objects_elsewhere_in_the_bucket_are_neither_listed_nor_found(bucket):
    key = put(bucket)
    for name in (KEY, f"filesystem/{KEY}", f"files/{KEY}.bak", "files/README", f"files/old/{KEY}"):
        bucket._client.put_object(Bucket=bucket._bucket, Key=name, Body=b"theirs")

    assert [found.key for found in bucket.objects()] == [key]
    assert bucket.find(KEY) is None


def test_a_bucket_can_be_ours_from_its_root(bucket_url, tmp_path):
    whole = s3.from_url(bucket_url.replace("/files?", "?"), parts=tmp_path / "tmp")

    key = put(whole)

    assert [found.key for found in whole.objects()] == [key]
    assert whole._client.head_object(Bucket=whole._bucket, Key=key)["ContentLength"] == 7


@pytest.mark.slow
def test_more_objects_than_one_answer_holds_are_all_listed(bucket):
    with ThreadPoolExecutor(8) as threads:
        keys = list(threads.map(lambda _: put(bucket, b""), range(1001)))

    assert sorted(found.key for found in bucket.objects()) == sorted(keys)


def test_a_download_that_does_not_fit_on_our_disk_is_unavailable(bucket, caplog):
    key = put(bucket, bytes(1 << 20))

    with limited(resource.RLIMIT_FSIZE, 1 << 19), pytest.raises(Unavailable):
        bucket.open(key)

    assert [record.code for record in caplog.records] == ["EFBIG"]
    assert list(bucket.incoming_parts.iterdir()) == []


def test_a_download_that_ends_early_is_unavailable(tmp_path, s3_credentials):
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\nnot a hundred bytes"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        bucket = s3.from_url(f"s3://bucket?endpoint=http://127.0.0.1:{port}&region=us-east-1", parts=tmp_path / "tmp")

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

        server = Thread(target=serve)
        server.start()
        with pytest.raises(Unavailable):
            bucket.open(KEY)
        server.join()


def test_without_credentials_the_storage_is_unavailable(bucket, monkeypatch, caplog):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    with pytest.raises(Unavailable):
        bucket.download_url(KEY, content_type="text/plain", disposition="inline", seconds=60)
    assert [record.error for record in caplog.records] == ["NoCredentialsError"]


FORKING = """
    import os, sys
    from pathlib import Path
    from project.files import s3

    store = s3.from_url(sys.argv[1], parts=Path(sys.argv[2]))
    for _ in range(2):
        store.open(sys.argv[3]).close()
    if os.fork() == 0:
        store.open(sys.argv[3]).close()
        os._exit(0)
    assert os.wait()[1] == 0
    store.open(sys.argv[3]).close()
"""


def test_a_process_that_was_forked_opens_connections_of_its_own(tmp_path, s3_credentials):
    ports: list[int] = []

    class KeepsConnections(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            ports.append(self.client_address[1])
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), KeepsConnections) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        run_child(FORKING, f"s3://bucket?endpoint=http://127.0.0.1:{server.server_port}", tmp_path / "tmp", KEY)
        server.shutdown()

    first, second, in_child, afterwards = ports
    assert first == second == afterwards
    assert in_child != first


def test_a_key_that_we_did_not_make_is_neither_signed_nor_moved(bucket):
    wanted = {"content_type": "text/plain", "seconds": 60}
    verbs = (
        lambda key: bucket.download_url(key, disposition="inline", **wanted),
        lambda key: bucket.upload_target(key, size=1, sha256="00" * 32, **wanted),
        lambda key: bucket.move(key, KEY),
        lambda key: bucket.move(KEY, key),
    )

    for key in FOREIGN_KEYS:
        for verb in verbs:
            with pytest.raises(ValueError, match="not a key"):
                verb(key)
