"""What may be used once is used once, whoever comes at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from storage import identity
from storage.identity import By, LoginEnded, Users
from storage.identity_clients import Clients
from storage.identity_grants import Attempts, Code, Family, Grants, Reused, Session

LIFE = timedelta(minutes=10)
SUB = uuid.uuid4()
PASSWORD = "hash"


@pytest.fixture
async def pool(database: str) -> AsyncIterator[asyncpg.Pool[asyncpg.Record]]:
    """A store with one person and one client."""
    async with asyncpg.create_pool(database, min_size=1, max_size=8) as found:
        await identity.create(found)
        users = Users(found, access_life=LIFE)
        await users.add(SUB, "ana", name="Ana", person=None, role="person", password=PASSWORD, by=By("test"))
        await Clients(found, access_life=LIFE).add("app", "App", secret=None, grants=[], scopes=[], by=By("test"))
        yield found


def family() -> Family:
    """A new one."""
    now = datetime.now(UTC)
    return Family(str(uuid.uuid4()), str(SUB), "app", "ledger:read", now, now + timedelta(days=1))


async def opened(grants: Grants, cookie: bytes = b"cookie", replaces: bytes | None = None) -> Session:
    """A session at the login page."""
    found = await grants.open_session(cookie, str(SUB), PASSWORD, LIFE, By("test"), replaces=replaces)
    assert found is not None
    return found


def code_of(session: Session, digest: bytes = b"code") -> Code:
    """A code that was given in it."""
    return Code(
        "app", str(SUB), "https://a/cb", "ledger:read", None, "challenge", session.auth_time, digest, session.id
    )


async def test_of_many_who_rotate_one_refresh_token_at_once_one_succeeds(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    grants, one = Grants(pool, access_life=LIFE), family()
    assert await grants.begin(one, b"first", PASSWORD, By("test"))
    done = await asyncio.gather(
        *(grants.rotate(b"first", b"%d" % number, one, By("app", request=f"r{number}")) for number in range(8))
    )
    assert sum(done) == 1
    assert isinstance(await grants.refresh_token(b"first", "another"), Reused)


async def test_a_rotation_that_is_sent_again_succeeds_again(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    grants, one = Grants(pool, access_life=LIFE), family()
    await grants.begin(one, b"first", PASSWORD, By("test"))
    for new in (b"second", b"third"):
        assert await grants.rotate(b"first", new, one, By("app", request="the same"))
    assert isinstance(await grants.refresh_token(b"first", "the same"), Family)


async def test_an_ended_family_rotates_no_more(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    grants, one = Grants(pool, access_life=LIFE), family()
    await grants.begin(one, b"first", PASSWORD, By("test"))
    await grants.end(one.id, By("test"), "logout")
    assert not await grants.rotate(b"first", b"second", one, By("app", request="r"))
    assert await grants.refresh_token(b"first", "r") is None


async def test_of_many_who_exchange_one_code_at_once_one_succeeds(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    grants, now = Grants(pool, access_life=LIFE), datetime.now(UTC)
    session = await opened(grants)
    assert await grants.add_code(code_of(session), now + LIFE, By("test"))
    done = await asyncio.gather(
        *(grants.exchange(b"code", family(), b"%d" % number, By("app", request=f"r{number}")) for number in range(8))
    )
    assert sum(done) == 1


async def test_nobody_who_is_disabled_begins_a_login(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    await Users(pool, access_life=LIFE).disable(str(SUB), By("test"))
    grants = Grants(pool, access_life=LIFE)
    assert not await grants.begin(family(), b"first", PASSWORD, By("test"))
    assert await grants.open_session(b"cookie", str(SUB), PASSWORD, LIFE, By("test"), replaces=None) is None


async def test_attempts_at_once_are_counted_each(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    attempts = Attempts(pool)
    found = await asyncio.gather(*(attempts.take(b"bucket", burst=5, drip_s=1000) for _ in range(20)))
    assert sum(wait_s == 0 for _, wait_s in found) == 5


# -- nothing outlives its end -----------------------------------------------------------------------------------------


async def in_force(pool: asyncpg.Pool[asyncpg.Record]) -> dict[str, int]:
    """How much that was given to the person opens something now."""
    return {
        "families": await pool.fetchval("SELECT count(*) FROM identity.families WHERE revoked_at IS NULL"),
        "codes": await pool.fetchval("SELECT count(*) FROM identity.codes WHERE used_by IS NULL"),
        "sessions": await pool.fetchval("SELECT count(*) FROM identity.sessions"),
        "keys": await pool.fetchval(
            "SELECT count(*) FROM identity.clients WHERE owner IS NOT NULL AND revoked_at IS NULL"
        ),
    }


NOTHING = {"families": 0, "codes": 0, "sessions": 0, "keys": 0}


async def test_a_login_is_written_against_the_hash_that_was_verified_alone(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    grants = Grants(pool, access_life=LIFE)
    assert await Users(pool, access_life=LIFE).change_password(str(SUB), PASSWORD, "another", By("test"))
    assert not await grants.begin(family(), b"first", PASSWORD, By("test"))
    assert await grants.open_session(b"cookie", str(SUB), PASSWORD, LIFE, By("test"), replaces=None) is None
    assert await in_force(pool) == NOTHING


async def test_a_code_is_given_in_a_session_that_lasts_alone(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    grants, ends = Grants(pool, access_life=LIFE), datetime.now(UTC) + LIFE
    session = await opened(grants)
    assert await Users(pool, access_life=LIFE).change_password(str(SUB), PASSWORD, "another", By("test"))
    assert not await grants.add_code(code_of(session), ends, By("test"))
    assert await in_force(pool) == NOTHING


async def test_an_exchange_that_is_sent_again_revives_nothing(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    grants, first, again = Grants(pool, access_life=LIFE), family(), By("app", request="the same")
    await grants.add_code(code_of(await opened(grants)), datetime.now(UTC) + LIFE, By("test"))
    assert await grants.exchange(b"code", first, b"first", again)
    assert await Users(pool, access_life=LIFE).change_password(str(SUB), PASSWORD, "another", By("test"))
    assert not await grants.exchange(b"code", family(), b"second", again)
    assert await in_force(pool) == NOTHING


async def test_an_access_token_outlives_its_family_and_ends_with_it_all_the_same(
    pool: asyncpg.Pool[asyncpg.Record],
) -> None:
    grants, one = Grants(pool, access_life=LIFE), family()
    await grants.begin(one, b"first", PASSWORD, By("test"))
    await pool.execute("UPDATE identity.families SET expires_at = now() - interval '1 minute'")
    assert await Users(pool, access_life=LIFE).change_password(str(SUB), PASSWORD, "another", By("test"))
    assert await pool.fetchval("SELECT mark FROM identity.revocations") == f"sid:{one.id}"


async def test_logging_in_again_in_one_browser_keeps_one_session_under_its_id(
    pool: asyncpg.Pool[asyncpg.Record],
) -> None:
    grants = Grants(pool, access_life=LIFE)
    first = await opened(grants, b"first")
    assert (await opened(grants, b"second", replaces=b"first")).id == first.id
    assert await grants.session(b"first") is None
    assert (await in_force(pool))["sessions"] == 1


async def test_whatever_is_given_while_somebody_is_disabled_or_changes_the_password_ends(
    pool: asyncpg.Pool[asyncpg.Record],
) -> None:
    """All that is ever given, at once with the end of it, many times: none is left over, and nobody waits for ever."""
    grants, users, clients = (
        Grants(pool, access_life=LIFE),
        Users(pool, access_life=LIFE),
        Clients(pool, access_life=LIFE),
    )
    by, ends, password = By("test"), datetime.now(UTC) + LIFE, PASSWORD

    async def make_key(login: Family) -> None:
        with contextlib.suppress(LoginEnded):
            await clients.add(
                str(uuid.uuid4()), "", secret=b"", grants=[], scopes=[], by=by, owner=str(SUB), at_most=50,
                family=login.id,
            )  # fmt: skip

    for number in range(16):
        login = family()
        assert await grants.begin(login, b"r%d" % number, password, by)
        session = await grants.open_session(b"s%d" % number, str(SUB), password, LIFE, by, replaces=None)
        assert session is not None
        assert await grants.add_code(code_of(session, b"c%d" % number), ends, by)
        another = f"password {number}"
        end = users.disable(str(SUB), by) if number % 2 else users.change_password(str(SUB), password, another, by)
        given = [
            grants.begin(family(), b"R%d" % number, password, by),
            grants.open_session(b"S%d" % number, str(SUB), password, LIFE, by, replaces=b"s%d" % number),
            grants.add_code(code_of(session, b"C%d" % number), ends, by),
            grants.exchange(b"c%d" % number, family(), b"e%d" % number, By("app", request=f"e{number}")),
            grants.rotate(b"r%d" % number, b"n%d" % number, login, By("app", request=f"r{number}")),
            make_key(login),
        ]
        given.insert(number % len(given), end)
        await asyncio.gather(*given)
        assert await in_force(pool) == NOTHING, number
        await users.enable(str(SUB), by)
        password = password if number % 2 else another


async def test_what_an_older_version_only_put_to_sleep_ends(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    """Keys of the disabled used to be kept, under a mark that was lifted when they were enabled."""
    clients, by = Clients(pool, access_life=LIFE), By("test")
    await clients.add("key", "", secret=b"", grants=[], scopes=[], by=by, owner=str(SUB))
    await pool.execute("UPDATE identity.users SET disabled_at = now()")
    await pool.execute("INSERT INTO identity.revocations VALUES ($1, 'infinity')", f"sub:{SUB}")
    for _ in range(2):
        await identity.create(pool)
        assert [row["mark"] for row in await pool.fetch("SELECT mark FROM identity.revocations")] == ["client:key"]
        assert await in_force(pool) == NOTHING
