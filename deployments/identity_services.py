"""What the identity application stands on, and its settings: made and closed by whoever wires it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta

from deployments.auth.issuers import OwnTokens
from deployments.auth.tokens import LEEWAY_S
from deployments.identity_oauth import Issuing
from deployments.identity_passwords import LENGTH_MIN, Passwords
from deployments.identity_roles import Registration
from deployments.identity_signing import Signer
from storage.identity import Users, digest
from storage.identity_clients import Clients
from storage.identity_grants import Attempts, Grants


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Seconds that things live."""

    access_s: int = 600
    id_s: int = 600
    refresh_s: int = 30 * 86_400
    code_s: int = 60
    session_s: int = 3600
    key_s: int = 365 * 86_400  # an access key that names no other

    @property
    def access(self) -> timedelta:
        """The longest that an access token is taken."""
        return timedelta(seconds=self.access_s + LEEWAY_S + 1)

    @property
    def signed(self) -> timedelta:
        """The longest that anything signed is looked at."""
        return timedelta(seconds=max(self.access_s, self.id_s) + 3600)


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast attempts may come: so many at once, then one each so many seconds."""

    pair_burst: float = 5  # of one address at one account
    pair_drip_s: float = 30.0
    address_burst: float = 100  # of one address at all accounts: password spraying
    address_drip_s: float = 5.0
    account_burst: float = 20  # of all unknown addresses at one account; beyond it they are slowed down, never refused
    account_drip_s: float = 60.0
    pause_s_max: float = 2.0
    register_burst: float = 50  # of one address
    register_drip_s: float = 10.0


@dataclass(slots=True)
class Services:
    """What the application stands on."""

    users: Users
    clients: Clients
    grants: Grants
    attempts: Attempts
    signer: Signer
    verifier: OwnTokens
    passwords: Passwords
    ledger_key: bytes
    key: bytes  # for keyed hashes of secrets
    issuer: str
    audience: str
    gateway_secret: str | None = None
    deadline_s: float = 10.0
    password_length_min: int = LENGTH_MIN
    repeated_tax_ids: bool = False
    registration: Registration = Registration.OPEN
    lifetimes: Lifetimes = field(default_factory=Lifetimes)
    pace: Pace = field(default_factory=Pace)
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep

    def issuing(self) -> Issuing:
        """What tokens are made with now."""
        times = self.lifetimes
        return Issuing(self.issuer, self.audience, self.key, self.signer.current(), times.access_s, times.id_s)

    def digest(self, secret: str) -> bytes:
        """What is kept of a secret."""
        return digest(self.key, secret)
