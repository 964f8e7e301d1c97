"""Files behind nginx: downloads beside nginx's own, uploads beside what hashing and copying cost."""

import hashlib
import http.client
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench import load, processes
from bench.contenders import CONNECTIONS, OURS, PROCESSES, serving
from bench.load import LoadFailedError, Request
from bench.nginx import run_nginx
from bench.pace import Pace
from bench.workloads import Callers

MIB = 1024 * 1024
DOWNLOAD_SIZE, UPLOAD_SIZE = 10 * MIB, 50 * MIB
BLOCK_SIZE = MIB


def measure(database_url: str, callers: Callers, pace: Pace) -> dict[str, Any]:
    """Return by round: downloads a second, seconds for an upload, and the memory in MiB that one takes."""
    static = pace.folder / "static"
    static.mkdir()
    token = callers.tokens[0]
    with serving(OURS, database_url, env={"FILES_DELIVERY": "x-accel", "PROXY_HOPS": "1"}) as server:
        pids = processes.workers(server.pid, PROCESSES)
        with run_nginx(server.port, files=server.data_dir / "files", static=static) as url:
            downloads = _downloads(url, token, static, pace)
            uploads = _uploads(url, token, pids, pace)
    return {"download": downloads, "upload": uploads}


def _downloads(url: str, token: str, static: Path, pace: Pace) -> dict[str, list[float]]:
    source = _random_file(static / "file", DOWNLOAD_SIZE)
    file_id = _upload(url, token, source, _sha256(source))
    ours = load.write_requests(pace.folder / "ours", [Request("GET", f"/v1/files/{file_id}/content", token)])
    nginx = load.write_requests(pace.folder / "nginx", [Request("GET", "/static/file")])
    found: dict[str, list[float]] = {"ours": [], "nginx": []}
    for number in range(pace.rounds):
        for name, requests in (("ours", ours), ("nginx", nginx)):
            run = load.run(url, requests, connections=CONNECTIONS, seconds=pace.seconds)
            if run.bytes < run.requests * DOWNLOAD_SIZE:
                raise LoadFailedError(f"{name}: {run.requests} downloads had only {run.bytes} bytes")
            found[name].append(round(run.rate, 2))
            pace.say(f"download round {number + 1}/{pace.rounds} {name}: {run.rate:.0f}/s")
    return found


def _uploads(url: str, token: str, pids: list[int], pace: Pace) -> dict[str, list[float]]:
    source = _random_file(pace.folder / "upload", UPLOAD_SIZE)
    sha256 = _sha256(source)
    _delete(url, token, _upload(url, token, source, sha256))  # what is loaded with the first one is not of each
    found: dict[str, list[float]] = {"seconds": [], "reference": [], "memory": []}
    for number in range(pace.rounds):
        before = {pid: processes.memory(pid) for pid in pids}
        for pid in pids:
            processes.forget_peak(pid)
        started = time.perf_counter()
        file_id = _upload(url, token, source, sha256)
        found["seconds"].append(time.perf_counter() - started)
        found["memory"].append(max(processes.memory(pid, peak=True) - before[pid] for pid in pids))
        found["reference"].append(_hash_and_copy(source, pace.folder / "copy"))
        _delete(url, token, file_id)
        last = ", ".join(f"{name} {values[-1]:.3f}" for name, values in found.items())
        pace.say(f"upload round {number + 1}/{pace.rounds}: {last}")
    return found


def _random_file(path: Path, size: int) -> Path:
    path.write_bytes(os.urandom(size))
    return path


def _hash_and_copy(source: Path, copy: Path) -> float:
    """Return the seconds that `openssl sha256` and `cat` take, one after the other."""
    started = time.perf_counter()
    subprocess.run([shutil.which("openssl") or "openssl", "dgst", "-sha256", source], check=True, capture_output=True)
    with copy.open("wb") as output:
        subprocess.run([shutil.which("cat") or "cat", source], check=True, stdout=output)
    return time.perf_counter() - started


def _upload(url: str, token: str, source: Path, sha256: str) -> str:
    """Upload a file and return its id.

    Raises:
        LoadFailedError: it was refused, or the answer tells of other bytes.
    """
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"}
    with source.open("rb") as body:
        headers["Content-Length"] = str(source.stat().st_size)
        status, data = _send(url, "POST", "/v1/files/raw?filename=bench.bin", headers, body)
    answer = json.loads(data) if data else {}
    if status != http.client.CREATED or answer["data"]["sha256"] != sha256:
        raise LoadFailedError(f"the upload was answered with {status}: {data[:500]!r}")
    return str(answer["data"]["id"])


def _delete(url: str, token: str, file_id: str) -> None:
    status, data = _send(url, "DELETE", f"/v1/files/{file_id}", {"Authorization": f"Bearer {token}"}, None)
    if status != http.client.NO_CONTENT:
        raise LoadFailedError(f"the deletion was answered with {status}: {data[:500]!r}")


def _send(url: str, method: str, path: str, headers: dict[str, str], body: Any) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60, blocksize=BLOCK_SIZE)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
