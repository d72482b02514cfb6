"""What an operator does with the vault while it runs: rotates its keys, checks its record, and what its messages do."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer

from cluster import vault
from cluster.data import EngineError
from storage.feed_kafka import TopicProducer
from storage.journal.kafka_client import KafkaAddress
from storage.messages import Change, ChangesAway, StoredChanges
from storage.messages_kafka import KafkaChanges, Relay
from storage.vault import FIELDS, OUTBOX_ROLE, Acts, Asked, dsn_as
from tests.conftest import free_port
from tests.deployments.schemathesis_run import finds_nothing
from tests.deployments.vault_house import ANA, BIA, GATEWAY, PURPOSE, READ_ALL, VaultHouse, debt, person

DEBTS = "/person?fields=debts"


def masters(house: VaultHouse) -> set[str]:
    """Ids of the master keys in the file."""
    return set(json.loads((Path(house.plan.data.keys) / "vault.json").read_text())["masters"])


async def rotate(house: VaultHouse) -> dict[str, object]:
    """`razao keys rotate --vault`."""
    return await vault.rotate_keys(house.owner, house.plan.data, progress=lambda *_: None)


# -- rotation ---------------------------------------------------------------------------------------------------------


async def test_keys_are_rotated_under_a_vault_that_goes_on_reading_and_writing(vault_house: VaultHouse) -> None:
    await vault_house.keep(debt())
    await vault_house.grant("debts")
    old = masters(vault_house)
    stop, statuses = asyncio.Event(), []

    async def read() -> None:
        while not stop.is_set():
            statuses.append((await vault_house.score().get(DEBTS)).status_code)

    async def write() -> None:
        source = vault_house.source()
        while not stop.is_set():
            statuses.append((await source.send("PATCH", "/person", {"debts": [debt(2)]})).status_code)

    async def come_and_go() -> None:
        people = [f"{number:09}" for number in range(1, 400)]
        for base in people:
            if stop.is_set():
                return
            tax_id = cpf(base)
            for method, body in (("PUT", person(debt())), ("DELETE", None), ("PUT", person())):
                statuses.append((await vault_house.source(tax_id).send(method, "/person", body)).status_code)

    workers = [asyncio.create_task(work()) for work in (read, write, come_and_go)]
    seen: list[tuple[int, int]] = []
    for _ in range(4):
        at_least = len(statuses) + 6
        async with asyncio.timeout(120):
            while len(statuses) < at_least:
                await asyncio.wait(workers, timeout=0.01)
        await vault.rotate_keys(vault_house.owner, vault_house.plan.data, progress=lambda *now: seen.append(now))
    stop.set()
    await asyncio.gather(*workers)
    assert set(statuses) <= {200, 204}
    assert len(masters(vault_house)) == 1
    assert not masters(vault_house) & old
    rows = await vault_house.owner.fetch("SELECT DISTINCT master FROM vault.keys")
    assert {row["master"] for row in rows} == masters(vault_house)
    assert all(0 < done <= total for done, total in seen)
    assert (await vault_house.score().get(DEBTS)).json()["debts"] == [debt(), debt(2)]


def cpf(base: str) -> str:
    """A CPF with right check digits."""
    digits = [int(digit) for digit in base]
    for length in (10, 11):
        rest = sum(digit * weight for digit, weight in zip(digits, range(length, 1, -1), strict=True)) * 10 % 11
        digits.append(rest % 10)
    return "".join(map(str, digits))


async def test_a_rotation_waits_for_who_began_under_the_old_master_and_nobody_waits_for_it(
    vault_house: VaultHouse,
) -> None:
    await vault_house.keep(debt())
    services = vault_house.services
    asked = Asked(services.vault.subject("11144477735"), "bureau", "127.0.0.1", "write", FIELDS, "", "r", "r")
    async with services.vault.session(asked, Acts.WRITE) as slow:
        await services.people.change_debts(slow, {"d-1": debt()}, [])
        rotation = asyncio.create_task(rotate(vault_house))
        for _ in range(5):
            assert (await vault_house.self_().get(DEBTS)).status_code == 200
        assert not rotation.done()
        await slow.record("answered")
    assert (await rotation)["keys"] == 2
    assert (await vault_house.self_(BIA).get(DEBTS)).json()["debts"] == [debt()]


async def test_a_rotation_that_broke_off_is_finished_by_the_next(vault_house: VaultHouse) -> None:
    await vault_house.keep(debt())
    await vault.key_file(vault_house.plan.data).rotate()  # and then the command was killed
    assert len(masters(vault_house)) == 2
    await vault_house.source(BIA).send("PUT", "/person", person())
    assert len((await rotate(vault_house))["retired"]) == 2  # type: ignore[arg-type]
    assert len(masters(vault_house)) == 1
    assert (await vault_house.self_().get(DEBTS)).status_code == 200


async def test_two_rotations_do_not_run_at_once(vault_house: VaultHouse) -> None:
    done = await asyncio.gather(*(rotate(vault_house) for _ in range(3)), return_exceptions=True)
    assert {type(one) for one in done} <= {dict, EngineError}
    assert dict in {type(one) for one in done}
    assert len(masters(vault_house)) == 1


async def test_keys_that_are_gone_or_anothers_stop_the_start(vault_house: VaultHouse, tmp_path: Path) -> None:
    data = vault_house.plan.data
    await vault.prepare(vault_house.owner, data)  # a second start changes nothing
    file = Path(data.keys) / "vault.json"
    kept = file.read_bytes()
    file.unlink()
    with pytest.raises(EngineError, match="gone"):
        await vault.prepare(vault_house.owner, data)
    vault.key_file(data).make()
    with pytest.raises(EngineError, match="another vault"):
        await vault.prepare(vault_house.owner, data)
    file.write_bytes(kept)
    await vault.prepare(vault_house.owner, data)


# -- the record -------------------------------------------------------------------------------------------------------


async def broken(house: VaultHouse) -> str | None:
    """What `razao verify` says of the record."""
    checked = await vault.check_record(house.owner, house.plan.data)
    assert checked is not None
    return checked.broken


async def test_a_record_that_was_changed_cut_or_reordered_is_found(vault_house: VaultHouse) -> None:
    await asyncio.gather(*(vault_house.score().get(DEBTS) for _ in range(12)))
    assert await broken(vault_house) is None
    rows = len(await vault_house.record())
    assert [row["seq"] for row in await vault_house.record()] == list(range(1, rows + 1))
    last = "SELECT max(seq) FROM vault.accesses"
    spoilt = {
        "UPDATE vault.accesses SET caller = 'nobody' WHERE seq = 5": "row 5 is not what was written",
        "UPDATE vault.accesses SET decision = 'refused ' WHERE seq = 12": "row 12 is not",
        "UPDATE vault.accesses SET at = at - interval '1 second' WHERE seq = 3": "row 3 is not",
        "UPDATE vault.accesses SET grants = ARRAY[gen_random_uuid()] WHERE seq = 7": "row 7 is not",
        "DELETE FROM vault.accesses WHERE seq = 6": "row 6 is missing",
        "UPDATE vault.accesses SET seq = CASE seq WHEN 4 THEN -5 WHEN 5 THEN -4 END WHERE seq IN (4, 5);"
        "UPDATE vault.accesses SET seq = -seq WHERE seq < 0": "row 4 is not",
        f"DELETE FROM vault.accesses WHERE seq = ({last})": "its head says",
        f"DELETE FROM vault.accesses WHERE seq = ({last}); UPDATE vault.chain_head"
        f" SET seq = ({last}), chain = (SELECT chain FROM vault.accesses ORDER BY seq DESC LIMIT 1)": "end is gone",
        "DELETE FROM vault.accesses; UPDATE vault.chain_head SET seq = 0, chain = ''": "end is gone",
        "UPDATE vault.chain_head SET chain = '\\x00'": "its head says",
    }  # fmt: skip
    async with vault_house.owner.acquire() as connection:
        await connection.execute("CREATE TEMP TABLE kept AS SELECT * FROM vault.accesses")
        await connection.execute("CREATE TEMP TABLE head AS SELECT * FROM vault.chain_head")
        await connection.execute("ALTER TABLE vault.accesses DISABLE TRIGGER ALL")
        for statement, words in spoilt.items():
            await connection.execute(statement)
            found = await broken(vault_house)
            assert found is not None, statement
            assert words in found, statement
            await connection.execute(
                "DELETE FROM vault.accesses; INSERT INTO vault.accesses SELECT * FROM kept; DELETE FROM"
                " vault.chain_head; INSERT INTO vault.chain_head SELECT * FROM head"
            )
    assert await broken(vault_house) is None


async def test_a_row_of_another_past_does_not_fit_where_it_once_was(vault_house: VaultHouse) -> None:
    for _ in range(9):
        await vault_house.score().get(DEBTS)
    async with vault_house.owner.acquire() as connection:
        await connection.execute("CREATE TEMP TABLE past AS SELECT * FROM vault.accesses")
        await connection.execute("ALTER TABLE vault.accesses DISABLE TRIGGER ALL")
        await connection.execute(
            "DELETE FROM vault.accesses WHERE seq > 4; UPDATE vault.chain_head"
            " SET seq = 4, chain = (SELECT chain FROM vault.accesses WHERE seq = 4)"
        )
        for _ in range(5):
            await vault_house.source().send("PATCH", "/person", {})
        assert await broken(vault_house) is None  # nobody had looked before: that is what anchors are for
        await connection.execute("DELETE FROM vault.accesses WHERE seq IN (7, 9)")
        await connection.execute("INSERT INTO vault.accesses SELECT * FROM past WHERE seq IN (7, 9)")
    assert "row 7 is not what was written" in (await broken(vault_house) or "")


async def test_a_record_is_checked_while_it_grows(vault_house: VaultHouse) -> None:
    stop = asyncio.Event()

    async def ask() -> None:
        while not stop.is_set():
            await vault_house.score().get(DEBTS)

    askers = [asyncio.create_task(ask()) for _ in range(3)]
    for _ in range(5):
        assert await broken(vault_house) is None
    stop.set()
    await asyncio.gather(*askers)


async def test_a_ledger_without_a_vault_has_no_record_to_check(database: str, vault_house: VaultHouse) -> None:
    await vault_house.owner.execute("DROP SCHEMA vault CASCADE")
    assert await vault.check_record(vault_house.owner, vault_house.plan.data) is None
    with pytest.raises(EngineError, match="no vault"):
        await rotate(vault_house)


# -- messages ---------------------------------------------------------------------------------------------------------


def outbox(house: VaultHouse, wait_s: float = 0.1) -> StoredChanges:
    """Where the score takes messages from."""
    return StoredChanges(dsn_as(house.plan.dsn, OUTBOX_ROLE, house.secrets.outbox_password), wait_s=wait_s)


async def test_what_is_taken_and_not_done_comes_again_and_what_is_done_does_not(vault_house: VaultHouse) -> None:
    for _ in range(3):
        await vault_house.keep(debt())
    one, other = outbox(vault_house), outbox(vault_house)
    first = await one.take(2)
    second = await other.take(5)
    assert (len(first), len(second)) == (2, 1)
    assert not {change.place for change in first} & {change.place for change in second}
    await other.done(second)
    await one.close()  # as when its process dies
    again = await other.take(5)
    assert [change.place for change in again] == [change.place for change in first]
    assert len(await other.take(5)) == 2  # never done
    await other.done(again)
    assert await other.take(5) == []
    await other.close()


async def test_a_consumer_that_waits_is_woken_by_the_change(vault_house: VaultHouse) -> None:
    changes = outbox(vault_house, wait_s=60)
    await vault_house.keep(debt())
    await changes.done(await changes.take(1))  # it is connected, and listens
    waiting = asyncio.create_task(changes.take(1))
    await vault_house.keep(debt())
    async with asyncio.timeout(60):
        assert len(await waiting) == 1
    await changes.close()


async def test_who_takes_messages_sees_nothing_else(vault_house: VaultHouse) -> None:
    connection = await asyncpg.connect(dsn_as(vault_house.plan.dsn, OUTBOX_ROLE, vault_house.secrets.outbox_password))
    for table in ("keys", "facts", "grants", "accesses", "access_requests", "chain_head"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch(f"SELECT * FROM vault.{table}")
    await connection.close()


async def test_an_outbox_that_is_away_says_so(tmp_path: Path) -> None:
    with pytest.raises(ChangesAway):
        await StoredChanges(f"postgresql://x@127.0.0.1:{free_port()}/x").take(1)


async def test_over_kafka_messages_come_at_least_once_and_are_committed_after_the_work(
    vault_house: VaultHouse, kafka_address: KafkaAddress
) -> None:
    topic = f"changes-{free_port()}"
    for _ in range(2):
        await vault_house.keep(debt())
    relay = asyncio.create_task(Relay(outbox(vault_house), TopicProducer(kafka_address, topic, partitions=2)).run())
    ours = vault_house.services.vault.subject("52998224725").score
    first = KafkaChanges(kafka_address, topic=topic, group="g", wait_s=1.0)
    taken = await some(first, 2)
    assert {change.person for change in taken} == {ours}
    await first.close()  # it died before the work was done
    second = KafkaChanges(kafka_address, topic=topic, group="g", wait_s=1.0)
    again = await some(second, 2)
    assert {change.request for change in again} == {change.request for change in taken}
    await second.done(again)
    await vault_house.grant("debts", purpose=PURPOSE, about=ANA)
    await second.close()
    third = KafkaChanges(kafka_address, topic=topic, group="g", wait_s=1.0)
    rest = await some(third, 1)
    assert {change.request for change in rest}.isdisjoint(change.request for change in again)
    await third.close()
    relay.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await relay
    assert not await vault_house.owner.fetchval("SELECT count(*) FROM vault.outbox")
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=kafka_address.bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    message = await consumer.getone()
    await consumer.stop()
    assert (message.key, json.loads(message.value).keys()) == (ours.hex().encode(), {"request"})


async def some(changes: KafkaChanges, count: int) -> list[Change]:
    """So many messages."""
    found: list[Change] = []
    async with asyncio.timeout(60):
        while len(found) < count:
            found += await changes.take(10)
    return found


# -- everything at once -----------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_schemathesis_finds_no_error_of_ours(vault_house: VaultHouse, tmp_path: Path) -> None:
    await vault_house.keep(debt())
    scope = f"vault:self vault:write vault:grant vault:audit {READ_ALL}"
    headers = {
        "Authorization": f"Bearer {vault_house.token('schema', scope, tax_id=ANA, life=600)}",
        "Razao-Gateway": GATEWAY, "Razao-Client-Address": "127.0.0.1", "Razao-Tax-Id": ANA, "Razao-Purpose": PURPOSE,
    }  # fmt: skip
    await finds_nothing(vault_house.app, "/vault/v1/openapi.json", headers, tmp_path)
    reached = {row["action"] for row in await vault_house.record() if row["decision"] == "answered"}
    assert reached >= {"read", "write", "erase", "grant", "list-grants", "ask", "list-requests", "accesses"}
    assert await broken(vault_house) is None
