"""One request on its way through an application: its headers, body and query, read strictly, and whole answers to it.

Each application derives its own call from `Request`; what goes wrong is raised as a ProblemError and answered at the
edge.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.types import Receive, Scope

from deployments import json_body
from deployments.auth.tokens import Identity
from deployments.problems import FORBIDDEN, UNAUTHENTICATED, UNSUPPORTED_MEDIA_TYPE, ProblemError, malformed
from deployments.tax_id import read_tax_id
from storage.references import person_reference

T = TypeVar("T")
Header = tuple[bytes, bytes]

SINGLE_BYTES_MAX: Final = 64 << 10
TAX_ID: Final = "Razao-Tax-Id"
PURPOSE: Final = "Razao-Purpose"
UNKNOWN_ADDRESS: Final = "unknown"
# What has the form of a CPF or CNPJ is none: the number is written into logs and records.
_CORRELATION: Final = re.compile(rb"(?![0-9]{9}-?[0-9]{2}\Z)(?![0-9A-Za-z]{12}-?[0-9]{2}\Z)[A-Za-z0-9-]{1,64}")
JSON: Final[Header] = (b"content-type", b"application/json")


class Answer(NamedTuple):
    """A whole response."""

    status: int
    body: bytes
    headers: list[Header]


class Request:
    """One request. `deadline`: time.monotonic seconds."""

    __slots__ = ("deadline", "headers", "identity", "path", "receive", "request_id", "scope")

    def __init__(self, scope: Scope, receive: Receive, path: Mapping[str, str]) -> None:
        self.scope = scope
        self.receive = receive
        self.path = path
        self.headers: dict[bytes, bytes] = scope["razao.headers"]
        self.request_id: str = scope["razao.request_id"]
        self.deadline: float = scope["razao.deadline"]
        self.identity: Identity | None = scope["razao.identity"]

    def identified(self) -> Identity:
        """Who asks.

        Raises:
            ProblemError: nobody has said.
        """
        if self.identity is None:
            raise ProblemError(UNAUTHENTICATED, "A token is needed", headers={"www-authenticate": "Bearer"})
        return self.identity

    async def reauthenticate(self) -> None:
        """Look again whether whoever asks may still come in. An answer that goes on calls it before each part.

        Raises:
            ProblemError: not any more (revoked, expired, logged out), or it cannot be told now.
        """
        await self.scope["razao.backend"].authenticate(self.headers)

    @property
    def address(self) -> str:
        """The client's network address as the gateway saw it; `UNKNOWN_ADDRESS` when there is none to believe."""
        return client_address(self.headers.get(b"razao-client-address", b""))

    @property
    def correlation_id(self) -> str:
        """The number of the request that this one is made for: what the caller says, else its own."""
        return correlation_of(self.headers, self.request_id)

    def tax_id(self, *, repeated: bool = False) -> str:
        """The digits and letters of the tax id that the request is about, from its header: addresses end up in logs.

        Args:
            repeated: accept CPFs of one repeated digit.

        Raises:
            ProblemError: there is none, or it is no CPF or CNPJ.
        """
        given = self.headers.get(b"razao-tax-id")
        if given is None:
            raise malformed(TAX_ID, "The header names the person whom this is about by CPF or CNPJ")
        return read_tax_id(given.decode("latin-1"), TAX_ID, repeated=repeated)

    def is_own(self, tax_id: str, scope: str, ledger_key: bytes) -> bool:
        """Whether the person of this tax id asks themselves: by the token's claim `person`, and `scope`.

        Raises:
            ProblemError: nobody asks.
        """
        identity = self.identified()
        ours, claimed = person_reference(ledger_key, tax_id).hex(), identity.claims.get("person")
        own = isinstance(claimed, str) and hmac.compare_digest(claimed.encode(), ours.encode())
        return own and scope in identity.scopes

    def is_proven(self) -> bool:
        """Whether the token speaks for a tax id at all.

        Raises:
            ProblemError: nobody asks.
        """
        return "person" in self.identified().claims

    async def body(self, limit: int) -> bytes:
        """The whole body, not decoded."""
        if b"content-encoding" in self.headers:
            raise ProblemError(UNSUPPORTED_MEDIA_TYPE, "Bodies must not be compressed", field="Content-Encoding")
        return await json_body.receive_body(self.receive, content_length(self.headers), limit)

    async def json(
        self, decoder: msgspec.json.Decoder[T], *, empty: bytes | None = None, limit: int = SINGLE_BYTES_MAX
    ) -> T:
        """The decoded JSON body of at most `limit` bytes; `empty` stands in for a body of no bytes."""
        if empty is None or b"content-type" in self.headers:
            self.expect_json()
        data = await self.body(limit)
        return json_body.decode(empty if not data and empty is not None else data, decoder)

    def expect_json(self) -> None:
        """Raises ProblemError unless the content type is JSON in UTF-8."""
        value = self.headers.get(b"content-type", b"")
        if value != b"application/json" and not _is(value, "application/json"):
            raise ProblemError(
                UNSUPPORTED_MEDIA_TYPE, "The content type must be application/json", field="Content-Type"
            )

    async def form(self, limit: int = SINGLE_BYTES_MAX) -> dict[str, str]:
        """The fields of a form; repeated ones are refused."""
        if not _is(self.headers.get(b"content-type", b""), "application/x-www-form-urlencoded"):
            raise ProblemError(
                UNSUPPORTED_MEDIA_TYPE,
                "The content type must be application/x-www-form-urlencoded",
                field="Content-Type",
            )
        return fields(await self.body(limit), "body")

    def query(self) -> Mapping[str, str]:
        """The query's parameters: of those that the table of calls declares, each at most once."""
        found: Mapping[str, str] = self.scope["razao.query"]
        return found


@lru_cache(maxsize=4096)
def client_address(given: bytes) -> str:
    """An address as the gateway has written it, in its one form; `UNKNOWN_ADDRESS` of what is none."""
    try:
        address = ipaddress.ip_address(given.decode("latin-1"))
    except ValueError:
        return UNKNOWN_ADDRESS
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def correlation_of(headers: Mapping[bytes, bytes], request_id: str) -> str:
    """The number under which a chain of requests is found again: `X-Correlation-Id`, else the request's own."""
    given = headers.get(b"x-correlation-id", b"")
    return given.decode() if _CORRELATION.fullmatch(given) else request_id


def require(identity: Identity, scope: str) -> None:
    """Raises ProblemError unless the token has the scope."""
    if scope not in identity.scopes:
        challenge = f'Bearer error="insufficient_scope", scope="{scope}"'
        raise ProblemError(
            FORBIDDEN, f"The token lacks the scope {scope}", headers={"www-authenticate": challenge}, scope=scope
        )


def fields(raw: bytes, where: str) -> dict[str, str]:
    """Names and values of a query or a form, strictly: none twice, none that cannot be decoded."""
    if not raw:
        return {}
    try:
        pairs = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=32
        )
    except ValueError:
        raise malformed(where, f"The {where} cannot be read") from None
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        raise malformed(where, f"A {where} parameter is there twice")
    return parameters


def page_of(found: Sequence[T], limit: int) -> tuple[Sequence[T], T | None]:
    """A page of a list, from what was found of up to one item more than it has.

    Returns:
        Its items, and the one that the next page begins behind; None on the last page.
    """
    return found[:limit], found[limit - 1] if len(found) > limit else None


def content_length(headers: Mapping[bytes, bytes]) -> int | None:
    """The declared length of the body in bytes."""
    raw = headers.get(b"content-length")
    if raw is None:
        return None
    if not raw.isdigit() or len(raw) > 18:
        raise malformed("Content-Length", "Content-Length is not a number")
    return int(raw)


def _is(value: bytes, media_type: str) -> bool:
    parts = value.decode("latin-1").lower().split(";")
    if parts[0].strip() != media_type:
        return False
    return all(part.strip().replace('"', "") in {"charset=utf-8", "charset=us-ascii", ""} for part in parts[1:])


def json_answer(status: int, value: object, headers: list[Header] | None = None) -> Answer:
    """A cold answer."""
    return Answer(status, msgspec.json.encode(value), [JSON] if headers is None else headers)
