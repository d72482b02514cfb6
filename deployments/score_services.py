"""What the score application stands on; made by `cluster/score_wiring.py`, handed to `deployments/score.py`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from deployments.auth.issuers import Verifier
from deployments.score_debts import DebtSource
from storage.accesses import Accesses
from storage.consents import Consents
from storage.profiles import Profiles


@dataclass(slots=True)
class Services:
    """Stores, who verifies tokens, who is asked for debts, and keys.

    `ledger_key`: 32 bytes, for a token's claim `person`; `key`: 32 bytes, for this service's own references; `ping`
    raises when the store does not answer; `told`: messages say when what the vault would answer changes; `clock`: ns
    since 1970.
    """

    profiles: Profiles
    accesses: Accesses
    consents: Consents
    debts: DebtSource
    ping: Callable[[], Awaitable[None]]
    verifier: Verifier
    ledger_key: bytes
    key: bytes
    gateway_secret: str | None = None
    deadline_s: float = 10.0
    extract_s: float = 600.0
    told: bool = True
    repeated_tax_ids: bool = False
    clock: Callable[[], int] = time.time_ns
