"""The composition root: builds what actors and replicas stand on, inside their own processes, from one `Plan`."""

from __future__ import annotations

import os
from functools import partial
from importlib.metadata import version
from typing import Any, Final

import asyncpg

from actors.account_shard import ShardConfig
from actors.directory import locate_by
from actors.feed import Publisher
from actors.ledger import Capacity
from actors.projection import Limits, Projection
from actors.projector import ProjectorConfig
from actors.ray_calls import RayTransport, actor_name
from actors.shard import ShardLimits
from actors.shard_client import ShardClient
from actors.transport import TcpTransport, Transport
from cluster.identity_wiring import Trust
from cluster.journals import kafka_address, open_journal
from cluster.plan import Plan
from cluster.settings import Ingress, Settings, TransportKind, UnprovenMay
from cluster.trace_wiring import trace_movements
from deployments.payments import Services, create
from deployments.payments_services import Unproven
from deployments.quotas import Quotas
from deployments.serving import Application, Spec
from storage.feed import Feed
from storage.query_store import QueryStore
from storage.registry import Registry
from storage.snapshots import SnapshotStore

_REPLICA_CONNECTIONS: Final = 8
_PROJECTOR_CONNECTIONS: Final = 5
_PUBLISHER_CONNECTIONS: Final = 3
_PROJECTOR_NICENESS: Final = 5
_SNAPSHOTS_KEPT: Final = 3
"""After a crash of the database the query store may stand behind the newest one, which is then of no use to it."""
_PACE_S: Final = 0.003
"""Between small groups of a busy shard. A payment across shards is a row in three groups, so fewer of them are worth
waiting for; with one shard it would be latency alone."""
_TAKEOVER_S: Final = 300.0
"""While the journal's servers are away, a shard waits for them rather than end and be started again."""


def shard_config(plan: Plan, partition: int) -> ShardConfig:
    """What the shard of a partition is told."""
    settings = plan.settings
    return ShardConfig(
        partition=partition,
        partitions=plan.partitions,
        journal=partial(open_journal, settings, plan.dsn, open_timeout_s=_TAKEOVER_S),
        snapshots=partial(SnapshotStore, settings.snapshot_location, plan.ledger_key, keep=_SNAPSHOTS_KEPT),
        secret=bytes.fromhex(plan.secrets.shard_secret),
        chain_key=plan.ledger_key,
        failpoints=settings.failpoints,
        last_words=plan.data.last_words(actor_name(partition)),
        windows=plan.windows,
        capacity=capacity(settings),
        limits=ShardLimits(queue_rows=settings.shard_queue_max, pace_s=_PACE_S if plan.partitions > 1 else 0.0),
    )


def capacity(settings: Settings) -> Capacity:
    """What a shard has room for. It stands in the journal, so it may be another one at each start."""
    return Capacity(
        accounts=settings.accounts_max,
        ids=settings.ids_max,
        holds=settings.holds_max,
        in_flight=settings.in_flight_max,
        refunds=settings.refunds_max,
        outbox=settings.outbox_max,
    )


def shard_transport(plan: Plan) -> Transport:
    """How this process reaches the shards, as the settings say."""
    if plan.settings.transport is TransportKind.RAY:
        return RayTransport(plan.partitions)
    return TcpTransport(locate_by(), bytes.fromhex(plan.secrets.shard_secret), plan.partitions)


async def payments_application(config: dict[str, Any]) -> Application:
    """The factory that a replica calls on its own loop. `config`: where the plan lies."""
    plan = await Plan.taken_up(config)
    settings = plan.settings
    pool = await asyncpg.create_pool(plan.dsn, min_size=1, max_size=_REPLICA_CONNECTIONS)
    client = ShardClient(shard_transport(plan), plan.partitions)
    store = QueryStore(pool)
    trust = Trust(plan, pool)
    await trust.start()
    services = Services(
        client=client,
        store=store,
        registry=Registry(pool),
        verifier=trust.verifier(),
        ledger_key=plan.ledger_key,
        gateway_secret=plan.secrets.gateway_secret,
        deadline_s=settings.deadline_s,
        limit_raise_delay_s=settings.limit_raise_delay_s,
        answers_kept_s=plan.windows.id_window_ns // 10**9,
        hold_default_s=settings.hold_default_s,
        hold_max_s=settings.hold_max_s,
        repeated_tax_ids=settings.repeated_tax_ids,
        quotas=Quotas(settings.person_allowance, settings.operator_allowance),
        deposit_max=settings.deposit_max,
        unproven=Unproven(
            settings.unproven is UnprovenMay.LIMITED,
            settings.unproven_transfer_max,
            settings.unproven_daily_max,
            settings.unproven_accounts_max,
        ),
    )

    async def close() -> None:
        await trust.close()
        await client.close()
        await store.close()
        await pool.close()

    app, routes = create(services)
    return Application(app, close=close, routes=routes)


def payments_spec(plan: Plan) -> Spec:
    """The payments application as it is deployed."""
    settings = plan.settings
    return Spec(
        name="payments",
        factory=payments_application,
        config=plan.handed_down(),
        log_directory=str(plan.data.log),
        port=plan.application_port if settings.ingress is Ingress.LISTENER else 0,
        version=version("razao"),
        replicas_min=settings.replicas_min,
        replicas_max=settings.replicas_max,
        max_in_progress=settings.requests_max,
        max_waiting=settings.requests_waiting_max,
    )


def projector_config(plan: Plan) -> ProjectorConfig:
    """What the projector is told."""
    publisher = None if plan.settings.kafka_bootstrap is None else partial(_publisher, plan)
    movements = partial(trace_movements, plan) if "trace" in plan.settings.active_tiers else None
    return ProjectorConfig(partial(_projection, plan), publisher, movements)


async def _publisher(plan: Plan) -> Publisher:
    from storage.feed_kafka import KafkaSink  # noqa: PLC0415 - an engine without Kafka needs no client of it

    settings = plan.settings
    pool = await asyncpg.create_pool(plan.dsn, min_size=0, max_size=_PUBLISHER_CONNECTIONS)
    sink = KafkaSink(kafka_address(settings), settings.kafka_events_topic, replication=settings.kafka_replication)
    return Publisher(Feed(pool, plan.partitions), sink)


async def _projection(plan: Plan) -> Projection:
    settings = plan.settings
    # History may be late where answers may not: what it takes under load it takes from the shards.
    os.nice(_PROJECTOR_NICENESS)
    pool = await asyncpg.create_pool(plan.dsn, min_size=1, max_size=_PROJECTOR_CONNECTIONS)
    return Projection(
        open_journal(settings, plan.dsn),
        QueryStore(pool),
        SnapshotStore(settings.snapshot_location, plan.ledger_key, keep=_SNAPSHOTS_KEPT),
        chain_key=plan.ledger_key,
        windows=plan.windows,
        limits=Limits(
            snapshot_records=settings.snapshot_every_records,
            snapshot_s=settings.snapshot_every_s,
        ),
    )
