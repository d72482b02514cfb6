"""The journal on PostgreSQL: a table of records and a head row per partition, changed together in one statement.

The statement names the writer's epoch, so the row lock on the head decides every race: a writer that was overtaken
changes no row, and nothing of it reaches the log. So void records never arise here, though readers would skip them. The
acknowledgement is the commit's, with the WAL on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Final

import asyncpg

from storage.events import SLOTS
from storage.journal import Corrupt, Fenced, JournalError, OutcomeUnknown, Stored

_SCHEMA: Final = """
CREATE SCHEMA IF NOT EXISTS journal;

-- One row per partition, updated by every append: free space in the page keeps the versions together (HOT).
CREATE TABLE IF NOT EXISTS journal.head (
    partition integer PRIMARY KEY,
    epoch     bigint NOT NULL,
    next      bigint NOT NULL
) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_scale_factor = 0);

CREATE TABLE IF NOT EXISTS journal.record (
    partition integer NOT NULL,
    "offset"  bigint  NOT NULL,
    epoch     bigint  NOT NULL,
    is_open   boolean NOT NULL,
    payload   bytea   NOT NULL,
    PRIMARY KEY (partition, "offset")
);

-- Records are compressed where they are made, or not worth it.
ALTER TABLE journal.record ALTER COLUMN payload SET STORAGE EXTERNAL;

-- A record that fits a page stays in the row: cut into chunks, with an index entry each, it costs twice.
ALTER TABLE journal.record SET (toast_tuple_target = 8160);
"""

_APPEND: Final = """
WITH head AS (
    UPDATE journal.head SET next = next + 1 WHERE partition = $1 AND epoch = $2 RETURNING next - 1 AS "offset"
)
INSERT INTO journal.record (partition, "offset", epoch, is_open, payload)
SELECT $1, "offset", $2, false, $3 FROM head RETURNING "offset"
"""

_OPEN: Final = """
WITH head AS (
    UPDATE journal.head SET epoch = next, next = next + 1 WHERE partition = $1 RETURNING epoch
)
INSERT INTO journal.record (partition, "offset", epoch, is_open, payload)
SELECT $1, epoch, epoch, true, $2 FROM head RETURNING epoch
"""

# A chunk ends before the record that would take it over its budget, but has at least one. Sizes come from the TOAST
# pointers, so records that do not fit are never fetched.
_READ: Final = """
SELECT "offset", epoch, is_open, payload FROM (
    SELECT "offset", epoch, is_open, payload,
           sum(octet_length(payload)) OVER (ORDER BY "offset") - octet_length(payload) AS before
    FROM journal.record WHERE partition = $1 AND "offset" >= $2 AND "offset" < $3 ORDER BY "offset" LIMIT 4096
) AS chunk WHERE before < $4 ORDER BY "offset"
"""

# A predecessor whose process stalled in the middle of sending holds the row's lock with nothing committed. Ending it
# loses nothing that counts; one that is still working (waiting for the disk, say) is left to finish.
_END_STALLED: Final = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = $1 AND pid <> pg_backend_pid()
  AND wait_event_type = 'Client' AND xact_start < clock_timestamp() - $2 * interval '1 second'
"""

# Stronger settings of the operator's (remote_apply) stay; an acknowledgement without a flush is never right.
_DURABLE: Final = """
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'
"""

_LOCK_PATIENCE_S: Final = 1.0
_RETRY_S: Final = 0.1
_CREATE_LOCK: Final = 0x52617A616F  # advisory lock: "Razao"

_LOST: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
"""What asyncpg raises when a connection is refused or lost (the internal error: lost just then), a statement fails, or
time is up."""

_PASSING: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # starting up, shutting down, terminated by an administrator
    asyncpg.InsufficientResourcesError,
    asyncpg.LockNotAvailableError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
"""Those of them that another try may not meet."""

logger = logging.getLogger(__name__)


class PostgresWriter:
    """The one who may append to a partition of a `PostgresJournal`; it has a connection of its own."""

    def __init__(self, journal: PostgresJournal, connection: asyncpg.Connection, partition: int, epoch: int) -> None:
        self.partition = partition
        self.epoch = epoch
        self._journal = journal
        self._connection = connection
        self._append: asyncpg.prepared_stmt.PreparedStatement | None = None
        self._next = epoch + 1
        self._turn = asyncio.Lock()
        self._ended: JournalError | None = None

    async def prepare(self) -> None:
        """Parse and plan the append once for all."""
        self._append = await self._connection.prepare(_APPEND)

    async def append(self, payload: bytes) -> int:
        """Append one record durably; returns its offset. Calls that overlap are served in their order.

        Raises:
            Fenced: another writer has taken over; nothing was written.
            OutcomeUnknown: the connection was lost, time was up, or an earlier append ended so.
        """
        async with self._turn:
            if self._ended is not None:
                raise self._ended
            # Until the answer is here, whatever interrupts this call, a cancellation too, leaves the outcome unknown.
            self._ended = OutcomeUnknown(f"partition {self.partition}: the append at offset {self._next} had no answer")
            try:
                rows = await self._statement.fetch(
                    self.partition, self.epoch, payload, timeout=self._journal.append_timeout_s
                )
            except _LOST as error:
                self._connection.terminate()
                self._ended = OutcomeUnknown(f"partition {self.partition}, offset {self._next}: {_words(error)}")
                raise self._ended from error
            except BaseException:
                self._connection.terminate()
                raise
            self._ended = None
            return self._acknowledged(rows)

    def _acknowledged(self, rows: list[asyncpg.Record]) -> int:
        if not rows:
            self._ended = Fenced(f"partition {self.partition}: epoch {self.epoch} was overtaken")
            raise self._ended
        offset = int(rows[0]["offset"])
        if offset != self._next:
            self._ended = Corrupt(self.partition, offset, f"the append should have got offset {self._next}")
            raise self._ended
        self._next += 1
        return offset

    @property
    def _statement(self) -> asyncpg.prepared_stmt.PreparedStatement:
        if self._append is None:
            raise JournalError("the writer was not prepared")
        return self._append

    async def confirm(self) -> None:
        """Look at the log's end: returns when this writer is still unfenced.

        It asks on another connection, so it neither waits for an append in flight nor harms one when cancelled.

        Raises:
            Fenced: another writer has taken over.
            OutcomeUnknown: an append's outcome is unknown, so this writer is at its end.
            JournalError: the journal cannot be reached.
        """
        if self._ended is not None and not self._turn.locked():
            raise self._ended
        epoch = await self._journal.epoch(self.partition)
        if epoch != self.epoch:
            raise Fenced(f"partition {self.partition}: epoch {self.epoch} was overtaken by {epoch}")

    async def close(self) -> None:
        """Give up the connection. The partition stays with this epoch until somebody opens it."""
        if self._ended is None:
            self._ended = JournalError(f"partition {self.partition}: the writer is closed")
        with contextlib.suppress(*_LOST):
            await self._connection.close(timeout=2.0)


class PostgresJournal:
    """The partitions of one ledger in the schema `journal` of one database.

    It needs a session of its own per connection (prepared statements, locks): a pooler in between must not share them.
    """

    def __init__(
        self,
        dsn: str,
        *,
        append_timeout_s: float = 10.0,
        open_timeout_s: float = 30.0,
        connections_max: int = 4,
        chunk_bytes: int = 4 * 2**20,
    ) -> None:
        """`open_timeout_s` is how long `open` tries while the server is away; `chunk_bytes` bounds a read's memory."""
        self.append_timeout_s = append_timeout_s
        self._dsn = dsn
        self._open_timeout_s = open_timeout_s
        self._connections_max = connections_max
        self._chunk_bytes = chunk_bytes
        self._pool: asyncpg.Pool | None = None
        self._pool_turn = asyncio.Lock()

    async def create(self, partitions: int) -> None:
        """Make the partitions, or check that they are there as asked.

        Raises:
            JournalError: the ledger exists with another number of partitions, or the server cannot be reached.
            ValueError: the number is not a power of two up to 1024.
        """
        if not 1 <= partitions <= SLOTS or partitions & (partitions - 1):
            raise ValueError(f"{partitions} partitions: not a power of two up to {SLOTS}")
        try:
            async with (await self._connections()).acquire() as connection, connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1)", _CREATE_LOCK)
                # Notices that all is there already would only alarm.
                await connection.execute("SET LOCAL client_min_messages = warning")
                await connection.execute(_SCHEMA)
                found = int(await connection.fetchval("SELECT count(*) FROM journal.head"))
                if found == 0:
                    await connection.execute(
                        "INSERT INTO journal.head SELECT partition, -1, 0 FROM generate_series(0, $1 - 1) AS partition",
                        partitions,
                    )
        except _LOST as error:
            raise JournalError(_words(error)) from error
        if found not in {0, partitions}:
            raise JournalError(f"the ledger has {found} partitions, not {partitions}")

    async def partitions(self) -> int:
        """How many partitions there are; 0 before `create`."""
        if await self._value("SELECT to_regclass('journal.head') IS NULL"):
            return 0
        return int(str(await self._value("SELECT count(*) FROM journal.head")))

    async def identity(self) -> str:
        """Which log this is: the one of the database that the ledger is in, since no database has two."""
        return "postgres"

    async def open(self, partition: int, payload: bytes) -> PostgresWriter:
        """Take the partition over: append an open record that carries `payload`. Its offset is the writer's epoch.

        Tries again while the server is away. An attempt whose answer was lost may have left an open record; nothing
        was written under it, so the next attempt's simply follows.

        Raises:
            JournalError: there is no such partition, or no answer within `open_timeout_s`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._open_timeout_s
        while True:
            try:
                return await self._open_once(partition, payload)
            except _LOST as error:
                if loop.time() > deadline or not isinstance(error, _PASSING):
                    raise JournalError(f"partition {partition} cannot be opened: {_words(error)}") from error
                logger.info("partition %d cannot be opened yet: %s", partition, _words(error))
            await asyncio.sleep(_RETRY_S)

    async def _open_once(self, partition: int, payload: bytes) -> PostgresWriter:
        name = f"razao-writer-{partition}"
        connection = await asyncpg.connect(
            self._dsn,
            timeout=5.0,
            server_settings={"application_name": name, "lock_timeout": f"{_LOCK_PATIENCE_S:.0f}s"},
        )
        try:
            await connection.execute(_DURABLE)
            epoch = await self._take_over(connection, partition, payload, name)
            writer = PostgresWriter(self, connection, partition, epoch)
            await writer.prepare()
        except BaseException:
            connection.terminate()
            raise
        return writer

    async def _take_over(self, connection: asyncpg.Connection, partition: int, payload: bytes, name: str) -> int:
        try:
            epoch = await connection.fetchval(_OPEN, partition, payload, timeout=self._open_timeout_s)
        except asyncpg.LockNotAvailableError:
            ended = await connection.fetch(_END_STALLED, name, _LOCK_PATIENCE_S, timeout=5.0)
            logger.warning("partition %d is locked; %d stalled writers were disconnected", partition, len(ended))
            raise
        if epoch is None:
            raise JournalError(f"there is no partition {partition}")
        return int(epoch)

    async def head(self, partition: int) -> int:
        """The offset that the next record will get."""
        return await self._head_column("next", partition)

    async def heads(self) -> dict[int, int]:
        """`head` of every partition, by one query.

        Raises:
            JournalError: the journal cannot be reached.
        """
        try:
            rows = await (await self._connections()).fetch("SELECT partition, next FROM journal.head")
        except _LOST as error:
            raise JournalError(_words(error)) from error
        return {row["partition"]: row["next"] for row in rows}

    async def epoch(self, partition: int) -> int:
        """The epoch of the newest open record; -1 before the first."""
        return await self._head_column("epoch", partition)

    async def read(self, partition: int, offset: int, until: int | None = None) -> AsyncIterator[Stored]:
        """Every stored record from `offset` on (up to, not including, `until`; None = the head at the call).

        The next chunk is fetched while the caller works on this one; no more than two are in memory.

        Raises:
            Corrupt: an offset is missing, the log's end included.
            JournalError: the journal cannot be reached.
        """
        end = await self.head(partition) if until is None else until
        if offset > end:
            raise Corrupt(partition, end, f"the log ends here, before offset {offset}")
        expected = offset
        fetching = asyncio.ensure_future(self._chunk(partition, expected, end))
        try:
            while expected < end:
                rows = await fetching
                last = int(rows[-1]["offset"]) if rows else expected
                if rows and last + 1 < end:
                    fetching = asyncio.ensure_future(self._chunk(partition, last + 1, end))
                for row in rows:
                    if row["offset"] != expected:
                        break
                    yield Stored(expected, row["epoch"], row["is_open"], row["payload"])
                    expected += 1
                if not rows or expected != last + 1:
                    raise Corrupt(partition, expected, "the record is missing")
        finally:
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)

    async def _chunk(self, partition: int, offset: int, end: int) -> list[asyncpg.Record]:
        if offset >= end:
            return []
        try:
            return await (await self._connections()).fetch(_READ, partition, offset, end, self._chunk_bytes)
        except _LOST as error:
            raise JournalError(_words(error)) from error

    async def close(self) -> None:
        """Give up the connections; writers keep theirs."""
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                async with asyncio.timeout(2.0):
                    await pool.close()
            except _LOST:
                pool.terminate()

    async def _head_column(self, column: str, partition: int) -> int:
        value = await self._value(f"SELECT {column} FROM journal.head WHERE partition = $1", partition)
        if value is None:
            raise JournalError(f"there is no partition {partition}")
        return int(str(value))

    async def _value(self, query: str, *arguments: object) -> object:
        try:
            return await (await self._connections()).fetchval(query, *arguments)
        except _LOST as error:
            raise JournalError(_words(error)) from error

    async def _connections(self) -> asyncpg.Pool:
        async with self._pool_turn:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._dsn,
                    min_size=0,
                    max_size=self._connections_max,
                    timeout=5.0,
                    command_timeout=30.0,
                    server_settings={"application_name": "razao-journal"},
                    reset=_keep,
                )
            return self._pool


async def _keep(_: object) -> None:
    """Spare the round trip that resets a session on its way back to the pool: none is ever changed here."""


def _words(error: BaseException) -> str:
    """What an error says; asyncpg's timeouts say nothing by themselves."""
    return str(error) or type(error).__name__
