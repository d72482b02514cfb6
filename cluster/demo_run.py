"""Runs the demo against an engine: the ledger, the identities beside it, and the doors of the tiers that it has."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import asyncpg
import httpx

from cluster import trace
from cluster.data import DataDirectory, EngineError
from cluster.demo import Demo
from cluster.demo_identity import IdentityDemo
from cluster.demo_tiers import TiersDemo, Tokens
from cluster.documents import open_documents
from cluster.identity import prove_user
from cluster.plan import Plan, vault_tls
from cluster.settings import UnprovenMay
from deployments.auth.keys import sign_token
from deployments.identity_roles import PAYMENTS, Registration
from storage.references import person_reference
from storage.trace_users import COLLECTIONS, TraceUsers

Say = Callable[[str], None]


def run(directory: DataDirectory, say: Say) -> None:
    """Run it.

    Raises:
        EngineError: no engine runs there, it does not take the embedded key's tokens, or it answered anything else than
            it should.
    """
    running = directory.running()
    if running is None:
        raise EngineError(f"no engine runs on {directory.root}; start one with `razao up`")
    plan = Plan.load(directory)
    if not plan.settings.trusts_embedded_key:
        raise EngineError("the demo pays money in with the embedded key, which is not trusted here")
    tokens = _tokens_of(plan)
    bearer = tokens(PAYMENTS, "demo", "ledger:read ledger:write ledger:fund ledger:operate", None)
    with (
        httpx.Client(
            base_url=running.url, headers={"Authorization": f"Bearer {bearer}"}, timeout=30, trust_env=False
        ) as bank,
        httpx.Client(base_url=running.url, timeout=30, trust_env=False) as public,
    ):
        try:
            Demo(bank, say).run()
            if plan.settings.registration is Registration.OPEN:
                limited = plan.settings.unproven is UnprovenMay.LIMITED
                IdentityDemo(public, bank, partial(_prove, plan), say, limited=limited).run()
            _show_tiers(plan, running.vault_url, public, bank, tokens, say)
        except httpx.HTTPError as error:
            raise EngineError(f"{running.url} does not answer: {error}") from error


def _show_tiers(
    plan: Plan, vault_url: str | None, public: httpx.Client, bank: httpx.Client, tokens: Tokens, say: Say
) -> None:
    active = plan.settings.active_tiers
    if vault_url is not None:
        with httpx.Client(base_url=vault_url, verify=vault_tls(plan), timeout=30, trust_env=False) as vault:
            demo = TiersDemo(vault, public, bank, tokens, say)
            demo.show_vault()
            if "score" in active:
                demo.show_score()
            if "trace" in active:
                with _trace_user(plan) as user:
                    demo.show_trace(user)


def _tokens_of(plan: Plan) -> Tokens:
    """Signs with the embedded key, as `razao token` does."""
    settings, keys = plan.settings, plan.data.keys

    def sign(audience: str, sub: str, scope: str, tax_id: str | None) -> str:
        return sign_token(
            keys,
            sub=sub,
            scope=scope,
            audience=settings.token_audience if audience == PAYMENTS else audience,
            issuer=settings.token_issuer,
            expires_in=600,
            person=None if tax_id is None else person_reference(plan.ledger_key, tax_id).hex(),
        )

    return sign


def _prove(plan: Plan, username: str, tax_id: str) -> dict[str, Any]:
    """As `razao users prove` does."""

    async def prove() -> dict[str, Any]:
        async with asyncpg.create_pool(plan.dsn, min_size=1, max_size=1) as pool:
            return await prove_user(pool, plan.ledger_key, username, tax_id, "document", repeated=False)

    return asyncio.run(prove())


@contextmanager
def _trace_user(plan: Plan) -> Iterator[tuple[str, str]]:
    """A user of the trace for as long as the block lasts: name and password."""
    name, password = f"demo-{secrets.token_hex(4)}", "-".join(secrets.token_hex(3) for _ in range(4))
    length_min = plan.settings.password_length_min

    async def add(users: TraceUsers) -> None:
        await trace.add_user(users, name, password, length_min=length_min)

    async def disable(users: TraceUsers) -> None:
        await trace.set_enabled(users, name, enabled=False)

    asyncio.run(_with_users(plan, add))
    try:
        yield name, password
    finally:
        asyncio.run(_with_users(plan, disable))


async def _with_users(plan: Plan, work: Callable[[TraceUsers], Awaitable[None]]) -> None:
    database = await open_documents(plan.settings, plan.dsn, COLLECTIONS)
    try:
        await work(TraceUsers(database))
    finally:
        await database.close()
