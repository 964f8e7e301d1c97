"""Connections to PostgreSQL that notice when it has fallen silent.

Behind a network that drops packets, or a host that hangs, nothing ends by itself: a server that refuses is noticed at
once, and one that says nothing only by who looks at the clock. The time limit of statements is no help, since the
server keeps it. So whoever hears nothing for a while asks from another side whether the server is there at all: a
statement that is only slow, or that waits for a lock, goes on.
"""

import select
import socket
import struct
import time
from collections.abc import Callable, Generator
from threading import Lock
from typing import Any, ClassVar, TypeVar

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import Engine, event
from sqlalchemy.exc import DisconnectionError

CONNECT_TIMEOUT_SECONDS = 2
STATEMENT_TIMEOUT_SECONDS = 10
# Of hearing nothing, before the server is asked, and then of waiting for what it says. An answer within 3 s is the aim.
SILENCE_SECONDS = 0.8
# For so long after it was found silent nobody else tries, so that those who wait in line do not wait one after another.
PAUSE_SECONDS = 1.0
# For a connection whose other end is gone though a new one would work: a failover, a firewall that has forgotten it.
UNACKNOWLEDGED_SECONDS = 10

# The one question that is answered before anybody says who they are ("SSLRequest", the answer is one letter):
# https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL
ARE_YOU_THERE = struct.pack("!ii", 8, 80877103)

T = TypeVar("T")


class SilentError(psycopg.OperationalError):
    """The server takes what it is sent and says nothing."""


class Silence:
    """What a process knows of the server's silence."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._heard = self._silent_until = 0.0

    def check(self) -> None:
        """Refuse to try again so soon.

        Raises:
            SilentError: the server was found silent less than a second ago.
        """
        if time.monotonic() < self._silent_until:
            raise SilentError("PostgreSQL does not answer")

    def note(self) -> None:
        """Let nobody try for a second."""
        self._silent_until = time.monotonic() + PAUSE_SECONDS

    def ask(self, address: str, port: int) -> None:
        """Ask the server whether it is there; many who ask at once are told the same.

        Raises:
            SilentError: it does not say.
        """
        with self._lock:
            self.check()
            if time.monotonic() - self._heard < PAUSE_SECONDS:
                return
            if not _answers(address, port):
                self.note()
                self.check()
            self._heard = time.monotonic()


def _answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=SILENCE_SECONDS) as probe:
            probe.sendall(ARE_YOU_THERE)
            probe.settimeout(SILENCE_SECONDS)
            return bool(probe.recv(1))
    except OSError:
        return False


class LeanCursor(psycopg.Cursor[Any]):
    """A cursor that tells of its columns what SQLAlchemy asks, name and type, without an object for each of them."""

    @property
    def description(self) -> list[Any] | None:
        """The columns of the result (PEP 249), None when there is none."""
        result = self.pgresult
        if result is None or not result.nfields:
            return None
        nothing = (None,) * 5
        return [((result.fname(n) or b"").decode(), result.ftype(n), *nothing) for n in range(result.nfields)]


class WatchedConnection(psycopg.Connection[Any]):
    """A connection whose statements fail when the server is silent."""

    silence: Silence
    # Is told the seconds that each statement takes. SQLAlchemy has events for it, which cost the more.
    measure: ClassVar[Callable[[float], None] | None] = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.cursor_factory = LeanCursor

    def wait(self, gen: PQGen[T], *args: Any, **options: Any) -> T:
        """Let a statement take its course, and look now and then whether the server is there.

        Raises:
            SilentError: it is not; the connection is closed.
        """
        started = time.perf_counter()
        try:
            return super().wait(self._watched(gen), *args, **options)
        finally:
            measure = type(self).measure
            if measure is not None:
                measure(time.perf_counter() - started)

    def _watched(self, gen: PQGen[T]) -> Generator[Any, Any, T]:
        """Pass on what happens at the socket; a tenth of a second in which nothing does comes as a false value."""
        heard = time.monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if ready:
                    heard = time.monotonic()
                elif time.monotonic() - heard > SILENCE_SECONDS:
                    self._ask()
                    heard = time.monotonic()
                wanted = gen.send(ready)
        except StopIteration as end:
            result: T = end.value
            return result

    def _ask(self) -> None:
        address = self.info.hostaddr
        if not address:
            return  # a Unix socket: the kernel tells when nobody is there
        try:
            self.silence.ask(address, self.info.port)
        except SilentError:
            self.pgconn.finish()  # what it was doing is unknown, so nobody can go on with it
            raise


def connection_options() -> dict[str, Any]:
    """Return what the driver is told of every connection."""
    return {
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "tcp_user_timeout": UNACKNOWLEDGED_SECONDS * 1000,
        "keepalives_idle": UNACKNOWLEDGED_SECONDS,
        "options": f"-c timezone=UTC -c statement_timeout={STATEMENT_TIMEOUT_SECONDS}s",
    }


def watch(engine: Engine) -> None:
    """Let the connections of an engine be watched, when they are used and when they are taken from the pool."""
    silence = Silence()

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, arguments: list[Any], options: dict[str, Any]) -> WatchedConnection:
        silence.check()
        try:
            connection = WatchedConnection.connect(*arguments, **options)
        except psycopg.errors.ConnectionTimeout:
            silence.note()
            raise
        connection.silence = silence
        return connection

    @event.listens_for(engine, "checkout")
    def look(connection: psycopg.Connection, _record: Any, _proxy: Any) -> None:
        if _has_ended(connection):
            raise DisconnectionError  # and another one is made


def _has_ended(connection: psycopg.Connection) -> bool:
    """Tell whether the server has closed a connection while nobody used it: nobody else says anything then.

    A look at the socket takes a microsecond or two; to ask the server would be another trip there for every request.
    """
    if connection.closed:
        return True
    watch = select.poll()
    watch.register(connection.fileno(), select.POLLIN)
    return bool(watch.poll(0))
