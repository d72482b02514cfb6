"""A Kafka ledger for the contract suite: a topic of its own, and a proxy before the broker that does the harm.

The proxy lets everything pass but what it is told to hold back: produce requests on their way in, or their answers on
their way out. It puts its own port where the broker tells clients its address.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from aiokafka.protocol.admin import DeleteRecordsRequest

from storage.journal.kafka import KafkaJournal
from storage.journal.kafka_client import KafkaAddress, TopicClient, batch
from storage.journal.kafka_topic import TopicSettings

_PRODUCE: Final = 0
_METADATA: Final = 3
_topics: Final = itertools.count()


class Gate:
    """Holds back whoever comes while it is shut, and counts them."""

    def __init__(self) -> None:
        self.waiting = 0
        self._open = asyncio.Event()
        self._open.set()

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def pass_through(self) -> None:
        self.waiting += 1
        try:
            await self._open.wait()
        finally:
            self.waiting -= 1


class KafkaProxy:
    """Stands between clients and one broker. `appends` is the gate of produce requests, `answers` of their answers."""

    def __init__(self, broker_port: int) -> None:
        self.port = 0
        self.appends = Gate()
        self.answers = Gate()
        self._broker_port = broker_port
        self._clients: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def disconnect(self) -> None:
        """Cut every client's connection. What is held back still reaches the broker once it may."""
        for client in self._clients:
            client.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # As a task of our own: the server's would be cancelled with the client's connection.
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        streams = [writer]
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            try:
                from_broker, to_broker = await asyncio.open_connection("127.0.0.1", self._broker_port)
                streams.append(to_broker)
                keys: deque[int] = deque()
                answering = asyncio.ensure_future(self._answers(from_broker, writer, keys))
                try:
                    await self._requests(reader, to_broker, keys)
                    # The client is gone, but what it sent is still to be written and answered.
                    while keys and not answering.done():
                        await asyncio.wait([answering], timeout=0.05)
                finally:
                    answering.cancel()
                    await asyncio.gather(answering, return_exceptions=True)
            finally:
                self._clients.discard(writer)
                for stream in streams:
                    stream.transport.abort()

    async def _requests(self, reader: asyncio.StreamReader, to_broker: asyncio.StreamWriter, keys: deque[int]) -> None:
        while (frame := await _frame(reader)) is not None:
            (key,) = struct.unpack_from(">h", frame, 4)
            if key == _PRODUCE:
                await self.appends.pass_through()
            keys.append(key)
            to_broker.write(frame)
            await to_broker.drain()

    async def _answers(self, from_broker: asyncio.StreamReader, writer: asyncio.StreamWriter, keys: deque[int]) -> None:
        try:
            while (frame := await _frame(from_broker)) is not None:
                if keys[0] == _PRODUCE:
                    await self.answers.pass_through()
                if keys.popleft() == _METADATA:
                    frame = self._as_ourselves(frame)
                if not writer.is_closing():
                    writer.write(frame)
        finally:
            writer.close()

    def _as_ourselves(self, frame: bytes) -> bytes:
        """Metadata, version 5, of one broker: size, correlation, throttle, count, node, host and then its port."""
        count, _, length = struct.unpack_from(">iih", frame, 12)
        assert count == 1
        changed = bytearray(frame)
        struct.pack_into(">i", changed, 22 + length, self.port)
        return bytes(changed)


async def _frame(reader: asyncio.StreamReader) -> bytes | None:
    """The next frame with its length before it; None at the end."""
    try:
        head = await reader.readexactly(4)
        return head + await reader.readexactly(int.from_bytes(head, "big"))
    except (asyncio.IncompleteReadError, OSError):
        return None


class KafkaBench:
    """See `tests.contract.test_journal.Bench`."""

    def __init__(self, address: KafkaAddress, proxy: KafkaProxy) -> None:
        self.proxy = proxy
        self.topic = f"journal-{next(_topics)}"
        self.broker = address.bootstrap  # without the proxy
        self._made: list[KafkaJournal] = []
        self._broker = TopicClient(address, self.topic, timeout_s=10.0)

    def journal(self, **options: Any) -> KafkaJournal:
        address = KafkaAddress(f"127.0.0.1:{self.proxy.port}")
        # The session's broker need not flush: no test of it cuts the power.
        made = KafkaJournal(
            address, self.topic, settings=TopicSettings(flush_messages=None), chunk_bytes=1 << 20, **options
        )
        self._made.append(made)
        return made

    async def append_as(self, partition: int, epoch: int, payload: bytes) -> int:
        return await self.append(partition, payload, [("kind", b"data"), ("epoch", epoch.to_bytes(8, "big"))])

    async def append(self, partition: int, payload: bytes, headers: list[tuple[str, bytes | None]]) -> int:
        """Put any message into the log; returns its offset."""
        return await self._broker.produce(partition, batch(payload, headers), timeout_s=10.0)

    async def remove(self, partition: int, offset: int) -> int:
        """Kafka forgets from the beginning on, as retention would."""
        answer = await self._broker.ask(DeleteRecordsRequest([(self.topic, [(partition, offset + 1)])], 5000))
        assert answer.topics[0][1][0][2] == 0, answer
        return 0

    async def disconnect(self) -> None:
        self.proxy.disconnect()

    async def hold_back(self, partition: int) -> Callable[[], Awaitable[None]]:
        self.proxy.appends.shut()

        async def release() -> None:
            self.proxy.appends.open()

        return release

    async def waiting(self) -> int:
        return self.proxy.appends.waiting

    async def close(self) -> None:
        for journal in self._made:
            await journal.close()
        await self._broker.close()
        await self.proxy.close()


@asynccontextmanager
async def kafka_bench(address: KafkaAddress) -> AsyncIterator[KafkaBench]:
    """A bench on the broker at `address`, an address without a password."""
    proxy = KafkaProxy(int(address.bootstrap.rpartition(":")[2]))
    await proxy.start()
    bench = KafkaBench(address, proxy)
    try:
        yield bench
    finally:
        await bench.close()
