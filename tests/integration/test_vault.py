"""What an operator does with the vault of a running engine, by the commands that are there for it."""

from __future__ import annotations

import asyncio
import json
import random

import asyncpg
import pytest

from cluster.demo import invented_cpf
from tests.deployments.vault_house import debt, person
from tests.integration.conftest import TiersEngine

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_keys_are_rotated_and_what_was_sealed_before_is_read_after(tiers_engine: TiersEngine) -> None:
    about = {"Razao-Tax-Id": invented_cpf(random.Random(17))}
    source = tiers_engine.token("bureau", "vault:write", audience="vault")
    own = tiers_engine.token("somebody", "vault:self", audience="vault", tax_id=about["Razao-Tax-Id"])
    with tiers_engine.vault(source, about) as client:
        assert client.put("/vault/v1/person", json=person(debt())).status_code == 204
    with tiers_engine.vault(own, about) as client:
        before = client.get("/vault/v1/person?fields=name,address,debts").json()
        masters = []
        for _ in range(2):
            rotated = json.loads(tiers_engine.razao("keys", "rotate", "--vault", "--json").stdout)
            assert rotated["keys"] >= 1
            masters.append(rotated)
            assert client.get("/vault/v1/person?fields=name,address,debts").json() == before
    assert before["debts"] == [debt()]
    assert masters[1]["retired"] == [masters[0]["master"]]


def test_verify_finds_a_row_of_the_record_that_was_changed(tiers_engine: TiersEngine) -> None:
    with tiers_engine.vault(tiers_engine.token("auditor", "vault:audit", audience="vault")) as client:
        assert (
            client.get(
                "/vault/v1/person/last-query", headers={"Razao-Tax-Id": invented_cpf(random.Random(17))}
            ).status_code
            == 200
        )
    dsn = tiers_engine.plan().dsn

    async def rename(caller: str, instead: str) -> None:
        connection = await asyncpg.connect(dsn)
        await connection.execute("ALTER TABLE vault.accesses DISABLE TRIGGER keep_rows")
        await connection.execute(
            "UPDATE vault.accesses SET caller = $2"
            " WHERE seq = (SELECT max(seq) FROM vault.accesses WHERE caller = $1)",
            caller, instead,
        )  # fmt: skip
        await connection.execute("ALTER TABLE vault.accesses ENABLE TRIGGER keep_rows")
        await connection.close()

    asyncio.run(rename("auditor", "nobody"))
    try:
        found = tiers_engine.razao("verify", "--json", check=False)
    finally:
        asyncio.run(rename("nobody", "auditor"))
    assert found.returncode == 1
    assert any("record of accesses" in words for words in json.loads(found.stdout)["differences"])
    report = json.loads(tiers_engine.razao("verify", "--json").stdout)
    assert any("accesses to the vault" in words for words in report["checked"])
