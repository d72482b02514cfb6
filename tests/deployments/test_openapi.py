"""The served contract agrees with itself: every reference resolves, every call and problem is described."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from deployments.auth.keys import ensure_keys
from deployments.payments import create_app
from deployments.problems import BY_NAME
from tests.contract.documents import references
from tests.deployments.offline import offline_services

CALLS = {
    "POST /v1/accounts", "GET /v1/accounts", "GET /v1/accounts/{id}", "PATCH /v1/accounts/{id}",
    "GET /v1/accounts/{id}/balance", "GET /v1/accounts/{id}/entries", "POST /v1/deposits", "POST /v1/withdrawals",
    "POST /v1/transfers", "POST /v1/transfers/{id}/post", "POST /v1/transfers/{id}/void",
    "POST /v1/transfers/{id}/refunds", "GET /v1/transfers/{id}", "POST /v1/transfers/batch", "GET /healthz",
    "GET /v1/events", "GET /openapi.json", "GET /asyncapi.json", "GET /docs", "GET /", "GET /problems",
    "GET /problems/{name}",
}  # fmt: skip


async def fetch(tmp_path: Path, path: str) -> httpx.Response:
    """A GET without a token."""
    app = create_app(offline_services(ensure_keys(tmp_path)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://razao") as client:
        return await client.get(path)


async def test_every_call_is_described_with_its_problems(tmp_path: Path) -> None:
    """Each by an operation of its own, and each problem by name of the catalogue."""
    document = (await fetch(tmp_path, "/openapi.json")).json()
    operations = {
        f"{method.upper()} {path}": described
        for path, methods in document["paths"].items()
        for method, described in methods.items()
    }
    assert set(operations) == CALLS
    assert len({described["operationId"] for described in operations.values()}) == len(operations)
    for name, described in operations.items():
        public = "/v1/" not in name
        assert (described["security"] == []) == public, name
        assert ("401" in described["responses"]) != public
        for status, response in described["responses"].items():
            if int(status) >= 400:
                assert set(response["content"]) == {"application/problem+json"}
                named = re.findall(r"`([a-z-]+)`", response["description"])
                assert named
                assert all(int(status) in BY_NAME[one].statuses for one in named)


async def test_references_resolve_and_schemas_are_schemas(tmp_path: Path) -> None:
    """As JSON Schema 2020-12, which OpenAPI 3.1 is."""
    document = (await fetch(tmp_path, "/openapi.json")).json()
    schemas = document["components"]["schemas"]
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas, reference
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    request = {"$ref": "#/components/schemas/TransferRequest", "components": document["components"]}
    validator = Draft202012Validator(request)
    good = {"debit_account": "5000", "credit_account": "5001", "amount": 1, "metadata": {"a": [1]}, "hold": True}
    assert not list(validator.iter_errors(good))
    for bad in ({**good, "amount": 0}, {**good, "amount": "1"}, {**good, "more": 1}, {"amount": 1}):
        assert list(validator.iter_errors(bad)), bad


@pytest.mark.parametrize("path", ["/docs", "/", "/problems", "/problems/unsure"])
async def test_pages_need_nothing_from_elsewhere(tmp_path: Path, path: str) -> None:
    """No script, no font, no image; and the browser is told so."""
    page = await fetch(tmp_path, path)
    assert page.status_code == 200
    assert not re.search(r"<script|<img|<link|@import|url\(", page.text)
    assert not re.search(r"(src|href)=['\"]?(https?:)?//", page.text)
    assert page.headers["content-security-policy"].startswith("default-src 'none'")


async def test_the_page_for_people_shows_calls_fields_examples_and_problems(tmp_path: Path) -> None:
    """Enough to write a client from."""
    page = (await fetch(tmp_path, "/docs")).text
    for call in CALLS:
        assert call in page
    for word in ("expires_in?", "owner.tax_id", "transfers[].linked", "limit-exceeded", "Idempotency-Key", "curl"):
        assert word in page, word
    examples = re.findall(r"-d &#x27;(.*?)&#x27;</code>", page)
    assert len(examples) >= 5
    for example in examples:
        json.loads(example.replace("&quot;", '"'))
