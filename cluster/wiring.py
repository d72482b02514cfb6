"""The composition root: builds what actors and replicas stand on, inside their own processes, from one `Plan`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
from starlette.types import Receive, Scope, Send

from actors.account_shard import ShardConfig
from actors.directory import locate_by
from actors.ray_calls import RayTransport
from actors.shard import ShardLimits
from actors.shard_client import ShardClient
from actors.transport import TcpTransport, Transport
from cluster.plan import Plan
from cluster.settings import TransportKind
from deployments.auth.tokens import KeyAddress, KeyFile, TokenVerifier
from deployments.edge import Edge
from deployments.payments import Services, create_app
from storage.journal.postgres import PostgresJournal
from storage.query_store import QueryStore
from storage.registry import Registry
from storage.snapshots import SnapshotStore


def shard_config(plan: Plan, partition: int) -> ShardConfig:
    """What the shard of a partition is told."""
    settings = plan.settings
    return ShardConfig(
        partition=partition,
        partitions=plan.partitions,
        journal=partial(PostgresJournal, plan.dsn),
        snapshots=partial(SnapshotStore, settings.snapshot_location, plan.ledger_key),
        secret=bytes.fromhex(plan.secrets.shard_secret),
        chain_key=plan.ledger_key,
        failpoints=settings.failpoints,
        windows=plan.windows,
        limits=ShardLimits(queue_rows=settings.shard_queue_max),
    )


def shard_transport(plan: Plan) -> Transport:
    """How this process reaches the shards, as the settings say."""
    if plan.settings.transport is TransportKind.RAY:
        return RayTransport(plan.partitions)
    return TcpTransport(locate_by(), bytes.fromhex(plan.secrets.shard_secret), plan.partitions)


def token_verifier(plan: Plan) -> TokenVerifier:
    """Verifies access tokens against the configured key set."""
    jwks = plan.jwks
    source = KeyAddress(jwks) if jwks.startswith(("http://", "https://")) else KeyFile(Path(jwks))
    return TokenVerifier(source, issuer=plan.settings.token_issuer, audience=plan.settings.token_audience)


class PaymentsApp:
    """The payments application with everything that it holds open."""

    def __init__(self, app: Edge, client: ShardClient, store: QueryStore, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        self._app = app
        self._client = client
        self._store = store
        self._pool = pool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        await self._app(scope, receive, send)

    async def close(self) -> None:
        """Give up links and connections."""
        await self._client.close()
        await self._store.close()
        await self._pool.close()


async def payments_app(config: dict[str, Any]) -> PaymentsApp:
    """The application factory that a replica calls on its own loop. `config`: the plan as JSON."""
    plan = Plan.from_json(config["plan"])
    settings = plan.settings
    pool = await asyncpg.create_pool(plan.dsn, min_size=1, max_size=8)
    client = ShardClient(shard_transport(plan), plan.partitions)
    store = QueryStore(pool)
    services = Services(
        client=client,
        store=store,
        registry=Registry(pool),
        verifier=token_verifier(plan),
        ledger_key=plan.ledger_key,
        gateway_secret=plan.secrets.gateway_secret,
        deadline_s=settings.deadline_s,
        limit_raise_delay_s=settings.limit_raise_delay_s,
        hold_default_s=settings.hold_default_s,
        hold_max_s=settings.hold_max_s,
        repeated_tax_ids=settings.repeated_tax_ids,
    )
    return PaymentsApp(create_app(services), client, store, pool)
