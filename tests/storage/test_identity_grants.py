"""What may be used once is used once, whoever comes at the same time."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from storage import identity
from storage.identity import By, Users
from storage.identity_clients import Clients
from storage.identity_grants import Attempts, Code, Family, Grants, Reused

LIFE = timedelta(minutes=10)
SUB = uuid.uuid4()


@pytest.fixture
async def pool(database: str) -> AsyncIterator[asyncpg.Pool[asyncpg.Record]]:
    """A store with one person and one client."""
    async with asyncpg.create_pool(database, min_size=1, max_size=8) as found:
        await identity.create(found)
        users = Users(found, access_life=LIFE)
        await users.add(SUB, "ana", name="Ana", person=None, role="person", password="hash", by=By("test"))
        await Clients(found, access_life=LIFE).add("app", "App", secret=None, grants=[], scopes=[], by=By("test"))
        yield found


def family() -> Family:
    """A new one."""
    now = datetime.now(UTC)
    return Family(str(uuid.uuid4()), str(SUB), "app", "ledger:read", now, now + timedelta(days=1))


async def test_of_many_who_rotate_one_refresh_token_at_once_one_succeeds(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    grants, one = Grants(pool, access_life=LIFE), family()
    assert await grants.begin(one, b"first", By("test"))
    done = await asyncio.gather(
        *(grants.rotate(b"first", b"%d" % number, one, By("app", request=f"r{number}")) for number in range(8))
    )
    assert sum(done) == 1
    assert isinstance(await grants.refresh_token(b"first", "another"), Reused)


async def test_a_rotation_that_is_sent_again_succeeds_again(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    grants, one = Grants(pool, access_life=LIFE), family()
    await grants.begin(one, b"first", By("test"))
    for new in (b"second", b"third"):
        assert await grants.rotate(b"first", new, one, By("app", request="the same"))
    assert isinstance(await grants.refresh_token(b"first", "the same"), Family)


async def test_an_ended_family_rotates_no_more(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    grants, one = Grants(pool, access_life=LIFE), family()
    await grants.begin(one, b"first", By("test"))
    await grants.end(one.id, By("test"), "logout")
    assert not await grants.rotate(b"first", b"second", one, By("app", request="r"))
    assert await grants.refresh_token(b"first", "r") is None


async def test_of_many_who_exchange_one_code_at_once_one_succeeds(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    grants, now = Grants(pool, access_life=LIFE), datetime.now(UTC)
    code = Code("app", str(SUB), "https://a/cb", "ledger:read", None, "challenge", now, b"code")
    await grants.add_code(code, now + LIFE, By("test"))
    done = await asyncio.gather(
        *(grants.exchange(b"code", family(), b"%d" % number, By("app", request=f"r{number}")) for number in range(8))
    )
    assert sum(done) == 1


async def test_nobody_who_is_disabled_begins_a_login(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    await Users(pool, access_life=LIFE).disable(str(SUB), By("test"))
    assert not await Grants(pool, access_life=LIFE).begin(family(), b"first", By("test"))


async def test_attempts_at_once_are_counted_each(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    attempts = Attempts(pool)
    found = await asyncio.gather(*(attempts.take(b"bucket", burst=5, drip_s=1000) for _ in range(20)))
    assert sum(wait_s == 0 for _, wait_s in found) == 5
