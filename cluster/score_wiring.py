"""The score service's part of the composition root: what its replicas stand on, inside their own processes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any, Final

import asyncpg
import httpx

from cluster.documents import open_documents
from cluster.identity import SCORE_CLIENT, score_client_secret
from cluster.identity_wiring import Trust
from cluster.plan import Plan, vault_tls
from cluster.vault_wiring import score_changes
from deployments.auth.issuers import Verifier
from deployments.breaker import Breaker
from deployments.metrics import Figure, breaker_figures
from deployments.score import AUDIENCE, create_app
from deployments.score_changes import Follower
from deployments.score_debts import ClientTokens, DebtSource, NoVault, VaultDebts
from deployments.score_services import Services
from deployments.serving import Application, Spec
from storage.accesses import ACCESSES, Accesses
from storage.consents import CONSENTS, Consents
from storage.documents import Database
from storage.profiles import PROFILES, Profiles
from storage.references import SCORE, derived_key

COLLECTIONS: Final = (PROFILES, ACCESSES, CONSENTS)

_TRUST_CONNECTIONS: Final = 2
_CALLS: Final = httpx.Limits(max_connections=32, max_keepalive_connections=8, keepalive_expiry=30.0)


class VaultCalls:
    """The clients by which the score asks identity and vault, and what has to be closed with them."""

    def __init__(self, plan: Plan, *, breaker_open_s: float = 5.0) -> None:
        settings = plan.settings
        trusted = vault_tls(plan)
        timeout = settings.score_debts_deadline_s
        self._vault = httpx.AsyncClient(verify=trusted, timeout=timeout, limits=_CALLS, trust_env=False)
        self._identity = httpx.AsyncClient(verify=trusted, timeout=timeout, limits=_CALLS, trust_env=False)
        secret = score_client_secret(plan.ledger_key)
        token_url = f"{plan.gateway_url}/oauth/token"
        breaker = Breaker("identity", open_s=breaker_open_s)
        tokens = ClientTokens(self._identity, token_url, SCORE_CLIENT, secret, breaker)
        breaker = Breaker("vault", open_s=breaker_open_s)
        self.debts = VaultDebts(self._vault, plan.vault_url, tokens, breaker, deadline_s=timeout)

    async def close(self) -> None:
        """Close connections."""
        await self._vault.aclose()
        await self._identity.aclose()


def make_services(plan: Plan, database: Database, debts: DebtSource, verifier: Verifier, **changes: Any) -> Services:
    """What the application stands on."""
    return Services(
        profiles=Profiles(database),
        accesses=Accesses(database),
        consents=Consents(database),
        debts=debts,
        ping=database.ping,
        verifier=verifier,
        ledger_key=plan.ledger_key,
        key=derived_key(plan.ledger_key, SCORE),
        gateway_secret=plan.secrets.gateway_secret,
        deadline_s=plan.settings.deadline_s,
        repeated_tax_ids=plan.settings.repeated_tax_ids,
        **changes,
    )


async def score_application(config: dict[str, Any]) -> Application:
    """The factory that a replica calls on its own loop. `config`: where the plan lies."""
    plan = await Plan.taken_up(config)
    pool = await asyncpg.create_pool(plan.dsn, min_size=1, max_size=_TRUST_CONNECTIONS)
    trust = Trust(plan, pool)
    await trust.start()
    settings = plan.settings
    database = await open_documents(settings, plan.dsn, COLLECTIONS)
    closing: list[Callable[[], Awaitable[None]]] = []
    debts: DebtSource = NoVault()
    breakers: tuple[Breaker, ...] = ()
    beside = settings.vault_url is None and "vault" in settings.active_tiers  # of this engine
    elsewhere = settings.vault_url is not None
    if beside or elsewhere:
        calls = VaultCalls(plan)
        debts = calls.debts
        closing.append(calls.close)
        breakers = calls.debts.breakers
    # Of a vault elsewhere nobody knows whether it sends to our topic: what comes is taken, and not relied on.
    services = make_services(plan, database, debts, trust.verifier(AUDIENCE), told=beside)
    if beside or (elsewhere and settings.kafka_bootstrap is not None):
        follower = Follower(await score_changes(plan), services.profiles)
        follower.start()
        closing.insert(0, follower.close)
    closing += [trust.close, database.close, pool.close]

    async def close() -> None:
        for one in closing:
            await one()

    def figures() -> list[Figure]:
        return [figure for breaker in breakers for figure in breaker_figures(breaker)]

    return Application(create_app(services), close=close, figures=figures)


def score_spec(plan: Plan) -> Spec:
    """The score application as it is deployed. It always listens itself, behind its own prefix at the gateway."""
    return Spec(
        name="score",
        factory=score_application,
        config=plan.handed_down(),
        port=plan.score_port,
        route_prefix=None,
        version=version("razao"),
        replicas_min=1,
        replicas_max=plan.settings.score_replicas_max,
        max_in_progress=128,
        max_waiting=512,
        target_in_progress=32.0,
        log_directory=str(plan.data.log),
    )
