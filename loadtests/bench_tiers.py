"""The three tiers side by side: how fast each is read at its own door, and what its way in costs.

Trace reads run against constant routes behind the same gateway and behind Serve's HAProxy; score reads against vault
reads. Each tier is entered as its clients enter it: the vault by HTTPS. With `mongo` a second engine has its documents
in FerretDB, which is no measure of MongoDB.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import httpx

from cluster.processes import free_ports
from cluster.services.mongo import MongoServer
from cluster.settings import cores, replicas_for
from deployments.auth.basic import BasicBackend
from deployments.auth.middleware import BearerBackend
from deployments.auth.tokens import KeyFile, TokenVerifier
from deployments.identity_passwords import Passwords
from loadtests import traffic
from loadtests.bench_http import Say, Side, fault, play, rate_row, ratio
from loadtests.peers import constant
from loadtests.rows import READ, Row
from loadtests.stacks import Engine, Stack, engine, measure, razao
from storage.trace_users import User

PEOPLE: Final = 1000
PEOPLE_SCORED: Final = 100
"""In the vault and the score; the score has read their debts once, and keeps what it made of them."""
USER, PASSWORD = "bench", "um cavalo correto na pilha"
PURPOSE: Final = "benchmark"
_SCALE_S: Final = 12.0
_RECORDED: Final = "a durable record of access before each answer"
_BEHIND: Final = "last query written behind"


def tiers(directory: Path, *, rounds: int, seconds: float, mongo: bool, say: Say) -> list[Row]:
    """Reads of the three tiers, and of the trace against constant routes."""
    with ExitStack() as ends:
        say("starting Razao with its tiers")
        ours = ends.enter_context(started(directory / "tiers"))
        sides = {name: make() for name, make in ours.sides().items()}
        stacks: list[Stack] = [ours.engine]
        for name in ("serve", "gateway"):
            say(f"starting the constant route: {name}")
            stack = ends.enter_context(constant.running(name, directory / name, min(2, replicas_for(cores()))))
            stacks.append(stack)
            get = traffic.request("GET", constant.PATH, f"127.0.0.1:{stack.port}", ours.engine.token)
            sides[name] = Side(name, stack, traffic.repeat(get))
        if mongo:
            say("starting FerretDB, and Razao over it")
            server = MongoServer(directory / "ferretdb", free_ports(1)[0])
            server.start()
            ends.callback(server.stop)
            over = ends.enter_context(started(directory / "over-ferretdb", mongo=server))
            stacks.append(over.engine)
            for name in ("trace", "score"):
                beside = over.sides()[name]()
                beside.name = f"{name} on FerretDB"
                sides[beside.name] = beside
        say("load until the trace has as many replicas as it may have, as the constant routes have from the start")
        measure(ours.engine, sides["trace"].source, connections=64, seconds=_SCALE_S, warm_up=0.0)
        play(list(sides.values()), stacks, rounds=rounds, seconds=seconds, say=say)
        return _rows(sides) + auth_costs(ours.engine)


def _rows(sides: dict[str, Side]) -> list[Row]:
    trace, score, vault = sides["trace"], sides["score"], sides["vault"]
    people = f"64 clients, {PEOPLE:,} people"
    made = [
        rate_row("tiers", f"trace reads, {people}, by a constant route behind our gateway", trace, sides["gateway"],
                 (ratio(0.6),), durability=_BEHIND),
        rate_row("tiers", "the same by a constant route behind Serve's HAProxy", trace, sides["serve"], (ratio(3),),
                 durability=_BEHIND),
        rate_row("tiers", "score reads by vault reads", score, vault, (ratio(2),), durability=_RECORDED),
        rate_row("tiers", "trace reads by score reads", trace, score, durability=_BEHIND),
    ]  # fmt: skip
    for name, side in sides.items():
        total = side.total
        made.append(
            Row("tiers", f"p99 of {name}", total.percentile_ms(99), "ms", READ, invalid=fault(total),
                note=f"p50 {total.percentile_ms(50):.1f} ms, {total.rate:,.0f}/s, CPU {side.cpu_us:.0f} µs a request")
        )  # fmt: skip
    return made


class Tiers:
    """An engine with its tiers, people in them, and a way into each."""

    def __init__(self, running: Engine, vault_port: int) -> None:
        self.engine = running
        self.vault_port = vault_port
        self.people = [person["tax_id"] for person in itertools.islice(traffic.people(seed=11), PEOPLE)]
        self._vault_tls = ssl.create_default_context(cafile=str(running.data / "tls" / "localhost.crt"))

    def fill(self) -> None:
        """Give everybody a purchase, and some of them a profile, what the vault keeps, and grants."""
        command = ["users", "add", USER, "--tier", "trace", "--password-stdin", "--data", str(self.engine.data)]
        razao(*command, given=PASSWORD)
        asyncio.run(self._fill())

    async def _fill(self) -> None:
        trace, vault = httpx.BasicAuth(USER, PASSWORD), self._bearer("vault", "vault:write vault:grant")
        score = self._bearer("score", "score:write score:read")
        at = "2026-11-20T10:00:00Z"
        bought = [
            {"id": f"p-{number}", "tax_id": one, "merchant": "Padaria", "amount": 1890, "at": at}
            for number, one in enumerate(self.people)
        ]
        credit = {"first_credit_on": "2015-01-01", "payments_on_time": 40}
        profile = {"name": "Load Test", "birth_date": "1980-01-01", "income_source": "salary", "credit": credit}
        held = {"name": "Load Test", "address": "Rua das Flores, 12", "debts": []}
        grants = [
            {"grantee": "bench", "fields": ["name"], "purpose": PURPOSE, "expires_in": 86_400},
            {"grantee": "razao-score", "fields": ["debts"], "purpose": "credit-score", "expires_in": 86_400},
        ]
        open_url = f"http://{self.engine.host}"
        async with (
            httpx.AsyncClient(base_url=open_url, timeout=60, trust_env=False) as http,
            httpx.AsyncClient(
                base_url=f"https://127.0.0.1:{self.vault_port}", timeout=60, verify=self._vault_tls, trust_env=False
            ) as door,
        ):
            _done(await http.post("/trace/v1/card-purchases", json={"purchases": bought}, auth=trace))
            for one in self.people[:PEOPLE_SCORED]:
                about = {"Razao-Tax-Id": one, "Razao-Purpose": PURPOSE}
                _done(await door.put("/vault/v1/person", json=held, headers=about | vault))
                for grant in grants:
                    _done(await door.post("/vault/v1/grants", json=grant, headers=about | vault))
                _done(await http.put("/score/v1/profile", json=profile, headers=about | score))
                _done(await http.get("/score/v1/score", headers=about | score))

    def sides(self) -> dict[str, Callable[[], Side]]:
        """The reads of each tier, by its name."""
        host, here = self.engine.host, self.engine
        basic = "Basic " + b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        trace = _reads("/trace/v1/person", host, basic, self.people)
        bearer = self._bearer("score", "score:read")["Authorization"]
        score = _reads("/score/v1/score", host, bearer, self.people[:PEOPLE_SCORED])
        door = f"127.0.0.1:{self.vault_port}"
        bearer = self._bearer("vault", "vault:read:name")["Authorization"]
        vault = _reads("/vault/v1/person?fields=name", door, bearer, self.people[:PEOPLE_SCORED])
        return {
            "trace": lambda: Side("trace", here, trace),
            "score": lambda: Side("score", here, score),
            "vault": lambda: Side("vault", here, vault, port=self.vault_port, tls=self._vault_tls),
        }

    def _bearer(self, audience: str, scope: str) -> dict[str, str]:
        data = str(self.engine.data)
        token = razao(
            "token", "--sub", "bench", "--scope", scope, "--audience", audience, "--expires-in", "86400", "--data", data
        )
        return {"Authorization": f"Bearer {token}"}


@contextlib.contextmanager
def started(data: Path, *, mongo: MongoServer | None = None) -> Iterator[Tiers]:
    """An engine of its own for the tiers, filled, until the block ends."""
    (vault_port,) = free_ports(1)
    settings = {"tiers": "vault,score,trace", "vault_port": str(vault_port)}
    if mongo is not None:
        settings |= {"mongo_url": mongo.url}
    with engine(data, shards=1, settings=settings) as running:
        if mongo is not None:
            running.stands_on(*(process.pid for process in mongo.found().values()))
        made = Tiers(running, vault_port)
        made.fill()
        yield made


def _done(answer: httpx.Response) -> None:
    if not answer.is_success:
        raise RuntimeError(f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text}")


def _reads(path: str, host: str, authorization: str, people: Sequence[str]) -> Iterator[bytes]:
    """GETs about people at random, for ever."""
    ready = [
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {authorization}\r\nRazao-Tax-Id: {one}\r\n"
        f"Razao-Purpose: {PURPOSE}\r\n\r\n".encode()
        for one in people
    ]
    chosen = random.Random(3)
    return (ready[int(chosen.random() * len(ready))] for _ in itertools.repeat(None))


# -- what the way in costs --------------------------------------------------------------------------------------------


class _OneUser:
    """A store with one user at hand: what is measured is the check."""

    def __init__(self, hashed: str) -> None:
        self._user = User(b"bench", 1, USER, hashed, disabled=False)

    async def by_name(self, _: str) -> User:
        return self._user

    async def versions(self, _: object) -> dict[bytes, int]:
        return {self._user.id: self._user.version}


def auth_costs(running: Engine) -> list[Row]:
    """µs of one process for credentials seen before, and for new ones."""
    token = razao(
        "token", "--sub", "bench", "--scope", "score:read", "--audience", "score", "--data", str(running.data)
    )
    return asyncio.run(_auth_costs(running, token))


async def _auth_costs(running: Engine, token: str) -> list[Row]:
    passwords = Passwords()
    basic = BasicBackend(_OneUser(await passwords.hash(PASSWORD)), passwords, "bench")
    own = {b"authorization": b"Basic " + b64encode(f"{USER}:{PASSWORD}".encode())}
    began = time.perf_counter()
    await basic.authenticate(own)
    first_us = (time.perf_counter() - began) * 1e6
    await basic.look()
    again_us = _each_us(lambda: basic.known(own))
    passwords.close()
    bearer_first, bearer_again = [], 0.0
    for _ in range(20):
        verifier = TokenVerifier(KeyFile(running.jwks), audience="score")
        backend = BearerBackend(verifier, "bench")
        headers = {b"authorization": b"Bearer " + token.encode()}
        await verifier.refresh()
        began = time.perf_counter()
        await backend.authenticate(headers)
        bearer_first.append((time.perf_counter() - began) * 1e6)
        bearer_again = _each_us(lambda backend=backend, headers=headers: backend.known(headers))  # type: ignore[misc]
    bearer_first_us = sorted(bearer_first)[len(bearer_first) // 2]
    return [
        Row("tiers", "way into the trace: user and password seen before", again_us, "µs", READ),
        Row("tiers", "the same for the first time (Argon2id)", first_us, "µs", READ),
        Row("tiers", "way into score and vault: token seen before", bearer_again, "µs", READ),
        Row("tiers", "the same for the first time (signature)", bearer_first_us, "µs", READ,
            note="the vault's grant and record come on top, in its store"),
    ]  # fmt: skip


def _each_us(work: Callable[[], object], times: int = 20_000) -> float:
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times * 1e6
