"""A ledger keeps which journal is its own, and takes no other: not by an option, not by a wrong address."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Final

import pytest
from aiokafka.protocol.admin import DeleteTopicsRequest
from pydantic import ValidationError

from cluster.data import EngineError, Secrets
from cluster.journals import kafka_address, open_journal
from cluster.settings import JournalKind, Settings
from cluster.stores import Ledger, pool_of, prepare_stores, settle_journal
from storage.journal.kafka_client import KafkaAddress, TopicClient
from storage.record import encode_open
from storage.registry import Registry

SECRETS: Final = Secrets("engine", "ab" * 32, "cd" * 32, "ef" * 32)
_topics: Final = itertools.count()


def settings_of(**given: Any) -> Settings:
    """Settings from the environment and what is given."""
    return Settings(**given)


async def prepare(dsn: str, settings: Settings, secrets: Secrets = SECRETS) -> Ledger:
    return await prepare_stores(dsn, settings, secrets, say=lambda _: None)


@pytest.fixture
def on_kafka(kafka_address: KafkaAddress) -> Settings:
    """Settings with a topic of the test's own, which need not exist."""
    topic = f"stores-{next(_topics)}"
    return settings_of(journal=JournalKind.KAFKA, kafka_bootstrap=kafka_address.bootstrap, kafka_topic=topic, shards=2)


def changed(settings: Settings, **update: Any) -> Settings:
    return settings.model_copy(update=update)


async def test_a_new_ledger_has_the_journal_that_is_asked_for(database: str, on_kafka: Settings) -> None:
    assert (await settle_journal(database, settings_of())).journal is JournalKind.POSTGRES
    assert (await settle_journal(database, on_kafka)).journal is JournalKind.KAFKA


async def test_a_ledger_keeps_its_kind_of_journal_and_refuses_another(database: str, on_kafka: Settings) -> None:
    await prepare(database, settings_of(journal=JournalKind.POSTGRES))
    assert (await settle_journal(database, settings_of())).journal is JournalKind.POSTGRES
    with pytest.raises(EngineError, match="on postgres, not on kafka; it was fixed"):
        await settle_journal(database, on_kafka)
    with pytest.raises(EngineError, match="is postgres, but the settings lead to kafka"):
        await prepare(database, on_kafka)


async def test_a_ledger_on_kafka_needs_no_word_of_it_at_the_next_start(database: str, on_kafka: Settings) -> None:
    assert (await prepare(database, on_kafka)).partitions == 2
    assert (await settle_journal(database, settings_of())).journal is JournalKind.KAFKA
    assert (await prepare(database, on_kafka)).partitions == 2
    with pytest.raises(EngineError, match="2 partitions, not 4"):
        await prepare(database, settings_of(**{**on_kafka.model_dump(), "shards": 4}))


async def test_a_ledger_from_before_there_was_a_choice_is_on_postgres(database: str, on_kafka: Settings) -> None:
    await prepare(database, settings_of())
    async with pool_of(database, connections=1) as pool:
        await pool.execute("DELETE FROM people.settings WHERE name = 'journal'")
    assert (await settle_journal(database, settings_of())).journal is JournalKind.POSTGRES
    with pytest.raises(EngineError, match="on postgres, not on kafka"):
        await settle_journal(database, on_kafka)
    await prepare(database, settings_of())
    async with pool_of(database, connections=1) as pool:
        assert await Registry(pool).kept("journal") == b"postgres"


async def test_a_new_ledger_takes_no_topic_that_has_records(database: str, on_kafka: Settings) -> None:
    journal = open_journal(on_kafka, database)
    await journal.create(2)
    await (await journal.open(1, encode_open(1, {}))).close()
    with pytest.raises(EngineError, match="has another ledger's records already"):
        await prepare(database, on_kafka)
    assert await journal.heads() == {0: 0, 1: 1}
    await journal.close()


async def test_a_ledger_whose_topic_is_gone_is_not_begun_anew(
    database: str, on_kafka: Settings, kafka_address: KafkaAddress
) -> None:
    await prepare(database, on_kafka)
    client = TopicClient(kafka_address, on_kafka.kafka_topic, timeout_s=10.0)
    answer = await client.ask(DeleteTopicsRequest([on_kafka.kafka_topic], 5000))
    assert [code for _, code in answer.topic_error_codes] == [0]
    await client.close()
    with pytest.raises(EngineError, match="the journal of this ledger is gone"):
        await prepare(database, on_kafka)


async def test_a_ledger_is_not_led_to_another_log(database: str, on_kafka: Settings) -> None:
    await prepare(database, on_kafka)
    with pytest.raises(EngineError, match=r"the journal of this ledger is kafka .*, but the settings lead to kafka"):
        await prepare(database, changed(on_kafka, kafka_topic="elsewhere"))
    with pytest.raises(EngineError, match=r"cannot be used: Kafka at 127\.0\.0\.1:1"):
        await prepare(database, changed(on_kafka, kafka_bootstrap="127.0.0.1:1"))


async def test_another_ledgers_secrets_are_refused_before_its_journal_is_touched(
    database: str, on_kafka: Settings
) -> None:
    await prepare(database, on_kafka)
    with pytest.raises(EngineError, match="does not belong to this ledger"):
        await prepare(database, on_kafka, Secrets("engine", "00" * 32, "cd" * 32, "ef" * 32))


def test_a_login_without_a_password_is_no_setting() -> None:
    with pytest.raises(ValidationError, match="RAZAO_KAFKA_SASL_PASSWORD"):
        settings_of(kafka_security_protocol="SASL_SSL", kafka_sasl_username="razao")


def test_the_settings_lead_to_the_cluster_and_do_not_show_its_password(tmp_path: Path) -> None:
    authority = str(tmp_path / "ca.pem")
    settings = settings_of(
        kafka_bootstrap="one:9092,two:9092", kafka_security_protocol="SASL_SSL", kafka_sasl_mechanism="SCRAM-SHA-256",
        kafka_sasl_username="razao", kafka_sasl_password="hidden", kafka_ssl_ca=authority,
    )  # fmt: skip
    expected = KafkaAddress("one:9092,two:9092", "SASL_SSL", "SCRAM-SHA-256", "razao", "hidden", authority)
    assert kafka_address(settings) == expected
    assert "hidden" not in repr(settings)
    with pytest.raises(ValueError, match="RAZAO_KAFKA_BOOTSTRAP"):
        kafka_address(settings_of())
