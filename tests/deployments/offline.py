"""The application with real parts of which none is to be reached: for what is decided before anything is sent on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncpg

from actors.shard_client import ShardClient
from actors.transport import Address, TcpTransport
from deployments.auth.tokens import KeyFile, TokenVerifier
from deployments.payments import Services
from storage.query_store import QueryStore
from storage.registry import Registry
from tests.conftest import free_port


async def nowhere(_: int) -> Address | None:
    """A directory without shards."""
    return None


def offline_services(jwks: Path, **settings: Any) -> Services:
    """Services whose shards and database cannot be reached."""
    client = ShardClient(TcpTransport(nowhere, b"secret", 2), 2)
    # Connects at first use, to where nobody listens.
    pool = asyncpg.create_pool(f"postgres://x@127.0.0.1:{free_port()}/x", min_size=0, max_size=1)
    return Services(client, QueryStore(pool), Registry(pool), TokenVerifier(KeyFile(jwks)), bytes(32), **settings)
