"""The journal on Kafka: one topic, one message a record, and the log itself as the fence.

A writer's open record is a message like any other, and its offset the epoch. A writer knows the offset that its next
append must get: when it gets another, it reads what came in between. An open record there means that it was overtaken,
and its own message is void; only void messages of writers before it, and it goes on. So void records do arise here.

A message's value is the record. Its header `kind` is `open` or `data`; a data record's header `epoch` is its writer's
epoch, 8 bytes, big endian. An open record has none: its epoch is its own offset. No transactions, and nothing is sent
twice: an append without an answer ends its writer, and the successor's open record settles whether it counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final

from aiokafka import errors
from aiokafka.record.memory_records import MemoryRecords

from storage.events import SLOTS
from storage.journal import Corrupt, Fenced, JournalError, OutcomeUnknown, Stored
from storage.journal.kafka_client import EARLIEST, LASTING, LATEST, LOST, KafkaAddress, TopicClient, batch
from storage.journal.kafka_topic import TopicSettings, ensure

TOPIC: Final = "razao.journal"
_RETRY_S: Final = 0.2
_FETCH_WAIT_S: Final = 0.5
_TOO_LARGE: Final = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)

logger = logging.getLogger(__name__)


class KafkaWriter:
    """The one who may append to a partition of a `KafkaJournal`; it has a connection of its own."""

    def __init__(self, journal: KafkaJournal, client: TopicClient, partition: int, epoch: int) -> None:
        self.partition = partition
        self.epoch = epoch
        self._journal = journal
        self._client = client
        self._headers: list[tuple[str, bytes | None]] = [("kind", b"data"), ("epoch", epoch.to_bytes(8, "big"))]
        self._next = epoch + 1
        self._turn = asyncio.Lock()
        self._ended: JournalError | None = None

    async def append(self, payload: bytes) -> int:
        """Append one record durably; returns its offset. Calls that overlap are served in their order.

        Raises:
            Fenced: another writer has taken over; what was written does not count.
            OutcomeUnknown: the connection was lost, time was up, or an earlier append ended so.
            JournalError: the record is larger than the topic takes.
        """
        async with self._turn:
            if self._ended is not None:
                raise self._ended
            # Until the answer is here, whatever interrupts this call, a cancellation too, leaves the outcome unknown.
            self._ended = OutcomeUnknown(f"partition {self.partition}: the append at offset {self._next} had no answer")
            try:
                offset = await self._client.produce(
                    self.partition, batch(payload, self._headers), timeout_s=self._journal.append_timeout_s
                )
                await self._check_gap(self._next, offset)
            except _TOO_LARGE as error:
                why = f"a record of {len(payload)} bytes is more than its topic takes: raise its max.message.bytes"
                raise self._end(JournalError(f"partition {self.partition}: {why}")) from error
            except (Fenced, Corrupt) as error:
                raise self._end(error) from None
            except (*LOST, JournalError) as error:
                unknown = OutcomeUnknown(f"partition {self.partition}, offset {self._next}: {_words(error)}")
                raise self._end(unknown) from error
            except BaseException:
                self._client.drop()
                raise
            self._ended = None
            self._next = offset + 1
            return offset

    def _end(self, error: JournalError) -> JournalError:
        self._client.drop()
        self._ended = error
        return error

    async def _check_gap(self, expected: int, offset: int) -> None:
        """Whether what lies between the offset expected and the one that an append got leaves it valid.

        Raises:
            Fenced: an open record lies there.
            Corrupt: the log has lost records, or has some that no writer before us can have written.
            JournalError: it cannot be read.
        """
        if offset < expected:
            raise Corrupt(self.partition, offset, f"the append should have got offset {expected}: records were lost")
        if offset > expected:
            await self._look(expected, offset)

    async def _look(self, start: int, end: int) -> None:
        async for stored in self._journal.read(self.partition, start, end):
            if stored.is_open:
                raise Fenced(f"partition {self.partition}: epoch {self.epoch} was overtaken by {stored.offset}")
            if stored.epoch > self.epoch:
                why = f"a record of epoch {stored.epoch}, whose open record is missing"
                raise Corrupt(self.partition, stored.offset, why)

    async def confirm(self) -> None:
        """Look at the log's end: returns when this writer is still unfenced.

        It asks on another connection, so it neither waits for an append in flight nor harms one when cancelled.

        Raises:
            Fenced: another writer has taken over.
            OutcomeUnknown: an append's outcome is unknown, so this writer is at its end.
            JournalError: the journal cannot be reached.
        """
        if self._ended is not None and not self._turn.locked():
            raise self._ended
        start = self._next
        await self._look(start, max(start, await self._journal.head(self.partition)))

    async def close(self) -> None:
        """Give up the connection. The partition stays with this epoch until somebody opens it."""
        if self._ended is None:
            self._ended = JournalError(f"partition {self.partition}: the writer is closed")
        await self._client.close()


class KafkaJournal:
    """The partitions of one ledger in one topic."""

    def __init__(
        self,
        address: KafkaAddress,
        topic: str = TOPIC,
        *,
        settings: TopicSettings = TopicSettings(),  # noqa: B008 - immutable
        append_timeout_s: float = 10.0,
        open_timeout_s: float = 30.0,
        request_timeout_s: float = 10.0,
        chunk_bytes: int = 4 * 2**20,
    ) -> None:
        """`open_timeout_s` is how long `open` tries while the brokers are away; `chunk_bytes` bounds a read's
        memory."""
        self.append_timeout_s = append_timeout_s
        self._address = address
        self._topic = topic
        self._settings = settings
        self._open_timeout_s = open_timeout_s
        self._request_timeout_s = request_timeout_s
        self._chunk_bytes = chunk_bytes
        self._client = TopicClient(address, topic, timeout_s=request_timeout_s)

    async def create(self, partitions: int) -> None:
        """Make the topic, or check that it is there as asked, with settings that lose nothing.

        Raises:
            JournalError: the topic has another number of partitions or other settings (the message says which), or the
                brokers cannot be reached.
            ValueError: the number is not a power of two up to 1024.
        """
        if not 1 <= partitions <= SLOTS or partitions & (partitions - 1):
            raise ValueError(f"{partitions} partitions: not a power of two up to {SLOTS}")
        try:
            await ensure(self._client, partitions, self._settings)
        except LOST as error:
            raise JournalError(self._failure(error)) from error

    async def partitions(self) -> int:
        """How many partitions there are; 0 before `create`.

        Raises:
            JournalError: the journal cannot be reached.
        """
        try:
            return len((await self._client.leaders()).partitions)
        except LOST as error:
            raise JournalError(self._failure(error)) from error

    async def identity(self) -> str:
        """Which log this is, among all that there are: the cluster's own id, and the topic.

        Raises:
            JournalError: the journal cannot be reached.
        """
        try:
            return f"kafka {(await self._client.leaders()).cluster}/{self._topic}"
        except LOST as error:
            raise JournalError(self._failure(error)) from error

    async def open(self, partition: int, payload: bytes) -> KafkaWriter:
        """Take the partition over: append an open record that carries `payload`. Its offset is the writer's epoch.

        Tries again while the brokers are away. An attempt whose answer was lost may have left an open record; nothing
        was written under it, so the next attempt's simply follows. Should it arrive even later, it fences this writer,
        which is no more than a wasted start.

        Raises:
            JournalError: there is no such partition, we may not, or no answer within `open_timeout_s`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._open_timeout_s
        while True:
            client = TopicClient(self._address, self._topic, timeout_s=self.append_timeout_s)
            try:
                epoch = await client.produce(
                    partition, batch(payload, [("kind", b"open")]), timeout_s=self.append_timeout_s
                )
                return KafkaWriter(self, client, partition, epoch)
            except LOST as error:
                await client.close()
                if loop.time() > deadline or isinstance(error, LASTING):
                    raise JournalError(f"partition {partition} cannot be opened: {self._failure(error)}") from error
                logger.info("partition %d cannot be opened yet: %s", partition, _words(error))
            except BaseException:
                await client.close()
                raise
            await asyncio.sleep(_RETRY_S)

    async def head(self, partition: int) -> int:
        """The offset that the next record will get.

        Raises:
            JournalError: there is no such partition, or the journal cannot be reached.
        """
        return (await self._offsets(LATEST, partition))[partition]

    async def heads(self) -> dict[int, int]:
        """`head` of every partition, by one request to each broker that leads some.

        Raises:
            JournalError: the journal cannot be reached.
        """
        return await self._offsets(LATEST)

    async def read(self, partition: int, offset: int, until: int | None = None) -> AsyncIterator[Stored]:
        """Every stored record from `offset` on (up to, not including, `until`; None = the head at the call).

        The next chunk is fetched while the caller works on this one; no more than two are in memory.

        Raises:
            Corrupt: an offset is missing (the log's end or its beginning included), or holds what is no record.
            JournalError: the journal cannot be reached.
        """
        end = await self.head(partition) if until is None else until
        if offset > end:
            raise Corrupt(partition, end, f"the log ends here, before offset {offset}")
        expected = offset
        fetching = asyncio.ensure_future(self._chunk(partition, expected, end))
        try:
            while expected < end:
                chunk = await fetching
                after = chunk[-1].offset + 1
                if after < end:
                    fetching = asyncio.ensure_future(self._chunk(partition, after, end))
                for stored in chunk:
                    if expected == end:
                        break
                    if stored.offset != expected:
                        raise Corrupt(partition, expected, "the record is missing")
                    yield stored
                    expected += 1
        finally:
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)

    async def _chunk(self, partition: int, offset: int, end: int) -> list[Stored]:
        """At least one record from `offset` on; none only when none was asked for."""
        if offset >= end:
            return []
        deadline = asyncio.get_running_loop().time() + self._request_timeout_s
        try:
            while asyncio.get_running_loop().time() < deadline:
                data = await self._client.fetch(partition, offset, bytes_max=self._chunk_bytes, wait_s=_FETCH_WAIT_S)
                chunk = _unpacked(data, partition, offset)
                if chunk:
                    return chunk
                head = await self.head(partition)
                if head <= offset:
                    raise Corrupt(partition, head, f"the log ends here, before offset {end}")
            raise JournalError(self._failure(TimeoutError(f"nothing was read from offset {offset} on")))
        except errors.OffsetOutOfRangeError:
            return await self._out_of_range(partition, offset, end)
        except LOST as error:
            raise JournalError(self._failure(error)) from error

    async def _out_of_range(self, partition: int, offset: int, end: int) -> list[Stored]:
        start = (await self._offsets(EARLIEST, partition))[partition]
        if start > offset:
            why = f"removed by retention or by hand: the log begins at {start}, and no snapshot in use reaches there"
            raise Corrupt(partition, offset, why)
        raise Corrupt(partition, await self.head(partition), f"the log ends here, before offset {end}")

    async def _offsets(self, which: int, partition: int | None = None) -> dict[int, int]:
        try:
            return await self._client.offsets(which, partition)
        except LOST as error:
            raise JournalError(self._failure(error)) from error

    async def close(self) -> None:
        """Give up the connections; writers keep theirs."""
        await self._client.close()

    def _failure(self, error: BaseException) -> str:
        return f"Kafka at {self._address.bootstrap}, topic {self._topic}: {_words(error)}"


def _unpacked(data: bytes, partition: int, offset: int) -> list[Stored]:
    """The records of fetched batches, from `offset` on.

    Raises:
        Corrupt: a batch is damaged, or what it holds is none of ours.
    """
    found: list[Stored] = []
    batches = MemoryRecords(data)
    while batches.has_next():
        one = batches.next_batch()
        if one.is_control_batch or not one.validate_crc():
            raise Corrupt(partition, one.base_offset, "not a record: a transaction's mark, or damaged")
        for message in one:
            if message.offset < offset:
                continue
            headers = dict(message.headers)
            kind, epoch = headers.get("kind"), headers.get("epoch")
            if kind == b"open" and epoch is None:
                found.append(Stored(message.offset, message.offset, True, message.value or b""))
            elif kind == b"data" and epoch is not None and len(epoch) == 8:
                found.append(Stored(message.offset, int.from_bytes(epoch, "big"), False, message.value or b""))
            else:
                raise Corrupt(partition, message.offset, f"not a record: its headers are {headers}")
    return found


def _words(error: BaseException) -> str:
    """What an error says; some say nothing by themselves."""
    return str(error) or type(error).__name__
