"""The trace application in the test's own loop, over a real store, with a user to come in."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from deployments.auth.basic import BasicBackend, Pace
from deployments.identity_passwords import Passwords
from deployments.listener import Listener
from deployments.trace import create
from deployments.trace_answers import Answers
from deployments.trace_calls import Services
from deployments.trace_queries import LastQueries
from storage import trace_users, traces
from storage.documents import Database
from storage.documents.opening import open_database
from storage.references import person_reference
from storage.trace_users import TraceUsers
from storage.traces import Traces, trace_key

GATEWAY: Final = "a gateway's secret"
USER: Final = "bureau"
PASSWORD: Final = "um cavalo correto na pilha"
CPF: Final = "529.982.247-25"
OTHER_CPF: Final = "111.444.777-35"
KEY: Final = trace_key(bytes(range(32)))


@dataclass
class House:
    """The application and what it stands on. The last queries are written when a test says so."""

    services: Services
    users: TraceUsers
    passwords: Passwords
    port: int
    ordinary: list[str]
    """Targets of the requests that took no express route."""

    def http(self, address: str = "192.0.2.7", password: str | None = PASSWORD, **headers: str) -> httpx.AsyncClient:
        """A client as the gateway lets it through."""
        sent = {"razao-gateway": GATEWAY, "razao-client-address": address, **headers}
        auth = None if password is None else httpx.BasicAuth(USER, password)
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", headers=sent, auth=auth, trust_env=False)

    async def add_user(self, name: str, password: str) -> None:
        """Somebody who may come in."""
        assert await self.users.add(name, await self.passwords.hash(password))


def person(cpf: str = CPF) -> bytes:
    """The reference of somebody."""
    return person_reference(KEY, cpf.replace(".", "").replace("-", ""))


@contextlib.asynccontextmanager
async def open_house(database: Database, **changes: Any) -> AsyncIterator[House]:
    """The application over a database, which is closed with it."""
    await database.create([*traces.COLLECTIONS, *trace_users.COLLECTIONS])
    users, passwords = TraceUsers(database), Passwords(memory_kib=64, passes=1)
    store = Traces(database)
    queries = LastQueries(store, waiting_max=changes.pop("waiting_max", 50_000))
    services = Services(
        traces=store,
        backend=BasicBackend(users, passwords, "trace", pace=changes.pop("pace", Pace())),
        queries=queries,
        answers=Answers(store, queries),
        key=KEY,
        gateway_secret=GATEWAY,
        **changes,
    )
    looking = asyncio.create_task(services.backend.keep_looking())
    app, routes = create(services)
    ordinary: list[str] = []

    async def noted(scope: Scope, receive: Receive, send: Send) -> None:
        ordinary.append(scope["path"])
        await app(scope, receive, send)

    listener = Listener(noted, "127.0.0.1", 0, routes=routes)
    await listener.start()
    try:
        yield House(services, users, passwords, listener.port, ordinary)
    finally:
        await listener.drain(5, idle_s=0.0)
        looking.cancel()
        passwords.close()
        await database.close()


@pytest.fixture
async def trace_house(database: str) -> AsyncIterator[House]:
    """An application over PostgreSQL, with the user `USER`."""
    async with open_house(await open_database(database)) as found:
        await found.add_user(USER, PASSWORD)
        yield found
