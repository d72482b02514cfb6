"""`razao up`: starts the engine's parts in order, watches them, brings back what dies, and ends what it started.

PostgreSQL, Kafka, Ray and the gateway are children or marked descendants of this process. Ray heals its own: actors and
replicas come back without the supervisor, which only looks after what Ray does not know.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from cluster import applications, clock, deploy, processes
from cluster.certificates import CertificateError, check_certificate, ensure_certificate
from cluster.data import DataDirectory, EngineError, Running, Secrets
from cluster.farewell import Farewell
from cluster.gateway import Application, Door, Gateway, GatewayConfig, GatewayError
from cluster.plan import Plan, loopback_of
from cluster.postgres import PostgresError, PostgresServer
from cluster.ray_node import RayNode, RayNodeError
from cluster.services.kafka import KafkaError, KafkaServer
from cluster.settings import Ingress, Settings
from cluster.shard_watch import ShardWatch
from cluster.stores import broker_of, prepare_stores, settle_journal, start_broker
from deployments import payments_events
from deployments.auth.keys import ensure_keys
from deployments.listener import shared_socket

_WATCH_S = 0.25
_READY_S = 120.0
_FAREWELL_S = 12.0
_RETRY_S_MAX = 10.0


class Supervisor:
    """One run of one engine."""

    def __init__(self, settings: Settings, *, say: Callable[[str], None]) -> None:
        """`say` is given a line for each thing that an operator would want to know."""
        self.data = DataDirectory(settings.data)
        self._settings = settings
        self._say = say
        self._stopping = asyncio.Event()
        self._postgres: PostgresServer | None = None
        self._kafka: KafkaServer | None = None
        self._ray: RayNode | None = None
        self._gateway: Gateway | None = None
        self._held: list[socket.socket] = []
        self._door: list[socket.socket] = []
        self._certificate: Path | None = None
        self._deployer: asyncio.subprocess.Process | None = None

    async def run(self, on_ready: Callable[[], None] | None = None) -> None:
        """Start, watch until SIGINT or SIGTERM, stop. `on_ready` runs in a thread once the engine serves.

        Raises:
            EngineError: the directory is in use, a port is taken, or a part did not start.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stopping.set)
        secrets = self.data.make()
        with self.data.lock():
            await asyncio.to_thread(self._node().stop)
            if left := await asyncio.to_thread(processes.end_all, secrets.engine):
                self._say(f"ended {left} processes that an earlier engine on {self.data.root} left behind")
            self.data.retract()
            try:
                await self._until_stopped(self._start_and_watch(secrets, on_ready))
            except (PostgresError, KafkaError, RayNodeError, GatewayError, CertificateError) as error:
                raise EngineError(str(error)) from error
            finally:
                await self._stop(secrets)

    async def _until_stopped(self, work: Awaitable[None]) -> None:
        """Do `work`, but no longer than until a signal comes."""
        task = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _start_and_watch(self, secrets: Secrets, on_ready: Callable[[], None] | None) -> None:
        port, tls_port = self._choose_ports()
        postgres_port, application_port = processes.free_ports(1)[0], self._hold_application_port()
        identity_port = self._hold_port()
        tier_ports = {f"{tier}_port": self._hold_port() for tier in self._settings.active_tiers}
        os.environ[processes.MARK] = secrets.engine  # inherited by whatever is started from here on

        ensure_keys(self.data.keys)
        self._certificate = self._make_certificate(tls_port)
        self._ray = self._node()
        Farewell(self.data.run).forget()
        self._postgres = PostgresServer(self.data.postgres, postgres_port)
        await asyncio.to_thread(self._postgres.start, progress=self._say)
        settings = await self._settle_journal(self._postgres.dsn)
        self._say("starting Ray")
        # It takes longest and mostly waits: the stores are made meanwhile. Not earlier: it opens ports at random, and
        # might take one that was chosen for a server above.
        await asyncio.to_thread(self._ray.launch)
        ledger = await prepare_stores(self._postgres.dsn, settings, secrets, say=self._say)
        await self._compile()
        driver = await self._start_driver()
        await asyncio.to_thread(self._ray.await_joinable)
        plan = Plan(
            settings=settings,
            secrets=secrets,
            partitions=ledger.partitions,
            windows=ledger.windows,
            dsn=self._postgres.dsn,
            application_port=application_port,
            identity_port=identity_port,
            public_url=settings.public_url or f"http://{settings.host}:{port}",
            gateway_url=f"http://{loopback_of(settings.host)}:{port}",
            **tier_ports,
        )
        await self._deploy(plan, driver)

        config = self._gateway_config(port, tls_port, plan)
        self._gateway = Gateway(config)
        self._leave_door()
        await asyncio.to_thread(self._gateway.start)
        self.data.publish(self._running(plan, port, tls_port))
        await self._settle_clocks()
        if (why := await applications.await_ready(plan, _READY_S)) is not None:
            raise EngineError(f"the engine was not ready after {_READY_S:.0f} s: {why}; logs are in {self.data.log}")
        self._announce(plan, port, tls_port)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(plan))
            group.create_task(ShardWatch(self.data, settings.shard_stall_s, say=self._say).run())
            if on_ready is not None:
                await asyncio.to_thread(on_ready)

    async def _settle_clocks(self) -> None:
        """Wait while a shard does not believe this machine's clock: after a long stop only an operator can tell."""
        said = False
        while doubted := [one for one in await clock.show(self.data) if one["clock_ahead_s"]]:
            if self._settings.accept_clock:
                self._say("taking this machine's clock as right, as told")
                await clock.accept(self.data)
                return
            if not said:
                hours = max(one["clock_ahead_s"] for one in doubted) / 3600
                self._say(
                    f"waiting: by this machine's clock {hours:.1f} h have passed since the ledger's last entry, and "
                    f"nothing (such as NTP) vouches for it. If it is right: razao clock accept --data {self.data.root}"
                )
                said = True
            await asyncio.sleep(_WATCH_S)

    async def _settle_journal(self, dsn: str) -> Settings:
        """The settings with the ledger's journal, whose broker runs when it is one of ours."""
        self._settings = await settle_journal(dsn, self._settings)
        self._kafka = broker_of(self.data, self._settings)
        if self._kafka is not None:
            self._settings = await start_broker(self._kafka, self._settings, say=self._say_unless_stopped)
        return self._settings

    def _say_unless_stopped(self, line: str) -> None:
        """What a broker says from its thread, which nobody can cancel: downloads take long, and its last word comes
        just before the process is made.

        Raises:
            EngineError: we are to stop, so the broker is not to start any more.
        """
        if self._stopping.is_set():
            raise EngineError("stopped at the start")
        self._say(line)

    def _hold_application_port(self) -> int:
        """The port that replicas share. Bound here and not listened on, nobody else can take it while none is up."""
        if self._settings.ingress is Ingress.SERVE:
            return processes.free_ports(1)[0]
        return self._hold_port()

    def _hold_port(self) -> int:
        held = shared_socket("127.0.0.1", 0)
        self._held.append(held)
        return int(held.getsockname()[1])

    def _node(self) -> RayNode:
        settings = self._settings
        return RayNode(
            self.data.ray,
            cpus=settings.ray_cpus,
            object_store_bytes=settings.object_store_mb << 20,
            dashboard_port=settings.dashboard_port,
        )

    def _choose_ports(self) -> tuple[int, int]:
        host, port, tls_port = self._settings.host, self._settings.port, self._settings.tls_port
        vault_port = self._settings.vault_port if "vault" in self._settings.active_tiers else 0
        for wanted, option in ((port, "--port"), (tls_port, "--tls-port"), (vault_port, "--vault-port")):
            if wanted and not processes.port_is_free(host, wanted):
                raise EngineError(f"port {wanted} on {host} is taken; choose another one with {option}")
        # Held until the gateway takes them over: in between, any connection of this machine could get one of them.
        try:
            self._door = [shared_socket(host, wanted) for wanted in (port, *filter(None, (tls_port, vault_port)))]
        except OSError as error:
            raise EngineError(f"the gateway's ports on {host} cannot be had: {error.strerror}") from error
        return int(self._door[0].getsockname()[1]), tls_port

    def _leave_door(self) -> None:
        for held in self._door:
            held.close()
        self._door = []

    async def _compile(self) -> None:
        """In a child: this process stays small, and a crash of the compiler is only a message here."""
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cluster.compile", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        self._deployer = child
        output, errors = await child.communicate()
        if child.returncode != 0:
            raise EngineError(f"the kernel does not compile: {errors.decode(errors='replace')[-2000:]}")
        self._say(output.decode().strip())

    async def _start_driver(self) -> asyncio.subprocess.Process:
        """The child that deploys; it waits for its plan with everything imported."""
        assert self._ray is not None  # noqa: S101 - started before
        environment = {**os.environ, **self._ray.environment()}
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "cluster.deploy",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        self._deployer = child
        return child

    async def _deploy(self, plan: Plan, child: asyncio.subprocess.Process) -> None:
        """Create actors and applications by a short-lived driver; they outlive it."""
        assert child.stdin is not None and child.stdout is not None and child.stderr is not None  # noqa: S101, PT018
        child.stdin.write(plan.as_json().encode())
        child.stdin.close()
        complaints = asyncio.ensure_future(child.stderr.read())
        async for line in child.stdout:
            self._say(line.decode().rstrip())
        status, words = await child.wait(), (await complaints).decode(errors="replace").strip()
        if status == deploy.REFUSED:
            raise EngineError(words.rsplit("\n", 1)[-1])
        if status != 0:
            raise EngineError(f"deploying failed: {words[-4000:]}")

    def _gateway_config(self, port: int, tls_port: int, plan: Plan) -> GatewayConfig:
        settings = self._settings
        certificate = self._certificate
        tiers = {
            "score": (plan.score_port, settings.score_replicas_max),
            "trace": (plan.trace_port, settings.trace_replicas_max),
        }
        doors = []
        if plan.vault_port and certificate is not None:
            vault = Application("vault", plan.vault_port, prefixes=("/vault",), networks=settings.vault_networks)
            doors = [Door(vault, settings.vault_port, certificate, settings.vault_client_ca)]
        return GatewayConfig(
            engine=f"razao-{plan.secrets.engine}",
            host=settings.host,
            http_port=port,
            tls_port=tls_port,
            certificate=certificate,
            applications=[
                Application("identity", plan.identity_port, prefixes=("/auth", "/oauth", "/.well-known")),
                *(
                    Application(tier, at, prefixes=(f"/{tier}",), replicas=most)
                    for tier, (at, most) in tiers.items()
                    if at
                ),
                Application(
                    "payments",
                    plan.application_port,
                    apart=(payments_events.PATH, "/healthz"),
                    replicas=settings.replicas_max,
                ),
            ],
            doors=doors,
            secret=plan.secrets.gateway_secret,
            run_dir=self.data.run,
            per_address_rate=settings.per_address_rate,
            in_flight_max=max(1, settings.requests_max // 2),
        )

    def _make_certificate(self, tls_port: int) -> Path | None:
        """The operator's, or one of our own; None where nothing speaks HTTPS."""
        if not tls_port and "vault" not in self._settings.active_tiers:
            return None
        given = self._settings.tls_certificate
        if given is None:
            return ensure_certificate(self.data.root / "tls")
        check_certificate(given)
        return given

    def _running(self, plan: Plan, port: int, tls_port: int) -> Running:
        assert self._ray is not None  # noqa: S101 - started before
        host = self._settings.host
        return Running(
            pid=os.getpid(),
            url=f"http://{host}:{port}",
            tls_url=f"https://{host}:{tls_port}" if tls_port else None,
            vault_url=f"https://{host}:{self._settings.vault_port}" if plan.vault_port else None,
            journal=self._settings.journal,
            shards=plan.partitions,
            dsn=plan.dsn,
            ray_address=self._ray.address,
            dashboard_url=self._ray.dashboard_url,
            dashboard_token_file=str(self._ray.token_path),
            started_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            transport=self._settings.transport,
            ingress=self._settings.ingress,
        )

    def _announce(self, plan: Plan, port: int, tls_port: int) -> None:
        assert self._ray is not None  # noqa: S101 - started before
        host = self._settings.host
        if tls_port:
            self._say(f"HTTPS on https://{host}:{tls_port} (certificate: {self.data.root / 'tls'})")
        if plan.vault_port:
            who = ", ".join(self._settings.vault_networks)
            self._say(f"vault on https://{host}:{self._settings.vault_port} for {who}")
        if self._kafka is not None:
            self._say(
                f"Kafka on {self._kafka.bootstrap} (SCRAM over SASL_PLAINTEXT, see {self.data.kafka / 'password'})"
            )
        self._say(f"API description on http://{host}:{port}/docs")
        self._say(f"Ray dashboard on {self._ray.dashboard_url} (log in with the token in {self._ray.token_path})")
        self._say(f"razao ready on http://{host}:{port}")

    async def _watch(self, plan: Plan) -> None:
        """Bring back what Ray does not look after, for as long as the engine runs."""
        assert self._postgres is not None and self._ray is not None and self._gateway is not None  # noqa: S101, PT018
        retry_s = _WATCH_S
        while True:
            await asyncio.sleep(retry_s)
            try:
                if not self._postgres.running:
                    self._say("PostgreSQL has ended; starting it again")
                    await asyncio.to_thread(self._postgres.start, progress=lambda _: None)
                if self._kafka is not None and not self._kafka.running:
                    self._say("Kafka has ended; starting it again")
                    await asyncio.to_thread(self._kafka.start, progress=self._say_unless_stopped)
                if not self._gateway.is_alive():
                    self._say("the gateway has ended; starting it again")
                    await asyncio.to_thread(self._gateway.start)
                if not self._ray.running:
                    self._say("Ray has ended; starting it again")
                    await asyncio.to_thread(self._ray.stop)
                    await asyncio.to_thread(self._ray.start)
                    await self._deploy(plan, await self._start_driver())
                retry_s = _WATCH_S
            except (PostgresError, KafkaError, RayNodeError, GatewayError, EngineError) as error:
                retry_s = min(2 * retry_s, _RETRY_S_MAX)
                self._say(f"{error}; trying again in {retry_s:.1f} s")

    async def _stop(self, secrets: Secrets) -> None:
        """Close the door, then the actors, then what they stand on. What was acknowledged is durable at any moment; who
        writes something behind is let finish."""
        self._say("stopping")
        if self._deployer is not None and self._deployer.returncode is None:
            self._deployer.kill()
            await self._deployer.wait()
        if self._gateway is not None:
            await asyncio.to_thread(self._gateway.stop)
        if self._ray is not None:
            unfinished = await asyncio.to_thread(Farewell(self.data.run).ask, _FAREWELL_S)
            if unfinished:
                self._say(f"processes {unfinished} did not finish within {_FAREWELL_S:.0f} s")
        for part in (self._ray, self._kafka, self._postgres):
            if part is not None:
                await asyncio.to_thread(part.stop)
        self._leave_door()
        for held in self._held:
            held.close()
        await asyncio.to_thread(processes.end_all, secrets.engine)
        self.data.retract()
        self._say("stopped")
