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


SELF: Final = "identity:self"
"""To manage one's own password and access keys. Only a login with the password gives it, never a consent or a key."""
ADMIN: Final = "identity:admin"
INTROSPECT: Final = "identity:introspect"

LEDGER: Final[Mapping[Role, frozenset[str]]] = MappingProxyType(
    {
        Role.PERSON: frozenset({"ledger:read", "ledger:write"}),
        Role.OPERATOR: frozenset({"ledger:read", "ledger:write", "ledger:fund", "ledger:operate"}),
        Role.AUDITOR: frozenset({"ledger:read", "ledger:audit"}),
        Role.ADMINISTRATOR: frozenset({ADMIN}),
        Role.SERVICE: frozenset({"ledger:read", "ledger:write", "ledger:fund", INTROSPECT}),
    }
)

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


def login_scopes(role: str) -> frozenset[str]:
    """What a login with the password gives."""
    return LEDGER[Role(role)] | OPENID | {SELF}


def delegable_scopes(role: str) -> frozenset[str]:
    """What somebody of the role can pass on to a program."""
    return LEDGER[Role(role)] & DELEGABLE


def in_order(scopes: Iterable[str]) -> str:
    """Scopes as the claim and the parameter carry them."""
    return " ".join(sorted(scopes))
