"""No call takes a query parameter that its application's document does not declare, or a value that it excludes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

import httpx
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from deployments.auth.keys import ensure_keys, sign_token
from deployments.payments import create_app
from tests.deployments.identity_house import House as IdentityHouse
from tests.deployments.offline import offline_services
from tests.deployments.score_house import House as ScoreHouse
from tests.deployments.trace_house import House as TraceHouse
from tests.deployments.vault_house import VaultHouse

PAGES: Final = ("/problems", "/problems/unsure")
_OAUTH: Final = frozenset({"/oauth/authorize", "/oauth/token", "/oauth/revoke", "/oauth/introspect"})
"""They have rules of their own (RFC 6749, 3.1 and 3.2)."""


async def refuses_undeclared_parameters(http: httpx.AsyncClient, document: str, *, pages: Collection[str] = ()) -> int:
    """Asks every call that the OpenAPI document at the path `document` has, and each of `pages`; how many it asked."""
    described = (await http.get(document)).json()
    asked = 0
    targets = [(method.upper(), path) for path, methods in described["paths"].items() for method in methods]
    for method, path in [*targets, *(("GET", page) for page in pages)]:
        if path in _OAUTH:
            continue
        operation = described["paths"].get(path, {}).get(method.lower(), {})
        names = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"]
        for query in ("dry_run=true", "limit=1&limit=1", *(f"{name}=1&{name}=1" for name in names)):
            answer = await http.request(method, f"{path.replace('{id}', '1')}?{query}", json={})
            assert answer.status_code == 400, (method, path, query, answer.text)
            assert answer.json()["type"] == "/problems/malformed"
            assert answer.json()["field"] == "query"
            asked += 1
    return asked


async def test_payments_refuses_undeclared_parameters_before_anything_else(tmp_path: Path) -> None:
    """None of its parts can be reached here, so nothing was sent on."""
    app = create_app(offline_services(ensure_keys(tmp_path)))
    token = sign_token(tmp_path, "ana", "ledger:read ledger:write ledger:fund")
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://razao.test", headers=headers
    ) as http:
        assert await refuses_undeclared_parameters(http, "/openapi.json") > 40


async def test_identity_refuses_undeclared_parameters(house: IdentityHouse) -> None:
    token = (await house.person())["access_token"]
    async with house.http(authorization=f"Bearer {token}") as http:
        assert await refuses_undeclared_parameters(http, "/auth/openapi.json", pages=PAGES) > 20


async def test_the_vault_refuses_undeclared_parameters(vault_house: VaultHouse) -> None:
    http = vault_house.self_().http
    assert await refuses_undeclared_parameters(http, "/vault/v1/openapi.json", pages=PAGES) > 25


async def test_the_score_refuses_undeclared_parameters(scores: ScoreHouse) -> None:
    async with scores.http(scope="score:self score:read score:profile score:write score:extract") as http:
        assert await refuses_undeclared_parameters(http, "/score/v1/openapi.json", pages=PAGES) > 20


async def test_the_trace_refuses_undeclared_parameters(trace_house: TraceHouse) -> None:
    async with trace_house.http() as http:
        assert await refuses_undeclared_parameters(http, "/trace/v1/openapi.json", pages=PAGES) > 10


async def takes_what_it_declares(
    http: httpx.AsyncClient, document: str, path: str, name: str, good: Collection[str], bad: Collection[str]
) -> None:
    """A parameter of GET `path`: malformed just when its schema says so, and when it is left out though required."""
    described = (await http.get(document)).json()["paths"][path]["get"]["parameters"]
    (declared,) = (one for one in described if one["name"] == name)
    valid = Draft202012Validator(declared["schema"]).is_valid
    for value in (*good, *bad):
        sent: dict[str, Any] = {"params" if declared["in"] == "query" else "headers": {name: value}}
        taken = (await http.get(path, **sent)).status_code not in {400, 422}
        assert valid(value) == taken == (value in good), value
    http.headers.pop(name, None)
    assert ((await http.get(path)).status_code == 400) == declared["required"]


async def test_parameters_of_the_vault_are_taken_as_declared(vault_house: VaultHouse) -> None:
    document, person = "/vault/v1/openapi.json", "/vault/v1/person"
    fields = ("name", "debts,name", "address,debts,name"), ("", "x", "name,", "name debts", "name,name,name,name")
    await takes_what_it_declares(vault_house.self_().http, document, person, "fields", *fields)
    cursors = ("1",), ("",)
    await takes_what_it_declares(vault_house.self_().http, document, f"{person}/accesses", "cursor", *cursors)
    await takes_what_it_declares(vault_house.self_().http, document, f"{person}/accesses", "Razao-Tax-Id", (), ("",))


async def test_parameters_of_the_score_are_taken_as_declared(scores: ScoreHouse) -> None:
    purposes = ("loan", "a" * 64, "0-x"), ("", "A", "a" * 65, "-a", "a b")
    async with scores.http() as http:
        await takes_what_it_declares(http, "/score/v1/openapi.json", "/score/v1/score", "Razao-Purpose", *purposes)
    async with scores.http() as http:
        await takes_what_it_declares(http, "/score/v1/openapi.json", "/score/v1/score", "Razao-Tax-Id", (), ("",))


async def test_parameters_of_the_trace_are_taken_as_declared(trace_house: TraceHouse) -> None:
    async with trace_house.http() as http:
        await takes_what_it_declares(http, "/trace/v1/openapi.json", "/trace/v1/person", "Razao-Tax-Id", (), ("",))
