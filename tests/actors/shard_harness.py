"""Shards in this process over a real journal and real streams, with clocks and gates that a test holds in its hand."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import numpy as np

from actors.frames import FrameType
from actors.ledger import Capacity
from actors.recovery import LoadSnapshot, Recovery, Windows
from actors.shard import Shard, ShardLimits
from actors.shard_client import Outcome, ShardClient
from actors.shard_server import ShardServer
from actors.transport import Address, TcpTransport
from storage import ids
from storage.events import EVENT, NO_LIMIT, SLOTS, Code, Flag, Kind
from storage.journal import Journal, Stored, Writer
from storage.record import Reader, Record

SECRET: Final = b"a secret of the tests"
CHAIN_KEY: Final = b"a chain key of the tests"
CAPACITY: Final = Capacity(1 << 14, 1 << 16, 1 << 12, 1 << 14, 1 << 10)
SECOND_NS: Final = 10**9
_numbers: Final = itertools.count()


def account(partition: int, number: int = 1) -> int:
    """An account id that lives on `partition`, for up to 1024 partitions."""
    return 1024 * number + partition


def event(kind: Kind, debit: int = 0, credit: int = 0, amount: int = 0, **columns: int) -> np.ndarray:
    """(1,) EVENT with a fresh id in the slot of the account that decides it."""
    row = np.zeros(1, EVENT)
    row["id_hi"], row["id_lo"] = ids.uuid7(time.time_ns() // 10**6)
    row["kind"], row["debit"], row["credit"], row["amount"] = kind, debit, credit, amount
    for name, value in columns.items():
        row[name] = value
    return slotted(row)


def slotted(rows: np.ndarray) -> np.ndarray:
    """Rows whose ids say the slot of the account that decides each."""
    slots = np.where(rows["kind"] == Kind.DEPOSIT, rows["credit"], rows["debit"]) % np.uint64(SLOTS)
    of_holds = (rows["kind"] == Kind.POST) | (rows["kind"] == Kind.VOID)
    slots = np.where(of_holds, rows["ref_lo"] & np.uint64(0xFFF), slots)
    rows["id_lo"] = rows["id_lo"] & ~np.uint64(0xFFF) | slots
    return rows


def opening(number: int) -> np.ndarray:
    """The event that opens an account without limits."""
    return event(Kind.OPEN, number, 7, NO_LIMIT, ref_hi=NO_LIMIT, ref_lo=NO_LIMIT, total=1200 << 16 | 360)


def linked(*rows: np.ndarray) -> np.ndarray:
    """One chain of all rows."""
    chain = np.concatenate(rows)
    chain["flags"][:-1] = Flag.LINKED
    return chain


class HandClock:
    """Time that moves when the test says so, or with the machine's plus an offset."""

    def __init__(self) -> None:
        self.wall_offset_s = 0.0
        self.monotonic_offset_s = 0.0
        self.is_synchronised = False

    def wall_ns(self) -> int:
        return time.time_ns() + int(self.wall_offset_s * 1e9)

    def monotonic(self) -> float:
        return time.monotonic() + self.monotonic_offset_s

    def synchronised(self) -> bool:
        return self.is_synchronised


class GatedJournal:
    """A real journal whose appends wait for a gate."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.gate = asyncio.Event()
        self.gate.set()
        self.appends = 0
        self.confirms = 0
        self.waiting = asyncio.Event()

    async def create(self, partitions: int) -> None:
        await self.journal.create(partitions)

    async def partitions(self) -> int:
        return await self.journal.partitions()

    async def open(self, partition: int, payload: bytes) -> Writer:
        return _GatedWriter(self, await self.journal.open(partition, payload))

    async def head(self, partition: int) -> int:
        return await self.journal.head(partition)

    async def heads(self) -> dict[int, int]:
        return await self.journal.heads()

    def read(self, partition: int, offset: int, until: int | None = None) -> AsyncIterator[Stored]:
        return self.journal.read(partition, offset, until)

    async def close(self) -> None:
        await self.journal.close()


class _GatedWriter:
    def __init__(self, gated: GatedJournal, writer: Writer) -> None:
        self.partition = writer.partition
        self.epoch = writer.epoch
        self._gated = gated
        self._writer = writer

    async def append(self, payload: bytes) -> int:
        self._gated.appends += 1
        self._gated.waiting.set()
        await self._gated.gate.wait()
        return await self._writer.append(payload)

    async def confirm(self) -> None:
        self._gated.confirms += 1
        await self._writer.confirm()

    async def close(self) -> None:
        await self._writer.close()


class Running:
    """One shard with its door."""

    def __init__(self, shard: Shard, server: ShardServer, peers: ShardClient | None, port: int) -> None:
        self.shard = shard
        self.server = server
        self.peers = peers
        self.port = port
        self.ended: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def crash(self) -> None:
        """As if the process was killed: nothing more is answered."""
        self.shard._end()
        for stream in list(self.server.streams):
            stream.malformed()
        await self.server.close()
        if self.peers is not None:
            await self.peers.close()


class Ledger:
    """All shards of one ledger, a directory of them, and a client."""

    def __init__(self, journal: Journal, partitions: int) -> None:
        self.journal = journal
        self.partitions = partitions
        self.shards: dict[int, Running] = {}
        self.addresses: dict[int, Address] = {}
        self.all: list[Running] = []
        self.client = self.new_client()

    def new_client(self, events: FrameType = FrameType.APPLY) -> ShardClient:
        return ShardClient(TcpTransport(self.locate, SECRET, self.partitions), self.partitions, events=events)

    async def locate(self, partition: int) -> Address | None:
        return self.addresses.get(partition)

    async def start(
        self,
        partition: int,
        *,
        clock: HandClock | None = None,
        limits: ShardLimits | None = None,
        journal: Journal | None = None,
        windows: Windows = Windows(),  # noqa: B008 - immutable
        snapshots: LoadSnapshot | None = None,
        capacity: Capacity = CAPACITY,
        identity: Mapping[str, Any] | None = None,
    ) -> Running:
        """Start a shard and put it into the directory."""
        peers = self.new_client(FrameType.LEGS) if self.partitions > 1 else None
        recovery = Recovery(
            partition,
            self.partitions,
            journal=journal or self.journal,
            snapshots=snapshots,
            chain_key=CHAIN_KEY,
            name=f"shard-{partition:03d}",
            windows=windows,
            capacity=capacity,
            identity=identity or {"host": "here", "pid": next(_numbers), "start": 0},
        )
        ended: list[BaseException] = []
        shard = Shard(recovery, peers, on_fatal=ended.append, clock=clock, limits=limits)
        server = ShardServer(shard, SECRET, lambda: {"name": f"shard-{partition:03d}", "pid": 1, "host": "here"})
        running = Running(shard, server, peers, 0)
        shard._on_fatal = running.ended.set_result
        try:
            await shard.start()
        except BaseException:
            if peers is not None:
                await peers.close()
            raise
        running.port = await server.start("127.0.0.1")
        self.shards[partition] = running
        self.all.append(running)
        self.addresses[partition] = Address("127.0.0.1", running.port, shard.epoch)
        return running

    async def close(self) -> None:
        await self.client.close()
        for running in self.all:
            await running.crash()
            if running.shard.serving:
                await running.shard._writer.close()

    async def apply(
        self, *rows: np.ndarray, notes: list[bytes | None] | None = None, within_s: float = 10.0
    ) -> Outcome:
        """Apply rows in one call."""
        return await self.client.apply(np.concatenate(rows), notes, time.monotonic() + within_s)

    async def code(self, row: np.ndarray, within_s: float = 10.0) -> Code:
        """Apply one row; its code."""
        return Code(int((await self.apply(row, within_s=within_s)).results["code"][0]))

    async def fund(self, *numbers: int, amount: int = 1_000) -> None:
        """Open accounts and pay something in."""
        rows = [opening(number) for number in numbers] + [event(Kind.DEPOSIT, 1, number, amount) for number in numbers]
        outcome = await self.apply(*rows)
        assert not outcome.results["code"].any()

    async def available(self, number: int) -> int:
        """What an account can spend."""
        found = await self.client.read(np.array([number], np.uint64), np.zeros(1, np.uint64), time.monotonic() + 10)
        state = found.states[0]
        assert state["code"] == Code.OK
        return int(state["posted"] - state["debits_pending"])

    async def records(self, partition: int) -> list[Record]:
        """What the journal has."""
        reader = Reader(self.journal, partition, CHAIN_KEY)
        return [found async for found in reader.records()]


def asked(running: Running) -> int:
    """Requests that wait for their turn."""
    return sum(len(source.requests) for source in running.shard._queue.sources.values())


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    """Let the loop run until something is so."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in the code under test
            await asyncio.sleep(0.005)
