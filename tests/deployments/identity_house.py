"""The identity application in the test's own loop, over a real PostgreSQL, with people and programs to come in."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from html import unescape
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

import asyncpg
import httpx
import jwt
import pytest

from actors.recovery import Windows
from cluster import identity
from cluster.console import settings_of
from cluster.data import Secrets
from cluster.identity_wiring import Trust, make_services
from cluster.plan import Plan
from cluster.postgres import PostgresServer
from deployments.auth.keys import ensure_keys
from deployments.identity import create_app
from deployments.identity_services import Pace, Services
from storage.identity_grants import Attempts
from storage.identity_keys import Follower
from tests.conftest import outside_loop, own_database

ISSUER: Final = "http://identity.test"
CALLBACK: Final = "https://app.example/callback"
PASSWORD: Final = "um cavalo correto na pilha"
CPF: Final = "529.982.247-25"
GATEWAY: Final = "a gateway's secret"
LEDGER_KEY: Final = bytes(range(32))


@dataclass
class House:
    """The application and what it stands on."""

    services: Services
    plan: Plan
    pool: asyncpg.Pool[asyncpg.Record]
    follower: Follower
    said: list[str]
    pauses: list[float] = field(default_factory=list)

    def http(self, address: str = "192.0.2.1", **headers: str) -> httpx.AsyncClient:
        """A client as the gateway lets it through, with cookies of its own."""
        sent = {"razao-gateway": GATEWAY, "razao-client-address": address, "razao-client-scheme": "http", **headers}
        transport = httpx.ASGITransport(create_app(self.services))
        return httpx.AsyncClient(transport=transport, base_url=ISSUER, headers=sent)

    async def register(self, username: str = "ana", **changes: str) -> str:
        """Somebody new; returns the `sub`."""
        body = {"username": username, "password": PASSWORD, "name": "Ana Souza", "tax_id": CPF, **changes}
        async with self.http() as http:
            answer = await http.post("/auth/register", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["sub"])

    async def prove(self, username: str = "ana", tax_id: str = CPF) -> None:
        """Say as an operator that a tax id is somebody's."""
        await identity.prove_user(self.pool, self.plan.ledger_key, username, tax_id, "document", repeated=False)

    async def login(self, username: str = "ana", password: str = PASSWORD) -> dict[str, Any]:
        """The tokens of a login."""
        async with self.http() as http:
            answer = await http.post("/auth/login", json={"username": username, "password": password})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def person(self, username: str = "ana") -> dict[str, Any]:
        """Register and log in."""
        await self.register(username)
        return await self.login(username)

    async def client(self, *, public: bool = True, redirect_uri: str = CALLBACK, **more: Any) -> tuple[str, str | None]:
        """A registered program; its id and secret."""
        made = await identity.add_client(
            self.pool, self.plan.ledger_key, "An app", [redirect_uri], public=public, **more
        )
        return made["client_id"], made.get("client_secret")

    async def token(self, form: dict[str, str], **arguments: Any) -> httpx.Response:
        """POST /oauth/token."""
        async with self.http() as http:
            return await http.post("/oauth/token", data=form, **arguments)

    async def revocations_known(self) -> None:
        """Return once the followers have seen every revocation that is written."""
        wanted = {row["mark"] for row in await self.pool.fetch("SELECT mark FROM identity.revocations")}
        async with asyncio.timeout(10):
            while not all(self.follower.revoked([mark]) for mark in wanted):
                await self.pool.fetchval("SELECT 1")  # a turn around the database: what was told has come by then

    async def audit(self) -> list[tuple[str, str]]:
        """What was done, and to whom."""
        rows = await self.pool.fetch("SELECT action, subject FROM identity.audit ORDER BY id")
        return [(row["action"], row["subject"]) for row in rows]


@dataclass(frozen=True)
class Prepared:
    """A database with everything that the service makes at its first start, which takes longer than most tests."""

    name: str
    said: list[str]


@pytest.fixture(scope="session")
def prepared(postgres_server: PostgresServer) -> Iterator[Prepared]:
    """The database that each test has a copy of."""
    said: list[str] = []

    async def prepare(dsn: str) -> None:
        async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool:
            await identity.prepare(pool, LEDGER_KEY, say=said.append)

    with own_database(postgres_server) as dsn:
        outside_loop(lambda: prepare(dsn))
        yield Prepared(urlsplit(dsn).path.removeprefix("/"), said)


@pytest.fixture
def identity_database(postgres_server: PostgresServer, prepared: Prepared) -> Iterator[str]:
    """A copy of it, whose keys are as young as if they had been made now."""

    async def renew(dsn: str) -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute("UPDATE identity.signing_keys SET created_at = now()")
            await connection.execute("UPDATE identity.signing_keys SET active_at = now() WHERE active_at IS NOT NULL")
        finally:
            await connection.close()

    with own_database(postgres_server, prepared.name) as dsn:
        outside_loop(lambda: renew(dsn))
        yield dsn


@pytest.fixture
async def house(identity_database: str, prepared: Prepared, tmp_path: Path) -> AsyncIterator[House]:
    """An application over a database in which nothing has happened yet."""
    plan = Plan(
        settings_of(data=tmp_path),
        Secrets("e", LEDGER_KEY.hex(), "00", GATEWAY),
        2,
        Windows(),
        identity_database,
        1,
        2,
        ISSUER,
    )
    ensure_keys(plan.data.keys)
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    async with asyncpg.create_pool(identity_database, min_size=1, max_size=8) as pool:
        services, follower = await make_services(plan, pool, attempts=Attempts(pool), pause=pause)
        try:
            yield House(services, plan, pool, follower, prepared.said, pauses)
        finally:
            await follower.close()
            services.passwords.close()


@pytest.fixture
async def trust(house: House) -> AsyncIterator[Trust]:
    """Who verifies tokens for payments."""
    found = Trust(house.plan, house.pool)
    await found.start()
    yield found
    await found.close()


class Browser:
    """A person's browser at the login page: follows forms, keeps cookies, goes nowhere by itself."""

    def __init__(self, house: House, **headers: str) -> None:
        self.http = house.http(**headers)
        self.verifier = secrets.token_urlsafe(48)

    def address(self, client_id: str, **changes: str | None) -> str:
        """An authorization request; None leaves a parameter out."""
        parameters: dict[str, str | None] = {
            "response_type": "code",
            "client_id": client_id,
            "redirect_uri": CALLBACK,
            "scope": "openid profile ledger:read",
            "state": "a state",
            "code_challenge": challenge_of(self.verifier),
            "code_challenge_method": "S256",
            **changes,
        }
        return "/oauth/authorize?" + urlencode({k: v for k, v in parameters.items() if v is not None})

    async def submit(self, page: httpx.Response, **fields: str) -> httpx.Response:
        """Send the page's form."""
        action, hidden = form_of(page)
        return await self.http.post(action, data={**hidden, **fields})

    async def consent(self, client_id: str, username: str = "ana", **changes: str | None) -> dict[str, str]:
        """All the way: log in, allow; what the redirect carries."""
        page = await self.http.get(self.address(client_id, **changes))
        assert page.status_code == 200, page.text
        if 'name="password"' in page.text:
            page = await self.submit(page, username=username, password=PASSWORD)
            assert page.status_code == 200, page.text
        return redirected(await self.submit(page, decision="allow"))

    async def close(self) -> None:
        """Close it."""
        await self.http.aclose()


@pytest.fixture
async def browser(house: House) -> AsyncIterator[Browser]:
    """A browser."""
    found = Browser(house)
    yield found
    await found.close()


def challenge_of(verifier: str) -> str:
    """S256 (RFC 7636, 4.2)."""
    return urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def form_of(page: httpx.Response) -> tuple[str, dict[str, str]]:
    """Where a page's form goes, and its hidden fields."""
    action = re.search(r'<form method="post" action="([^"]*)"', page.text)
    assert action is not None, page.text
    hidden = dict(re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', page.text))
    return unescape(action[1]), {name: unescape(value) for name, value in hidden.items()}


def redirected(answer: httpx.Response) -> dict[str, str]:
    """The parameters that a redirect to the client carries."""
    assert answer.status_code == 303, answer.text
    location = answer.headers["location"]
    assert location.startswith(CALLBACK + "?"), location
    return dict(parse_qsl(urlsplit(location).query))


async def exchange(house: House, browser: Browser, client_id: str, code: str, **changes: str) -> httpx.Response:
    """A code for tokens, by a public client."""
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": CALLBACK,
        "client_id": client_id,
        "code_verifier": browser.verifier,
        **changes,
    }
    return await house.token({name: value for name, value in form.items() if value})


def slower(house: House, **pace: float) -> None:
    """Another pace for attempts."""
    house.services.pace = replace(Pace(), **pace)


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())


def claims_of(tokens: dict[str, Any]) -> dict[str, Any]:
    """What the access token says."""
    found: dict[str, Any] = jwt.decode(tokens["access_token"], options={"verify_signature": False})
    return found
