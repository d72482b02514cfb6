"""The vault's part of the composition root: its application inside a replica, and how it is deployed."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from importlib.metadata import version
from typing import Any, Final

import asyncpg

from cluster.identity_wiring import Trust
from cluster.plan import Plan
from cluster.vault import key_file
from deployments.auth.issuers import Verifier
from deployments.serving import Application, Spec
from deployments.vault import AUDIENCE, Services, create_app
from storage.messages import Changes, StoredChanges
from storage.references import SCORE, derived_key
from storage.vault import OUTBOX_ROLE, ROLE, Secrets, Vault, dsn_as
from storage.vault_people import People

_CONNECTIONS: Final = 6


async def vault_application(config: dict[str, Any]) -> Application:
    """The factory that a replica calls on its own loop. `config`: where the plan lies."""
    plan = await Plan.taken_up(config)
    secrets = await Secrets.of(key_file(plan.data))
    # No statement of this process goes past row-level security, so tokens, too, are verified by what the role may see.
    plan = dataclasses.replace(plan, dsn=dsn_as(plan.dsn, ROLE, secrets.password))
    pool = await vault_pool(plan, secrets)
    trust = Trust(plan, pool)
    await trust.start()
    relay = None if plan.settings.kafka_bootstrap is None else asyncio.create_task(_relay(plan, secrets), name="relay")

    async def close() -> None:
        if relay is not None:
            relay.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await relay
        await trust.close()
        await pool.close()

    return Application(create_app(make_services(plan, pool, secrets, trust.verifier(AUDIENCE))), close=close)


async def vault_pool(plan: Plan, secrets: Secrets, **options: Any) -> asyncpg.Pool[asyncpg.Record]:
    """Connections as the role that row-level security binds."""
    dsn = dsn_as(plan.dsn, ROLE, secrets.password)
    return await asyncpg.create_pool(dsn, min_size=1, max_size=_CONNECTIONS, **options)


def make_services(
    plan: Plan, pool: asyncpg.Pool[asyncpg.Record], secrets: Secrets, verifier: Verifier, **changes: Any
) -> Services:
    """What the application stands on."""
    vault = Vault(
        pool,
        lookup_key=secrets.lookup_key,
        score_key=derived_key(plan.ledger_key, SCORE),
        chain_key=secrets.chain_key,
    )
    settings = plan.settings
    given: dict[str, Any] = {
        "vault": vault,
        "people": People(key_file(plan.data), secrets.item_key),
        "verifier": verifier,
        "ledger_key": plan.ledger_key,
        "item_key": secrets.item_key,
        "networks": settings.vault_networks,
        "gateway_secret": plan.secrets.gateway_secret,
        "deadline_s": settings.deadline_s,
        "repeated_tax_ids": settings.repeated_tax_ids,
    }
    return Services(**given | changes)


async def _relay(plan: Plan, secrets: Secrets) -> None:
    from cluster.journals import kafka_address  # noqa: PLC0415 - an engine without Kafka needs no client of it
    from storage.feed_kafka import TopicProducer  # noqa: PLC0415
    from storage.messages_kafka import Relay  # noqa: PLC0415

    settings = plan.settings
    producer = TopicProducer(
        kafka_address(settings),
        settings.kafka_changes_topic,
        replication=settings.kafka_replication,
        client_id="razao-vault",
    )
    await Relay(_outbox(plan, secrets), producer).run()


def _outbox(plan: Plan, secrets: Secrets) -> StoredChanges:
    return StoredChanges(dsn_as(plan.dsn, OUTBOX_ROLE, secrets.outbox_password))


async def score_changes(plan: Plan) -> Changes:
    """Where the score service learns whose debts may have changed: the topic when there is Kafka, else the outbox."""
    settings = plan.settings
    if settings.kafka_bootstrap is None:
        return _outbox(plan, await Secrets.of(key_file(plan.data)))
    from cluster.journals import kafka_address  # noqa: PLC0415 - an engine without Kafka needs no client of it
    from storage.messages_kafka import KafkaChanges  # noqa: PLC0415

    return KafkaChanges(kafka_address(settings), topic=settings.kafka_changes_topic)


def vault_spec(plan: Plan) -> Spec:
    """The vault as it is deployed. It always listens itself, behind a door of its own."""
    return Spec(
        name="vault",
        factory=vault_application,
        config=plan.handed_down(),
        port=plan.vault_port,
        route_prefix=None,
        version=version("razao"),
        replicas_min=1,
        replicas_max=plan.settings.vault_replicas_max,
        max_in_progress=64,
        max_waiting=128,
        target_in_progress=16.0,
        log_directory=str(plan.data.log),
    )
