"""What each role may: scopes by role, and what they are called on the consent page.

A scope opens calls; a role decides which scopes somebody can have at all. Whatever a token, an access key or a consent
asks for is cut down to the role at the moment that a token is made, so that a role taken away takes effect with the
next token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Role(StrEnum):
    """Who somebody is to the ledger."""

    PERSON = "person"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    ADMINISTRATOR = "administrator"
    SERVICE = "service"


class Registration(StrEnum):
    """Who may become a person: anybody, whoever has an operator's invitation, or nobody."""

    OPEN = "open"
    INVITED = "invited"
    CLOSED = "closed"


SELF: Final = "identity:self"
"""To manage one's own password and access keys. Only a login with the password gives it, never a consent or a key."""
ADMIN: Final = "identity:admin"
PROVE: Final = "identity:prove"
"""To say that a tax id is somebody's. Only an operator's login gives it."""
INTROSPECT: Final = "identity:introspect"

OF_ROLE: Final[Mapping[Role, frozenset[str]]] = MappingProxyType(
    {
        Role.PERSON: frozenset({"ledger:read", "ledger:write", "vault:self", "score:self"}),
        Role.OPERATOR: frozenset(
            {
                "ledger:read", "ledger:write", "ledger:fund", "ledger:operate",
                "vault:grant", "vault:write", "score:write", PROVE,
            }
        ),
        Role.AUDITOR: frozenset({"ledger:read", "ledger:audit", "vault:audit"}),
        Role.ADMINISTRATOR: frozenset({ADMIN}),
        Role.SERVICE: frozenset(
            {
                "ledger:read", "ledger:write", "ledger:fund", INTROSPECT,
                "vault:read:name", "vault:read:address", "vault:read:debts", "vault:write", "vault:grant",
                "score:read", "score:profile", "score:write", "score:extract",
            }
        ),
    }
)  # fmt: skip
"""What a role may at all."""

OF_PROVEN: Final = frozenset(scope for scopes in OF_ROLE.values() for scope in scopes if scope.endswith(":self"))
"""What is only for somebody whose tax id is proven to be theirs. `SELF` is about a login, not about a tax id."""

PAYMENTS: Final = "payments"
AUDIENCES: Final = (PAYMENTS, "vault", "score")
"""Whom tokens are for. The trace is not among them: it takes no tokens."""

FIRST_PARTY: Final = "razao"
"""The client that a login with the password belongs to: it can refresh, and nothing else."""
OPENID: Final = frozenset({"openid", "profile"})
DELEGABLE: Final = frozenset({"ledger:read", "ledger:write", "ledger:fund", "ledger:operate", "ledger:audit"})
"""What a consent or an access key can pass on."""

MEANING: Final[Mapping[str, str]] = MappingProxyType(
    {
        "openid": "know who you are, by a number that is yours",
        "profile": "know your name and your username",
        "ledger:read": "see your accounts, balances and transfers",
        "ledger:write": "open accounts and move your money",
        "ledger:fund": "move money into and out of the book",
        "ledger:operate": "read and change any account",
        "ledger:audit": "see any account",
    }
)


def audience_of(scope: str) -> str:
    """Whom a scope is for: the tier that it begins with, else the ledger with the identities beside it."""
    tier = scope.partition(":")[0]
    return tier if tier in AUDIENCES else PAYMENTS


def only_audience(scopes: Iterable[str]) -> str | None:
    """The one audience of all these scopes (none: the ledger); None when they are for several."""
    found = {audience_of(scope) for scope in scopes} or {PAYMENTS}
    return found.pop() if len(found) == 1 else None


def scopes_for(audience: str, scopes: Iterable[str]) -> frozenset[str]:
    """Those of the scopes that are for an audience."""
    return frozenset(scope for scope in scopes if audience_of(scope) == audience)


def own_scopes(role: str, *, proven: bool) -> frozenset[str]:
    """What a login with the password gives. `proven`: that the tax id is theirs."""
    scopes = OF_ROLE[Role(role)] | OPENID | {SELF}
    return scopes if proven else scopes - OF_PROVEN


def delegable_scopes(role: str) -> frozenset[str]:
    """What somebody of the role can pass on to a program."""
    return OF_ROLE[Role(role)] & DELEGABLE


def in_order(scopes: Iterable[str]) -> str:
    """Scopes as the claim and the parameter carry them."""
    return " ".join(sorted(scopes))
