"""One shard over the real journal: group commit, durability, fence, turns, overload, expiry, recovery."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import pytest

from actors import ledger
from actors.recovery import saved_in
from actors.shard import Replies, ShardLimits
from actors.shard_client import ShardClient, ShardUnavailable, States
from storage.events import Code, Flag, Kind, ResultFlag
from storage.found import Found
from storage.journal import Corrupt, Fenced, OutcomeUnknown
from storage.journal.postgres import PostgresJournal
from storage.record import Reader
from storage.snapshots import SnapshotStore
from tests.actors.shard_harness import (
    CHAIN_KEY,
    SECOND_NS,
    GatedJournal,
    HandClock,
    Ledger,
    account,
    asked,
    event,
    linked,
    opening,
    until,
)

A, B, C = account(0, 1), account(0, 2), account(0, 3)


@pytest.fixture
async def one(database: str) -> AsyncIterator[Ledger]:
    journal = PostgresJournal(database)
    await journal.create(1)
    made = Ledger(journal, 1)
    yield made
    await made.close()
    await journal.close()


async def test_rows_that_come_during_an_append_share_the_next_one(one: Ledger) -> None:
    gated = GatedJournal(one.journal)
    await one.start(0, journal=gated)
    await one.fund(A, B)
    gated.appends = 0
    gated.gate.clear()
    first = asyncio.ensure_future(one.apply(event(Kind.TRANSFER, A, B, 1)))
    await gated.waiting.wait()
    clients = [one.new_client() for _ in range(8)]
    deadline = time.monotonic() + 10
    others = [
        asyncio.ensure_future(c.apply(event(Kind.TRANSFER, A, B, 1), None, deadline)) for c in clients for _ in "xy"
    ]
    await until(lambda: asked(one.shards[0]) >= 8)
    gated.gate.set()
    results = await asyncio.gather(first, *others)
    assert all(outcome.results["code"][0] == Code.OK for outcome in results)
    assert gated.appends <= 4
    for client in clients:
        await client.close()


async def test_nothing_is_answered_before_it_is_durable_not_even_a_read(one: Ledger) -> None:
    gated = GatedJournal(one.journal)
    await one.start(0, journal=gated)
    await one.fund(A, B)
    gated.gate.clear()
    gated.waiting.clear()
    write = asyncio.ensure_future(one.apply(row := event(Kind.TRANSFER, A, B, 10)))
    await gated.waiting.wait()
    read = asyncio.ensure_future(one.available(A))
    other = one.new_client()  # one client has one batch under way
    replay = asyncio.ensure_future(other.apply(row, None, time.monotonic() + 10))
    await until(lambda: asked(one.shards[0]) >= 2)
    assert not write.done()
    assert not read.done()
    assert not replay.done()
    gated.gate.set()
    assert (await write).results["code"][0] == Code.OK
    assert await read == 990
    again = (await replay).results[0]
    assert (again["code"], again["flags"]) == (Code.OK, ResultFlag.REPLAYED)
    await other.close()


async def test_a_large_group_is_applied_while_an_append_is_under_way_and_not_answered(one: Ledger) -> None:
    gated = GatedJournal(one.journal)
    running = await one.start(0, journal=gated, limits=ShardLimits(overlap_rows=4))
    await one.fund(A, B)
    gated.gate.clear()
    gated.waiting.clear()
    first = asyncio.ensure_future(one.apply(event(Kind.TRANSFER, A, B, 1)))
    await gated.waiting.wait()
    several = np.concatenate([event(Kind.TRANSFER, A, B, 1) for _ in range(5)])
    other = one.new_client()  # one client has one batch under way
    second = asyncio.ensure_future(other.apply(several, None, time.monotonic() + 10))
    await until(lambda: running.shard._next is not None)
    assert ledger.stats(running.shard.book).transfers == 8
    assert not second.done()
    gated.gate.set()
    await asyncio.gather(first, second)
    await other.close()


async def test_after_a_busy_group_the_next_one_gathers_for_a_moment(one: Ledger) -> None:
    await one.start(0, limits=ShardLimits(pace_rows=4, pace_s=0.5))
    await one.fund(A, B)
    await one.apply(*(event(Kind.TRANSFER, A, B, 1) for _ in range(4)))
    early = asyncio.ensure_future(one.apply(event(Kind.TRANSFER, A, B, 1)))
    await until(lambda: one.shards[0].shard._queue.rows == 1)
    other = one.new_client()
    late = await other.apply(event(Kind.TRANSFER, A, B, 1), None, time.monotonic() + 10)
    assert (await early).positions == late.positions
    await other.close()


async def test_after_a_quiet_group_nobody_waits(one: Ledger) -> None:
    await one.start(0, limits=ShardLimits(pace_rows=4, pace_s=3_600.0))
    await one.code(opening(A))
    await one.code(opening(B))
    assert await one.code(event(Kind.DEPOSIT, 1, A, 5)) == Code.OK


async def test_a_large_batch_does_not_wait_for_company(one: Ledger) -> None:
    await one.start(0, limits=ShardLimits(pace_rows=2, overlap_rows=4, pace_s=3_600.0))
    for _ in range(2):
        await one.apply(*(opening(account(0, number)) for number in range(2, 8)))


async def test_repeats_and_stateless_refusals_are_not_journaled(one: Ledger) -> None:
    await one.start(0)
    await one.fund(A, B)
    row = event(Kind.TRANSFER, A, B, 5)
    other = row.copy()
    other["amount"] = 6
    outcome = await one.apply(row, notes=[b'{"description":"tea"}'])
    assert await one.code(other) == Code.ID_CONFLICT
    mixed = await one.apply(row, event(Kind.TRANSFER, B, A, 1), other)
    assert mixed.results["code"].tolist() == [Code.OK, Code.OK, Code.ID_CONFLICT]
    found = await one.records(0)
    assert [len(record.rows) for record in found] == [4, 1, 1]
    assert found[1].notes == [b'{"description":"tea"}']
    assert outcome.positions == {0: found[1].offset}


async def test_a_chain_is_journaled_whole_or_not_at_all(one: Ledger) -> None:
    await one.start(0)
    await one.fund(A, B)
    chain = linked(*(event(Kind.TRANSFER, A, B, 1) for _ in range(3)))
    await one.apply(chain)
    head = await one.journal.head(0)
    again = linked(chain[:1], chain[1:2], event(Kind.TRANSFER, A, B, 1))
    assert (await one.apply(chain)).results["flags"].tolist() == [ResultFlag.REPLAYED] * 3
    assert not (await one.apply(again)).results["flags"][2]
    assert await one.journal.head(0) == head
    assert await one.available(A) == 997


async def test_chains_apply_whole_or_not_at_all_and_an_open_one_cannot_take_a_neighbour_in(one: Ledger) -> None:
    await one.start(0)
    await one.fund(A, B)
    chain = linked(event(Kind.TRANSFER, A, B, 600), event(Kind.TRANSFER, A, B, 600))
    assert (await one.apply(chain)).results["code"].tolist() == [Code.LINKED_FAILED, Code.INSUFFICIENT_FUNDS]
    left_open = event(Kind.TRANSFER, A, B, 1, flags=Flag.LINKED)
    alone, neighbour = await asyncio.gather(one.apply(left_open), one.apply(event(Kind.TRANSFER, A, B, 1)))
    assert alone.results["code"][0] == Code.NOT_LINKABLE
    assert neighbour.results["code"][0] == Code.OK


async def test_a_fenced_shard_ends_and_answers_nobody(one: Ledger) -> None:
    running = await one.start(0)
    await one.fund(A, B)
    await one.journal.open(0, b"")
    write = asyncio.ensure_future(one.apply(event(Kind.TRANSFER, A, B, 1), within_s=1.0))
    assert isinstance(await running.ended, Fenced)
    assert (await write).results["code"][0] == Code.UNSURE
    with pytest.raises(ShardUnavailable):
        await one.client.read(np.array([A], np.uint64), np.zeros(1, np.uint64), time.monotonic() + 0.2)


async def test_an_append_of_unknown_outcome_ends_the_shard(one: Ledger, database: str) -> None:
    running = await one.start(0)
    await one.fund(A, B)
    connection = await asyncpg.connect(database)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'razao-writer-0'"
    )
    await connection.close()
    row = event(Kind.TRANSFER, A, B, 1)
    write = asyncio.ensure_future(one.apply(row, within_s=5.0))
    assert isinstance(await running.ended, OutcomeUnknown)
    await running.crash()
    await one.start(0)
    assert (await write).results["code"][0] == Code.OK
    assert await one.available(A) == 999


async def test_a_frozen_predecessor_answers_no_read_after_its_successor_has_acknowledged(one: Ledger) -> None:
    old = await one.start(0)
    await one.fund(A, B)
    stale = one.new_client()
    wanted, anyone = np.array([A], np.uint64), np.zeros(1, np.uint64)
    await stale.read(wanted, anyone, time.monotonic() + 5)
    await one.start(0)  # at once, whatever clock or process the old one has
    fresh = one.new_client()
    assert (await fresh.apply(event(Kind.TRANSFER, A, B, 1), None, time.monotonic() + 5)).results["code"][0] == Code.OK
    # The old process wakes up with a stream still open.
    read = asyncio.ensure_future(stale.read(wanted, anyone, time.monotonic() + 5))
    assert isinstance(await old.ended, Fenced)
    await old.crash()
    state = (await read).states[0]  # by the successor, after the client asked the directory again
    assert int(state["posted"]) == 999
    await stale.close()
    await fresh.close()


async def test_what_has_nothing_to_append_is_answered_after_a_look_at_the_journals_end(one: Ledger) -> None:
    gated = GatedJournal(one.journal)
    running = await one.start(0, journal=gated)
    await one.fund(A, B)
    await one.code(row := event(Kind.TRANSFER, A, B, 1))
    gated.appends = gated.confirms = 0
    await one.available(A)
    await one.code(row)
    assert (gated.appends, gated.confirms) == (0, 2)
    await one.journal.open(0, b"")
    repeat = asyncio.ensure_future(one.apply(row, within_s=1.0))
    assert isinstance(await running.ended, Fenced)
    assert (await repeat).results["code"][0] == Code.UNSURE


async def test_a_client_that_knows_a_newer_epoch_makes_an_old_shard_look(one: Ledger) -> None:
    running = await one.start(0)
    epoch = (await one.journal.open(0, b"")).epoch
    one.addresses[0] = one.addresses[0]._replace(epoch=epoch)
    assert await one.code(opening(A), within_s=0.5) == Code.UNSURE
    assert isinstance(await running.ended, Fenced)


async def test_a_cancelled_caller_leaves_the_others_answered(one: Ledger) -> None:
    gated = GatedJournal(one.journal)
    await one.start(0, journal=gated)
    await one.fund(A, B)
    gated.gate.clear()
    gated.waiting.clear()
    calls = [asyncio.ensure_future(one.apply(event(Kind.TRANSFER, A, B, 1))) for _ in range(6)]
    await gated.waiting.wait()
    calls[0].cancel()
    calls[3].cancel()
    gated.gate.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == [n in {0, 3} for n in range(6)]
    assert await one.available(A) == 994


async def test_a_full_queue_answers_overloaded_and_goes_on(one: Ledger) -> None:
    gated = GatedJournal(one.journal)
    await one.start(0, journal=gated, limits=ShardLimits(queue_rows=64))
    await one.fund(A, B)
    gated.gate.clear()
    gated.waiting.clear()
    first = asyncio.ensure_future(one.apply(event(Kind.TRANSFER, A, B, 1)))
    await gated.waiting.wait()
    clients = [one.new_client() for _ in range(4)]
    deadline = time.monotonic() + 10
    batches = [np.concatenate([event(Kind.TRANSFER, A, B, 1) for _ in range(30)]) for _ in clients]
    calls = [asyncio.ensure_future(c.apply(rows, None, deadline)) for c, rows in zip(clients, batches, strict=True)]
    await until(lambda: sum(call.done() for call in calls) == 2)
    for call in [call for call in calls if call.done()]:
        assert (call.result().results["code"] == Code.OVERLOADED).all()
    gated.gate.set()
    await asyncio.gather(first, *calls)
    assert await one.available(A) == 1_000 - 1 - 60
    for client in clients:
        await client.close()


async def test_a_payment_that_was_done_is_never_called_overloaded(one: Ledger) -> None:
    gated = GatedJournal(one.journal)
    running = await one.start(0, journal=gated, limits=ShardLimits(queue_rows=20))
    await one.fund(A, B)
    gated.gate.clear()
    gated.waiting.clear()
    row = event(Kind.TRANSFER, A, B, 1)
    call = asyncio.ensure_future(one.apply(row))
    await gated.waiting.wait()
    other = one.new_client()
    full = asyncio.ensure_future(
        other.apply(np.concatenate([event(Kind.TRANSFER, A, B, 10**9)] * 20), None, time.monotonic() + 10)
    )
    await until(lambda: asked(running) == 1)
    link: Any = one.client._lanes[0]._link
    here = link.transport.get_extra_info("sockname")
    for stream in list(running.server.streams):
        if stream.transport is not None and stream.transport.get_extra_info("peername") == here:
            stream.malformed()  # the link is lost after the row arrived; it is sent again into a full queue
    assert (await call).results["code"][0] == Code.UNSURE
    gated.gate.set()
    await full
    assert await one.code(row) == Code.OK
    assert await one.available(A) == 999
    await other.close()


async def test_reads_are_bounded_apart_from_payments_and_each_streams_apart_from_the_others(one: Ledger) -> None:
    gated = GatedJournal(one.journal)
    await one.start(0, journal=gated, limits=ShardLimits(queue_rows=8, read_rows=40, stream_read_rows=25))
    await one.fund(A, B)
    gated.gate.clear()
    gated.waiting.clear()
    write = asyncio.ensure_future(one.apply(event(Kind.TRANSFER, A, B, 1)))
    await gated.waiting.wait()
    clients = [one.new_client() for _ in range(3)]
    deadline = time.monotonic() + 10

    def read(client: ShardClient, count: int) -> asyncio.Future[States]:
        return asyncio.ensure_future(client.read(np.full(count, A, np.uint64), np.zeros(count, np.uint64), deadline))

    with pytest.raises(ShardUnavailable, match="too much"):
        await read(clients[0], 26)  # more than one may ask for
    waiting = [read(clients[0], 20)]
    await until(lambda: asked(one.shards[0]) == 1)
    with pytest.raises(ShardUnavailable, match="too much"):
        await read(clients[1], 21)  # more than all may
    waiting.append(read(clients[1], 20))
    await until(lambda: asked(one.shards[0]) == 2)
    with pytest.raises(ShardUnavailable, match="too much"):
        await read(clients[2], 1)
    with pytest.raises(ShardUnavailable, match="OVERLOADED"):
        await clients[2].find((1, 0), 0, deadline)
    paid = [event(Kind.TRANSFER, A, B, 1) for _ in range(8)]
    payments = asyncio.ensure_future(clients[2].apply(np.concatenate(paid), None, deadline))
    await until(lambda: asked(one.shards[0]) == 3)
    gated.gate.set()
    await asyncio.gather(write, *waiting)
    assert not (await payments).results["code"].any()
    assert await one.available(A) == 991
    for client in clients:
        await client.close()


class Asker(Replies):
    """A stream that asks for the same again as soon as it was answered, as busy ones do."""

    def __init__(self, ask: Callable[[Asker, int], None]) -> None:
        self.ask = ask
        self.answers = 0
        self.asks = True

    def again(self) -> None:
        if self.asks:
            self.ask(self, self.answers)

    def answered(self, request: int, results: np.ndarray, positions: dict[int, int]) -> None:
        self.answers += 1
        self.again()

    def resolved(self, request: int, indices: np.ndarray, results: np.ndarray, positions: dict[int, int]) -> None:
        self.answers += 1

    def states(self, request: int, states: np.ndarray, positions: dict[int, int]) -> None:
        self.answered(request, states, positions)

    def found(self, request: int, found: Sequence[Found], head: int, code: Code) -> None:
        self.again()


@pytest.mark.parametrize("others", ["legs", "reads", "large batches", "outcomes"])
@pytest.mark.parametrize("what", ["a batch that fills a group", "a batch with long notes", "a payment", "a large read"])
async def test_nothing_that_fits_a_group_waits_for_more_than_a_few(database: str, what: str, others: str) -> None:
    journal = PostgresJournal(database)
    await journal.create(2)
    ledger_ = Ledger(journal, 2)
    running = await ledger_.start(0, limits=ShardLimits(group_rows=32, group_bytes=32_000))
    shard = running.shard
    await ledger_.apply(*(opening(number) for number in (A, B)), event(Kind.DEPOSIT, 1, A, 1_000))
    numbers = itertools.count(1)

    def ask(asker: Asker, request: int) -> None:
        if others == "legs":
            far = account(1, 7)
            rows = np.concatenate([event(Kind.CREDIT_LEG, far, B, 1, total=next(numbers), span=1) for _ in range(3)])
            shard.legs(rows, asker, request)
        elif others == "reads":
            shard.read(np.full(20, A, np.uint64), np.zeros(20, np.uint64), asker, request)
        elif others == "large batches":
            shard.apply(np.concatenate([event(Kind.TRANSFER, B, A, 10**9) for _ in range(32)]), None, asker, request)
        else:
            rows = np.concatenate([event(Kind.SETTLE, ref_hi=1, ref_lo=10**6) for _ in range(3)])
            shard._enqueue_outcomes(rows, lambda positions: asker.answered(0, rows, positions))

    askers = [Asker(ask) for _ in range(1 if others == "legs" else 3)]
    for asker in askers:
        asker.again()
    await until(lambda: all(asker.answers > 5 for asker in askers))
    answered_in: list[int] = []
    mine = Asker(lambda *_: answered_in.append(shard._groups))
    before = shard._groups
    if what == "a large read":
        shard.read(np.full(32, A, np.uint64), np.zeros(32, np.uint64), mine, 1)
    else:
        count = {"a payment": 1, "a batch with long notes": 20, "a batch that fills a group": 32}[what]
        notes = [b"x" * 1_400] * count if "notes" in what else None
        shard.apply(np.concatenate([event(Kind.TRANSFER, A, B, 1) for _ in range(count)]), notes, mine, 1)
    await until(lambda: bool(answered_in))
    assert answered_in[0] - before <= len(askers) + 3
    for asker in askers:
        asker.asks = False
    await ledger_.close()
    await journal.close()


async def test_holds_expire_by_the_clock_also_after_a_restart(one: Ledger) -> None:
    running = await one.start(0)
    await one.fund(A, B)
    short = event(Kind.HOLD, A, B, 100, span=SECOND_NS // 5)
    long = event(Kind.HOLD, A, B, 50, span=60 * SECOND_NS)
    assert not (await one.apply(short, long)).results["code"].any()
    assert await one.available(A) == 850
    await until(lambda: ledger.stats(running.shard.book).holds == 1)
    assert await one.available(A) == 950
    await running.crash()
    clock = HandClock()
    clock.wall_offset_s = 61.0
    await one.start(0, clock=clock)
    await until(lambda: ledger.stats(one.shards[0].shard.book).holds == 0)
    assert await one.available(A) == 1_000
    kinds = [int(kind) for record in await one.records(0) for kind in record.rows["kind"]]
    assert kinds.count(Kind.EXPIRE) == 2


async def test_stamps_increase_when_the_wall_clock_goes_back_also_over_a_restart(one: Ledger) -> None:
    clock = HandClock()
    running = await one.start(0, clock=clock)
    await one.fund(A, B)
    first = (await one.apply(event(Kind.TRANSFER, A, B, 1))).results["at"][0]
    clock.wall_offset_s = -3600.0
    second = (await one.apply(event(Kind.TRANSFER, A, B, 1))).results["at"][0]
    await running.crash()
    await one.start(0, clock=clock)
    third = (await one.apply(event(Kind.TRANSFER, A, B, 1))).results["at"][0]
    assert first < second < third


async def test_a_restarted_shard_has_every_answer_it_gave(one: Ledger) -> None:
    running = await one.start(0)
    await one.fund(A, B, C)
    good, bad = event(Kind.TRANSFER, A, B, 400), event(Kind.TRANSFER, A, C, 5_000)
    before = (await one.apply(good, bad)).results
    digest = ledger.digest(running.shard.book)
    await running.crash()
    again = await one.start(0)
    assert ledger.digest(again.shard.book) == digest
    after = (await one.apply(good, bad)).results
    assert after["code"].tolist() == before["code"].tolist() == [Code.OK, Code.INSUFFICIENT_FUNDS]
    assert after["at"].tolist() == (before["at"] // 1000 * 1000).tolist()  # as it is remembered
    assert (after["flags"] == ResultFlag.REPLAYED).all()


async def test_recovery_goes_on_from_a_snapshot_and_passes_over_a_damaged_one(one: Ledger, tmp_path: Path) -> None:
    running = await one.start(0)
    await one.fund(A, B)
    store = SnapshotStore(tmp_path, CHAIN_KEY)
    for _ in range(2):
        await one.apply(event(Kind.TRANSFER, A, B, 1))
        reader = Reader(one.journal, 0, CHAIN_KEY)
        last = [found async for found in reader.records()][-1]
        arrays = ledger.dump(running.shard.book)
        saved = store.save(0, reader.position, arrays, {"last_ns": int(last.rows["at"][-1]), "rules": ledger.RULES})
    await one.apply(event(Kind.TRANSFER, A, B, 1))
    digest = ledger.digest(running.shard.book)
    await running.crash()
    assert ledger.digest((await one.start(0, snapshots=saved_in(store))).shard.book) == digest
    await one.shards[0].crash()
    os.truncate(saved.path, saved.bytes - 40)
    assert ledger.digest((await one.start(0, snapshots=saved_in(store))).shard.book) == digest


@pytest.mark.parametrize(
    "damage",
    [
        'UPDATE journal.record SET payload = set_byte(payload, 900, get_byte(payload, 900) # 1) WHERE "offset" = 2',
        'UPDATE journal.record SET payload = substr(payload, 1, 300) WHERE "offset" = 2',
        'DELETE FROM journal.record WHERE "offset" = 2',
    ],
)
async def test_a_damaged_journal_is_not_served(one: Ledger, database: str, damage: str) -> None:
    running = await one.start(0)
    await one.fund(A, B)
    for _ in range(3):
        await one.apply(event(Kind.TRANSFER, A, B, 1))
    await running.crash()
    connection = await asyncpg.connect(database)
    await connection.execute(damage)
    await connection.close()
    with pytest.raises(Corrupt) as caught:
        await one.start(0)
    assert (caught.value.partition, caught.value.offset) == (0, 2)


async def test_stopping_finishes_what_was_received_and_gives_the_journal_up(one: Ledger) -> None:
    gated = GatedJournal(one.journal)
    running = await one.start(0, journal=gated)
    await one.fund(A, B)
    gated.gate.clear()
    gated.waiting.clear()
    write = asyncio.ensure_future(one.apply(event(Kind.TRANSFER, A, B, 1)))
    await gated.waiting.wait()
    running.server.stop_listening()
    stopping = asyncio.ensure_future(running.shard.stop())
    gated.gate.set()
    await stopping
    assert (await write).results["code"][0] == Code.OK
    assert not running.shard.serving
    await running.server.close()


async def test_many_rows_are_cut_into_frames_and_chains_stay_whole(one: Ledger) -> None:
    await one.start(0)
    await one.fund(A, B, amount=10**6)
    rows = np.concatenate([event(Kind.TRANSFER, A, B, 1) for _ in range(9_000)])
    rows["flags"][8_000:8_300] = Flag.LINKED
    notes: list[bytes | None] = [b"x" * 200 if number % 2 else None for number in range(9_000)]
    outcome = await one.apply(rows, notes=notes, within_s=30)
    assert not outcome.results["code"].any()
    assert (np.diff(outcome.results["at"]) > 0).all()
    journaled_notes = [
        note for record in (await one.records(0))[1:] for note in record.notes or [None] * len(record.rows)
    ]
    assert journaled_notes == notes


async def test_whoever_asks_for_accounts_gets_those_he_may_see(one: Ledger) -> None:
    await one.start(0)
    await one.fund(A)
    found = await one.client.read(np.array([A, A, B], np.uint64), np.array([7, 8, 0], np.uint64), time.monotonic() + 5)
    assert found.states["code"].tolist() == [Code.OK, Code.FORBIDDEN, Code.UNKNOWN_DEBIT_ACCOUNT]
    assert found.positions == {0: 1}
    assert await one.client.heads(time.monotonic() + 5) == {0: 2}
    stats = await one.client.stats(time.monotonic() + 5)
    assert (stats[0].accounts, stats[0].offset, stats[0].name) == (1, 2, "shard-000")
    assert (stats[0].ids, stats[0].clock_ahead_s) == (2, 0)
    assert 0 <= stats[0].ids_window_s < 60
