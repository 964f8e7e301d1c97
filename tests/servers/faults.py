"""A proxy between a server of ours and something it needs, which can be cut, held up or heard of no more."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from threading import Event as ThreadEvent
from threading import Thread
from typing import Any

from tests.servers.process import free_port

BLOCK = 64 * 1024
HOST = "127.0.0.1"


class Link:
    """A proxy to a port of this machine, in a thread of its own. It begins by passing everything on."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._started = ThreadEvent()

    def refuse(self) -> None:
        """Cut what is open and refuse what comes, as when the server was stopped."""
        self._call(self._close)

    def swallow(self) -> None:
        """Take everything and pass on nothing, as when packets are dropped or the server hangs."""
        self._call(self._hold)

    def cut(self) -> None:
        """Cut what is open, as when the server was restarted."""
        self._call(self._cut)

    def heal(self) -> None:
        """Pass everything on again, also what was held up."""
        self._call(self._open)

    def _call(self, action: Callable[[], Coroutine[Any, Any, None]]) -> None:
        asyncio.run_coroutine_threadsafe(action(), self._loop).result(timeout=10)

    def start(self) -> None:
        """Start it in a thread."""
        self._thread = Thread(target=lambda: asyncio.run(self._serve()), name="link", daemon=True)
        self._thread.start()
        self._started.wait()

    def stop(self) -> None:
        """End it, and what is open with it."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._passing, self._stopping = asyncio.Event(), asyncio.Event()
        await self._open()
        self._started.set()
        await self._stopping.wait()
        await self._close()

    async def _open(self) -> None:
        self._passing.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, HOST, self.port, limit=BLOCK, backlog=1024)

    async def _hold(self) -> None:
        self._passing.clear()

    async def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # what was aborted is closed by the loop

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        other = None
        with suppress(OSError, asyncio.CancelledError):
            await self._passing.wait()
            back, other = await asyncio.open_connection(HOST, self._target, limit=BLOCK)
            self._writers.add(other)
            await asyncio.gather(self._pass_on(reader, other), self._pass_on(back, writer))
        for end in (writer, other):
            if end is not None:
                end.transport.abort()
                self._writers.discard(end)
        self._tasks.discard(task)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while block := await reader.read(BLOCK):
            await self._passing.wait()
            writer.write(block)
            await writer.drain()
        writer.write_eof()


@contextmanager
def run_link(target: int) -> Iterator[Link]:
    """Run a proxy to a port of this machine until the block ends."""
    link = Link(target)
    link.start()
    try:
        yield link
    finally:
        link.stop()
