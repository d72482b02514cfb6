"""The identity service's part of the composition root: its application, and who verifies tokens in which process."""

from __future__ import annotations

import asyncio
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import asyncpg

from cluster.identity import secret_key
from cluster.plan import Plan
from deployments.auth.issuers import Issuers, OwnTokens, Verifier
from deployments.auth.tokens import ACCESS_TOKEN, KeyAddress, KeyFile, TokenVerifier
from deployments.identity import create_app
from deployments.identity_passwords import Passwords
from deployments.identity_roles import PAYMENTS
from deployments.identity_services import Lifetimes, Services
from deployments.identity_signing import Signer, StoredKeys
from deployments.problems import ProblemError
from deployments.serving import Application, Spec
from deployments.tax_id import read_tax_id
from storage.identity import Users
from storage.identity_clients import Clients
from storage.identity_grants import Attempts, Grants
from storage.identity_keys import Follower, SigningKeys
from storage.references import person_reference

_CONNECTIONS: Final = 6
_COUNTERS: Final = 4
_NICENESS: Final = 10
_SWEEP_S: Final = 600.0


def lifetimes(plan: Plan) -> Lifetimes:
    """As the settings have them."""
    settings = plan.settings
    return Lifetimes(access_s=settings.access_token_s, id_s=settings.access_token_s, refresh_s=settings.refresh_token_s)


class Trust:
    """Who verifies tokens in this process, and what has to be closed with it."""

    def __init__(self, plan: Plan, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        self._plan = plan
        self._keys = StoredKeys(SigningKeys(pool))
        self._verifiers: list[TokenVerifier] = []
        self._follower = Follower(plan.dsn, on_keys=self._keys_changed)

    async def start(self) -> None:
        """Read keys and revocations, and follow them."""
        await self._follower.start()

    async def close(self) -> None:
        """Stop following."""
        await self._follower.close()

    def verifier(self, audience: str = PAYMENTS) -> Issuers:
        """Our own tokens, those of the embedded key or of a configured key set, and those of outside providers.

        `audience`: payments, vault or score. A token for another one is refused, whoever has issued it.
        """
        settings = self._plan.settings
        named, tier = (settings.token_audience, None) if audience == PAYMENTS else (audience, audience)
        own = TokenVerifier(self._keys, issuer=self._plan.public_url, audience=named, types=ACCESS_TOKEN)
        self._verifiers.append(own)
        verifiers: dict[str, Verifier] = {self._plan.public_url: OwnTokens(own, self._follower)}
        if settings.jwks is not None or settings.trusts_embedded_key:
            jwks = self._plan.jwks
            source = KeyAddress(jwks) if jwks.startswith(("http://", "https://")) else KeyFile(Path(jwks))
            verifiers[settings.token_issuer] = TokenVerifier(source, issuer=settings.token_issuer, audience=named)
        outside = (one.provider() for one in settings.oidc_issuers)
        verifiers |= {one.issuer: one.verifier(tier, self._reference) for one in outside if one.opens(tier)}
        return Issuers(verifiers)

    def _reference(self, tax_id: str) -> str | None:
        try:
            plain = read_tax_id(tax_id, "tax_id", repeated=self._plan.settings.repeated_tax_ids)
        except ProblemError:
            return None
        return person_reference(self._plan.ledger_key, plain).hex()

    async def _keys_changed(self) -> None:
        for verifier in self._verifiers:
            await verifier.refresh()


async def identity_application(config: dict[str, Any]) -> Application:
    """The factory that a replica calls on its own loop. `config`: where the plan lies."""
    plan = await Plan.taken_up(config)
    os.nice(_NICENESS)  # a storm of logins must not take from transfers
    pool = await asyncpg.create_pool(plan.dsn, min_size=1, max_size=_CONNECTIONS)
    # A crash may forget some attempts; waiting for the disk at each would slow down whoever does need it.
    counters = await asyncpg.create_pool(
        plan.dsn, min_size=1, max_size=_COUNTERS, server_settings={"synchronous_commit": "off"}
    )
    services, follower = await make_services(plan, pool, attempts=Attempts(counters))
    sweeper = asyncio.create_task(_sweep(services.grants), name="sweep")

    async def close() -> None:
        sweeper.cancel()
        await follower.close()
        services.passwords.close()
        await counters.close()
        await pool.close()

    return Application(create_app(services), close=close)


async def make_services(
    plan: Plan, pool: asyncpg.Pool[asyncpg.Record], *, attempts: Attempts, **changes: Any
) -> tuple[Services, Follower]:
    """What the application stands on, with revocations and keys already followed."""
    settings, times = plan.settings, lifetimes(plan)
    keys = SigningKeys(pool)
    signer = Signer(keys, plan.ledger_key)
    own_keys = TokenVerifier(StoredKeys(keys), issuer=plan.public_url, audience=plan.public_url, types=ACCESS_TOKEN)

    async def keys_changed() -> None:
        await own_keys.refresh()
        await signer.refresh()

    follower = Follower(plan.dsn, on_keys=keys_changed)
    await follower.start()
    services = Services(
        users=Users(pool, access_life=times.access),
        clients=Clients(pool, access_life=times.access),
        grants=Grants(pool, access_life=times.access),
        attempts=attempts,
        signer=signer,
        verifier=OwnTokens(own_keys, follower),
        passwords=Passwords(threads=settings.password_threads),
        ledger_key=plan.ledger_key,
        key=secret_key(plan.ledger_key),
        issuer=plan.public_url,
        audience=settings.token_audience,
        gateway_secret=plan.secrets.gateway_secret,
        deadline_s=settings.deadline_s,
        password_length_min=settings.password_length_min,
        repeated_tax_ids=settings.repeated_tax_ids,
        registration=settings.registration,
        lifetimes=times,
        **changes,
    )
    return services, follower


async def _sweep(grants: Grants) -> None:
    while True:
        await asyncio.sleep(_SWEEP_S)
        await grants.sweep()


def identity_spec(plan: Plan) -> Spec:
    """The identity application as it is deployed. It always listens itself: it has three prefixes, Serve's proxy knows
    one."""
    return Spec(
        name="identity",
        factory=identity_application,
        config=plan.handed_down(),
        log_directory=str(plan.data.log),
        port=plan.identity_port,
        route_prefix=None,
        version=version("razao"),
        replicas_min=1,
        replicas_max=plan.settings.identity_replicas_max,
        max_in_progress=128,
        max_waiting=256,
        target_in_progress=32.0,
    )
