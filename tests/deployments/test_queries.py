"""No call of any application takes a query parameter that its document does not declare, or one that is there twice."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

import httpx

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
