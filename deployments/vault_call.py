"""One request on its way through the vault: who asks, about whom, what for; and its refusal, which is recorded too."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final, NoReturn

from starlette.types import Receive, Scope

from deployments import vault_rules as rules
from deployments.problems import FORBIDDEN, ProblemError, malformed
from deployments.request import PURPOSE, Answer, Request
from deployments.vault_services import Services
from storage.vault import Asked, Subject

ANSWERED: Final = "answered"
REFUSED: Final = "refused"
FAILED: Final = "failed"
NOT_FOUND: Final = "not-found"
_PAGE_MAX: Final = 100


class Call(Request):
    """One request."""

    __slots__ = ("services",)

    def __init__(self, services: Services, scope: Scope, receive: Receive, path: Mapping[str, str]) -> None:
        super().__init__(scope, receive, path)
        self.services = services

    def about(self) -> tuple[Subject, bool]:
        """Whom the request is about, and whether they ask themselves: with `vault:self` and their own tax id.

        Raises:
            ProblemError: nobody is named, or nobody asks.
        """
        self.identified()
        tax_id = self.tax_id(repeated=self.services.repeated_tax_ids)
        return self.services.vault.subject(tax_id), self.is_own(tax_id, rules.SELF, self.services.ledger_key)

    def may(self, *scopes: str) -> bool:
        """Whether the token has one of the scopes."""
        return not self.identified().scopes.isdisjoint(scopes)

    def purpose(self, *, optional: bool = False) -> str:
        """What the caller says that it is for; empty where none need be said.

        Raises:
            ProblemError: nothing is said, or it is no purpose.
        """
        given = self.headers.get(b"razao-purpose")
        if given is None:
            if optional:
                return ""
            raise malformed(PURPOSE, "The header says what the data is for")
        return rules.read_purpose(given.decode("latin-1"), PURPOSE)

    def asked(self, subject: Subject, action: str, fields: tuple[str, ...] = (), purpose: str = "") -> Asked:
        """What is asked for, as it is recorded."""
        return Asked(
            subject, self.identified().subject, self.address, action, fields, purpose, self.request_id,
            self.correlation_id,
        )  # fmt: skip

    async def permit(self, subject: Subject, action: str, *, allowed: bool, scope: str) -> None:
        """Go on only when allowed; a refusal is recorded first.

        Raises:
            ProblemError: forbidden.
        """
        if not allowed:
            await self.refuse(self.asked(subject, action), f"This is for {_who(scope)}")

    async def refuse(self, asked: Asked, detail: str, **members: Any) -> NoReturn:
        """Record a refusal, then raise it."""
        async with self.services.vault.session(asked) as session:
            await session.record(REFUSED)
        raise ProblemError(FORBIDDEN, detail, **members)

    def new_id(self, what: bytes) -> uuid.UUID:
        """An id that follows from the request's number: come twice, it makes nothing twice."""
        content = b"\0".join((what, self.identified().subject.encode(), self.request_id.encode()))
        digest = blake2b(content, digest_size=16, key=self.services.item_key, person=b"razao.vault.id").digest()
        return uuid.UUID(bytes=digest, version=4)

    def path_id(self) -> uuid.UUID:
        """The id in the path; of what is no id, one that names nothing."""
        try:
            return uuid.UUID(self.path["id"])
        except ValueError:
            return uuid.UUID(int=0)

    def page(self) -> tuple[str | None, int]:
        """Cursor and limit of a list, by the query.

        Raises:
            ProblemError: the limit is none.
        """
        query = self.query()
        limit = query.get("limit", "50")
        if not (limit.isascii() and limit.isdigit() and len(limit) <= 3 and 1 <= int(limit) <= _PAGE_MAX):
            raise malformed("limit", f"A limit is a number from 1 to {_PAGE_MAX}")
        return query.get("cursor"), int(limit)


def done() -> Answer:
    """204."""
    return Answer(204, b"", [])


def _who(scope: str) -> str:
    return f"callers with the scope {scope}" if scope else "the person themselves"
