"""The ledger's journal, whichever kind it is: the only place that knows that there is more than one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from cluster.settings import JournalKind, Settings
from storage.journal import Journal
from storage.journal.postgres import PostgresJournal

if TYPE_CHECKING:
    from storage.journal.kafka_client import KafkaAddress


class LedgerJournal(Journal, Protocol):
    """A journal that a ledger can tell from another one's."""

    async def identity(self) -> str:
        """Its kind, and which of its kind it is, for as long as it exists."""
        ...


def open_journal(settings: Settings, dsn: str, *, open_timeout_s: float = 30.0) -> LedgerJournal:
    """The journal that `settings.journal` names, in the database at `dsn` or on the Kafka cluster of the settings.

    `open_timeout_s`: how long taking a partition over waits for a server that is away.
    """
    if settings.journal is JournalKind.POSTGRES:
        return PostgresJournal(dsn, open_timeout_s=open_timeout_s)
    from storage.journal.kafka import KafkaJournal  # noqa: PLC0415 - 6 MB that each process is spared otherwise
    from storage.journal.kafka_topic import TopicSettings  # noqa: PLC0415

    topic = TopicSettings(replication=settings.kafka_replication)
    return KafkaJournal(kafka_address(settings), settings.kafka_topic, settings=topic, open_timeout_s=open_timeout_s)


def kafka_address(settings: Settings) -> KafkaAddress:
    """Where the Kafka cluster is.

    Raises:
        ValueError: the settings name none.
    """
    from storage.journal.kafka_client import KafkaAddress  # noqa: PLC0415 - see above

    if settings.kafka_bootstrap is None:
        raise ValueError("no Kafka cluster is known: RAZAO_KAFKA_BOOTSTRAP is not set, and no broker of ours runs")
    return KafkaAddress(
        settings.kafka_bootstrap,
        settings.kafka_security_protocol,
        settings.kafka_sasl_mechanism,
        settings.kafka_sasl_username,
        settings.kafka_sasl_password,
        str(settings.kafka_ssl_ca) if settings.kafka_ssl_ca else None,
    )
