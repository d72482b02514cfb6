"""What the vault's application stands on: made and closed by whoever wires it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deployments.auth.issuers import Verifier
from storage.vault import Vault
from storage.vault_people import People


@dataclass(slots=True, repr=False)
class Services:
    """What the application stands on. `networks`: CIDR, from which requests may come."""

    vault: Vault
    people: People
    verifier: Verifier
    ledger_key: bytes  # tells whose tax id a token carries
    item_key: bytes  # for ids that follow from a request's number
    networks: Sequence[str]
    gateway_secret: str | None = None
    deadline_s: float = 10.0
    repeated_tax_ids: bool = False
