"""A client of one Kafka topic that sends every request once and tells exactly what is known of its outcome.

It stands on aiokafka's connections, protocol and record batches, not on its producer and consumer: that producer, when
idempotent, tries an append again for as long as it lives, and may then succeed without telling the offset. A writer of
the journal must know that it sent a record once, and where that lies.

A connection that was lost, timed out or answered for a broker that no longer leads is given up; the next request asks
the bootstrap servers again who leads what.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from aiokafka import errors
from aiokafka.conn import AIOKafkaConnection, collect_hosts, create_conn
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from storage.journal import JournalError

LOST: Final = (errors.KafkaError, OSError, TimeoutError)
"""What a request may end with: no connection, no answer in time, or the broker's word."""

LASTING: Final = (
    errors.TopicAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
    errors.AuthenticationFailedError,
    errors.SaslAuthenticationFailed,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
    errors.MessageSizeTooLargeError,
    errors.RecordListTooLargeError,
    errors.IncompatibleBrokerVersion,
    ssl.SSLCertVerificationError,
)
"""Those that another try would only meet again."""

_Found = TypeVar("_Found")

LATEST: Final = -1
EARLIEST: Final = -2
_ALL_REPLICAS: Final = -1
_AS_CONSUMER: Final = -1
_UNCOMMITTED: Final = 0
_PAUSE_S: Final = 0.1
_IDLE_MS: Final = 60_000
"""We close an idle connection before the broker, or something in between, does so while an append is on its way."""


@dataclass(frozen=True, slots=True)
class KafkaAddress:
    """Where a Kafka cluster is, and how to enter."""

    bootstrap: str  # "host:port,host:port"
    security_protocol: str = "PLAINTEXT"  # or SSL, SASL_PLAINTEXT, SASL_SSL
    sasl_mechanism: str = "SCRAM-SHA-512"  # or SCRAM-SHA-256, PLAIN
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, repr=False)
    ssl_ca: str | None = None  # PEM file of those who may sign the brokers' certificates; None: the system's

    def client_settings(self) -> dict[str, Any]:
        """As keyword arguments of aiokafka's clients, but for `bootstrap_servers`.

        Raises:
            OSError: the CA file cannot be read.
        """
        settings: dict[str, Any] = {"security_protocol": self.security_protocol}
        if self.security_protocol.endswith("SSL"):
            settings["ssl_context"] = ssl.create_default_context(cafile=self.ssl_ca)
        if self.security_protocol.startswith("SASL"):
            settings |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password,
            }
        return settings


class Leaders(NamedTuple):
    """What the cluster says of the topic."""

    cluster: str  # its id, made with it and never changed
    brokers: Mapping[int, tuple[str, int]]  # node → host and port
    controller: int
    partitions: Mapping[int, int]  # partition → leading node, -1 = none now; empty when there is no such topic
    replicas: int  # fewest copies of a partition; 0 when there is no such topic


class NoLeader(ConnectionError):  # noqa: N818 - what it is
    """Nobody leads the partition now, or the topic is not there (yet)."""


def batch(payload: bytes, headers: list[tuple[str, bytes | None]]) -> bytes:
    """A Kafka record batch of one message, stamped with this machine's time. The payload is compressed, or not worth
    it."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=0,
    )
    builder.append(0, None, None, payload, headers)
    return bytes(builder.build())


class TopicClient:
    """Connections to the brokers that lead a topic's partitions, one each."""

    def __init__(self, address: KafkaAddress, topic: str, *, timeout_s: float, patience_s: float = 3.0) -> None:
        """`timeout_s` bounds each request, `patience_s` how long one that changes nothing is tried again."""
        self.topic = topic
        self._address = address
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._settings: dict[str, Any] | None = None
        self._connections: dict[int, AIOKafkaConnection] = {}
        self._leaders: Leaders | None = None
        self._turn = asyncio.Lock()

    async def leaders(self) -> Leaders:
        """Who leads what, as the cluster says now.

        Raises:
            one of LOST.
        """
        failed: BaseException | None = None
        for host, port, _ in collect_hosts(self._address.bootstrap):
            try:
                connection = await self._connect(host, port)
            except LOST as error:
                failed = error
                continue
            try:
                return _leaders(await connection.send(MetadataRequest([self.topic], allow_auto_topic_creation=False)))
            except LOST as error:
                failed = error
            finally:
                await _closed(connection)
        raise failed or errors.NoBrokersAvailable(f"no server in {self._address.bootstrap!r}")

    async def produce(self, partition: int, messages: bytes, *, timeout_s: float) -> int:
        """Append a record batch, in one request; returns its offset once every replica in sync has it.

        Connecting is tried again until `timeout_s` have passed; what may have been sent is not.

        Raises:
            JournalError: there is no such partition.
            one of LOST: it is not known whether it was appended, unless it is one of LASTING.
        """
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    connection = await self._connection_of(partition)
                    break
                except LASTING:
                    raise
                except LOST:
                    self.drop()
                await asyncio.sleep(_PAUSE_S)
            topics = [(self.topic, [(partition, messages)])]
            answer = await connection.send(ProduceRequest(None, _ALL_REPLICAS, int(timeout_s * 1000), topics))
        (found,) = answer.topics[0][1]
        _, code, offset, *_ = found
        _raise_for(code)
        return int(offset)

    async def fetch(self, partition: int, offset: int, *, bytes_max: int, wait_s: float) -> bytes:
        """The record batches from `offset` on, about `bytes_max` of them; empty when there were none within `wait_s`.

        Raises:
            OffsetOutOfRangeError: the log does not reach there; or one of LOST.
        """

        async def once() -> bytes:
            connection = await self._connection_of(partition)
            topics = [(self.topic, [(partition, offset, bytes_max)])]
            answer = await connection.send(FetchRequest(int(wait_s * 1000), 1, bytes_max, _UNCOMMITTED, topics))
            (found,) = answer.topics[0][1]
            _raise_for(found[1])
            return found[-1] or b""

        return await self._patiently(once)

    async def offsets(self, which: int, partition: int | None = None) -> dict[int, int]:
        """Offset of the LATEST record's successor, or of the EARLIEST record, of one partition or of all.

        Right after a change of leader the brokers refuse to answer until they know: an acknowledged record is never
        left out.

        Raises:
            one of LOST.
        """

        async def once() -> dict[int, int]:
            if partition is not None:
                asked = {(await self._leading(partition)): [partition]}
            else:
                asked = {}
                for one, node in (await self._known()).partitions.items():
                    asked.setdefault(node, []).append(one)
            found: dict[int, int] = {}
            for node, partitions in asked.items():
                connection = await self._connection(node)
                topics = [(self.topic, [(one, which) for one in partitions])]
                answer = await connection.send(OffsetRequest(_AS_CONSUMER, _UNCOMMITTED, topics))
                for one, code, _, offset in answer.topics[0][1]:
                    _raise_for(code)
                    found[one] = offset
            return found

        return await self._patiently(once)

    async def ask(self, request: Any) -> Any:
        """Send something to the controller, or to whoever speaks for it.

        Raises:
            one of LOST.
        """
        leaders = await self.leaders()
        if leaders.controller not in leaders.brokers:
            raise NoLeader("nobody leads the cluster now")
        host, port = leaders.brokers[leaders.controller]
        connection = await self._connect(host, port)
        try:
            return await connection.send(request)
        finally:
            await _closed(connection)

    def drop(self) -> list[Awaitable[Any]]:
        """Give up what is known, and the connections with what is on its way; returns what to wait for."""
        self._leaders = None
        connections, self._connections = self._connections, {}
        return [connection.close() for connection in connections.values()]

    async def close(self) -> None:
        """Give up connections."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                await asyncio.gather(*self.drop())

    async def _patiently(self, once: Callable[[], Awaitable[_Found]]) -> _Found:
        """Do what changes nothing, again and again for a while: leaders move, brokers start again."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience_s
        while True:
            try:
                return await once()
            except (*LASTING, errors.OffsetOutOfRangeError):
                raise
            except LOST:
                self.drop()
                if loop.time() > deadline:
                    raise
            await asyncio.sleep(_PAUSE_S)

    async def _known(self) -> Leaders:
        async with self._turn:
            if self._leaders is None:
                self._leaders = await self.leaders()
            if not self._leaders.partitions:
                self._leaders = None
                raise NoLeader(f"there is no topic {self.topic}")
            return self._leaders

    async def _leading(self, partition: int) -> int:
        partitions = (await self._known()).partitions
        if partition not in partitions:
            raise JournalError(f"there is no partition {partition}")
        return partitions[partition]

    async def _connection_of(self, partition: int) -> AIOKafkaConnection:
        return await self._connection(await self._leading(partition))

    async def _connection(self, node: int) -> AIOKafkaConnection:
        known = await self._known()
        async with self._turn:
            connection = self._connections.get(node)
            if connection is None or not connection.connected():
                if node not in known.brokers:
                    raise NoLeader(f"no leader is known on node {node}")
                connection = self._connections[node] = await self._connect(*known.brokers[node])
            return connection

    async def _connect(self, host: str, port: int) -> AIOKafkaConnection:
        if self._settings is None:
            self._settings = self._address.client_settings()
        return await create_conn(
            host,
            port,
            client_id="razao",
            request_timeout_ms=self._timeout_s * 1000,
            max_idle_ms=_IDLE_MS,
            **self._settings,
        )


async def _closed(connection: AIOKafkaConnection) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2.0):
            await connection.close()


def _leaders(answer: Any) -> Leaders:
    """Read the answer to a metadata request about one topic.

    Raises:
        BrokerResponseError: the topic may not be read.
    """
    brokers = {node: (host, port) for node, host, port, *_ in answer.brokers}
    partitions: dict[int, int] = {}
    replicas: list[int] = []
    for code, _, _, found in answer.topics:
        if code == errors.UnknownTopicOrPartitionError.errno:
            continue
        _raise_for(code)
        for _, partition, leader, copies, *_ in found:
            partitions[partition] = leader
            replicas.append(len(copies))
    return Leaders(answer.cluster_id, brokers, answer.controller_id, partitions, min(replicas, default=0))


def _raise_for(code: int) -> None:
    if code:
        raise errors.for_code(code)()
