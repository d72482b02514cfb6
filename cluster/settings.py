"""Every setting of the engine, read once from the environment (prefix `RAZAO_`) and handed down as arguments.

The `razao` command's options override what the environment says. Nothing below this package reads the environment.
"""

from __future__ import annotations

import ipaddress
import math
import os
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from deployments.auth.issuers import Provider
from deployments.identity_roles import Registration
from deployments.quotas import OPERATOR, PERSON, Allowance
from storage.events import AMOUNT_MAX

_HOUR_S = 3600
_DAY_S = 24 * _HOUR_S


def cores() -> int:
    """Cores that this process may use: those that it is bound to, fewer where a control group gives it less time."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(bound, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such group, or "max": no limit
        return bound


def shards_for(count: int) -> int:
    """How many shards so many cores are best used by: one up to seven, else the power of two at or below a quarter.

    A payment between two shards is three steps instead of one, so a second shard has to bring more than that; and each
    needs a replica or two, the gateway and the journal beside it.
    """
    return 1 << max(0, (count // 4).bit_length() - 1)


def replicas_for(count: int) -> int:
    """Most replicas of payments that so many cores carry. Another one on a busy core makes all of them slower."""
    return max(1, count // 2)


class JournalKind(StrEnum):
    """Where the journal lies."""

    POSTGRES = "postgres"
    KAFKA = "kafka"


class Ingress(StrEnum):
    """How requests reach a replica: its own listener, or Ray Serve's proxy."""

    LISTENER = "listener"
    SERVE = "serve"


class TransportKind(StrEnum):
    """How batches reach a shard: framed streams, or Ray actor calls."""

    TCP = "tcp"
    RAY = "ray"


class MongoDriver(StrEnum):
    """What MongoDB is spoken to by."""

    MOTOR = "motor"
    PYMONGO = "pymongo"


TIERS: Final = ("vault", "score", "trace")
"""The services of credit data, by falling secrecy."""


class KafkaSecurity(StrEnum):
    """How a Kafka cluster is entered."""

    PLAINTEXT = "PLAINTEXT"
    SSL = "SSL"
    SASL_PLAINTEXT = "SASL_PLAINTEXT"
    SASL_SSL = "SASL_SSL"


class UnprovenMay(StrEnum):
    """What somebody may in the ledger who has proven no tax id: open an account with low limits under none, or not."""

    LIMITED = "limited"
    NONE = "none"


class OidcIssuer(BaseModel):
    """An outside provider; `deployments/auth/issuers.py` says what each part means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    issuer: str
    audience: str
    scopes: dict[str, dict[str, list[str]]]
    jwks: str | None = None
    audience_claim: str = "aud"
    required: dict[str, Any] = {}
    tier_audiences: dict[str, str] = {}
    assurance_claim: str | None = None
    assurance_values: list[str] = []
    tax_id_claim: str | None = None

    @model_validator(mode="after")
    def _opens_no_more_than_meant(self) -> OidcIssuer:
        self.provider()
        return self

    def provider(self) -> Provider:
        """The same for the verifier."""
        return Provider(**self.model_dump())


class Settings(BaseSettings):
    """What an operator may set. Amounts of time carry their unit in the name."""

    model_config = SettingsConfigDict(env_prefix="RAZAO_", extra="ignore", validate_assignment=True)

    data: Path = Field(
        Path("./var"), validate_default=True, description="Directory of this engine: journal, snapshots, keys, logs."
    )
    host: str = Field("127.0.0.1", description="Address that the gateway listens on.")
    port: int = Field(8000, ge=0, le=65535, description="HTTP port of the gateway; 0 picks a free one.")
    tls_port: int = Field(8443, ge=0, le=65535, description="HTTPS port of the gateway; 0 means no HTTPS.")
    tls_certificate: Path | None = Field(None, description="PEM file with certificate and key; default: made at start.")
    shards: int = Field(
        default_factory=lambda: min(1024, shards_for(cores())),
        ge=1,
        le=1024,
        description="Partitions of a new ledger; a power of two, fixed afterwards. Default: 1 up to 7 cores, else the "
        "power of two at or below a quarter of the cores.",
    )
    journal: JournalKind = Field(JournalKind.POSTGRES, description="Where the journal lies.")
    kafka_bootstrap: str | None = Field(
        None, description="host:port,… of the Kafka cluster to use; default: a broker of the engine's own."
    )
    kafka_topic: str = Field("razao.journal", pattern=r"^[a-zA-Z0-9._-]{1,249}$", description="The journal's topic.")
    kafka_events_topic: str = Field(
        "razao.events", pattern=r"^[a-zA-Z0-9._-]{1,249}$", description="Where events go when there is a cluster."
    )
    kafka_changes_topic: str = Field(
        "razao.vault-changes",
        pattern=r"^[a-zA-Z0-9._-]{1,249}$",
        description="Where the vault says whose data changed.",
    )
    kafka_replication: int = Field(1, ge=1, description="Replicas of topics; with 1 each record is flushed to disk.")
    kafka_security_protocol: KafkaSecurity = Field(KafkaSecurity.PLAINTEXT, description="How to enter the cluster.")
    kafka_sasl_mechanism: str = Field("SCRAM-SHA-512", description="SCRAM-SHA-512, SCRAM-SHA-256 or PLAIN.")
    kafka_sasl_username: str | None = Field(None, description="Who enters it.")
    kafka_sasl_password: str | None = Field(None, repr=False, description="And with what password.")
    kafka_ssl_ca: Path | None = Field(None, description="PEM file of the brokers' authority; default: the system's.")
    ingress: Ingress = Field(Ingress.LISTENER, description="listener: replicas listen; serve: Serve proxies.")
    transport: TransportKind = Field(TransportKind.TCP, description="From replica to shard: tcp or ray.")
    snapshots: str | None = Field(None, description="Where snapshots go, a pyarrow.fs URI; default: DATA/snapshots.")

    replicas_min: int = Field(1, ge=1, description="Fewest replicas of the payments application.")
    replicas_max: int = Field(
        default_factory=lambda: replicas_for(cores()),
        ge=1,
        description="Most replicas of the payments application. Default: half as many as there are cores.",
    )
    requests_max: int = Field(512, ge=2, description="Requests in progress per replica, half of them reads; more wait.")
    requests_waiting_max: int = Field(1024, ge=0, description="Requests waiting per replica; more get 429.")
    deadline_s: float = Field(10.0, gt=0, description="How long a request may take before its outcome is 'unsure'.")
    shard_queue_max: int = Field(131_072, ge=1, description="Events waiting per shard; more get 429.")
    shard_stall_s: float = Field(10.0, gt=0, description="A shard that answers nothing for so long is replaced.")

    accounts_max: int = Field(
        2**26, ge=2, lt=2**30, description="Accounts of a shard. This and the next five only take memory as it is used."
    )
    ids_max: int = Field(
        2**28, ge=2**21, lt=2**31 - 1, description="Ids that a shard remembers; beyond, the oldest are forgotten early."
    )
    holds_max: int = Field(2**24, ge=2, lt=2**31 - 1, description="Holds of a shard at a time.")
    in_flight_max: int = Field(2**22, ge=2, lt=2**31 - 1, description="Payments of a shard on their way to others.")
    outbox_max: int = Field(2**18, ge=2, lt=2**31 - 1, description="Of these, the ones to one shard.")
    refunds_max: int = Field(2**22, ge=2, lt=2**31 - 1, description="Refunded payments of a shard, in 90 days.")

    accept_clock: bool = Field(
        False, description="Start with the machine's clock as it is, though nothing vouches for it; see `razao clock`."
    )
    id_window_s: int = Field(2 * _DAY_S, ge=_HOUR_S, description="How long ids are remembered.")
    limit_raise_delay_s: int = Field(_DAY_S, ge=0, description="How long a raise of a limit waits.")
    hold_default_s: int = Field(7 * _DAY_S, ge=1, description="Life of a hold that names none.")
    hold_max_s: int = Field(30 * _DAY_S, ge=1, description="Longest life of a hold.")
    deposit_max: int = Field(
        10**15,
        ge=1,
        le=AMOUNT_MAX,
        description="Most centavos that one deposit may bring; 10**15 are about Brazil's GDP of a year.",
    )
    repeated_tax_ids: bool = Field(False, description="Accept CPFs of one repeated digit, as in capacity tests.")
    subject_rows_rate: float = Field(
        PERSON.rows_rate, gt=0, description="Transfers a second of one subject in the long run; more get 429."
    )
    subject_rows_burst: float = Field(PERSON.rows_burst, gt=0, description="As many at once after a rest.")
    subject_refused_rate: float = Field(
        PERSON.refused_rate, gt=0, description="Refused transfers a second of one subject, beyond as many as settle."
    )
    subject_refused_burst: float = Field(PERSON.refused_burst, gt=0, description="As many at once after a rest.")
    operator_rows_rate: float = Field(
        OPERATOR.rows_rate, gt=0, description="The same of one subject with the scope ledger:operate."
    )
    operator_rows_burst: float = Field(OPERATOR.rows_burst, gt=0, description="As many at once after a rest.")
    operator_refused_rate: float = Field(OPERATOR.refused_rate, gt=0, description="Its refused transfers a second.")
    operator_refused_burst: float = Field(OPERATOR.refused_burst, gt=0, description="As many at once after a rest.")
    per_address_rate: int = Field(200_000, ge=1, description="Requests per ten seconds and client address.")

    token_issuer: str = Field("razao", description="`iss` that access tokens must carry.")
    token_audience: str = Field("payments", description="`aud` that access tokens must carry.")
    jwks: str | None = Field(None, description="URL or file of the JWKS; default: the embedded key.")

    trust_embedded_key: bool | None = Field(
        None, description="Take tokens of `razao token`; default: only where the gateway listens on loopback alone."
    )
    public_url: str | None = Field(
        None,
        pattern=r"^https?://[^/?#\s]+$",
        description="Address that people and programs know the gateway by: `iss`.",
    )
    oidc_issuers: list[OidcIssuer] = Field([], description="Outside OpenID Connect providers, as a JSON list.")
    access_token_s: int = Field(600, ge=300, le=900, description="Life of an access token.")
    registration: Registration = Field(
        Registration.OPEN,
        description="open: anybody registers; invited: whoever has a code of `razao users invite`; closed: nobody.",
    )
    unproven: UnprovenMay = Field(
        UnprovenMay.LIMITED,
        description="Whoever has proven no CPF or CNPJ opens accounts with low limits, under none (limited), or no "
        "account (none).",
    )
    unproven_accounts_max: int = Field(3, ge=1, le=1_000, description="Most such accounts of one person.")
    unproven_transfer_max: int = Field(
        20_000,
        ge=0,
        lt=AMOUNT_MAX,
        description="Most centavos of a transfer out of such an account; the default is Pix's of an unregistered "
        "device (Resolução BCB 403).",
    )
    unproven_daily_max: int = Field(
        100_000, ge=0, lt=AMOUNT_MAX, description="And of a day, and of a night; the default as above."
    )
    refresh_token_s: int = Field(30 * _DAY_S, ge=600, description="Life of a login, however often it is refreshed.")
    password_length_min: int = Field(15, ge=8, description="Characters; NIST SP 800-63B-4 has 15.")
    password_threads: int = Field(1, ge=1, description="Argon2 threads per replica of the identity application.")
    identity_replicas_max: int = Field(1, ge=1, description="Most replicas of the identity application.")

    tiers: str = Field("vault,score,trace", description="Which of the tiers run, with commas; empty: none.")
    vault_port: int = Field(8444, ge=0, le=65535, description="The vault's own HTTPS port; 0: no vault.")
    vault_allowlist: str = Field(
        "127.0.0.0/8,::1/128", description="Networks that may enter the vault, with commas; the score asks it as well."
    )
    vault_client_ca: Path | None = Field(
        None, description="PEM file of the authority whose client certificates the vault asks for; default: none asked."
    )
    vault_url: str | None = Field(
        None,
        pattern=r"^https://[^/?#\s]+$",
        description="Where the score asks the vault; default: the vault's own port.",
    )
    vault_server_ca: Path | None = Field(
        None, description="PEM file of the authority of the vault's certificate; default: the system's, or our own."
    )
    score_client_certificate: Path | None = Field(
        None,
        description="PEM file with certificate and key that the score shows the vault under RAZAO_VAULT_CLIENT_CA.",
    )
    score_debts_deadline_s: float = Field(
        1.0, gt=0, description="How long the score waits for the vault before it goes on without debts."
    )
    mongo_url: str | None = Field(
        None, repr=False, description="MongoDB for score and trace, mongodb://…; default: the embedded PostgreSQL."
    )
    mongo_driver: MongoDriver = Field(MongoDriver.MOTOR, description="motor or pymongo.")
    mongo_database: str = Field("razao", pattern=r"^[a-zA-Z0-9_-]{1,63}$", description="The database there.")
    vault_replicas_max: int = Field(
        default_factory=lambda: min(2, replicas_for(cores())),
        ge=1,
        description="Most replicas of the vault. Default: 2, on fewer than 4 cores 1.",
    )
    score_replicas_max: int = Field(
        default_factory=lambda: min(2, replicas_for(cores())),
        ge=1,
        description="Most replicas of the score. Default: 2, on fewer than 4 cores 1.",
    )
    trace_replicas_max: int = Field(
        default_factory=lambda: min(2, replicas_for(cores())),
        ge=1,
        description="Most replicas of the trace. Default: 2, on fewer than 4 cores 1.",
    )

    ray_cpus: int = Field(
        default_factory=lambda: max(4, cores()),
        ge=1,
        description="CPUs that Ray believes it has; actors ask for fractions. Default: as many as cores, at least 4.",
    )
    object_store_mb: int = Field(128, ge=80, description="Ray's object store.")
    dashboard_port: int = Field(0, ge=0, le=65535, description="Port of the Ray dashboard; 0 picks a free one.")
    snapshot_every_records: int = Field(20_000, ge=1, description="Journal records between snapshots.")
    snapshot_every_s: float = Field(60.0, gt=0, description="Seconds between snapshots when records have come.")
    failpoints: Path | None = Field(None, description="Directory of fail points, for fault tests only.")

    @field_validator(
        "data", "tls_certificate", "failpoints", "kafka_ssl_ca", "vault_client_ca", "vault_server_ca",
        "score_client_certificate",
    )  # fmt: skip
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        """Actors and replicas read these settings in other working directories."""
        return None if value is None else value.absolute()

    @field_validator("snapshots", "jwks")
    @classmethod
    def _absolute_unless_uri(cls, value: str | None) -> str | None:
        return value if value is None or "://" in value else str(Path(value).absolute())

    @field_validator("tiers")
    @classmethod
    def _known_tiers(cls, value: str) -> str:
        if unknown := set(_parts(value)) - set(TIERS):
            raise ValueError(f"unknown tiers: {', '.join(sorted(unknown))}; there are {', '.join(TIERS)}")
        return value

    @field_validator("vault_allowlist")
    @classmethod
    def _networks(cls, value: str) -> str:
        if not _parts(value):
            raise ValueError("an empty list would let nobody in; leave the vault out of RAZAO_TIERS instead")
        for network in _parts(value):
            ipaddress.ip_network(network)  # its message names the network, and bits beyond its mask
        return value

    @field_validator("token_audience")
    @classmethod
    def _audience_of_no_tier(cls, value: str) -> str:
        if value in TIERS:
            raise ValueError(f"{value} is the audience of a tier")
        return value

    @field_validator("shards")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("must be a power of two")
        return value

    @model_validator(mode="after")
    def _login_is_whole(self) -> Settings:
        sasl = self.kafka_security_protocol.startswith("SASL")
        if sasl and not (self.kafka_sasl_username and self.kafka_sasl_password):
            raise ValueError("RAZAO_KAFKA_SASL_USERNAME and RAZAO_KAFKA_SASL_PASSWORD are needed with SASL")
        return self

    @model_validator(mode="after")
    def _issuers_differ(self) -> Settings:
        names = [value for one in self.oidc_issuers for value in {one.name, one.issuer}]
        if len(set(names)) != len(names) or {self.token_issuer, self.public_url} & set(names):
            raise ValueError("two issuers have the same name or address")
        return self

    @property
    def person_allowance(self) -> Allowance:
        """What one subject may send and be refused."""
        return Allowance(
            self.subject_rows_rate, self.subject_rows_burst, self.subject_refused_rate, self.subject_refused_burst
        )

    @property
    def operator_allowance(self) -> Allowance:
        """The same of one that may act for everybody."""
        return Allowance(
            self.operator_rows_rate, self.operator_rows_burst, self.operator_refused_rate, self.operator_refused_burst
        )

    @property
    def trusts_embedded_key(self) -> bool:
        """Whether tokens of `razao token` are taken."""
        if self.jwks is not None:
            return False
        here = self.host in {"127.0.0.1", "::1", "localhost"}
        return here if self.trust_embedded_key is None else self.trust_embedded_key

    @property
    def active_tiers(self) -> tuple[str, ...]:
        """The tiers that run, by falling secrecy. The vault needs a door."""
        wanted = _parts(self.tiers)
        return tuple(tier for tier in TIERS if tier in wanted and (tier != "vault" or self.vault_port))

    @property
    def vault_networks(self) -> tuple[str, ...]:
        """Who may enter the vault."""
        return _parts(self.vault_allowlist)

    @property
    def snapshot_location(self) -> str:
        """Where snapshots go."""
        return self.snapshots or str(self.data / "snapshots")


def _parts(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())
