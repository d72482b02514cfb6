"""Whose account may be opened, decided before anything is sent on; what comes of it is told by the HTTP contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.auth.keys import ensure_keys, sign_token
from deployments.payments import create_app
from deployments.payments_services import Unproven
from storage.references import person_reference
from tests.deployments.offline import offline_services

CPF = "52998224725"
OTHER = "11144477735"
LEDGER_KEY = bytes(32)


async def opened(directory: Path, owner: dict[str, str], unproven: Unproven, **token: Any) -> tuple[int, str, str]:
    """Status, problem and field of the answer; 503 when it would have been sent on."""
    services = offline_services(ensure_keys(directory), unproven=unproven)
    signed = sign_token(directory, "ana", token.pop("scope", "ledger:write"), **token)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(services)), base_url="http://razao") as http:
        answer = await http.post("/v1/accounts", json={"owner": owner}, headers={"authorization": f"Bearer {signed}"})
    found = answer.json()
    return answer.status_code, found["type"].removeprefix("/problems/"), found.get("field", "")


@pytest.mark.parametrize("opens", [True, False])
async def test_a_tax_id_takes_its_proof_or_an_operator(tmp_path: Path, opens: bool) -> None:
    unproven = Unproven(opens=opens)
    mine = {"name": "Ana", "tax_id": CPF}
    for person, expected in (
        (person_reference(LEDGER_KEY, CPF).hex(), (503, "unavailable", "")),
        (person_reference(LEDGER_KEY, OTHER).hex(), (403, "forbidden", "owner.tax_id")),
        (person_reference(bytes(31) + b"1", CPF).hex(), (403, "forbidden", "owner.tax_id")),
        ("", (403, "forbidden", "owner.tax_id")),
        (None, (403, "unproven", "owner.tax_id")),
    ):
        assert await opened(tmp_path, mine, unproven, person=person) == expected
    assert (await opened(tmp_path, mine, unproven, scope="ledger:operate"))[0] == 503
    assert await opened(tmp_path, {"name": "Ana"}, unproven, scope="ledger:operate") == (
        400, "malformed", "owner.tax_id",
    )  # fmt: skip


@pytest.mark.parametrize(("opens", "status"), [(True, 503), (False, 403)])
async def test_who_has_proven_none_opens_an_account_where_that_is_set(tmp_path: Path, opens: bool, status: int) -> None:
    found = await opened(tmp_path, {"name": "Ana"}, Unproven(opens=opens))
    assert found == ((status, "unavailable", "") if opens else (status, "unproven", "owner.tax_id"))
