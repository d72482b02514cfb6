"""Client load over HTTP that remembers every answer, and the reckoning afterwards.

Each transfer carries an id of the client's own. A 201 and a 422 are answers, and so is a problem that says that nothing
was done; anything else (`unsure`, a broken connection) leaves the client unsure, and it must be able to find out by GET
and by repeating the id.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from cluster.demo import invented_cpf
from storage import ids
from storage.events import SLOTS

FUNDS: Final = 1_000_000
NOTHING_DONE: Final = frozenset(
    {"/problems/overloaded", "/problems/quota-exceeded", "/problems/unavailable", "/problems/book-full"}
)
"""Types of problems that say so of a request that is sent for the first time."""


@dataclass(slots=True)
class Sent:
    """One transfer as the client knows it."""

    id: str
    debit: str
    credit: str
    amount: int
    status: int = 0  # HTTP status of the last answer; 0 = the connection broke
    problem: str = ""  # its type, if it was one

    @property
    def body(self) -> dict[str, Any]:
        """What was sent, to the letter."""
        return {"id": self.id, "debit_account": self.debit, "credit_account": self.credit, "amount": self.amount}


@dataclass(slots=True)
class Load:
    """A number of clients that move money at random until told to stop."""

    url: str
    token: str
    seed: int
    clients: int = 16
    accounts: list[str] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _answered: asyncio.Event = field(default_factory=asyncio.Event)

    def _client(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.token}"}
        limits = httpx.Limits(max_connections=self.clients + 4, max_keepalive_connections=self.clients)
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=30, limits=limits, trust_env=False)

    async def open_accounts(self, count: int) -> None:
        """Open and fund accounts of different people, so that they spread over the shards."""
        source = random.Random(self.seed)
        async with self._client() as client:
            for number in range(count):
                owner = {"tax_id": invented_cpf(source), "name": f"Person {number}"}
                answer = await client.post("/v1/accounts", json={"owner": owner})
                assert answer.status_code == 201, answer.text
                self.accounts.append(answer.json()["id"])
            for account in self.accounts:
                answer = await client.post("/v1/deposits", json={"account": account, "amount": FUNDS})
                assert answer.status_code == 201, answer.text

    async def run(self) -> None:
        """Send until `stop`."""
        self._stop.clear()
        async with self._client() as client:
            await asyncio.gather(*(self._one_client(client, number) for number in range(self.clients)))

    def stop(self) -> None:
        """Let `run` finish what is on its way and return."""
        self._stop.set()

    async def at_least(self, answers: int, timeout_s: float = 60) -> None:
        """Return once that many further transfers were answered 201.

        Raises:
            TimeoutError: they were not.
        """
        goal = self.statuses[201] + answers
        async with asyncio.timeout(timeout_s):
            while self.statuses[201] < goal:
                self._answered.clear()
                await self._answered.wait()

    async def _one_client(self, client: httpx.AsyncClient, number: int) -> None:
        source = random.Random(self.seed * 1000 + number)
        while not self._stop.is_set():
            debit, credit = source.sample(self.accounts, 2)
            # Now and then more than the account can have: refusals must stand as well.
            amount = source.randint(1, 500) if source.random() < 0.95 else 100 * FUNDS
            id_ = ids.in_slot(ids.uuid7(time.time_ns() // 1_000_000), int(debit) % SLOTS)
            sent = Sent(ids.text(id_), debit, credit, amount)
            self.sent.append(sent)
            if await self._send(client, sent) is None:
                await asyncio.sleep(0.02)  # nobody listens now: do not fill the memory with attempts

    async def _send(self, client: httpx.AsyncClient, sent: Sent) -> httpx.Response | None:
        try:
            answer = await client.post("/v1/transfers", json=sent.body)
        except httpx.HTTPError:
            sent.status = 0
            self.statuses[0] += 1
            return None
        sent.status = answer.status_code
        sent.problem = answer.json()["type"] if answer.status_code >= 400 else ""
        self.statuses[answer.status_code] += 1
        self._answered.set()
        assert answer.status_code in {201, 422, 429, 503}, f"{answer.status_code}: {answer.text}"
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json", answer.headers
        if answer.status_code in {429, 503}:
            assert "retry-after" in answer.headers, answer.text
        return answer

    async def reckon(self) -> dict[str, int]:
        """Hold every answer against the engine.

        Every 201 and every refusal is what GET says, and of what was told as not done GET knows nothing; an unsure one
        resolves by GET and by repeating its id, both to the same; no balance is negative; every balance is the sum of
        what was settled, so nothing was lost or applied twice.

        Returns:
            How many transfers were settled, refused and never accepted.
        """
        counts = Counter[str]()
        expected = dict.fromkeys(self.accounts, FUNDS)
        async with self._client() as client:
            gate = asyncio.Semaphore(self.clients)

            async def judge(sent: Sent) -> str:
                async with gate:
                    return await self._judge(client, sent)

            verdicts = await asyncio.gather(*(judge(sent) for sent in self.sent))
            for sent, verdict in zip(self.sent, verdicts, strict=True):
                counts[verdict] += 1
                if verdict == "settled":
                    expected[sent.debit] -= sent.amount
                    expected[sent.credit] += sent.amount
            actual = {}
            for account in self.accounts:
                answer = await client.get(f"/v1/accounts/{account}/balance")
                assert answer.status_code == 200, answer.text
                balance = answer.json()
                assert balance["posted"] >= 0
                assert balance["available"] == balance["posted"]
                actual[account] = balance["posted"]
        assert actual == expected
        assert sum(actual.values()) == FUNDS * len(self.accounts)
        return dict(counts)

    async def _judge(self, client: httpx.AsyncClient, sent: Sent) -> str:
        first = sent.status
        looked_up = await client.get(f"/v1/transfers/{sent.id}")
        assert looked_up.status_code in {200, 404}, looked_up.text
        known = looked_up.json()["status"] if looked_up.status_code == 200 else "unknown"
        if first == 201:
            assert known == "settled", f"{sent} was acknowledged, but is {known}"
            return "settled"
        if first == 422:
            assert known == "refused", f"{sent} was refused, but is {known}"
            return "refused"
        if sent.problem in NOTHING_DONE:
            assert known == "unknown", f"of {sent} the client was told that nothing was done, but it is {known}"
        again = await self._send(client, sent)
        assert again is not None
        assert again.status_code in {201, 422}, f"repeating {sent}: {again.status_code} {again.text}"
        outcome = "settled" if again.status_code == 201 else "refused"
        replayed = again.headers.get("idempotency-replayed") == "true"
        assert replayed == (known != "unknown"), f"{sent}: GET said {known}, repeating it was a replay: {replayed}"
        assert known in {"unknown", outcome}, f"{sent}: GET said {known}, repeating it {outcome}"
        return outcome
