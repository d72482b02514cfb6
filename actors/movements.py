"""Tells the trace what moved on people's accounts: from the projection's entries to a store of movements by person.

At least once; the store takes what it has already for what it is. Only the newest movements of each person are wanted,
so a busy ledger costs less per transfer, not more: a look takes in all that has happened since the last one, and the
database hands over no more than the newest few of each account. It takes a twentieth of the time at most, so under
load movements come later, not at the transfers' expense.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final

from actors.feed import Follower, Passed, Progress
from storage.documents import Database, StoreAway
from storage.feed import Feed
from storage.references import person_reference
from storage.registry import Registry
from storage.traces import MOVEMENTS_MAX, Movement, Traces

NAME: Final = "trace"
_ENTRIES_AT_ONCE: Final = 100_000
_ACCOUNTS_CACHED: Final = 100_000


class Movements(Follower):
    """Follows the feed for the trace."""

    away = (StoreAway,)
    share = 0.05

    def __init__(
        self, feed: Feed, registry: Registry, database: Database, key: bytes, *, batch: int = _ENTRIES_AT_ONCE
    ) -> None:
        """`database` is closed when `run` ends. `key`: of the trace's references to people."""
        super().__init__(feed, NAME)
        self._registry = registry
        self._database = database
        self._traces = Traces(database)
        self._key = key
        self._batch = batch
        self._people: OrderedDict[int, bytes | None] = OrderedDict()

    async def _close(self) -> None:
        await self._database.close()

    async def _pass_stretch_on(self, partition: int, progress: Progress, until: int) -> Passed:
        began = time.monotonic()
        found = await self._feed.newest(partition, progress.place, until, limit=self._batch, each=MOVEMENTS_MAX)
        await self._learn({row[0] for row in found.rows})
        by_person: dict[bytes, list[Movement]] = {}
        for account, at, kind, amount, transfer in found.rows:
            person = self._people.get(account)
            if person is not None:
                by_person.setdefault(person, []).append(Movement(at, kind, amount, account, transfer))
        if by_person:
            await self._traces.add_movements(by_person)
        self._forget()
        progress.adapt(found.looked_at, self._batch, found.span_ns)
        return Passed(found.place, found.looked_at, time.monotonic() - began)

    async def _learn(self, accounts: set[int]) -> None:
        """Find out whose the accounts are; an account never changes hands."""
        unknown = accounts - self._people.keys()
        if unknown:
            tax_ids = await self._registry.tax_ids(list(unknown))
            for account in unknown:
                tax_id = tax_ids.get(account)
                self._people[account] = None if tax_id is None else person_reference(self._key, tax_id)

    def _forget(self) -> None:
        while len(self._people) > _ACCOUNTS_CACHED:
            self._people.popitem(last=False)
