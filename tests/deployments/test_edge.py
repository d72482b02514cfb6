"""The rim: what goes wrong is answered as a problem, and tells strangers nothing else."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from deployments.auth.keys import ensure_keys, sign_token
from deployments.edge import GRACE_S, Edge
from deployments.payments import create_app, translate
from deployments.problems import FORBIDDEN, OVERLOADED, UNAUTHENTICATED, UNAVAILABLE, UNKNOWN_ACCOUNT, ProblemError
from storage import ids
from storage.events import SLOTS
from tests.deployments.offline import offline_services

HEADERS = [(b"host", b"razao")]


async def call(
    app: Any,
    *,
    headers: Any = HEADERS,
    body: bytes | None = b"",
    path: str = "/v1/x",
    scope: dict[str, Any] | None = None,
) -> list[Message]:
    """One request by hand; `body` None never comes. Returns what was sent."""
    sent: list[Message] = []

    async def receive() -> Message:
        if body is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    request = {
        "type": "http", "method": "POST", "path": path, "query_string": b"", "root_path": "", "headers": list(headers),
        **(scope or {}),
    }  # fmt: skip
    await app(request, receive, send)
    return sent


def edge(handler: Any, **more: Any) -> Edge:
    """An edge around a handler."""
    return Edge(handler, **{"deadline_s": 5.0, **more})


def answer_of(sent: list[Message]) -> tuple[int, dict[str, str], Any]:
    """Status, headers, document."""
    response = httpx.Response(sent[0]["status"], headers=sent[0]["headers"], content=sent[1]["body"])
    return response.status_code, dict(response.headers), response.json()


async def test_an_unforeseen_error_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """500 with the number under which the log has it."""

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("the password is swordfish")

    with caplog.at_level(logging.ERROR, logger="deployments.edge"):
        status, headers, document = answer_of(await call(edge(broken)))
    assert (status, document["type"]) == (500, "/problems/internal-error")
    assert headers["content-type"] == "application/problem+json"
    assert "swordfish" not in str(document)
    assert document["request_id"] == headers["x-request-id"]
    assert document["request_id"] in caplog.text
    assert "swordfish" in caplog.text


async def test_what_does_not_say_who_may_store_it_may_be_stored_by_nobody() -> None:
    """Nearly all that we answer is about a person."""
    said: list[list[tuple[bytes, bytes]]] = [[], [(b"cache-control", b"public, max-age=60")]]

    async def answers(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(said[scope["path"] == "/page"])})
        await send({"type": "http.response.body", "body": b"{}"})

    for path, expected in (("/v1/x", "no-store"), ("/page", "public, max-age=60")):
        _, headers, _ = answer_of(await call(edge(answers), path=path))
        assert headers["cache-control"] == expected


@pytest.mark.parametrize(
    ("challenge", "told"),
    [
        ("Bearer", 'Bearer realm="vault"'),
        ('Bearer error="insufficient_scope", scope="a"', 'Bearer realm="vault", error="insufficient_scope", scope="a"'),
        ('Basic realm="another", charset="UTF-8"', 'Basic realm="another", charset="UTF-8"'),
    ],
)
async def test_a_challenge_says_what_it_is_for(challenge: str, told: str) -> None:
    """Whoever made it, as a problem or as an answer."""

    async def challenges(scope: Scope, receive: Receive, send: Send) -> None:
        scope["razao.realm"] = "vault"
        if scope["path"] == "/problem":
            raise ProblemError(UNAUTHENTICATED, "Who?", headers={"www-authenticate": challenge})
        headers = [(b"www-authenticate", challenge.encode())]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})

    for path in ("/problem", "/answer"):
        _, headers, _ = answer_of(await call(edge(challenges), path=path))
        assert headers["www-authenticate"] == told


async def test_an_error_after_something_was_sent_on_names_its_id() -> None:
    """The caller can send it again; whatever failed, the outcome is not known."""
    errors: dict[str, Exception] = {
        "/driver": OSError("gone"),
        "/fault": RuntimeError("x"),
        "/shard": ProblemError(UNAVAILABLE, "Its shard does not answer"),
        "/load": ProblemError(OVERLOADED, "Too much"),
        "/read": ProblemError(UNKNOWN_ACCOUNT, "None", status=404),
    }

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        scope["razao.event"] = "the-id"
        raise errors[scope["path"]]

    for path in errors:
        status, headers, document = answer_of(await call(edge(broken, translate=translate), path=path))
        assert (status, document["type"], document["id"]) == (503, "/problems/unsure", "the-id")
        assert int(headers["retry-after"]) > 0


async def test_the_outcome_itself_is_told_as_it_is() -> None:
    """Only the very problem that is marked as the outcome of what was sent."""

    async def refused(scope: Scope, receive: Receive, send: Send) -> None:
        outcome = ProblemError(OVERLOADED, "The shard has taken nothing of it")
        scope["razao.event"], scope["razao.outcome"] = "the-id", outcome
        raise outcome

    assert answer_of(await call(edge(refused)))[2]["type"] == "/problems/overloaded"


@pytest.mark.parametrize("error", [OSError("x"), asyncpg.PostgresConnectionError("x"), asyncpg.InterfaceError("x")])
async def test_a_database_that_is_away_is_not_an_error_of_ours(error: Exception) -> None:
    """503 with Retry-After."""

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    status, headers, document = answer_of(await call(edge(broken, translate=translate)))
    assert (status, document["type"]) == (503, "/problems/unavailable")
    assert int(headers["retry-after"]) > 0


async def test_an_answer_that_breaks_off_is_not_followed_by_another() -> None:
    """The server must cut the connection: the exception goes on to it."""

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("x")

    with pytest.raises(ProblemError):
        await call(edge(broken))


async def test_a_request_ends_at_its_deadline_whatever_happens_within() -> None:
    """Unsure when something was sent on, timeout when the body never came, unavailable otherwise."""

    async def stuck(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/sent":
            await receive()
            scope["razao.event"] = "the-id"
        elif scope["path"] == "/read":
            await receive()
        else:
            await receive()
        await asyncio.Event().wait()

    app = edge(stuck, deadline_s=0.05 - GRACE_S)
    status, headers, document = answer_of(await call(app, path="/sent"))
    assert (status, document["type"], document["id"]) == (503, "/problems/unsure", "the-id")
    assert int(headers["retry-after"]) > 0
    assert answer_of(await call(app, path="/read"))[2]["type"] == "/problems/unavailable"
    assert answer_of(await call(app, path="/body", body=None))[0] == 408


async def test_a_cancelled_request_ends() -> None:
    """As Serve does it: nothing is swallowed."""

    async def stuck(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(call(edge(stuck)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_each_late_request_is_ended_and_the_punctual_ones_beside_it_are_not() -> None:
    hurry = asyncio.Event()

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/v1/slow":
            await asyncio.Event().wait()
        await hurry.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    app = edge(handler, deadline_s=0.2 - GRACE_S)
    late = [asyncio.create_task(call(app, path="/v1/slow")) for _ in range(3)]
    punctual = asyncio.create_task(call(app))
    await asyncio.sleep(0)
    hurry.set()
    assert (await punctual)[0]["status"] == 200
    assert [answer_of(await task)[0] for task in late] == [503] * 3  # nobody waited for their bodies
    assert not app._watch._guarded


@pytest.mark.parametrize(
    "name",
    [
        "authorization",
        "content-type",
        "content-length",
        "idempotency-key",
        "razao-position",
        "razao-gateway",
        "x-request-id",
    ],
)
async def test_a_header_that_decides_something_must_not_be_there_twice(name: str) -> None:
    """Which one would count?"""

    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    status, _, document = answer_of(
        await call(edge(never), headers=[*HEADERS, (name.encode(), b"1"), (name.encode(), b"1")])
    )
    assert (status, document["field"].lower()) == (400, name)


@pytest.mark.parametrize("sent", [b"", b"a b", b"\xff", b"x" * 129, b"\r\nx: y"])
async def test_a_request_id_out_of_form_is_replaced(sent: bytes) -> None:
    """It goes into logs and headers."""

    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        assert b"x-request-id" not in scope["razao.headers"]
        raise ProblemError(FORBIDDEN, "no")

    status, headers, document = answer_of(await call(edge(refusing), headers=[(b"x-request-id", sent)]))
    assert status == 403
    assert len(document["request_id"]) == 32
    assert headers["x-request-id"] == document["request_id"]


async def test_web_sockets_are_closed_and_lifespans_answered() -> None:
    """There is nothing else to either."""

    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    sent = await call(edge(never), scope={"type": "websocket"})
    assert [message["type"] for message in sent] == ["websocket.close"]
    came = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    answered: list[str] = []

    async def receive() -> Message:
        return came.pop(0)

    async def send(message: Message) -> None:
        answered.append(message["type"])

    await edge(never)({"type": "lifespan"}, receive, send)
    assert answered == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@pytest.mark.parametrize("secret", [None, "", "wrong", "the secret ", "THE SECRET"])
async def test_only_the_gateway_gets_in(tmp_path: Path, secret: str | None) -> None:
    """Every path, public ones too."""
    app = create_app(offline_services(ensure_keys(tmp_path), gateway_secret="the secret"))
    headers = {"authorization": f"Bearer {sign_token(tmp_path, 'ana', 'ledger:read')}"}
    if secret is not None:
        headers["razao-gateway"] = secret
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://razao") as client:
        for path in ("/healthz", "/docs", "/v1/accounts", "/nothing"):
            response = await client.get(path, headers=headers)
            assert (response.status_code, response.json()["type"]) == (403, "/problems/forbidden")
        headers["razao-gateway"] = "the secret"
        assert (await client.get("/docs", headers=headers)).status_code == 200
        assert (await client.get("/nothing", headers=headers)).status_code == 404


_PAYER = 5000
_ID = ids.text(ids.in_slot(ids.uuid7(time.time_ns() // 1_000_000), _PAYER % SLOTS))
_MOVE = {"debit_account": str(_PAYER), "credit_account": "6000", "amount": 1}
_WRITES: dict[str, tuple[str, str, Any]] = {
    "transfer": ("POST", "transfers", {**_MOVE, "id": _ID}),
    "hold": ("POST", "transfers", {**_MOVE, "id": _ID, "hold": True}),
    "deposit": ("POST", "deposits", {"account": str(_PAYER), "amount": 1, "id": _ID}),
    "withdrawal": ("POST", "withdrawals", {"account": str(_PAYER), "amount": 1, "id": _ID}),
    "batch": ("POST", "transfers/batch", {"transfers": [{**_MOVE, "id": _ID}, _MOVE]}),
    "post": ("POST", f"transfers/{_ID}/post", {}),
    "void": ("POST", f"transfers/{_ID}/void", {}),
    "limits": ("PATCH", f"accounts/{_PAYER}", {"limits": {"daily": 1}}),
    "status": ("PATCH", f"accounts/{_PAYER}", {"status": "closed"}),
}


@pytest.mark.parametrize("key", ["", "key-1"])
@pytest.mark.parametrize("name", _WRITES)
async def test_what_was_sent_to_a_shard_is_unsure_when_the_edge_itself_ends_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str
) -> None:
    """The edge knows the id from the moment it is sent on, of every call that writes."""
    monkeypatch.setattr("deployments.edge.GRACE_S", -0.9)  # before the shard client gives up
    app = create_app(offline_services(ensure_keys(tmp_path), deadline_s=1.0))
    headers = {"authorization": f"Bearer {sign_token(tmp_path, 'ana', 'ledger:write ledger:fund')}"}
    method, path, body = _WRITES[name]
    named = "id" in body or name == "batch"
    if key:
        headers["idempotency-key"] = key
        body = {field: value for field, value in body.items() if field != "id"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://razao") as client:
        response = await client.request(method, f"/v1/{path}", json=body, headers=headers)
        assert (response.status_code, response.json()["type"]) == (503, "/problems/unsure")
        told = ids.parse(response.json()["id"])
        assert (ids.text(told) == _ID) == (named and not key)
        assert ids.version(told) == (8 if key else 7)
        assert name == "batch" or ids.slot_of(told) == _PAYER % SLOTS
        read = await client.get("/v1/accounts/5000/balance", headers=headers | {"authorization": "Bearer x"})
        assert read.status_code == 401
