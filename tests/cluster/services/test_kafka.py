"""The Kafka broker on real processes: closed to others, and it survives what kills it."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError, UnknownTopicOrPartitionError, for_code

from cluster import processes
from cluster.services.kafka import KafkaError, KafkaServer
from tests.conftest import free_port

TOPIC = "words"


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A directory of the module's own, whose path has what a properties file and a shell would trip over."""
    top = Path(tempfile.mkdtemp(prefix="rz-"))
    yield top / "a b=c#d,'é"
    shutil.rmtree(top)


@pytest.fixture(scope="module")
def broker(directory: Path) -> Iterator[KafkaServer]:
    """One broker for the tests of this module; each leaves it running."""
    server = KafkaServer(directory, free_port(), secure=True, env={processes.MARK: "kafka-test"})
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _login(server: KafkaServer) -> dict[str, Any]:
    how = server.client_settings
    if how["security_protocol"] == "PLAINTEXT":
        return {"bootstrap_servers": server.bootstrap}
    return {
        "bootstrap_servers": server.bootstrap,
        "security_protocol": how["security_protocol"],
        "sasl_mechanism": how["sasl_mechanism"],
        "sasl_plain_username": how["sasl_username"],
        "sasl_plain_password": how["sasl_password"],
        "ssl_context": ssl.create_default_context(cafile=how["ssl_ca"]),
    }


async def _ensure_topic(server: KafkaServer) -> None:
    admin = AIOKafkaAdminClient(**_login(server))
    await admin.start()
    try:
        if TOPIC not in await admin.list_topics():
            await admin.create_topics([NewTopic(TOPIC, 1, 1)])
    finally:
        await admin.close()


async def _say(server: KafkaServer, *words: bytes) -> None:
    producer = AIOKafkaProducer(**_login(server), acks="all")
    await producer.start()
    try:
        for word in words:
            await producer.send_and_wait(TOPIC, word, partition=0)
    finally:
        await producer.stop()


async def _said(server: KafkaServer) -> list[bytes]:
    consumer = AIOKafkaConsumer(**_login(server), auto_offset_reset="earliest")
    await consumer.start()
    try:
        partition = TopicPartition(TOPIC, 0)
        consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        words: list[bytes] = []
        while len(words) < end:
            words += [message.value for message in (await consumer.getmany(timeout_ms=1000)).get(partition, [])]
        return words
    finally:
        await consumer.stop()


async def test_what_was_acknowledged_is_there_after_a_kill_and_after_a_clean_stop(broker: KafkaServer) -> None:
    await _ensure_topic(broker)
    before = await _said(broker)
    await _say(broker, b"one", b"two")
    broker.kill()
    assert not broker.running
    broker.start()
    await _say(broker, b"three")
    broker.stop()
    broker.start()
    assert await _said(broker) == [*before, b"one", b"two", b"three"]


def test_it_listens_on_loopback_only(broker: KafkaServer) -> None:
    assert broker.pid is not None
    listening = [c for c in psutil.Process(broker.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert broker.port in {c.laddr.port for c in listening}
    assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}


async def test_nobody_enters_a_secure_broker_without_the_password_and_that_is_the_owners_alone(
    broker: KafkaServer,
) -> None:
    for wrong in ({"sasl_plain_password": "no"}, {"security_protocol": "SSL"}, {"security_protocol": "PLAINTEXT"}):
        producer = AIOKafkaProducer(**{**_login(broker), **wrong}, request_timeout_ms=2000)
        with pytest.raises(KafkaConnectionError):
            await producer.start()
        await producer.stop()
    for name in ("password", "server.properties", "server.log", "tls/localhost.pem"):
        assert stat.S_IMODE((broker.directory / name).stat().st_mode) == 0o600
    assert broker.pid is not None
    assert broker.client_settings["sasl_password"] not in " ".join(psutil.Process(broker.pid).cmdline())


async def test_a_topic_that_nobody_made_does_not_come_into_being(broker: KafkaServer) -> None:
    admin = AIOKafkaAdminClient(**_login(broker))
    await admin.start()
    try:
        (asked,) = await admin.describe_topics(["misspelt"])
        assert for_code(asked["error_code"]) is UnknownTopicOrPartitionError
        assert "misspelt" not in await admin.list_topics()
    finally:
        await admin.close()


def test_it_bears_the_engines_mark_and_is_shown_as_kafka(broker: KafkaServer) -> None:
    assert broker.pid in processes.owned("kafka-test")
    assert broker.pid is not None
    assert processes.role_of_server(broker.pid) == "kafka"


async def test_a_broker_whose_owner_died_is_replaced_and_a_start_while_it_runs_changes_nothing(
    broker: KafkaServer, directory: Path
) -> None:
    await _ensure_topic(broker)
    orphan = broker.pid
    broker.start()
    assert broker.pid == orphan
    successor = KafkaServer(directory, broker.port, secure=True)
    successor.start()
    try:
        assert successor.pid != orphan
        assert not broker.running
    finally:
        successor.stop()
        broker.start()


async def test_the_same_directory_can_be_served_without_tls(broker: KafkaServer, directory: Path) -> None:
    broker.stop()
    plain = KafkaServer(directory, broker.port)
    plain.start()
    try:
        await _ensure_topic(plain)
        await _say(plain, b"plain")
        assert (await _said(plain))[-1] == b"plain"
    finally:
        plain.stop()
        broker.start()


def test_a_port_that_is_taken_is_named_before_anything_is_started(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = int(other.getsockname()[1])
        with pytest.raises(KafkaError, match=f"port {port} is taken"):
            KafkaServer(tmp_path / "kafka", port).start()


def test_a_setting_that_kafka_refuses_is_told_in_its_own_words(tmp_path: Path) -> None:
    server = KafkaServer(tmp_path / "kafka", free_port(), settings={"num.io.threads": "none"})
    with pytest.raises(KafkaError, match=r"num\.io\.threads"):
        server.start()
    assert not server.running
    assert not (tmp_path / "kafka" / "data").exists()


def test_a_directory_that_cannot_be_written_is_an_error_of_kafkas_kind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KafkaError, match="cannot use"):
        KafkaServer(tmp_path / "file" / "kafka", free_port()).start()
    assert os.listdir(tmp_path) == ["file"]
