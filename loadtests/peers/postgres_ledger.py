"""The peer to compare with: instant payments the way a competent team builds them on FastAPI, asyncpg and PostgreSQL.

Row locks in id order, an idempotency table, an entries table, the balance checked under the lock, every answer after
a synchronous commit. It is tuned as far as measuring paid: uvloop and httptools, a body model without validation
layers above it, one prepared call of a database function per transfer (`postgres_ledger.sql`; the same in separate
statements is here too, `PEER_VARIANT=statements`, to show the difference), a pool that sends nothing on its own, and
verified tokens cached. Two uvicorn workers, no gateway in front: see `loadtests/peers/runner.py`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

import asyncpg
import jwt
import orjson
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from loadtests.peers.tokens import Verifier

SCHEMA: Final = Path(__file__).with_suffix(".sql")

_INT64_MAX: Final = 2**63 - 1
_STATUSES: Final = {"settled": 201, "id-conflict": 409, "forbidden": 403}
_CALL: Final = "SELECT outcome, at, replayed FROM make_transfer($1, $2, $3, $4, $5)"

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]
Outcome = tuple[str, datetime, bool]
"""What became of it ("settled" or a problem's name), when, and whether this is the first answer again."""

Variant = Callable[["Pool", "Transfer", str | None], Awaitable[Outcome]]


class Transfer(BaseModel):
    """The body of `POST /v1/transfers`: the fields of our own contract that the comparison uses."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Annotated[UUID, Field(strict=False)]
    debit_account: Annotated[str, Field(pattern=r"^[0-9]{1,19}$")]
    credit_account: Annotated[str, Field(pattern=r"^[0-9]{1,19}$")]
    amount: Annotated[int, Field(gt=0, le=_INT64_MAX)]

    def numbers(self) -> tuple[int, int, int]:
        """Debit account, credit account, amount. What is no 64-bit number becomes one that no account has."""
        return min(int(self.debit_account), _INT64_MAX), min(int(self.credit_account), _INT64_MAX), self.amount


async def by_function(pool: Pool, transfer: Transfer, actor: str | None) -> Outcome:
    """One round trip: the whole transaction runs inside the database."""
    async with pool.acquire() as connection:
        row = await connection.fetchrow(_CALL, transfer.id, *transfer.numbers(), actor)
    assert row is not None
    return row["outcome"], row["at"], row["replayed"]


async def by_statements(pool: Pool, transfer: Transfer, actor: str | None) -> Outcome:
    """The same as separate prepared statements in a transaction: six round trips."""
    debit, credit, amount = transfer.numbers()
    async with pool.acquire() as connection, connection.transaction():
        at = await connection.fetchval(
            "INSERT INTO transfer (id, debit_account, credit_account, amount, status)"
            " VALUES ($1, $2, $3, $4, 'settled') ON CONFLICT (id) DO NOTHING RETURNING created_at",
            transfer.id,
            debit,
            credit,
            amount,
        )
        if at is None:
            return await _replay(connection, transfer, actor)
        rows = await connection.fetch(
            "SELECT id, owner, balance FROM account WHERE id = ANY($1::bigint[]) ORDER BY id FOR UPDATE",
            [debit, credit],
        )
        accounts = {row["id"]: row for row in rows}
        payer = accounts.get(debit)
        if actor is not None and (payer is None or payer["owner"] != actor):
            await connection.execute("DELETE FROM transfer WHERE id = $1", transfer.id)
            return "forbidden", at, False
        outcome = _refusal(accounts, debit, credit, amount)
        if outcome is not None:
            await connection.execute("UPDATE transfer SET status = $2 WHERE id = $1", transfer.id, outcome)
            return outcome, at, False
        after = {debit: accounts[debit]["balance"] - amount, credit: accounts[credit]["balance"] + amount}
        await connection.execute(
            "UPDATE account SET balance = new.balance"
            " FROM unnest($1::bigint[], $2::bigint[]) AS new (id, balance) WHERE account.id = new.id",
            list(after),
            list(after.values()),
        )
        await connection.execute(
            "INSERT INTO entry (account, transfer, amount, balance) VALUES ($1, $2, $3, $4), ($5, $2, $6, $7)",
            debit,
            transfer.id,
            -amount,
            after[debit],
            credit,
            amount,
            after[credit],
        )
    return "settled", at, False


def _refusal(accounts: dict[int, asyncpg.Record], debit: int, credit: int, amount: int) -> str | None:
    if debit == credit:
        return "same-account"
    if debit not in accounts or credit not in accounts:
        return "unknown-account"
    return "insufficient-funds" if accounts[debit]["balance"] < amount else None


async def _replay(connection: Any, transfer: Transfer, actor: str | None) -> Outcome:
    first = await connection.fetchrow(
        "SELECT t.*, a.owner FROM transfer t LEFT JOIN account a ON a.id = t.debit_account WHERE t.id = $1", transfer.id
    )
    at = first["created_at"]
    if (first["debit_account"], first["credit_account"], first["amount"]) != transfer.numbers():
        return "id-conflict", at, False
    if actor is not None and first["owner"] != actor:
        return "forbidden", at, False
    return first["status"], at, True


VARIANTS: Final[dict[str, Variant]] = {"function": by_function, "statements": by_statements}


async def _keep_as_is(_: Any) -> None:
    """Nothing to reset: no session state is ever set, and asyncpg's own reset would cost a round trip per request."""


def caller(request: Request) -> str | None:
    """Who asks: the token's `sub`, or None for an operator.

    Raises:
        jwt.InvalidTokenError: nobody whom the JWKS vouches for.
        PermissionError: somebody without the scope.
    """
    claims = request.app.state.verifier.claims(request.headers.get("authorization"))
    scopes = claims.get("scope", "").split()
    if "ledger:write" not in scopes:
        raise PermissionError("the scope ledger:write is missing")
    return None if "ledger:operate" in scopes else str(claims["sub"])


async def transfer(request: Request, body: Transfer) -> Response:
    """Move money once."""
    outcome, at, replayed = await request.app.state.make(request.app.state.pool, body, caller(request))
    status = _STATUSES.get(outcome, 422)
    headers = {"Idempotency-Replayed": "true"} if replayed else None
    if status != 201:
        return _problem(status, outcome, "", headers)
    answer = {
        "id": str(body.id),
        "status": "settled",
        "amount": body.amount,
        "debit_account": body.debit_account,
        "credit_account": body.credit_account,
        "created_at": at,
    }
    return Response(orjson.dumps(answer), 201, headers, "application/json")


async def balance(request: Request, account: int) -> Response:
    """What an account has."""
    actor = caller(request)
    row = await request.app.state.pool.fetchrow("SELECT owner, balance FROM account WHERE id = $1", account)
    if row is None:
        return _problem(404, "unknown-account", "")
    if actor is not None and row["owner"] != actor:
        return _problem(403, "forbidden", "")
    posted = row["balance"]
    answer = {"posted": posted, "pending": 0, "available": posted}
    return Response(orjson.dumps(answer), media_type="application/json")


async def healthy(request: Request) -> Response:
    """200 when the database answers."""
    await request.app.state.pool.fetchval("SELECT 1")
    return Response(b"{}", media_type="application/json")


async def unauthenticated(_: Request, error: Exception) -> Response:
    """401."""
    return _problem(401, "unauthenticated", str(error))


async def forbidden(_: Request, error: Exception) -> Response:
    """403."""
    return _problem(403, "forbidden", str(error))


def _problem(status: int, name: str, detail: str, headers: dict[str, str] | None = None) -> Response:
    content = {"type": f"/problems/{name}", "status": status, "detail": detail}
    return Response(orjson.dumps(content), status, headers, "application/problem+json")


def create_app() -> FastAPI:
    """The application, as each uvicorn worker makes it. Configured by `PEER_*`, which the runner sets."""
    size = int(os.environ.get("PEER_POOL", "8"))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with asyncpg.create_pool(
            os.environ["PEER_DSN"], min_size=size, max_size=size, reset=_keep_as_is, command_timeout=30
        ) as pool:
            app.state.pool = pool
            yield

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.verifier = Verifier(Path(os.environ["PEER_JWKS"]), os.environ["PEER_ISSUER"], os.environ["PEER_AUDIENCE"])
    app.state.make = VARIANTS[os.environ.get("PEER_VARIANT", "function")]
    app.post("/v1/transfers")(transfer)
    app.get("/v1/accounts/{account}/balance")(balance)
    app.get("/healthz")(healthy)
    app.exception_handler(jwt.InvalidTokenError)(unauthenticated)
    app.exception_handler(PermissionError)(forbidden)
    return app
