"""Passing the feed on: everything, in order, at least once, through a sink that fails anywhere, to a real topic too."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord
from jsonschema import Draft202012Validator, FormatChecker  # type: ignore[import-untyped]

from actors.feed import Publisher
from deployments import asyncapi
from storage.feed import Feed
from storage.feed_kafka import KafkaSink
from storage.feed_schema import PREFIX, TYPES, Message, SinkAway, encode
from storage.journal.kafka_client import KafkaAddress
from storage.journal.postgres import PostgresJournal
from storage.query_store import QueryStore
from storage.snapshots import SnapshotStore
from tests.actors.projection_history import PARTITIONS, History
from tests.actors.test_feed import every_event, feed
from tests.actors.test_projection import KEY, Log, journal, log, projecting, snapshots, store, written

__all__ = ["feed", "journal", "log", "snapshots", "store"]

_topics = itertools.count()


class Memory:
    """A sink that keeps what it gets, and fails when told: before it has taken a batch, amid, or behind."""

    name = "memory"

    def __init__(self, fails: random.Random | None = None) -> None:
        self.messages: list[Message] = []
        self.failed = 0
        self._fails = fails

    async def send(self, messages: Sequence[Message]) -> None:
        await asyncio.sleep(0)
        if self._fails is not None and self._fails.random() < 0.3:
            self.failed += 1
            self.messages += messages[: self._fails.choice([0, len(messages) // 2, len(messages)])]
            raise SinkAway("told to fail")
        self.messages += messages

    async def close(self) -> None:
        """Nothing to let go of."""


@asynccontextmanager
async def publishing(publisher: Publisher) -> AsyncIterator[asyncio.Event]:
    """A publisher at work; the event is set whenever it has passed everything on."""
    caught_up = asyncio.Event()
    task = asyncio.create_task(publisher.run(caught_up.set))
    try:
        yield caught_up
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def pass_on(make: Callable[[], Publisher]) -> None:
    """Everything that there is now. When the sink fails, a new publisher goes on, as after a crash."""
    publisher = make()
    more = True
    while more:
        try:
            more = await publisher.catch_up()
        except SinkAway:
            publisher = make()


def firsts(messages: Sequence[Message]) -> dict[int, list[bytes]]:
    """By account, in order of their first arrival."""
    found: dict[int, dict[bytes, None]] = {}
    for message in messages:
        found.setdefault(message.account, {})[message.body] = None
    return {account: list(bodies) for account, bodies in found.items()}


async def wanted(feed: Feed) -> dict[int, list[bytes]]:
    """By account, as the feed has it."""
    return firsts([Message(one.account, encode(one)) for one in await every_event(feed)])


@pytest.mark.parametrize("batch", [3, 50, 1000])
async def test_everything_is_passed_on_once_and_in_order(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore, feed: Feed, batch: int
) -> None:
    sink = Memory()
    publisher = Publisher(Feed(store.pool, PARTITIONS), sink, batch=batch)
    history = History(71)
    async with projecting(journal, store, snapshots) as projection:
        for _ in range(4):
            await written(history, log, steps=10)
            await projection.catch_up()
            await pass_on(lambda: publisher)
    assert len({message.body for message in sink.messages}) == len(sink.messages)
    assert firsts(sink.messages) == await wanted(feed)
    assert publisher.stats.events == len(sink.messages)
    assert publisher.stats.late_ns == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_sink_that_fails_anywhere_gets_everything_in_order_at_least_once(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore, feed: Feed, seed: int
) -> None:
    """Another publisher after every failure."""
    print("seed", seed)
    sink = Memory(random.Random(seed))
    history = History(seed + 80)
    async with projecting(journal, store, snapshots) as projection:
        for _ in range(5):
            await written(history, log, steps=8)
            await projection.catch_up()
            await pass_on(lambda: Publisher(Feed(store.pool, PARTITIONS), sink, batch=11))
    assert sink.failed
    assert firsts(sink.messages) == await wanted(feed)


async def test_a_rebuild_passes_everything_on_again_under_the_same_ids(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore, feed: Feed, tmp_path: Path
) -> None:
    """Also by a publisher that runs meanwhile."""
    sink = Memory()
    await written(History(91), log, steps=30)
    async with (
        projecting(journal, store, snapshots) as projection,
        publishing(Publisher(Feed(store.pool, PARTITIONS), sink)) as caught_up,
    ):
        await projection.catch_up()
        whole = await wanted(feed)
        await _until(lambda: firsts(sink.messages) == whole, caught_up)
        once = list(sink.messages)
        await store.reset()
        sink.messages.clear()
        async with projecting(journal, store, SnapshotStore(tmp_path / "others", KEY)) as again:
            await again.catch_up()
            await _until(lambda: firsts(sink.messages) == whole, caught_up)
    assert sorted(sink.messages) == sorted(once)


async def _until(check: object, caught_up: asyncio.Event) -> None:
    assert callable(check)
    async with asyncio.timeout(30):
        while not check():
            caught_up.clear()
            await caught_up.wait()


async def test_a_topic_has_every_event_by_account_in_order_and_as_the_document_says(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore, feed: Feed,
    kafka_address: KafkaAddress,
) -> None:  # fmt: skip
    """CloudEvents in structured mode, keyed by account."""
    topic = f"events-{next(_topics)}"
    await written(History(101), log, steps=60)
    async with projecting(journal, store, snapshots) as projection:
        await projection.catch_up()
    sink = KafkaSink(kafka_address, topic, partitions=3)
    async with publishing(Publisher(Feed(store.pool, PARTITIONS), sink)) as caught_up, asyncio.timeout(60):
        await caught_up.wait()
    whole = await wanted(feed)
    records = await _consumed(kafka_address, topic, sum(map(len, whole.values())))
    messages = [Message(int(record.key), record.value) for record in records]
    assert firsts(messages) == whole
    assert len(messages) == sum(map(len, whole.values()))
    schemas = asyncapi.document("test", "1", "/v1/events")["components"]["schemas"]
    known = {}
    for kind in TYPES:
        schema = {**asyncapi.event_schema(kind), "components": {"schemas": schemas}}
        known[PREFIX + kind.name] = Draft202012Validator(schema, format_checker=FormatChecker())
    for record in records:
        event = json.loads(record.value)
        known[event["type"]].validate(event)
        assert event["subject"] == record.key.decode()
        assert dict(record.headers) == {"content-type": b"application/cloudevents+json"}


async def _consumed(address: KafkaAddress, topic: str, count: int) -> list[ConsumerRecord[bytes, bytes]]:
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=address.bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with asyncio.timeout(60):
            return [await consumer.getone() for _ in range(count)]
    finally:
        await consumer.stop()


async def test_a_topic_that_is_away_is_waited_for(
    journal: PostgresJournal, log: Log, store: QueryStore, snapshots: SnapshotStore
) -> None:
    """The publisher says why nothing arrives, and goes on trying."""
    await written(History(111), log, steps=3)
    async with projecting(journal, store, snapshots) as projection:
        await projection.catch_up()
    publisher = Publisher(Feed(store.pool, PARTITIONS), KafkaSink(KafkaAddress("127.0.0.1:1"), "nowhere", send_s=1.0))
    with pytest.raises(SinkAway, match="nowhere"):
        await publisher.catch_up()
    async with publishing(publisher), asyncio.timeout(20):
        while not publisher.stats.waiting:  # noqa: ASYNC110 - it tells whoever asks
            await asyncio.sleep(0.02)
    assert "nowhere" in publisher.stats.waiting
    assert publisher.stats.events == 0
