"""The feed's topic on Kafka: every event as a CloudEvent in structured mode, keyed by its account.

By aiokafka's idempotent producer, which keeps the order of an account's events through its retries. CloudEvents Kafka
protocol binding 1.0.2, 3.3.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.producer.message_accumulator import BatchBuilder

from storage.feed_schema import MEDIA_TYPE, Message, SinkAway
from storage.journal.kafka_client import KafkaAddress

TOPIC: Final = "razao.events"
_HEADERS: Final = [("content-type", MEDIA_TYPE.encode())]
_SEND_S: Final = 30.0
_CLOSE_S: Final = 5.0


@dataclass(slots=True)
class TopicProducer:
    """Sends messages to `topic`, which is made with `partitions` if it is not there."""

    address: KafkaAddress
    topic: str
    partitions: int = 8
    replication: int = 1
    send_s: float = _SEND_S
    client_id: str = "razao"
    headers: Sequence[tuple[str, bytes]] = ()
    _producer: AIOKafkaProducer | None = field(default=None, init=False)

    async def send(self, messages: Iterable[tuple[bytes, bytes]]) -> None:
        """Return when every replica in sync has all of the messages, given as key and value.

        Raises:
            SinkAway: not within `send_s`, or the broker refused.
        """
        try:
            async with asyncio.timeout(self.send_s):
                await self._send(await self._connected(), messages)
        except (KafkaError, OSError, TimeoutError) as error:
            # What this producer still holds must not arrive behind what another one sends again.
            await self.close()
            raise SinkAway(f"the topic {self.topic} takes nothing: {error!r}") from error

    async def _send(self, producer: AIOKafkaProducer, messages: Iterable[tuple[bytes, bytes]]) -> None:
        # Batches that we fill ourselves take half of what a call and a future for each message do.
        partitions = sorted(await producer.partitions_for(self.topic))
        choose, headers = DefaultPartitioner(), list(self.headers)
        filling: dict[int, BatchBuilder] = {}
        sent = []
        for key, body in messages:
            partition = choose(key, partitions, partitions)
            batch = filling.get(partition) or filling.setdefault(partition, producer.create_batch())
            if batch.append(timestamp=None, key=key, value=body, headers=headers) is None:
                sent.append(await producer.send_batch(batch, self.topic, partition=partition))
                batch = filling[partition] = producer.create_batch()
                batch.append(timestamp=None, key=key, value=body, headers=headers)
        for partition, batch in filling.items():
            sent.append(await producer.send_batch(batch, self.topic, partition=partition))
        await asyncio.gather(*sent)

    async def close(self) -> None:
        """Let go of the producer, whatever it still has to do."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await producer.stop()

    async def _connected(self) -> AIOKafkaProducer:
        if self._producer is None:
            settings = {"bootstrap_servers": self.address.bootstrap, **self.address.client_settings()}
            await self._ensure_topic(settings)
            producer = AIOKafkaProducer(
                **settings, client_id=self.client_id, enable_idempotence=True, acks="all", linger_ms=5,
                max_batch_size=1 << 18,
            )  # fmt: skip
            self._producer = producer
            await producer.start()
        return self._producer

    async def _ensure_topic(self, settings: dict[str, Any]) -> None:
        admin = AIOKafkaAdminClient(**settings)
        try:
            await admin.start()
            topic = NewTopic(self.topic, num_partitions=self.partitions, replication_factor=self.replication)
            answer = await admin.create_topics([topic])
            for _, code, *_ in answer.topic_errors:
                if code not in {0, TopicAlreadyExistsError.errno}:
                    raise for_code(code)()
        finally:
            await admin.close()


class KafkaSink:
    """Sends the feed's events, keyed by their account."""

    def __init__(self, address: KafkaAddress, topic: str = TOPIC, **options: Any) -> None:
        """`options`: those of `TopicProducer`."""
        self.topic = topic
        self._producer = TopicProducer(address, topic, client_id="razao-events", headers=_HEADERS, **options)

    @property
    def name(self) -> str:
        """Under which progress is kept: a topic is one whatever address it is reached at."""
        return f"kafka:{self.topic}"

    async def send(self, messages: Sequence[Message]) -> None:
        """Return when every replica in sync has all of them.

        Raises:
            SinkAway: not in time, or the broker refused.
        """
        await self._producer.send((b"%d" % account, body) for account, body in messages)

    async def close(self) -> None:
        """Let go of the producer, whatever it still has to do."""
        await self._producer.close()
