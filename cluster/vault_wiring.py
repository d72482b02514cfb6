"""The vault's part of the composition root: its application inside a replica, and how it is deployed."""

from __future__ import annotations

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
from storage.references import derived_key
from storage.vault import OUTBOX_ROLE, ROLE, Secrets, Vault, dsn_as
from storage.vault_people import People

SCORE_PURPOSE: Final = b"razao.score"
"""What the key of the score service's references is derived for: messages to it carry them."""

_CONNECTIONS: Final = 6
_TRUST_CONNECTIONS: Final = 2


async def vault_application(config: dict[str, Any]) -> Application:
    """The factory that a replica calls on its own loop. `config`: where the plan lies."""
    plan = await Plan.taken_up(config)
    secrets = await Secrets.of(key_file(plan.data))
    # Tokens are checked against the store of identities, which the vault's own role cannot see.
    trusting = await asyncpg.create_pool(plan.dsn, min_size=0, max_size=_TRUST_CONNECTIONS)
    trust = Trust(plan, trusting)
    await trust.start()
    pool = await vault_pool(plan, secrets)

    async def close() -> None:
        await trust.close()
        await pool.close()
        await trusting.close()

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
        score_key=derived_key(plan.ledger_key, SCORE_PURPOSE),
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


async def score_changes(plan: Plan) -> Changes:
    """Where the score service learns whose debts may have changed: the topic when there is Kafka, else the outbox."""
    settings = plan.settings
    if settings.kafka_bootstrap is None:
        secrets = await Secrets.of(key_file(plan.data))
        return StoredChanges(dsn_as(plan.dsn, OUTBOX_ROLE, secrets.outbox_password))
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
    )
