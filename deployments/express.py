"""Requests that are answered without a task of their own.

An ASGI application runs a coroutine for each request, and on its way in and out a request passes a message through
every layer around it. For the hottest calls that costs more than the call. So the listener offers a request whose head
and body have come in one piece to the express route of its method and target. The route takes it, and answers once,
now or later; or it leaves it, having done nothing, and the request goes the ordinary way. An express route therefore
only ever takes what it finds nothing wrong with: what is wrong with a request is said in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from starlette.types import Message, Send

from deployments.request import Header


class Exchange(Protocol):
    """A request and the way its answer takes."""

    on_answer: Callable[[int], None]
    """Called with the status when it has been answered, whether or not the client is still there. It belongs to who
    stands around the routes (`Admission.express`)."""

    @property
    def headers(self) -> Sequence[Header]:
        """In their order, names in lower case."""
        ...

    @property
    def body(self) -> bytes:
        """All of it."""
        ...

    def answer(self, status: int, headers: Iterable[Header], body: bytes) -> None:
        """The whole answer, once. `headers` must have the content's length.

        Raises:
            RuntimeError: there was one before.
            ValueError: a header cannot stand in one; another answer may follow.
        """
        ...

    def abandon(self) -> None:
        """Close the connection instead, when no answer can be made. Nothing happens when there was one."""
        ...


Route = Callable[[Exchange], bool]
"""Takes a request (True) and answers it, or leaves it (False)."""

Routes = Mapping[tuple[bytes, bytes], Route]
"""By method and target, as they stand in the request's first line."""


def asgi_send(exchange: Exchange) -> Send:
    """The way of an answer for what speaks ASGI: a start, and one body."""
    start: dict[str, Any] = {}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        else:
            exchange.answer(start["status"], start["headers"], message["body"])

    return send
