"""The engine with its journal on Kafka, as an operator meets it: on a broker of its own, and on somebody else's."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from aiokafka import AIOKafkaConsumer

from cluster.data import DataDirectory
from cluster.journals import kafka_address, open_journal
from cluster.plan import Plan
from cluster.processes import alive, owned
from cluster.services.kafka import KafkaServer
from cluster.settings import KafkaSecurity, Settings
from storage.journal import JournalError
from tests.conftest import free_port, running
from tests.engine import RAZAO, Engine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]


def refusal(engine: Engine, *arguments: str) -> str:
    """What `razao up` says when it refuses to start on an engine's directory, in its environment."""
    done = subprocess.run(
        [RAZAO, "up", "--data", str(engine.data), "--port", "0", "--tls-port", "0", *arguments],
        capture_output=True, text=True, timeout=120, check=False, env=engine.environment,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stderr.replace("\n", " ")


def test_a_ledger_on_kafka_is_shown_verified_and_rebuilt_like_any_other_and_keeps_its_kind_of_journal(
    tmp_path: Path,
) -> None:
    one = Engine(tmp_path / "var", shards=1, tiers="vault,score,trace")
    try:
        one.start("--journal", "kafka")
        found = one.status()
        assert found["journal"] == "kafka"
        assert f"Kafka on {found['kafka']}" in one.output()
        brokers = [process["pid"] for process in found["processes"] if process["role"] == "kafka"]
        assert len(brokers) == 1
        listening = [at for at in psutil.Process(brokers[0]).net_connections("inet") if at.status == psutil.CONN_LISTEN]
        assert len(listening) >= 2
        for at in listening:
            assert ipaddress.ip_address(at.laddr.ip.removeprefix("::ffff:")).is_loopback, at
        said = one.razao("demo").stdout
        assert "every centavo is where it belongs" in said
        assert "the person lets the score ask the vault" in said  # which it learnt from a topic: it kept another score
        one.verify()
        assert one.status()["projection"]["lag"] == 0
        settings = Plan.load(DataDirectory(one.data)).settings
        asyncio.run(until_told(settings))
        # Another user of this machine gets nowhere with the address alone.
        stranger = open_journal(settings.model_copy(update={"kafka_security_protocol": KafkaSecurity.PLAINTEXT}), "")
        with pytest.raises(JournalError):
            asyncio.run(stranger.heads())
        before = set(owned(DataDirectory(one.data).secrets().engine))
        assert brokers[0] in before
        one.stop()
        assert not [pid for pid in before if alive(pid)]

        # Offline too its journal is found, and nothing is left running.
        assert "made them again" in one.razao("rebuild").stdout
        assert one.verify()["partitions"][0]["records"] > 0
        assert not owned(DataDirectory(one.data).secrets().engine)

        assert "the journal of this ledger is on kafka, not on postgres" in refusal(one, "--journal", "postgres")
    finally:
        one.stop()


async def until_told(settings: Settings) -> None:
    """Return when the events of a demo are in their topic."""
    wanted = {"account.opened", "transfer.settled", "transfer.refused", "transfer.held", "transfer.posted"}
    consumer = AIOKafkaConsumer(
        settings.kafka_events_topic,
        bootstrap_servers=settings.kafka_bootstrap,
        auto_offset_reset="earliest",
        **kafka_address(settings).client_settings(),
    )
    await consumer.start()
    try:
        async with asyncio.timeout(60):
            while wanted:
                message = await consumer.getone()
                wanted.discard(json.loads(message.value)["type"].removeprefix("br.razao."))
    finally:
        await consumer.stop()


@pytest.fixture
def cluster() -> Iterator[KafkaServer]:
    """Somebody else's broker, behind SCRAM and TLS."""
    with running(lambda place: KafkaServer(place, free_port(), secure=True)) as server:
        yield server


def test_an_existing_cluster_is_used_and_no_two_ledgers_share_a_topic(cluster: KafkaServer, tmp_path: Path) -> None:
    entry = {f"kafka_{name}": value for name, value in cluster.client_settings.items()}
    settings = {"journal": "kafka", "kafka_bootstrap": cluster.bootstrap, **entry}
    one = Engine(tmp_path / "one", shards=1, settings=settings)
    other = Engine(tmp_path / "other", shards=1, settings=settings)
    try:
        one.start()
        assert not one.pids("kafka")
        assert "every centavo is where it belongs" in one.razao("demo").stdout
        one.verify()
        # Not even for a moment may another ledger take its partitions over.
        epochs = [shard["epoch"] for shard in one.status()["shards"]]
        assert "has another ledger's records already" in refusal(other, "--shards", "1")
        assert [shard["epoch"] for shard in one.status()["shards"]] == epochs
        one.stop()
        one.environment["RAZAO_KAFKA_TOPIC"] = "another"
        assert "but the settings lead to kafka" in refusal(one)
    finally:
        one.stop()
        other.stop()
