"""Messages of the vault's, from its outbox and over Kafka: none is lost when the scores' store fails at one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from deployments.score_changes import Follower
from storage.feed_kafka import TopicProducer
from storage.journal.kafka_client import KafkaAddress
from storage.messages import Changes, StoredChanges
from storage.messages_kafka import KafkaChanges, Relay
from storage.references import person_reference
from storage.vault import OUTBOX_ROLE, dsn_as
from tests.conftest import free_port
from tests.deployments.score_house import CPF, House
from tests.deployments.vault_house import VaultHouse, debt


async def until(done: Callable[[], bool], vault_house: VaultHouse) -> None:
    """Return once something is so; each look takes a turn around the database."""
    async with asyncio.timeout(60):
        while not done():
            await vault_house.owner.fetchval("SELECT 1")


@pytest.mark.parametrize("way", ["outbox", "kafka"])
async def test_a_message_that_could_not_be_acted_upon_comes_again(
    way: str, vault_house: VaultHouse, scores: House, request: pytest.FixtureRequest
) -> None:
    outbox = StoredChanges(dsn_as(vault_house.plan.dsn, OUTBOX_ROLE, vault_house.secrets.outbox_password), wait_s=0.1)
    relay: asyncio.Task[None] | None = None
    changes: Changes = outbox
    if way == "kafka":
        address: KafkaAddress = request.getfixturevalue("kafka_address")
        topic = f"changes-{free_port()}"
        relay = asyncio.create_task(Relay(outbox, TopicProducer(address, topic, partitions=1)).run())
        changes = KafkaChanges(address, topic=topic, group="score", wait_s=0.2)
    follower = Follower(changes, scores.services.profiles)
    await scores.write()
    await scores.score()
    person = person_reference(scores.services.key, CPF)

    await vault_house.owner.execute("ALTER TABLE documents.score_profiles RENAME TO gone")
    follower.start()
    await vault_house.keep(debt())
    await until(lambda: follower.failed > 0, vault_house)
    await vault_house.owner.execute("ALTER TABLE documents.gone RENAME TO score_profiles")
    await until(lambda: follower.dropped > 0, vault_house)
    found = await scores.services.profiles.get(person)
    assert found is not None
    assert found.derived is None
    await follower.close()
    if relay is not None:
        relay.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await relay
    assert await vault_house.owner.fetchval("SELECT count(*) FROM vault.outbox") == 0
