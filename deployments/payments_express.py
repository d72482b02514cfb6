"""The hottest call, `POST /v1/transfers`, without a task of its own (`deployments/express.py`).

It takes what came by the gateway, with a token that was seen before, and a body that asks for something that a shard
can decide. It reads the body and writes the answer by the same functions as the ordinary way does; a refusal by the
shard is told by the edge, as there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Final

from starlette.types import Message, Scope

from actors.frames import Array
from actors.shard_client import Outcome
from deployments.auth.middleware import BearerBackend, GatewayMiddleware
from deployments.edge import Edge, finish, number
from deployments.express import Exchange, Routes, asgi_send
from deployments.payments_call import Call
from deployments.payments_routes import api_operations
from deployments.payments_services import Services
from deployments.payments_transfers import PARTIES, Wanted, problem_of, read_transfer, transfer_answer
from deployments.problems import ProblemError
from deployments.request import SINGLE_BYTES_MAX
from storage.events import Code, ResultFlag

_METHOD: Final = "POST"
_PATH: Final = "/v1/transfers"
_OK: Final = int(Code.OK)
_REPLAYED: Final = int(ResultFlag.REPLAYED)


def express_routes(services: Services, gateway: GatewayMiddleware, backend: BearerBackend, edge: Edge) -> Routes:
    """The express routes of payments."""
    return {(_METHOD.encode(), _PATH.encode()): TransferRoute(services, gateway, backend, edge)}


class TransferRoute:
    """See `express.Route`."""

    def __init__(self, services: Services, gateway: GatewayMiddleware, backend: BearerBackend, edge: Edge) -> None:
        self.services = services
        self._gateway = gateway
        self._backend = backend
        self._edge = edge
        self._operation = next(one for one in api_operations() if (one.method, one.path) == (_METHOD, _PATH))
        self._refusing: set[asyncio.Task[None]] = set()

    def __call__(self, exchange: Exchange) -> bool:
        """Take the request, or leave it."""
        headers = dict(exchange.headers)
        identity = self._backend.known(headers)
        if (
            identity is None
            or len(headers) != len(exchange.headers)
            or not self._gateway.admits(headers)
            or b"content-encoding" in headers
            or len(exchange.body) > SINGLE_BYTES_MAX
        ):
            return False
        scope: Scope = {
            "method": _METHOD,
            "path": _PATH,
            "razao.headers": headers,
            "razao.request_id": number(headers).decode(),
            "razao.deadline": time.monotonic() + self.services.deadline_s,
            "razao.identity": identity,
            "razao.operation": self._operation,
        }
        call = Call(self.services, scope, _nothing_more, {})
        try:
            call.authorize("ledger:write")
            call.expect_json()
            wanted = read_transfer(call, exchange.body)
        except Exception:  # noqa: BLE001 - what is wrong, were it a fault of ours, the ordinary way finds too
            return False
        transfer = _Transfer(self, exchange, call, wanted)
        try:
            call.submit(wanted.row, wanted.note, wanted.id, transfer.told)
        except ProblemError:  # beyond its share: nothing was sent, and the ordinary way says so
            return False
        return True

    def refuse(self, scope: Scope, exchange: Exchange, why: Awaitable[ProblemError]) -> None:
        """Have the edge answer with the problem that it is."""
        task = asyncio.get_running_loop().create_task(self._edge.refuse(scope, asgi_send(exchange), why))
        self._refusing.add(task)

        def told(task: asyncio.Task[None]) -> None:
            self._refusing.discard(task)
            exchange.abandon()  # if it could not be told

        task.add_done_callback(told)


class _Transfer:
    """One that is under way."""

    __slots__ = ("_call", "_exchange", "_route", "_wanted")

    def __init__(self, route: TransferRoute, exchange: Exchange, call: Call, wanted: Wanted) -> None:
        self._route = route
        self._exchange = exchange
        self._call = call
        self._wanted = wanted

    def told(self, results: Array, positions: dict[int, int]) -> None:
        """Answer: (1,) RESULT, and the positions."""
        try:
            self._answer(results, positions)
        except Exception as error:  # noqa: BLE001 - neither the client nor the slot may wait for ever
            self._refuse(_fault(error))

    def _answer(self, results: Array, positions: dict[int, int]) -> None:
        wanted = self._wanted
        at, _, code, flags, _ = results.item(0)
        if code != _OK:
            self._refuse(problem_of(self._call, wanted.row, wanted.id, Outcome(results, positions), *PARTIES))
            return
        answer = transfer_answer(wanted, at, positions, replayed=bool(flags & _REPLAYED))
        answer.headers.append((b"content-length", b"%d" % len(answer.body)))
        finish(answer.headers, self._call.scope)
        self._exchange.answer(answer.status, answer.headers, answer.body)

    def _refuse(self, why: Awaitable[ProblemError]) -> None:
        self._route.refuse(self._call.scope, self._exchange, why)


async def _fault(error: Exception) -> ProblemError:
    """An error of ours, for the edge to tell."""
    raise error


async def _nothing_more() -> Message:
    """`receive` of a request that is whole."""
    return {"type": "http.disconnect"}
