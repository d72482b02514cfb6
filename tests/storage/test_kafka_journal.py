"""What only Kafka can do to a journal: void records, lost answers, dead brokers, topics and messages that are not ours.

The contract that it shares with PostgreSQL is in `tests/contract/test_journal.py`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.protocol.admin import CreateTopicsRequest

from cluster.certificates import ensure_certificate
from cluster.services.kafka import KafkaServer
from storage.journal import Corrupt, Fenced, Journal, JournalError, OutcomeUnknown
from storage.journal.kafka import KafkaJournal
from storage.journal.kafka_client import KafkaAddress, TopicClient
from storage.journal.kafka_topic import RECORD_BYTES_MAX, TopicSettings
from storage.record import Reader
from tests.conftest import free_port, running
from tests.contract.kafka_bench import KafkaBench, kafka_bench
from tests.contract.test_journal import KEY, Author, amounts, opened, stored, until, valid


@pytest.fixture
async def bench(kafka_address: KafkaAddress) -> AsyncIterator[KafkaBench]:
    async with kafka_bench(kafka_address) as made:
        yield made


@pytest.fixture
async def journal(bench: KafkaBench) -> KafkaJournal:
    journal = bench.journal()
    await journal.create(1)
    return journal


@pytest.fixture(scope="module")
def server() -> Iterator[KafkaServer]:
    """A broker for tests that kill or stop it; each leaves it running."""
    with running(lambda place: KafkaServer(place, free_port(), heap_mb=256)) as server:
        yield server


@asynccontextmanager
async def bench_on(server: KafkaServer) -> AsyncIterator[KafkaBench]:
    """A bench on a broker that may die; it is started again at the end."""
    async with kafka_bench(KafkaAddress(server.bootstrap)) as bench:
        try:
            yield bench
        finally:
            await asyncio.to_thread(server.start)


async def is_waiting(bench: KafkaBench, *, answer: bool = False) -> bool:
    return (bench.proxy.answers if answer else bench.proxy.appends).waiting > 0


async def test_a_record_that_arrives_after_its_writer_gave_up_is_void_and_the_successor_goes_on(
    bench: KafkaBench, journal: KafkaJournal
) -> None:
    author = await Author.take_over(bench.journal(append_timeout_s=0.3), "first")
    await author.write(1)
    release = await bench.hold_back(0)
    with pytest.raises(OutcomeUnknown):
        await author.write(2)
    assert await bench.waiting() == 1
    # The successor's messages take another way into the broker: only the late one is held back.
    other = KafkaJournal(replace(address_of(bench), bootstrap=bench.broker), bench.topic)
    successor = await Author.take_over(other, "second")
    await successor.write(3)
    await release()
    await until(lambda: has_head(journal, 5))
    await successor.writer.confirm()
    assert await successor.write(4) == 5
    await successor.write(5)
    reader = Reader(journal, 0, KEY)
    assert amounts([record async for record in reader.records()]) == [1, 3, 4, 5]
    assert reader.void == 1
    await author.writer.close()
    await successor.writer.close()
    await other.close()


def address_of(bench: KafkaBench) -> KafkaAddress:
    return KafkaAddress(f"127.0.0.1:{bench.proxy.port}")


async def has_head(journal: Journal, head: int) -> bool:
    return await journal.head(0) >= head


async def test_an_open_record_in_the_gap_fences_the_writer_and_voids_what_it_wrote(
    bench: KafkaBench, journal: KafkaJournal
) -> None:
    first = await Author.take_over(journal, "first")
    await first.write(1)
    second = await Author.take_over(bench.journal(), "second")
    with pytest.raises(Fenced):
        await first.write(2)
    assert await journal.head(0) == 4, "unlike on PostgreSQL, the record is in the log"
    await second.write(3)
    reader = Reader(journal, 0, KEY)
    assert amounts([record async for record in reader.records()]) == [1, 3]
    assert reader.void == 1
    for author in (first, second):
        await author.writer.close()


async def test_a_record_whose_answer_was_lost_counts_for_the_successor(
    bench: KafkaBench, journal: KafkaJournal
) -> None:
    author = await Author.take_over(journal, "first")
    bench.proxy.answers.shut()
    appending = asyncio.create_task(author.write(1))
    await until(lambda: is_waiting(bench, answer=True))
    await bench.disconnect()
    with pytest.raises(OutcomeUnknown):
        await appending
    bench.proxy.answers.open()
    successor = await Author.take_over(journal, "second")
    await successor.write(2)
    assert amounts(await valid(journal)) == [1, 2]
    await author.writer.close()
    await successor.writer.close()


async def test_a_record_of_a_newer_epoch_without_its_open_record_ends_the_writer(
    bench: KafkaBench, journal: KafkaJournal
) -> None:
    author = await Author.take_over(journal, "first")
    await bench.append_as(0, 77, b"from nowhere")
    with pytest.raises(Corrupt, match="77"):
        await author.writer.confirm()
    with pytest.raises(Corrupt, match="77"):
        await author.write(1)
    await author.writer.close()


async def test_messages_that_are_no_records_are_corruption_where_they_lie(
    bench: KafkaBench, journal: KafkaJournal
) -> None:
    author = await Author.take_over(journal, "first")
    await author.write(1)
    offset = await bench.append(0, b"hello", [("kind", b"greeting")])
    with pytest.raises(Corrupt, match="greeting") as raised:
        await valid(journal)
    assert raised.value.offset == offset
    await author.writer.close()


async def test_a_strangers_transaction_is_corruption_where_its_mark_lies(
    bench: KafkaBench, journal: KafkaJournal, kafka_address: KafkaAddress
) -> None:
    await (await opened(journal)).close()
    producer = AIOKafkaProducer(bootstrap_servers=kafka_address.bootstrap, transactional_id=bench.topic)
    await producer.start()
    try:
        async with producer.transaction():
            headers = [("kind", b"data"), ("epoch", bytes(8))]
            sent = await producer.send_and_wait(bench.topic, b"", partition=0, headers=headers)
    finally:
        await producer.stop()
    await until(lambda: has_head(journal, sent.offset + 2))
    with pytest.raises(Corrupt) as raised:
        await stored(journal, sent.offset)
    assert raised.value.offset == sent.offset + 1


async def test_a_topic_with_other_settings_is_refused_with_what_to_change(bench: KafkaBench) -> None:
    client = TopicClient(address_of(bench), bench.topic, timeout_s=10.0)
    wrong = [("cleanup.policy", "compact"), ("retention.ms", "1000"), ("max.message.bytes", "1000000")]
    await client.ask(CreateTopicsRequest([(bench.topic, 2, 1, [], wrong)], 5000, validate_only=False))
    await client.close()
    with pytest.raises(JournalError, match="not fit for a journal") as raised:
        await bench.journal().create(2)
    words = str(raised.value)
    assert "cleanup.policy is compact, must be delete" in words
    assert "retention.ms is 1000, must be -1" in words
    assert f"max.message.bytes is 1000000, must be at least {RECORD_BYTES_MAX}" in words
    assert "retention.bytes" not in words


async def test_more_replicas_than_there_are_brokers_are_refused_with_the_brokers_words(
    bench: KafkaBench, kafka_address: KafkaAddress
) -> None:
    journal = KafkaJournal(kafka_address, bench.topic, settings=TopicSettings(replication=3))
    with pytest.raises(JournalError, match=r"cannot be made: .*replica"):
        await journal.create(1)
    await bench.journal().create(1)
    with pytest.raises(JournalError, match="it has 1 replicas, must have at least 3"):
        await journal.create(1)
    await journal.close()


async def test_a_record_larger_than_the_topic_takes_is_refused_and_ends_the_writer_with_nothing_written(
    journal: KafkaJournal,
) -> None:
    writer = await opened(journal)
    with pytest.raises(JournalError, match=r"raise its max\.message\.bytes"):
        await writer.append(bytes(RECORD_BYTES_MAX + 1))
    with pytest.raises(JournalError, match=r"raise its max\.message\.bytes"):
        await writer.append(b"small")
    assert await journal.head(0) == 1
    await writer.close()


async def test_retention_that_passed_what_a_reader_needs_is_refused_and_says_so(
    bench: KafkaBench, journal: KafkaJournal
) -> None:
    author = await Author.take_over(journal, "first")
    for amount in range(1, 6):
        await author.write(amount)
    reader = Reader(journal, 0, KEY)
    assert len([record async for record in reader.records(3)]) == 2
    await bench.remove(0, 2)
    # A snapshot at 3 is enough still, an older one, or none, is not.
    assert amounts([record async for record in Reader(journal, 0, KEY, reader.position).records()]) == [3, 4, 5]
    with pytest.raises(Corrupt, match="the log begins at 3"):
        await valid(journal)
    await bench.remove(0, 3)
    with pytest.raises(Corrupt, match="the log begins at 4") as raised:
        await stored(journal, 3)
    assert raised.value.offset == 3
    await author.writer.close()


@pytest.mark.parametrize("written", [True, False], ids=["written", "not-written"])
async def test_every_acknowledged_append_survives_the_brokers_death_between_request_and_answer(
    server: KafkaServer, written: bool
) -> None:
    async with bench_on(server) as bench:
        journal = bench.journal()
        await journal.create(1)
        author = await Author.take_over(journal, "first")
        for amount in range(1, 11):
            await author.write(amount)
        gate = bench.proxy.answers if written else bench.proxy.appends
        gate.shut()
        appending = asyncio.create_task(author.write(11))
        await until(lambda: is_waiting(bench, answer=written))
        await asyncio.to_thread(server.kill)
        await bench.disconnect()
        gate.open()
        with pytest.raises(OutcomeUnknown):
            await appending
        with pytest.raises(JournalError):
            await journal.head(0)
        # Takeover waits for a broker that is away.
        opening = asyncio.create_task(Author.take_over(journal, "second"))
        await asyncio.to_thread(server.start)
        successor = await opening
        await successor.write(12)
        expected = [*range(1, 11), 11, 12] if written else [*range(1, 11), 12]
        assert amounts(await valid(journal)) == expected
        await author.writer.close()
        await successor.writer.close()


async def until_it_notices(writer: Any) -> None:
    """What is sent before the news of the broker's death has come is sent for good, and its outcome unknown."""
    async with asyncio.timeout(30):
        while any(one.connected() for one in writer._client._connections.values()):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)


async def test_a_writer_and_a_reader_live_through_a_broker_that_starts_again_between_two_appends(
    server: KafkaServer,
) -> None:
    async with bench_on(server) as bench:
        journal = bench.journal()
        await journal.create(1)
        author = await Author.take_over(journal, "one")
        await author.write(1)
        await asyncio.to_thread(server.kill)
        await until_it_notices(author.writer)
        # Nothing was sent yet that could be lost: it waits for the broker.
        writing = asyncio.create_task(author.write(2))
        await asyncio.to_thread(server.start)
        assert await writing == 2
        await author.writer.confirm()
        assert amounts(await valid(journal)) == [1, 2]
        await author.writer.close()


async def test_a_broker_that_hangs_leaves_an_append_unknown_and_everything_else_refused_in_time(
    server: KafkaServer,
) -> None:
    async with bench_on(server) as bench:
        patient = bench.journal()
        await patient.create(1)
        hasty = bench.journal(append_timeout_s=1.0, open_timeout_s=2.0, request_timeout_s=1.0)
        author = await Author.take_over(hasty, "one")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(60):
                with pytest.raises(OutcomeUnknown):
                    await author.write(1)
                with pytest.raises(JournalError):
                    await hasty.heads()
                with pytest.raises(JournalError):
                    await stored(hasty)
                with pytest.raises(JournalError, match="cannot be opened"):
                    await opened(hasty)
                with pytest.raises(JournalError):
                    await hasty.create(1)
                with pytest.raises(JournalError):
                    await hasty.partitions()
        finally:
            os.kill(server.pid, signal.SIGCONT)
        successor = await Author.take_over(patient, "two")
        try:
            await successor.write(2)
        except Fenced:
            # An attempt to open that was given up came through after all, and is the newest.
            successor = await Author.take_over(patient, "three")
            await successor.write(2)
        assert amounts(await valid(patient)) in ([2], [1, 2])
        await successor.writer.close()
        await author.writer.close()


@pytest.fixture(scope="module")
def secure_server() -> Iterator[KafkaServer]:
    """A broker behind SCRAM and TLS."""
    with running(lambda place: KafkaServer(place, free_port(), secure=True, heap_mb=256)) as server:
        yield server


@pytest.fixture
def address(secure_server: KafkaServer) -> KafkaAddress:
    settings: dict[str, Any] = dict(secure_server.client_settings)
    return KafkaAddress(secure_server.bootstrap, **settings)


async def test_a_journal_works_over_tls_with_a_password(address: KafkaAddress) -> None:
    journal = KafkaJournal(address)
    await journal.create(1)
    author = await Author.take_over(journal, "one")
    await author.write(1)
    await author.writer.confirm()
    assert amounts(await valid(journal)) == [1]
    await author.writer.close()
    await journal.close()


async def test_what_cannot_come_in_is_told_so_at_once(address: KafkaAddress, tmp_path: Path) -> None:
    strange = str(ensure_certificate(tmp_path).with_suffix(".crt"))
    for wrong, words in (
        (replace(address, sasl_password="no"), "uthentication"),
        (replace(address, ssl_ca=strange), "CERTIFICATE_VERIFY_FAILED"),
    ):
        journal = KafkaJournal(wrong)
        async with asyncio.timeout(20):  # less than it would wait for a broker that is away
            with pytest.raises(JournalError, match=words):
                await opened(journal)
            with pytest.raises(JournalError, match=words):
                await journal.create(1)
        await journal.close()


def test_an_address_does_not_show_its_password(address: KafkaAddress) -> None:
    assert address.sasl_password
    assert address.sasl_password not in repr(address)
