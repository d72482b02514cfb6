"""What the payments application stands on: the shard client, the stores, the verifier, and its settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from actors.shard_client import ShardClient
from deployments.auth.issuers import Verifier
from deployments.payments_events import EventStreams, Limits
from deployments.quotas import Quotas
from storage.events import AMOUNT_MAX
from storage.feed import Feed
from storage.query_store import QueryStore
from storage.registry import Registry, owner_hash

_SUBJECTS_MAX: Final = 65_536


class Actors:
    """Owner hashes by subject, remembered."""

    def __init__(self, ledger_key: bytes) -> None:
        self._key = ledger_key
        self._known: dict[str, int] = {}

    def of(self, subject: str) -> int:
        """The hash that stands for a subject in the journal."""
        known = self._known.get(subject)
        if known is None:
            if len(self._known) >= _SUBJECTS_MAX:
                self._known.clear()
            known = self._known[subject] = owner_hash(self._key, subject)
        return known


@dataclass(frozen=True, slots=True)
class Unproven:
    """What somebody may who has proven no tax id: `opens` so many accounts, whose limits, in centavos, are at most
    these."""

    opens: bool = True
    per_transfer: int = 20_000
    daily: int = 100_000  # and at night
    accounts: int = 3

    @property
    def limits(self) -> tuple[int, int, int]:
        """Per transfer, daily, night."""
        return self.per_transfer, self.daily, self.daily


@dataclass(slots=True)
class Services:
    """What the application stands on, and its settings. Made and closed by whoever wires it."""

    client: ShardClient
    store: QueryStore
    registry: Registry
    verifier: Verifier
    ledger_key: bytes
    gateway_secret: str | None = None
    batch_bytes_max: int = 128 << 20
    deadline_s: float = 10.0
    limit_raise_delay_s: int = 86_400
    answers_kept_s: int = 48 * 3600  # as long as the ledger remembers ids
    hold_default_s: int = 7 * 86_400
    hold_max_s: int = 30 * 86_400
    repeated_tax_ids: bool = False
    event_limits: Limits = field(default_factory=Limits)
    quotas: Quotas = field(default_factory=Quotas)
    deposit_max: int = AMOUNT_MAX
    unproven: Unproven = field(default_factory=Unproven)
    actors: Actors = field(init=False)
    events: EventStreams = field(init=False)
    batch_bytes: int = field(init=False, default=0)  # bodies of batches at work

    def __post_init__(self) -> None:
        """Remember owner hashes, and count streams."""
        self.actors = Actors(self.ledger_key)
        self.events = EventStreams(Feed(self.store.pool, self.client.partitions), self.event_limits)
