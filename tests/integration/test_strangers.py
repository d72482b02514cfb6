"""The journal is a format for strangers: a Java program that shares no code with ours agrees with the engine.

The broker is somebody else's, behind SCRAM and TLS, so the program also enters it as any client of Kafka would.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from actors.recovery import Windows
from cluster.demo import invented_cpf
from cluster.services.kafka import KafkaServer
from storage import ids
from storage.events import SLOTS, Code
from storage.journal import Fenced, Stored
from storage.journal.kafka import TOPIC, KafkaJournal
from storage.journal.kafka_client import KafkaAddress
from storage.record import encode_open
from tests.actors.projection_history import FORGETFUL, PARTITIONS, History
from tests.actors.test_projection import DEFAULT, Log, written
from tests.conftest import free_port, running
from tests.engine import Engine
from tests.integration.strangers.balances import Balances, Found

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

SHARDS = 2
FUNDS = 100_000


@pytest.fixture
def broker() -> Iterator[KafkaServer]:
    with running(lambda place: KafkaServer(place, free_port(), secure=True)) as server:
        yield server


def _java_client(broker: KafkaServer) -> dict[str, str]:
    how = broker.client_settings
    login = f'username="{how["sasl_username"]}" password="{how["sasl_password"]}"'
    return {
        "security.protocol": how["security_protocol"],
        "sasl.mechanism": how["sasl_mechanism"],
        "sasl.jaas.config": f"org.apache.kafka.common.security.scram.ScramLoginModule required {login};",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": how["ssl_ca"],
    }


class Traffic:
    """Every kind of thing that moves money, over HTTP, from a seed."""

    def __init__(self, client: httpx.Client, seed: int) -> None:
        self._client = client
        self._random = random.Random(seed)
        self.accounts: list[str] = []

    def run(self) -> None:
        """All of it."""
        for number in range(8):
            owner = {"tax_id": invented_cpf(self._random), "name": f"Person {number}"}
            self.accounts.append(self._ok("/v1/accounts", {"owner": owner})["id"])
            self._ok("/v1/deposits", {"account": self.accounts[-1], "amount": FUNDS})
        assert {int(one) % SLOTS % SHARDS for one in self.accounts} == set(range(SHARDS))
        for _ in range(60):
            self._payment()
        self._chains()
        self._large_batch()
        self._refused_elsewhere()
        self._ok("/v1/withdrawals", {"account": self.accounts[0], "amount": 17})

    def balances(self) -> dict[int, int]:
        """As the engine has them, centavos."""
        found = {}
        for one in self.accounts:
            answer = self._client.get(f"/v1/accounts/{one}/balance")
            assert answer.status_code == 200, answer.text
            found[int(one)] = answer.json()["posted"]
        return found

    def _ok(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self._client.post(path, json=body)
        assert answer.status_code in {200, 201}, answer.text
        content: dict[str, Any] = answer.json()
        return content

    def _payment(self) -> None:
        debit, credit = self._random.sample(self.accounts, 2)
        amount = self._random.randint(2, 900)
        what = self._random.choice(["plain", "refund", "overdraft", "hold", "part", "void"])
        body: dict[str, Any] = {"debit_account": debit, "credit_account": credit, "amount": amount}
        if what == "overdraft":
            refused = self._client.post("/v1/transfers", json={**body, "amount": 100 * FUNDS})
            assert refused.status_code == 422, refused.text
            return
        if what in {"hold", "part", "void"}:
            body |= {"hold": True, "expires_in": 3600, "description": "reserva"}
        made = self._ok("/v1/transfers", body)
        path = f"/v1/transfers/{made['id']}"
        if what == "refund":
            self._ok(f"{path}/refunds", {"amount": amount // 2})
        elif what == "hold":
            self._ok(f"{path}/post", {})
        elif what == "part":
            self._ok(f"{path}/post", {"amount": amount - 1})
        elif what == "void":
            self._ok(f"{path}/void", {})

    def _neighbours(self) -> tuple[str, str]:
        """Two accounts of one shard."""
        first = self.accounts[0]
        return first, next(one for one in self.accounts[1:] if int(one) % SHARDS == int(first) % SHARDS)

    def _chains(self) -> None:
        """One that applies and is sent again, one that fails, and one that has a transfer of before among its rows."""
        debit, credit = self._neighbours()
        once = {"id": self._id(debit), "debit_account": debit, "credit_account": credit, "amount": 31}
        self._ok("/v1/transfers", once)
        there = {"id": self._id(debit), "debit_account": debit, "credit_account": credit, "amount": 6, "linked": True}
        back = {"id": self._id(credit), "debit_account": credit, "credit_account": debit, "amount": 5}
        assert self._chain(there, back) == self._chain(there, back) == ["settled", "settled"]
        other = {"debit_account": credit, "credit_account": debit, "amount": 5}
        for rows in [({**once, "linked": True}, other), ({**other, "linked": True}, once)]:
            assert "settled" not in self._chain(*rows)
        assert self._chain({**other, "linked": True}, {**other, "amount": 100 * FUNDS}) == ["refused", "refused"]

    def _id(self, payer: str) -> str:
        now_ms = time.time_ns() // 1_000_000
        return ids.text(ids.in_slot(ids.uuid7(now_ms), int(payer) % SLOTS))

    def _chain(self, *rows: dict[str, Any]) -> list[str]:
        answers = self._ok("/v1/transfers/batch", {"transfers": rows})["results"]
        return [one["status"] for one in answers]

    def _large_batch(self) -> None:
        """So many at once that their record is compressed."""
        debit, credit = self._neighbours()
        row = {"debit_account": debit, "credit_account": credit, "amount": 1}
        answers = self._ok("/v1/transfers/batch", {"transfers": [row] * 5000})["results"]
        assert {one["status"] for one in answers} == {"settled"}

    def _refused_elsewhere(self) -> None:
        """A payment that the payee's shard refuses comes back to the payer."""
        debit = self.accounts[0]
        credit = next(one for one in self.accounts if int(one) % SHARDS != int(debit) % SHARDS)
        frozen = self._client.patch(f"/v1/accounts/{credit}", json={"status": "frozen"})
        assert frozen.status_code == 200, frozen.text
        body = {"debit_account": debit, "credit_account": credit, "amount": 13}
        refused = self._client.post("/v1/transfers", json=body)
        assert refused.status_code == 422, refused.text


async def _write_void_records(broker: KafkaServer) -> int:
    """Let a writer that was overtaken write on, what its predecessors wrote: it would all move money again."""
    journal = KafkaJournal(KafkaAddress(broker.bootstrap, **broker.client_settings))
    count = 0
    try:
        for partition in range(SHARDS):
            written = [stored async for stored in journal.read(partition, 0)]
            for stored in [one for one in written if not one.is_open][-3:]:
                count += await _write_late(journal, partition, stored)
    finally:
        await journal.close()
    return count


async def _write_late(journal: KafkaJournal, partition: int, stored: Stored) -> int:
    stale = await journal.open(partition, encode_open(partition, {"name": "stale"}))
    newer = await journal.open(partition, encode_open(partition, {"name": "newer"}))
    with pytest.raises(Fenced):
        await stale.append(stored.payload)
    await stale.close()
    await newer.close()
    return 1


async def test_a_reader_that_shares_no_code_with_ours_finds_every_balance_and_skips_void_records(
    broker: KafkaServer, tmp_path: Path
) -> None:
    entry = {f"kafka_{name}": value for name, value in broker.client_settings.items()}
    settings = {"journal": "kafka", "kafka_bootstrap": broker.bootstrap, **entry}
    engine = Engine(tmp_path / "var", shards=SHARDS, settings=settings)
    reader = Balances(tmp_path)

    def read() -> Found:
        return reader.read(broker.bootstrap, TOPIC, _java_client(broker))

    try:
        engine.start()
        with engine.client() as client:
            traffic = Traffic(client, seed=20_261_122)
            traffic.run()
            told = traffic.balances()
        assert sum(told.values()) == FUNDS * len(told) - 17
        engine.verify()
    finally:
        engine.stop()
    found = read()
    assert found.balances == told
    assert (found.void, found.in_flight, found.sum) == (0, 0, 0)
    assert found.largest >= 2048, "no record was so large that it is compressed"

    late = await _write_void_records(broker)
    assert late == 3 * SHARDS
    again = read()
    assert again.balances == told
    assert (again.void, again.records, again.sum) == (late, found.records, 0)


@pytest.mark.parametrize("windows", [DEFAULT, FORGETFUL], ids=["", "ids come again"])
async def test_a_stranger_finds_every_balance_also_while_payments_of_one_id_are_under_way(
    kafka_address: KafkaAddress, tmp_path: Path, windows: Windows
) -> None:
    """The kernel's own balances, at any moment, of a history with all that can become of a payment."""
    reader = Balances(tmp_path)
    topic = f"strangers-{windows.id_window_ns}"
    journal = KafkaJournal(kafka_address, topic)
    await journal.create(PARTITIONS)
    log, history = Log(journal), History(8, windows=windows)
    for _ in range(3):
        await written(history, log, steps=50, drain=False)
        found = await asyncio.to_thread(reader.read, kafka_address.bootstrap, topic)
        newest = {account: seen[-1][1] for account, seen in history.timeline.items()}
        assert found.balances == {account: newest[account] for account in found.balances}
        assert not any(amount for account, amount in newest.items() if account not in found.balances)
        assert (found.in_flight, found.sum) == (len(history.flights), 0)
    assert history.codes >= {Code.IN_FLIGHT, Code.LINKED_FAILED}
    assert history.overtaken or windows == DEFAULT
    await log.close()
    await journal.close()
