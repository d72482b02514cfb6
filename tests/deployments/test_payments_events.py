"""Streams of events under stress: slow readers, replicas that leave, a database that goes away, many at once; and
readers who may not read any more."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx
import pytest

from cluster import identity
from cluster.identity_wiring import Trust
from cluster.postgres import PostgresServer
from deployments.auth.issuers import OwnTokens, Verifier
from deployments.auth.tokens import TokenVerifier
from deployments.listener import Listener
from deployments.payments import create_app
from deployments.payments_events import Limits
from tests.contract.http_engine import Engine, new_database
from tests.contract.http_events import Sent, stream, told
from tests.contract.http_suite import Caller, World, refused, transfer
from tests.deployments.identity_house import PASSWORD, House

CUT_FEED: Final = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%query.happened%'
"""
LIMITS: Final = Limits(streams=24, streams_per_caller=20, heartbeat_s=0.2, send_s=1.0)


@pytest.fixture(scope="module")
def engine(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, World]]:
    """An engine that has little patience with slow readers."""
    dsn = new_database(postgres_server, "events")
    made = Engine(dsn, Path(tmp_path_factory.mktemp("engine")), event_limits=LIMITS)
    world = World(made.start())
    yield made, world
    world.http.close()
    made.stop()


def pay_often(world: World, caller: Caller, account: str, other: str, count: int) -> None:
    """`count` transfers of one centavo, each with an event of its own."""
    for start in range(0, count, 10_000):
        rows = [transfer(account, other, 1) for _ in range(min(10_000, count - start))]
        answer = caller.post("/v1/transfers/batch", {"transfers": rows})
        assert answer.status_code == 200, answer.text
    assert world.http is caller.http


def raw_stream(world: World, caller: Caller, query: str) -> socket.socket:
    """A stream whose reader reads nothing, into a small buffer of the kernel's."""
    address = httpx.URL(world.engine.base_url)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(30)
    client.connect((address.host, address.port))
    token = caller.headers["authorization"]
    client.sendall(f"GET /v1/events{query} HTTP/1.1\r\nhost: x\r\nauthorization: {token}\r\n\r\n".encode())
    return client


def read_to_the_end(client: socket.socket) -> bytes:
    """All that was sent, until the other side closes."""
    found = bytearray()
    while some := client.recv(1 << 16):
        found += some
    return bytes(found)


def unchunked(answer: bytes) -> tuple[bytes, bool]:
    """The body of a chunked answer, and whether it is complete."""
    _, _, rest = answer.partition(b"\r\n\r\n")
    body = bytearray()
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        if int(size or b"0", 16) == 0:
            return bytes(body), bool(size)
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return bytes(body), False


def events_in(body: bytes) -> list[Sent]:
    """The whole events in a body that may break off anywhere."""
    found = []
    for block in body.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if "data" in fields:
            found.append(Sent(fields["id"], fields["event"], json.loads(fields["data"])))
    return found


def until(check: Any) -> None:
    """Ask until it is so."""
    deadline = time.monotonic() + 30
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_slow_reader_is_cut_off_and_hurts_nobody_and_may_come_back(engine: tuple[Engine, World]) -> None:
    """What it comes back for is exactly what it lacks; meanwhile another reader of the same account gets everything."""
    made, world = engine
    caller, account = world.person(10**6)
    _, other = world.person_elsewhere(account, apart=False)
    count = 20_000
    with stream(caller, opened=True) as quick:
        slow = raw_stream(world, caller, "?from=2026-01-01T00:00:00Z")
        pay_often(world, caller, account, other, count)
        assert len(quick.take(count)) == count
        until(lambda: made.services.events.open == 1)
    got, complete = unchunked(read_to_the_end(slow))
    slow.close()
    assert not complete
    seen = events_in(got)
    assert 0 < len(seen) < count
    with stream(caller, last=seen[-1].id) as again:
        seen += again.take(count + 2 - len(seen))
    assert len({one.data["id"] for one in seen}) == len(seen) == count + 2
    assert told(seen) == [
        ("account.opened", "", 0), ("transfer.settled", "credit", 10**6), *[("transfer.settled", "debit", 1)] * count,
    ]  # fmt: skip


def test_a_replica_that_leaves_ends_its_streams_in_order_and_a_reader_goes_on_elsewhere(
    engine: tuple[Engine, World],
) -> None:
    """The answer is complete, nothing is missing, and draining does not wait for streams."""
    made, world = engine
    caller, account = world.person()

    async def listen() -> Listener:
        listener = Listener(create_app(made.services), "127.0.0.1", 0)
        await listener.start()
        return listener

    listener: Listener = made.run(listen())
    with httpx.Client(base_url=f"http://127.0.0.1:{listener.port}", timeout=30, trust_env=False) as http:
        there = Caller(http, caller.headers["authorization"].removeprefix("Bearer "), caller.sub)
        with stream(there) as mine:
            world.fund(account, 1)
            (first,) = mine.take(1)
            lost: list[int] = []
            leaving = threading.Thread(target=lambda: lost.append(made.run(listener.drain(20.0, idle_s=0.2))))
            leaving.start()
            assert mine.rest() == []
            leaving.join()
    assert lost == [0]
    world.fund(account, 2)
    with stream(caller, last=first.id) as again:
        assert told(again.take(1)) == [("transfer.settled", "credit", 2)]


def _held(made: Engine) -> int:
    """Connections of the database that are taken by somebody just now, the projection's among them."""
    pool = made.services.store.pool
    return pool.get_size() - pool.get_idle_size()


def test_many_readers_take_one_connection_and_are_all_told(engine: tuple[Engine, World]) -> None:
    """And when the last one has gone, none."""
    made, world = engine
    people = [world.person() for _ in range(20)]
    before = _held(made)
    with ExitStack() as stack:
        streams = [stack.enter_context(stream(caller)) for caller, _ in people]
        for number, (_, account) in enumerate(people):
            world.fund(account, number + 1)
        for number, mine in enumerate(streams):
            assert told(mine.take(1)) == [("transfer.settled", "credit", number + 1)]
        assert made.services.events.open == 20
        assert _held(made) == before + 1
    until(lambda: made.services.events.open == 0 and _held(made) == before)


def test_a_replica_has_only_so_many_streams_and_other_calls_do_not_feel_it(engine: tuple[Engine, World]) -> None:
    """Whoever they belong to."""
    _, world = engine
    people = [world.person(10) for _ in range(3)]
    with ExitStack() as stack:
        for number in range(LIMITS.streams):
            stack.enter_context(stream(people[number % 2][0]))
        caller, account = people[2]
        with caller.http.stream("GET", "/v1/events", headers=caller.headers) as answer:
            answer.read()
            refused(answer, 429, "overloaded")
        assert caller.post("/v1/transfers", transfer(account, people[0][1], 1)).status_code == 201
        assert caller.balance(account)[0] == 9


def test_a_stream_outlives_the_query_store_being_made_again(engine: tuple[Engine, World]) -> None:
    """It waits, and goes on where it was when the projection is there again."""
    made, world = engine
    caller, account = world.person()
    with stream(caller) as mine:
        world.fund(account, 1)
        assert told(mine.take(1)) == [("transfer.settled", "credit", 1)]
        made.run(made.services.store.reset())
        world.fund(account, 2)
        assert told(mine.take(1)) == [("transfer.settled", "credit", 2)]


def test_a_stream_outlives_its_connection_to_the_database(engine: tuple[Engine, World]) -> None:
    """It is cut; heartbeats and then events go on."""
    made, world = engine
    caller, account = world.person()
    with stream(caller) as mine:
        world.fund(account, 1)
        assert told(mine.take(1)) == [("transfer.settled", "credit", 1)]
        assert made.run(made.services.store.pool.fetch(CUT_FEED)) == [(True,)]
        assert mine.comment()
        world.fund(account, 2)
        assert told(mine.take(1)) == [("transfer.settled", "credit", 2)]


# -- who may not read any more ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """Somebody at the identity service, with a token for a stream."""

    house: House
    login: dict[str, Any]
    key: tuple[str, str]

    async def post(self, path: str, body: dict[str, Any] | None = None) -> None:
        """As that person; without a body none is sent."""
        async with self.house.http(authorization=f"Bearer {self.login['access_token']}") as http:
            answer = await http.post(path, json=body) if body is not None else await http.post(path)
        assert answer.status_code == 204, answer.text

    async def log_out(self) -> None:
        """POST /auth/logout."""
        await self.post("/auth/logout")

    async def change_password(self) -> None:
        """POST /auth/password, by which keys end too."""
        body = {"current_password": PASSWORD, "new_password": "outra senha bem comprida"}
        await self.post("/auth/password", body)

    async def delete_key(self) -> None:
        """DELETE /auth/access-keys/{id}."""
        async with self.house.http(authorization=f"Bearer {self.login['access_token']}") as http:
            assert (await http.delete(f"/auth/access-keys/{self.key[0]}")).status_code == 204

    async def revoke(self) -> None:
        """POST /oauth/revoke, of the token itself."""
        form = {"client_id": "razao", "token": self.login["access_token"]}
        async with self.house.http() as http:
            assert (await http.post("/oauth/revoke", data=form)).status_code == 200

    async def disable(self) -> None:
        """`razao users disable`."""
        await identity.set_enabled(self.house.pool, "ana", enabled=False)


async def reader_of(house: House) -> Reader:
    """Somebody with an access key."""
    login = await house.person()
    async with house.http(authorization=f"Bearer {login['access_token']}") as http:
        made = (await http.post("/auth/access-keys", json={"name": "x", "scopes": ["ledger:read"]})).json()
    return Reader(house, login, (made["client_id"], made["client_secret"]))


@contextmanager
def door(made: Engine, verifier: Verifier) -> Iterator[str]:
    """The engine's payments behind other tokens; its address."""

    async def start() -> Listener:
        found = Listener(create_app(replace(made.services, verifier=verifier)), "127.0.0.1", 0)
        await found.start()
        return found

    listener: Listener = made.run(start())
    try:
        yield f"http://127.0.0.1:{listener.port}"
    finally:
        made.run(listener.drain(5.0, idle_s=0.0))


@contextmanager
def trusting(made: Engine, house: House) -> Iterator[Verifier]:
    """Who verifies an identity service's tokens, on the engine's loop."""

    async def start() -> tuple[Trust, asyncpg.Pool[asyncpg.Record]]:
        pool = await asyncpg.create_pool(house.plan.dsn, min_size=1, max_size=1)
        found = Trust(house.plan, pool)
        await found.start()
        return found, pool

    async def stop() -> None:
        await trust.close()
        await pool.close()

    trust, pool = made.run(start())
    try:
        yield trust.verifier()
    finally:
        made.run(stop())


@dataclass
class Revocations:
    """A list of revocations, of which nothing is on it, and which can be read or not."""

    fresh: bool = True

    def revoked(self, _marks: object) -> bool:
        """Whether one of them is there."""
        return False


def test_while_nobody_can_tell_who_was_revoked_a_stream_says_nothing_and_goes_on_later(
    engine: tuple[Engine, World],
) -> None:
    """It stays open: to come back would not help its reader, who would be refused."""
    made, world = engine
    caller, account = world.person()
    assert isinstance(made.services.verifier, TokenVerifier)
    revocations = Revocations()
    with (
        door(made, OwnTokens(made.services.verifier, revocations)) as url,
        httpx.Client(base_url=url, timeout=10, trust_env=False) as http,
        stream(Caller(http, caller.headers["authorization"].removeprefix("Bearer "), caller.sub)) as mine,
    ):
        revocations.fresh = False
        world.fund(account, 1)
        for _ in range(3):
            assert "transfer.settled" not in mine.before_comment()
        revocations.fresh = True
        assert told(mine.take(1)) == [("transfer.settled", "credit", 1)]


_ENDS: Final = [
    (False, Reader.log_out), (False, Reader.change_password), (False, Reader.revoke), (False, Reader.disable),
    (True, Reader.delete_key), (True, Reader.change_password), (True, Reader.disable),
]  # fmt: skip


@pytest.mark.parametrize(("by_key", "end"), _ENDS, ids=lambda one: getattr(one, "__name__", "key" if one else "login"))
async def test_a_stream_ends_within_a_heartbeat_of_what_let_its_reader_in_and_says_so(
    engine: tuple[Engine, World], house: House, by_key: bool, end: Callable[[Reader], Awaitable[None]]
) -> None:
    """A logout, a new password, a revoked token, `users disable`, a deleted key: and who comes back has to stay out."""
    made, _ = engine
    reader = await reader_of(house)
    token = reader.login["access_token"]
    if by_key:
        token = (await house.token({"grant_type": "client_credentials"}, auth=reader.key)).json()["access_token"]
    headers = {"authorization": f"Bearer {token}"}
    with trusting(made, house) as verifier, door(made, verifier) as url:
        async with httpx.AsyncClient(base_url=url, timeout=10, trust_env=False, headers=headers) as http:
            async with asyncio.timeout(10), http.stream("GET", "/v1/events") as answer:
                assert answer.status_code == 200
                lines = answer.aiter_lines()
                while not (await anext(lines)).startswith(":"):  # it has begun, and goes on with nothing to tell
                    pass
                await end(reader)
                rest = [line async for line in lines]  # to the end, which comes by itself and in order
            again = await http.get("/v1/events")
    assert again.status_code == 401
    assert [line for line in rest if line.startswith("event:")] == ["event: problem"]
    assert not [line for line in rest if line.startswith("id:")]  # the last id stays what it was
    [data] = [line for line in rest if line.startswith("data:")]
    problem, expected = json.loads(data.removeprefix("data: ")), again.json()
    assert problem.pop("request_id") == answer.headers["x-request-id"]
    del expected["request_id"]
    assert problem == expected
    assert problem["detail"] == "The token was revoked"
