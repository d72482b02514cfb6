"""The vault's messages over Kafka: a relay moves them from its outbox to a topic, and consumers take them from there.

Keyed by the reference, so that one person's messages are one consumer's. A consumer commits after it has acted, so
whatever happens in between, a message comes again; the topic is never asked to keep anybody's data.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from storage.feed_kafka import TopicProducer
from storage.feed_schema import SinkAway
from storage.journal.kafka_client import KafkaAddress
from storage.messages import Change, Changes, ChangesAway

TOPIC: Final = "razao.vault-changes"
GROUP: Final = "razao-score"
_RELAYED: Final = 500
_AGAIN_S: Final = 1.0


class KafkaChanges:
    """Takes messages of a topic as one of `group`."""

    def __init__(self, address: KafkaAddress, *, topic: str = TOPIC, group: str = GROUP, wait_s: float = 5.0) -> None:
        self._address = address
        self._topic = topic
        self._group = group
        self._wait_s = wait_s
        self._consumer: Any = None

    async def take(self, limit: int) -> list[Change]:
        """See `Changes`."""
        try:
            consumer = await self._connected()
            found = await consumer.getmany(timeout_ms=int(self._wait_s * 1000), max_records=limit)
        except (KafkaError, OSError) as error:
            await self.close()
            raise ChangesAway(f"the topic {self._topic} cannot be read: {type(error).__name__}") from error
        return [
            Change(bytes.fromhex(message.key.decode()), _request_of(message.value), (partition, message.offset))
            for partition, messages in found.items()
            for message in messages
        ]

    async def done(self, changes: Sequence[Change]) -> None:
        """See `Changes`."""
        ends: dict[TopicPartition, Any] = {}
        for change in changes:
            partition, offset = change.place
            ends[partition] = OffsetAndMetadata(max(offset + 1, ends.get(partition, (0,))[0]), "")
        if not ends:
            return
        try:
            await (await self._connected()).commit(ends)
        except (KafkaError, OSError) as error:
            await self.close()  # another member begins where the group has committed
            raise ChangesAway(f"the topic {self._topic} cannot be committed: {type(error).__name__}") from error

    async def close(self) -> None:
        """See `Changes`."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with contextlib.suppress(KafkaError, OSError):
                await consumer.stop()

    async def _connected(self) -> Any:
        if self._consumer is None:
            consumer = AIOKafkaConsumer(
                self._topic,
                bootstrap_servers=self._address.bootstrap,
                **self._address.client_settings(),
                client_id="razao-score",
                group_id=self._group,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
            )
            self._consumer = consumer
            await consumer.start()
        return self._consumer


class Relay:
    """Moves messages from the outbox to a topic, at least once. Two of them share the work."""

    def __init__(self, source: Changes, producer: TopicProducer) -> None:
        self._source = source
        self._producer = producer

    async def run(self) -> None:
        """Go on until cancelled; what cannot be done now is tried again."""
        try:
            while True:
                try:
                    await self.step()
                except (ChangesAway, SinkAway):
                    await asyncio.sleep(_AGAIN_S)
        finally:
            await self._source.close()
            await self._producer.close()

    async def step(self) -> int:
        """Move what there is; returns how many.

        Raises:
            ChangesAway, SinkAway: some of them come again.
        """
        changes = await self._source.take(_RELAYED)
        if changes:
            await self._producer.send(
                (change.person.hex().encode(), json.dumps({"request": change.request}).encode()) for change in changes
            )
            await self._source.done(changes)
        return len(changes)


def _request_of(value: bytes) -> str:
    return str(json.loads(value)["request"])
