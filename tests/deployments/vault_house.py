"""The vault in the test's own loop, over a real PostgreSQL, as its own role, with callers of every kind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx
import pytest

from actors.recovery import Windows
from cluster import vault
from cluster.console import settings_of
from cluster.data import Secrets
from cluster.plan import Plan
from cluster.vault_wiring import make_services, vault_pool
from deployments.auth.keys import ensure_keys, sign_token
from deployments.auth.tokens import KeyFile, TokenVerifier
from deployments.vault import Services, create_app
from storage.references import person_reference
from storage.registry import Registry
from storage.vault import Secrets as VaultSecrets

GATEWAY: Final = "a gateway's secret"
LEDGER_KEY: Final = bytes(range(32))
ANA: Final = "529.982.247-25"
BIA: Final = "111.444.777-35"
NOBODY: Final = "390.533.447-05"
SUBS: Final = {ANA: "sub-ana", BIA: "sub-bia", NOBODY: "sub-nobody"}
SCORE: Final = "razao-score"
PURPOSE: Final = "credit-score"
NAME: Final = "Ana Souza"
STREET: Final = "Rua das Flores 12, Recife"
CREDITOR: Final = "Banco Exemplo"
READ_ALL: Final = "vault:read:name vault:read:address vault:read:debts"


def debt(number: int = 1, **changes: Any) -> dict[str, Any]:
    """A debt."""
    return {
        "id": f"d-{number}", "creditor": CREDITOR, "contract": f"C-2025-{number}", "amount": 12_345 * number,
        "currency": "BRL", "since": f"2026-03-{number:02}", "kind": "loan", "disputed": False, **changes,
    }  # fmt: skip


def person(*debts: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What is kept of somebody."""
    return {"name": NAME, "address": STREET, "debts": list(debts), **changes}


def lacks(answer: httpx.Response) -> dict[str, list[str]]:
    """What a refusal says that the fields lack."""
    assert answer.status_code == 403, answer.text
    body = answer.json()
    assert body.keys() == {"type", "title", "status", "detail", "lacks", "request_id"}
    found: dict[str, list[str]] = body["lacks"]
    return found


class Caller:
    """Somebody with a token, as the gateway lets them through."""

    def __init__(self, house: VaultHouse, token: str | None, tax_id: str | None, **headers: str) -> None:
        sent = {"razao-gateway": GATEWAY, "razao-client-address": "127.0.0.1", "razao-purpose": PURPOSE}
        if token is not None:
            sent["authorization"] = f"Bearer {token}"
        if tax_id is not None:
            sent["razao-tax-id"] = tax_id
        transport = httpx.ASGITransport(house.app)
        self.http = httpx.AsyncClient(transport=transport, base_url="https://vault.test", headers={**sent, **headers})

    async def get(self, path: str, **headers: str) -> httpx.Response:
        """GET below /vault/v1."""
        return await self.http.get(f"/vault/v1{path}", headers=headers)

    async def send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """Anything below /vault/v1, with a JSON body."""
        if body is None:
            return await self.http.request(method, f"/vault/v1{path}")
        return await self.http.request(method, f"/vault/v1{path}", json=body)


@dataclass(repr=False)
class VaultHouse:
    """The application and what it stands on."""

    services: Services
    plan: Plan
    secrets: VaultSecrets
    owner: asyncpg.Pool[asyncpg.Record]  # the superuser's
    pool: asyncpg.Pool[asyncpg.Record]  # the service's own role
    executed: list[tuple[str, Any]] = field(default_factory=list)  # the service's statements with their arguments

    def __post_init__(self) -> None:
        self.app = create_app(self.services)

    def token(self, sub: str, scope: str, *, tax_id: str | None = None, audience: str = "vault", life: int = 60) -> str:
        """A signed token; with a tax id it carries the claim `person`."""
        plain = None if tax_id is None else "".join(one for one in tax_id if one.isalnum())
        reference = None if plain is None else person_reference(LEDGER_KEY, plain).hex()
        return sign_token(self.plan.data.keys, sub, scope, audience, life, person=reference)

    def caller(self, sub: str, scope: str, about: str | None = ANA, **headers: str) -> Caller:
        """A program or an operator."""
        return Caller(self, self.token(sub, scope), about, **headers)

    def source(self, about: str = ANA) -> Caller:
        """Who writes."""
        return self.caller("bureau", "vault:write", about)

    def score(self, about: str = ANA, scope: str = "vault:read:debts", **headers: str) -> Caller:
        """Who reads."""
        return self.caller(SCORE, scope, about, **headers)

    def self_(self, tax_id: str = ANA, about: str | None = None) -> Caller:
        """A person, about themselves unless another is named."""
        return Caller(self, self.token(SUBS[tax_id], "vault:self", tax_id=tax_id), about or tax_id)

    async def keep(self, *debts: dict[str, Any], about: str = ANA) -> None:
        """Have a source write somebody down."""
        answer = await self.source(about).send("PUT", "/person", person(*debts))
        assert answer.status_code == 204, answer.text

    async def grant(self, *fields: str, about: str = ANA, grantee: str = SCORE, **changes: Any) -> str:
        """Have the person give a grant; its id."""
        body = {"grantee": grantee, "fields": list(fields), "purpose": PURPOSE, "expires_in": 3600, **changes}
        answer = await self.self_(about).send("POST", "/grants", body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def record(self) -> list[asyncpg.Record]:
        """The record of accesses."""
        return await self.owner.fetch("SELECT * FROM vault.accesses ORDER BY seq")


@asynccontextmanager
async def opened(dsn: str, directory: Path) -> AsyncIterator[VaultHouse]:
    """An application over an empty database."""
    plan = Plan(
        settings=settings_of(data=directory),
        secrets=Secrets("e", LEDGER_KEY.hex(), "00", GATEWAY),
        partitions=2,
        windows=Windows(),
        dsn=dsn,
        application_port=1,
        identity_port=2,
        public_url="http://razao.test",
    )
    jwks = ensure_keys(plan.data.keys)
    executed: list[tuple[str, Any]] = []

    def log(done: Any) -> None:
        executed.append((done.query, done.args))

    async def listen(connection: Any) -> None:
        connection.add_query_logger(log)

    async with asyncpg.create_pool(dsn, min_size=1, max_size=4) as owner:
        await Registry(owner).create()
        await vault.prepare(owner, plan.data)
        secrets = await VaultSecrets.of(vault.key_file(plan.data))
        pool = await vault_pool(plan, secrets, init=listen)
        verifier = TokenVerifier(KeyFile(jwks), audience="vault")
        try:
            yield VaultHouse(make_services(plan, pool, secrets, verifier), plan, secrets, owner, pool, executed)
        finally:
            await pool.close()


@pytest.fixture
async def vault_house(database: str, tmp_path: Path) -> AsyncIterator[VaultHouse]:
    """An application of the test's own."""
    async with opened(database, tmp_path) as house:
        yield house
