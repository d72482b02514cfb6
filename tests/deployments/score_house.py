"""The score application in the test's own loop, over a real store, and people who come in by tokens of theirs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx
import pytest

from actors.recovery import Windows
from cluster.console import settings_of
from cluster.data import Secrets
from cluster.plan import Plan
from cluster.score_wiring import COLLECTIONS, make_services
from deployments.auth.keys import ensure_keys, sign_token
from deployments.auth.tokens import KeyFile, TokenVerifier
from deployments.score import AUDIENCE, create_app
from deployments.score_debts import DebtSource, Due, NoDebts
from deployments.score_services import Services
from storage.documents import Database
from storage.documents.opening import open_database
from storage.references import person_reference

CPF: Final = "52998224725"
OTHER_CPF: Final = "11144477735"
GATEWAY: Final = "a gateway's secret"
LEDGER_KEY: Final = bytes(range(32))
BANK: Final = "bank-17"
CONSULTS: Final = "score:read score:profile"
PROFILE: Final[dict[str, Any]] = {
    "name": "Ana Souza",
    "birth_date": "1987-04-21",
    "address": {
        "street": "Rua das Flores, 12", "city": "Recife", "state": "PE", "postal_code": "50030-230",
    },
    "income_source": "salary",
    "monthly_income": 500_000,
    "assets": [{"kind": "vehicle", "value": 3_000_000}],
    "credit": {
        "first_credit_on": "2012-01-31", "payments_on_time": 60, "payments_late": 1, "contracts_settled": 3,
    },
}  # fmt: skip


@dataclass
class Owed:
    """A `DebtSource` of which the test knows what it says, and which may do something before it answers."""

    says: int | NoDebts = 0
    life_s: float = 86_400.0
    asked: int = 0
    before: list[Any] = field(default_factory=list)

    async def due(self, tax_id: str, correlation_id: str) -> Due | NoDebts:
        """What somebody owes."""
        assert tax_id
        assert correlation_id
        self.asked += 1
        says = self.says
        while self.before:
            await self.before.pop()()
        return says if isinstance(says, NoDebts) else Due(says, self.life_s)


@dataclass
class Clock:
    """Time as the test has it."""

    now: int = 1_800_000_000 * 10**9

    def __call__(self) -> int:
        """A little later each time."""
        self.now += 1000
        return self.now

    def later(self, seconds: float) -> None:
        """Let time pass."""
        self.now += int(seconds * 10**9)


@dataclass
class House:
    """The application and what it stands on."""

    services: Services
    plan: Plan
    database: Database
    clock: Clock
    owed: Owed

    def token(self, sub: str = BANK, scope: str = CONSULTS, audience: str = AUDIENCE, of: str | None = None) -> str:
        """A token; `of`: the tax id of the person who it is for."""
        person = None if of is None else person_reference(LEDGER_KEY, of).hex()
        return sign_token(self.plan.data.keys, sub, scope, audience=audience, person=person, expires_in=3600)

    def http(
        self, sub: str = BANK, scope: str = CONSULTS, *, about: str = CPF, of: str | None = None, **headers: str
    ) -> httpx.AsyncClient:
        """A client as the gateway lets it through, about one person."""
        sent = {
            "authorization": f"Bearer {self.token(sub, scope, of=of)}",
            "razao-gateway": GATEWAY,
            "razao-client-address": "192.0.2.7",
            "razao-tax-id": about,
            **headers,
        }
        transport = httpx.ASGITransport(create_app(self.services))
        return httpx.AsyncClient(transport=transport, base_url="http://score.test", headers=sent)

    def person(self, tax_id: str = CPF, **headers: str) -> httpx.AsyncClient:
        """Somebody asking about themselves."""
        return self.http(f"person-{tax_id[:3]}", "score:self", about=tax_id, of=tax_id, **headers)

    async def write(self, tax_id: str = CPF, **changes: Any) -> None:
        """Write a profile."""
        body = {name: value for name, value in (PROFILE | changes).items() if value is not None}
        async with self.http("source", "score:write", about=tax_id) as http:
            answer = await http.put("/score/v1/profile", json=body)
        assert answer.status_code == 200, answer.text

    async def score(self, tax_id: str = CPF, sub: str = BANK) -> dict[str, Any]:
        """A score."""
        async with self.http(sub, about=tax_id) as http:
            answer = await http.get("/score/v1/score")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def everything(self) -> str:
        """All that the store has, ids and all."""
        rows = []
        for name in COLLECTIONS:
            rows += [(one.id.hex(), one.body) for one in await self.database.collection(name).scan(b"", 10_000)]
        return json.dumps(rows, ensure_ascii=False)


@asynccontextmanager
async def score_house(dsn: str, directory: Path, **where: Any) -> AsyncIterator[House]:
    """An application over an empty database; `where`: of `open_database`."""
    secrets = Secrets("e", LEDGER_KEY.hex(), "00", GATEWAY)
    plan = Plan(settings_of(data=directory), secrets, 2, Windows(), dsn, 1, 2, "http://score.test")
    ensure_keys(plan.data.keys)
    verifier = TokenVerifier(KeyFile(plan.data.keys / "jwks.json"), audience=AUDIENCE)
    database = await open_database(dsn, **where)
    clock, owed = Clock(), Owed()
    try:
        await database.create(COLLECTIONS)
        services = make_services(plan, database, owed, verifier, clock=clock)
        yield House(services, plan, database, clock, owed)
    finally:
        await database.close()


async def asyncpg_rows(dsn: str, statement: str) -> list[Any]:
    """What a statement finds."""
    connection = await asyncpg.connect(dsn)
    try:
        rows: list[Any] = await connection.fetch(statement)
    finally:
        await connection.close()
    return rows


@pytest.fixture
async def scores(database: str, tmp_path: Path) -> AsyncIterator[House]:
    """The application over PostgreSQL."""
    async with score_house(database, tmp_path) as house:
        yield house


_: type[DebtSource] = Owed
