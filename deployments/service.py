"""A small application around a table of calls: finds the call, answers it, and describes itself.

What each of the data services has besides its own calls stands here once: `<prefix>/openapi.json`, `<prefix>/docs`,
`<prefix>/healthz`, and the pages of the problem types, since a service behind a door of its own has to serve the
addresses that its refusals name. The middleware around it is each service's own business.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec
from starlette.types import Receive, Scope, Send

from deployments.openapi import BEARER, Operation, Security, docs_page, document, razao_version
from deployments.problem_pages import PAGE, PROBLEM_PAGES
from deployments.problems import UNAVAILABLE, paragraphs
from deployments.request import JSON, Answer, Header, Request, json_answer
from deployments.routes import Routes


class Health(msgspec.Struct):
    """Whether the service can answer."""

    status: str


class Chunks(NamedTuple):
    """An answer whose body comes in pieces, its length unknown beforehand."""

    status: int
    chunks: AsyncIterator[bytes]
    headers: list[Header]


class Service:
    """ASGI around `operations`. Their handlers take what `call` makes of a request, and return an Answer or Chunks."""

    def __init__(
        self,
        title: str,
        prefix: str,
        introduction: str,
        operations: Sequence[Operation],
        *,
        call: Callable[[Scope, Receive, Mapping[str, str]], Request],
        check_health: Callable[[], Awaitable[None]],
        security: Security = BEARER,
        health: str = "Whether the service can answer",
        page: Sequence[Header] = PAGE,
    ) -> None:
        """Make it.

        Args:
            title: of its documents.
            prefix: of its paths, such as `/vault/v1`.
            introduction: its documents' first words; paragraphs, `code` in back-ticks.
            operations: its calls.
            call: makes a request of its own out of scope, receive and the path's parameter.
            check_health: raises when the service cannot answer now.
            security: how its calls are entered.
            health: what its health check tells.
            page: headers of its page for people.
        """
        self._call = call
        self._check_health = check_health
        self._page = page
        self.operations = (*operations, *self._own_operations(prefix, health))
        self._routes = Routes((*self.operations, *PROBLEM_PAGES))
        described = document(title, razao_version(), introduction, self.operations, security)
        self._openapi = json.dumps(described, ensure_ascii=False, indent=1).encode()
        self._docs = docs_page(title, paragraphs(introduction), self.operations, security)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        operation, path = self._routes.enter(scope)
        answer: Answer | Chunks = await operation.handler(self._call(scope, receive, path))
        head = scope["method"] == "HEAD"
        if isinstance(answer, Chunks):
            await _send_chunks(answer, send, head=head)
            return
        headers = list(answer.headers)
        if answer.status != 204:
            headers.append((b"content-length", b"%d" % len(answer.body)))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if head else answer.body})

    def _own_operations(self, prefix: str, health: str) -> tuple[Operation, ...]:
        html = ("text/html",)
        return (
            Operation(
                "GET", f"{prefix}/healthz", "health", health, "", self._get_health,
                response=Health, problems=(UNAVAILABLE,),
            ),
            Operation(
                "GET", f"{prefix}/openapi.json", "openapi", "This contract as OpenAPI 3.1", "", self._get_openapi
            ),
            Operation(
                "GET", f"{prefix}/docs", "docs", "This contract for people", "", self._get_docs, media_types=html
            ),
        )  # fmt: skip

    async def _get_health(self, _: Request) -> Answer:
        await self._check_health()
        return json_answer(200, Health("ok"))

    async def _get_openapi(self, _: Request) -> Answer:
        return Answer(200, self._openapi, [JSON, PAGE[1]])

    async def _get_docs(self, _: Request) -> Answer:
        return Answer(200, self._docs, list(self._page))


def public_paths(prefix: str) -> Callable[[str], bool]:
    """What anybody may see of a service: its documents, its health, the problem pages."""
    paths = frozenset({f"{prefix}/healthz", f"{prefix}/openapi.json", f"{prefix}/docs", "/problems"})
    return lambda path: path in paths or path.startswith("/problems/")


async def _send_chunks(answer: Chunks, send: Send, *, head: bool) -> None:
    try:
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        if not head:
            async for chunk in answer.chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        if (close := getattr(answer.chunks, "aclose", None)) is not None:
            await close()
