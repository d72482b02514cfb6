"""What somebody owes, asked of the vault for one score and kept nowhere.

The score service comes in at the vault's door like anybody else: with a token of its own client, under a grant that the
person has given it. The token and the debts are asked of two services, so each has a breaker of its own, and both have
to answer before one deadline. A refusal is an answer: there is no grant, or nobody there, which the vault does not tell
apart. Whatever goes wrong otherwise only means that the score is made without debts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import datetime
from enum import Enum
from functools import partial
from typing import Annotated, Final, NamedTuple, Protocol

import httpx
import msgspec
from msgspec import Meta, Struct

from deployments.breaker import Breaker, BreakerOpen

log = logging.getLogger(__name__)

SCOPE: Final = "vault:read:debts"
PURPOSE: Final = "credit-score"
_PATH: Final = "/vault/v1/person"
_TOKEN_MARGIN_S: Final = 30.0
_ANSWER_MAX: Final = 4 << 20


class NoDebts(Enum):
    """Why there is nothing to go by."""

    REFUSED = "the vault refuses"
    AWAY = "the vault cannot be asked"


class Due(NamedTuple):
    """What somebody owes: centavos that are due and not disputed, and the seconds for which they let us know it."""

    amount: int
    life_s: float


class DebtSource(Protocol):
    """Whoever knows what people owe."""

    async def due(self, tax_id: str, correlation_id: str) -> Due | NoDebts:
        """What it is now."""
        ...


class NoVault:
    """A `DebtSource` for where there is no vault."""

    async def due(self, tax_id: str, correlation_id: str) -> NoDebts:
        """Nothing, always."""
        return NoDebts.AWAY


class Failed(Exception):  # noqa: N818 - what it is
    """The other side has not answered as it should. The message has a status or a kind, never content."""


class _Debt(Struct):
    amount: Annotated[int, Meta(ge=0)]
    disputed: bool = False


class _Person(Struct):
    debts: list[_Debt]
    granted_until: datetime


class _Token(Struct):
    access_token: str
    expires_in: Annotated[int, Meta(ge=1)]


class ClientTokens:
    """Access tokens by client credentials (RFC 6749, 4.4), each used until shortly before it expires."""

    def __init__(self, http: httpx.AsyncClient, url: str, client_id: str, secret: str, breaker: Breaker) -> None:
        """`url`: of the token endpoint."""
        self._http = http
        self._url = url
        self._login = httpx.BasicAuth(client_id, secret)
        self.breaker = breaker
        self._token = ""
        self._good_until = 0.0
        self._lock = asyncio.Lock()

    async def get(self, deadline: float) -> str:
        """One that is good.

        Raises:
            BreakerOpen: the identity service fails too often.
            Exception: it has failed now.
        """
        async with self._lock:
            if time.monotonic() >= self._good_until:
                token = await self.breaker.call(self._fetch, deadline)
                self._token = token.access_token
                self._good_until = time.monotonic() + max(token.expires_in - _TOKEN_MARGIN_S, 1.0)
            return self._token

    def refused(self, token: str) -> None:
        """Somebody does not take `token`: get another the next time."""
        if token == self._token:
            self._good_until = 0.0

    async def _fetch(self) -> _Token:
        form = {"grant_type": "client_credentials", "scope": SCOPE}
        answer = await self._http.post(self._url, data=form, auth=self._login)
        if answer.status_code != httpx.codes.OK:
            raise Failed(f"status {answer.status_code}")
        return msgspec.json.decode(answer.content, type=_Token)


class VaultDebts:
    """Asks the vault. A `DebtSource`."""

    def __init__(
        self, http: httpx.AsyncClient, url: str, tokens: ClientTokens, breaker: Breaker, *, deadline_s: float
    ) -> None:
        """Make it.

        Args:
            http: shows the client certificate when the vault wants one.
            url: of the vault's door.
            tokens: of our own client.
            breaker: around the vault.
            deadline_s: for an answer, the token included.
        """
        self._http = http
        self._url = url + _PATH
        self._tokens = tokens
        self._deadline_s = deadline_s
        self.breaker = breaker

    @property
    def breakers(self) -> tuple[Breaker, ...]:
        """Around each service that is called."""
        return (self.breaker, self._tokens.breaker)

    async def due(self, tax_id: str, correlation_id: str) -> Due | NoDebts:
        """Ask, and ask once more with a new token when ours is not taken any more."""
        deadline = time.monotonic() + self._deadline_s
        try:
            for _ in range(2):
                token = await self._tokens.get(deadline)
                found = await self.breaker.call(partial(self._ask, token, tax_id, correlation_id), deadline)
                if found is not None:
                    return found
                self._tokens.refused(token)
        except BreakerOpen:
            return NoDebts.AWAY
        # What the parts raise may quote what came, so only its kind is said.
        except (Failed, TimeoutError, httpx.HTTPError, msgspec.MsgspecError, OSError) as error:
            what = str(error) if isinstance(error, Failed) else type(error).__name__
            log.warning("no debts for a score: %s (request %s)", what, correlation_id)
            return NoDebts.AWAY
        log.error("the vault does not take our token (request %s)", correlation_id)
        return NoDebts.AWAY

    async def _ask(self, token: str, tax_id: str, correlation_id: str) -> Due | NoDebts | None:
        """None: it does not take the token."""
        headers = {
            "authorization": f"Bearer {token}",
            "razao-tax-id": tax_id,
            "razao-purpose": PURPOSE,
            "x-correlation-id": correlation_id,
        }
        async with self._http.stream("GET", self._url, params={"fields": "debts"}, headers=headers) as answer:
            if answer.status_code == httpx.codes.UNAUTHORIZED:
                return None
            if answer.status_code == httpx.codes.FORBIDDEN:
                return NoDebts.REFUSED
            if answer.status_code != httpx.codes.OK:
                raise Failed(f"status {answer.status_code}")
            body = bytearray()
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > _ANSWER_MAX:
                    raise Failed("an answer without end")
        person = msgspec.json.decode(body, type=_Person)
        life_s = max(0.0, person.granted_until.timestamp() - time.time())
        return Due(sum(debt.amount for debt in person.debts if not debt.disputed), life_s)
