"""The served contract agrees with itself: every reference resolves, every call and problem is described."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from deployments.auth.keys import ensure_keys, sign_token
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


def offline_client(tmp_path: Path, **headers: str) -> httpx.AsyncClient:
    """A client, an operator's, of an application that reaches nothing."""
    app = create_app(offline_services(ensure_keys(tmp_path), deadline_s=0.05))
    token = sign_token(tmp_path, "ana", "ledger:read ledger:write ledger:operate")
    transport, sent = httpx.ASGITransport(app, raise_app_exceptions=False), {"authorization": f"Bearer {token}"}
    return httpx.AsyncClient(transport=transport, base_url="http://razao", headers={**sent, **headers})


async def fetch(tmp_path: Path, path: str) -> httpx.Response:
    """A GET."""
    async with offline_client(tmp_path) as client:
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


LINE = ("a", "x" * 255, "Zoë da Silva")
NO_LINE = ("", "x" * 256, "a\nb", "a\x7fb")
INSTANTS = ("2026-01-01T00:00:00Z", "2026-01-01t23:59:59.123456789-03:00", "1970-01-01T00:00:00z")
NO_INSTANTS = (
    "", "now", "2026-01-01", "2026-01-01T00:00:00", "2026-01-01T00:00:00.1234567890Z", "2026-01-01T23:59:60Z",
    "1969-12-31T23:59:59Z", "2200-01-01T00:00:00Z", "2026-01-01 00:00:00Z",
)  # fmt: skip
POSITIONS = ("0:5", "0:1,1:2", "0:1, 1:2", "0:999999999999999999", "0001:0")
NO_POSITIONS = ("", "0", "0:", ":1", "0:-1", "0:1;1:2", "0:1,", "0:1 ", "00000:1", "0:1234567890123456789", "0:1,  1:2")
NO_EVENTS = ("", "1.", "2", "0", "1.0", "1.0-", "1.-5", "1.00000-5", "1.0-5,1-7")
KEYS = ("k", "a b", "~" * 255)
NO_KEYS = ("", "x" * 256, "a\tb", " a", "a ", "é")
ACCOUNT_PATH = "/v1/accounts/7349874591868649841"


@pytest.mark.parametrize(
    ("method", "path", "where", "name", "good", "bad"),
    [
        ("GET", "/v1/accounts", "query", "sub", LINE, NO_LINE),
        ("GET", "/v1/accounts", "query", "limit", (1, 1000), (0, 1001, -1)),
        ("GET", "/v1/accounts", "query", "cursor", ("1",), ("",)),
        ("GET", "/v1/accounts", "header", "Razao-Position", POSITIONS, NO_POSITIONS),
        ("GET", "/v1/accounts/{id}", "header", "Razao-Position", POSITIONS, NO_POSITIONS),
        ("GET", "/v1/accounts/{id}/balance", "header", "Razao-Position", POSITIONS, NO_POSITIONS),
        ("GET", "/v1/accounts/{id}/balance", "query", "at", INSTANTS, NO_INSTANTS),
        ("GET", "/v1/accounts/{id}/entries", "query", "from", INSTANTS, NO_INSTANTS),
        ("GET", "/v1/accounts/{id}/entries", "query", "to", INSTANTS, NO_INSTANTS),
        ("GET", "/v1/events", "header", "Razao-Position", POSITIONS, NO_POSITIONS),
        ("GET", "/v1/events", "query", "from", INSTANTS, NO_INSTANTS),
        ("GET", "/v1/events", "header", "Last-Event-ID", ("1", "1.0-5", "1.0-5.1-7"), NO_EVENTS),
        ("GET", "/v1/events", "query", "last_event_id", ("1", "1.0-5", "1.0-5.1-7"), NO_EVENTS),
        ("POST", "/v1/transfers", "header", "Idempotency-Key", KEYS, NO_KEYS),
        ("POST", "/v1/transfers/batch", "header", "Idempotency-Key", KEYS, NO_KEYS),
        ("POST", "/v1/accounts", "header", "Idempotency-Key", KEYS, NO_KEYS),
    ],
)
async def test_a_parameter_is_taken_just_when_its_schema_says_so(
    tmp_path: Path, method: str, path: str, where: str, name: str, good: tuple[Any, ...], bad: tuple[Any, ...]
) -> None:
    """Nothing of the engine can be reached: what is taken ends in another way than as malformed."""
    async with offline_client(tmp_path) as http:
        operation = (await http.get("/openapi.json")).json()["paths"][path][method.lower()]
        (schema,) = (p["schema"] for p in operation["parameters"] if (p["in"], p["name"]) == (where, name))
        for value, expected in [*((one, True) for one in good), *((one, False) for one in bad)]:
            valid = Draft202012Validator(schema).is_valid(value)
            sent: dict[str, Any] = {"params": {name: value}} if where == "query" else {}
            if where == "header":
                sent = {"headers": {name: str(value).encode()}}
            answer = await http.request(
                method, path.replace("/v1/accounts/{id}", ACCOUNT_PATH), json=BODIES.get(path), **sent
            )
            taken = answer.status_code != 400
            assert (valid, taken) == (expected, expected), (value, answer.text)


TRANSFER = {"debit_account": "5000", "credit_account": "5001", "amount": 1}
OPENING: dict[str, Any] = {"owner": {"tax_id": "52998224725", "name": "Ana"}}
BODIES: dict[str, Any] = {
    "/v1/transfers": TRANSFER,
    "/v1/transfers/batch": {"transfers": [TRANSFER]},
    "/v1/accounts": OPENING,
}
LIMIT_MAX = 2**63 - 2


def opening(**owner: Any) -> dict[str, Any]:
    return {"owner": {**OPENING["owner"], **owner}}


def limited(**limits: Any) -> dict[str, Any]:
    return {**OPENING, "limits": limits}


@pytest.mark.parametrize(
    ("path", "schema", "good", "bad"),
    [
        ("/v1/transfers", "TransferRequest",
         [{**TRANSFER, "description": text} for text in ("x", "é" * 140)],
         [{**TRANSFER, "description": text} for text in ("", "é" * 141, "a\nb", "\x9f")]),
        ("/v1/transfers", "TransferRequest", [{**TRANSFER, "hold": True, "expires_in": 1}],
         [{**TRANSFER, "hold": True, "expires_in": one} for one in (0, -1)]),
        ("/v1/transfers", "TransferRequest", [TRANSFER],
         [{**TRANSFER, "credit_account": one} for one in ("", "0", "-5", "x", "9" * 20, "7" * 256)]),
        ("/v1/transfers/batch", "BatchRequest", [{"transfers": [TRANSFER] * 10_000}], [{"transfers": []}]),
        ("/v1/accounts", "OpenRequest", [opening(sub="ana"), opening(name="x"), opening(name="é" * 120)],
         [opening(sub=""), opening(sub="x" * 256), opening(sub="a\nb"), opening(name=""),
          opening(name="x" * 121), opening(name="a\tb"),
          opening(tax_id="")]),
        ("/v1/accounts", "OpenRequest", [limited(daily=0, night=None), limited(per_transfer=LIMIT_MAX)],
         [limited(daily=-1), limited(night=LIMIT_MAX + 1)]),
        ("/v1/accounts", "OpenRequest", [limited(night_window={"from": "23:59", "to": "00:00"})],
         [limited(night_window={"from": one, "to": "00:00"}) for one in ("24:00", "29:00", "1:00", "")]),
    ],
)  # fmt: skip
async def test_a_body_is_taken_just_when_its_schema_says_so(
    tmp_path: Path, path: str, schema: str, good: list[Any], bad: list[Any]
) -> None:
    """As with parameters."""
    async with offline_client(tmp_path) as http:
        document = (await http.get("/openapi.json")).json()
        wanted = {"$ref": f"#/components/schemas/{schema}", "components": document["components"]}
        for body, expected in [*((one, True) for one in good), *((one, False) for one in bad)]:
            valid = Draft202012Validator(wanted).is_valid(body)
            answer = await http.post(path, json=body)
            taken = answer.status_code not in {400, 413, 422}
            assert (valid, taken) == (expected, expected), (str(body)[:200], answer.text)
