"""One request on its way through the score service: who asks about whom, what for, and the record of it.

Whoever holds a tax id has it for one request: what is written down has the person's reference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from starlette.types import Receive, Scope

from deployments.problems import FORBIDDEN, ProblemError, malformed
from deployments.request import PURPOSE, Request, require
from deployments.score_services import Services
from storage.accesses import NOBODY, Access
from storage.references import person_reference

SELF: Final = "score:self"
READ: Final = "score:read"
PROFILE: Final = "score:profile"
WRITE: Final = "score:write"
EXTRACT: Final = "score:extract"

ANSWERED: Final = "answered"
ABSENT: Final = "absent"
REFUSED: Final = "refused"
CHANGED: Final = "changed"
SEEN: Final = "seen"
"""Of the record itself: no query about the person."""

PURPOSE_PATTERN: Final = "[a-z0-9][a-z0-9-]{0,63}"
_PURPOSE: Final = re.compile(PURPOSE_PATTERN.encode())


class About(NamedTuple):
    """Whom a request is about. `own`: that person asks."""

    person: bytes
    tax_id: str
    own: bool


EVERYBODY: Final = About(NOBODY, "", own=False)


class Call(Request):
    """One request."""

    __slots__ = ("services",)

    def __init__(self, services: Services, scope: Scope, receive: Receive, path: Mapping[str, str]) -> None:
        super().__init__(scope, receive, path)
        self.services = services

    def about(self) -> About:
        """Whom the header names, and whether the token is that person's own.

        Raises:
            ProblemError: no token, or no tax id.
        """
        self.identified()
        tax_id = self.tax_id(repeated=self.services.repeated_tax_ids)
        own = self.is_own(tax_id, SELF, self.services.ledger_key)
        return About(person_reference(self.services.key, tax_id), tax_id, own)

    async def enter(self, what: str, scope: str) -> About:
        """Let the person in, and whoever has `scope`; write down who had to stay outside.

        Raises:
            ProblemError: neither of them.
        """
        about = self.about()
        return about if about.own else await self._enter_with(about, what, scope)

    async def enter_with(self, what: str, scope: str) -> About:
        """Let in who has `scope`, be it the person or not; write down who has not.

        Raises:
            ProblemError: it is not there.
        """
        return await self._enter_with(self.about(), what, scope)

    async def _enter_with(self, about: About, what: str, scope: str) -> About:
        identity = self.identified()
        another = scope == SELF and SELF in identity.scopes
        if scope in identity.scopes and not another:
            return about
        await self.record(about, what, REFUSED)
        if another:
            raise ProblemError(FORBIDDEN, "The token speaks for another person than the header names")
        require(identity, scope)
        raise AssertionError("the scope is not there")

    def purpose(self) -> str | None:
        """What the data is for, as the header says.

        Raises:
            ProblemError: it cannot be read.
        """
        given = self.headers.get(b"razao-purpose")
        if given is None:
            return None
        if not _PURPOSE.fullmatch(given):
            raise malformed(PURPOSE, "A purpose has 1 to 64 small letters, digits and hyphens")
        return given.decode()

    async def record(self, about: About, what: str, decision: str, *, consent: str | None = None) -> None:
        """Return once this access is on record; no answer may leave before."""
        access = Access(
            at=self.services.clock(),
            user=self.identified().subject,
            address=self.address,
            what=what,
            decision=decision,
            own=about.own,
            purpose=self.purpose(),
            request=self.request_id,
            correlation=self.correlation_id,
            consent=consent,
        )
        await self.services.accesses.write(about.person, access)
