"""A connection keeps its thread for requests that follow at once, unless others need the thread."""

import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.workers.gthread import TConn

from project.gunicorn_worker import Worker

THREADS = 2
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def application(_environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


@pytest.fixture
def worker() -> Iterator[Worker]:
    """A worker as gunicorn has it, with one connection."""
    config = Config()
    config.set("threads", THREADS)
    found = Worker(1, 1, [], application, 30, config, Logger(config))
    found.wsgi = application
    found.nr_conns = 1
    yield found
    found.tmp.close()


class Client:
    """The other end of a connection that a thread of the worker has in hand."""

    def __init__(self, worker: Worker, threads: ThreadPoolExecutor, request: bytes) -> None:
        self.socket, served = socket.socketpair()
        self.socket.settimeout(10)
        self.socket.sendall(request)
        connection = TConn(worker.cfg, served, ("127.0.0.1", 1), ("127.0.0.1", 2))
        self.thread: Future[Any] = threads.submit(worker.handle, connection)
        self.thread.add_done_callback(lambda _: served.close())

    def answer(self) -> str:
        """Return the next answer's first line."""
        answer = b""
        while not answer.endswith(b"ok"):
            answer += self.socket.recv(1000) or pytest.fail(f"the connection ended after {answer!r}")
        return answer.decode().partition("\r\n")[0]

    def close(self) -> None:
        """Go away."""
        self.socket.close()


@pytest.fixture
def connect(worker: Worker) -> Iterator[Callable[..., Client]]:
    with ThreadPoolExecutor(1) as threads, ExitStack() as stack:
        yield lambda request=REQUEST: stack.enter_context(closing(Client(worker, threads, request)))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that waits for the next request longer than any test does."""
    monkeypatch.setattr("project.gunicorn_worker.FOLLOWING_MS", 60_000)


def test_with_more_connections_than_threads_it_is_given_back_at_once(worker, connect, patient):
    worker.nr_conns = THREADS + 1
    client = connect()
    assert client.answer() == "HTTP/1.1 200 OK"
    assert client.thread.result(10) is True


def test_a_worker_that_stops_ends_it_at_once(worker, connect, patient):
    worker.alive = False
    client = connect()
    assert client.answer() == "HTTP/1.1 200 OK"
    assert client.thread.result(10) is False


def test_what_is_left_of_a_body_is_no_request(connect, patient):
    client = connect(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 7\r\n\r\nunread!")
    assert client.answer() == "HTTP/1.1 200 OK"
    client.socket.sendall(REQUEST)
    assert client.answer() == "HTTP/1.1 200 OK"
    client.close()
    assert client.thread.result(10) is False


def test_one_that_stays_silent_is_given_back_open(connect):
    client = connect()
    assert client.answer() == "HTTP/1.1 200 OK"
    assert client.thread.result(10) is True


def test_what_follows_is_answered_by_the_same_thread(connect, patient):
    client = connect()
    for _ in range(3):
        assert client.answer() == "HTTP/1.1 200 OK"
        client.socket.sendall(REQUEST)
    client.answer()
    client.close()
    assert client.thread.result(10) is False
