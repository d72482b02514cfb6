"""Ray Serve around any of our ASGI applications: who starts it, watches it, scales it and lets it go.

An application is an async factory, called inside the replica with the configuration it was deployed with. The replica
runs what the factory made behind an `Admission`, on a `Listener` of its own, and under Serve's ingress as well, so
that Serve's proxies, when they are on, find the very same thing. Serve does not see the listener's requests; it learns
of them through `record_autoscaling_stats`, `check_health` and `__del__`.

    start()       Serve itself, with or without its proxies
    run(spec)     an application, new or changed: replicas are replaced one after the other, without losing a request
    run_all(…)    several of them, all at once
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve._private.common import DeploymentStatus
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.lifespan.on import LifespanOn

from actors import garbage
from actors.scheduling import run_in_batches
from deployments import logs
from deployments.admission import Admission
from deployments.express import Routes
from deployments.listener import Listener
from deployments.logs import masked
from deployments.metrics import Figures, publish

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Application:
    """What a factory makes. A bare ASGI application will do when there is nothing to close or to ask.

    `check_health` raises when this replica, not what it depends on, is beyond repair: Serve then replaces it.
    `routes`: what may go past `app` on the listener, see `deployments/express.py`.
    `reconfigure` gets `Spec.tuning` when it changes, without a restart. `figures`: what metrics show of it besides
    requests.
    """

    app: ASGIApp
    close: Callable[[], Awaitable[None]] | None = None
    check_health: Callable[[], Awaitable[None]] | None = None
    reconfigure: Callable[[Mapping[str, Any]], Awaitable[None]] | None = None
    figures: Figures | None = None
    routes: Routes = field(default_factory=dict)


Factory = Callable[[dict[str, Any]], Awaitable[Application | ASGIApp]]


@dataclass(frozen=True, slots=True)
class Spec:
    """An application as it is deployed. `factory` must be importable in replicas; `config` and `tuning` are JSON.

    Changing `config`, the port or the package's version replaces replicas; changing limits or `tuning` does not.
    """

    name: str
    factory: Factory
    config: dict[str, Any] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 0  # 0: no listener of its own, requests come through Serve's proxies
    route_prefix: str | None = "/"  # None: not behind Serve's proxies
    version: str = ""  # of the code; part of what makes a deployment a changed one
    replicas_min: int = 1
    replicas_max: int = 1
    cpus: float = 0.1
    max_in_progress: int = 512
    max_waiting: int = 1024
    max_wait_s: float = 5.0
    tuning: dict[str, Any] = field(default_factory=dict)
    # Replicas are added when this many requests are in progress or wait in each, or when any waits this long.
    target_in_progress: float = 64.0
    target_wait_ms: float = 50.0
    look_back_s: float = 5.0
    upscale_delay_s: float = 3.0
    downscale_delay_s: float = 60.0
    drain_s: float = 15.0
    idle_s: float = 1.0  # while draining: how long a connection without a request is kept
    health_period_s: float = 2.0
    log_directory: str | None = None  # where replicas write; default: what Ray keeps of their standard error


def start(*, proxy_host: str = "127.0.0.1", proxy_port: int = 0) -> None:
    """Start Serve on the node that this process has joined. `proxy_port` 0: without proxies. Takes 2 s."""
    if proxy_port:
        serve.start(proxy_location="HeadOnly", http_options={"host": proxy_host, "port": proxy_port})
    else:
        serve.start(proxy_location="Disabled")


def run(spec: Spec) -> DeploymentHandle[Any]:
    """Deploy, and return when every replica serves. Of an unchanged spec it leaves the replicas alone."""
    return serve.run(deployment(spec), name=spec.name, route_prefix=spec.route_prefix)


class DeployFailed(Exception):  # noqa: N818 - what it is
    """An application's replicas do not start; the message names it and says why."""


def run_all(specs: Sequence[Spec]) -> None:
    """Deploy several at once, since each takes its seconds to start, and return when every replica of all serves.

    Raises:
        DeployFailed: one of them cannot start.
    """
    try:
        serve.run_many([serve.RunTarget(deployment(spec), spec.name, spec.route_prefix) for spec in specs])
    except RuntimeError as error:
        raise DeployFailed(_reasons() or str(error)) from error


def _reasons() -> str:
    """The last words of those that do not start. Serve keeps a replica's whole traceback; its end says why."""
    return "; ".join(
        f"the application {name} does not start: {masked(deployment.message.strip().rpartition(chr(10))[2])}"
        for name, application in serve.status().applications.items()
        for deployment in application.deployments.values()
        if deployment.status is DeploymentStatus.DEPLOY_FAILED
    )


def deployment(spec: Spec) -> serve.Application:
    """The Serve application of `spec`, for those who deploy several at once."""
    autoscaled = spec.replicas_max > spec.replicas_min
    options: dict[str, Any] = (
        {"autoscaling_config": _autoscaling(spec)} if autoscaled else {"num_replicas": spec.replicas_min}
    )
    limits = {
        "max_in_progress": spec.max_in_progress,
        "max_waiting": spec.max_waiting,
        "max_wait_s": spec.max_wait_s,
    }
    configured: serve.Deployment = serve.deployment(Replica).options(  # type: ignore[attr-defined]
        name=spec.name,
        user_config={"limits": limits, "tuning": spec.tuning},
        # Ours is the limit that answers 429 with a problem; Serve's must not come before it.
        max_ongoing_requests=spec.max_in_progress + spec.max_waiting + 64,
        ray_actor_options={"num_cpus": spec.cpus},
        # The new one serves before the old one goes, so that one replica is enough for an update without a gap.
        max_surge_percent=50,
        graceful_shutdown_timeout_s=spec.drain_s + 5.0,
        graceful_shutdown_wait_loop_s=0.05,
        health_check_period_s=spec.health_period_s,
        health_check_timeout_s=max(5.0, spec.health_period_s),
        **options,
    )
    place = Place(spec.name, spec.host, spec.port, spec.route_prefix, spec.drain_s, spec.idle_s, spec.log_directory)
    # Serve would give every deployment a new version, and restart what runs; to choose it ourselves is for insiders.
    configured = configured.options(version=_version(spec), _internal=True)
    bound: serve.Application = configured.bind(place, spec.factory, spec.config, limits)
    return bound


@dataclass(frozen=True, slots=True)
class Place:
    """Where a replica serves, and how long it takes its leave."""

    name: str
    host: str
    port: int
    route_prefix: str | None
    drain_s: float
    idle_s: float
    log_directory: str | None

    @property
    def log_file(self) -> Path | None:
        """The one that the replicas of an application share."""
        return None if self.log_directory is None else Path(self.log_directory) / f"{self.name}.log"


@serve.ingress()
class Replica:
    """One replica. Serve calls every method; see `Spec` for what they do it with."""

    async def __init__(  # type: ignore[misc] # Serve awaits it
        self, place: Place, factory: Factory, config: dict[str, Any], limits: dict[str, Any]
    ) -> None:
        _keep_to_this_address()
        logs.configure(place.name, place.log_file)
        self._place = place
        try:
            built = await factory(config)
        except Exception:
            _log.exception("%s does not start", place.name)
            raise
        self._application = built if isinstance(built, Application) else Application(built)
        self._lifespan = _Lifespan(self._application.app)
        await self._lifespan.start()
        self._admission = Admission(self._application.app, **limits)
        self._looked = (time.monotonic(), 0.0)
        self._publisher = asyncio.get_running_loop().create_task(
            publish(place.name, self._admission, self._application.figures)
        )
        self._listener: Listener | None = None
        if place.port:
            root_path = (place.route_prefix or "").rstrip("/")
            routes = {
                first_line: self._admission.express(route) for first_line, route in self._application.routes.items()
            }
            self._listener = Listener(self._admission, place.host, place.port, routes=routes, root_path=root_path)
            await self._listener.start()
        garbage.calm()
        run_in_batches()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """What Serve's proxies reach."""
        return _without_lifespan(self._admission)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new limits and the application's own tuning, without a restart."""
        self._admission.set_limits(**user_config["limits"])
        if self._application.reconfigure is not None:
            await self._application.reconfigure(user_config["tuning"])

    async def check_health(self) -> None:
        """Raise when this replica must be replaced. That a shard is down is no reason."""
        if self._listener is not None and not self._listener.alive:
            raise RuntimeError(f"{self._place.name} no longer accepts connections on port {self._place.port}")
        if self._application.check_health is not None:
            await self._application.check_health()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `ReplicasWanted` decides by: requests here, on average since the last look, and the oldest wait."""
        then, self._looked = self._looked, (time.monotonic(), self._admission.request_seconds())
        elapsed = max(self._looked[0] - then[0], 1e-6)
        return {
            "in_progress": (self._looked[1] - then[1]) / elapsed,
            "oldest_wait_ms": self._admission.oldest_wait_s() * 1000,
        }

    async def __del__(self) -> None:
        """Serve awaits this when the replica is to go: finish what came, then close. Serve's patience is 5 s longer."""
        if self._listener is not None:
            await self._listener.drain(self._place.drain_s, idle_s=self._place.idle_s)
        self._publisher.cancel()
        with suppress(asyncio.CancelledError):
            await self._publisher
        await self._lifespan.stop()
        if self._application.close is not None:
            await self._application.close()


class ReplicasWanted:
    """The autoscaling policy. Runs in Serve's controller; Serve applies bounds and delays to what it returns."""

    def __init__(self, target_in_progress: float, target_wait_ms: float) -> None:
        self._target_in_progress = target_in_progress
        self._target_wait_ms = target_wait_ms

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        reported = ctx.aggregated_metrics or {}
        in_progress = reported.get("in_progress", {})
        if not in_progress:
            return ctx.target_num_replicas, {}  # nobody has reported yet: keep what there is
        wanted = math.ceil(sum(in_progress.values()) / self._target_in_progress)
        if max(reported.get("oldest_wait_ms", {}).values(), default=0.0) > self._target_wait_ms:
            wanted = max(wanted, ctx.current_num_replicas + 1)
        return min(max(wanted, ctx.capacity_adjusted_min_replicas), ctx.capacity_adjusted_max_replicas), {}


def _autoscaling(spec: Spec) -> AutoscalingConfig:
    targets = {"target_in_progress": spec.target_in_progress, "target_wait_ms": spec.target_wait_ms}
    policy = AutoscalingPolicy(  # type: ignore[no-untyped-call]
        policy_function=f"{__name__}:{ReplicasWanted.__name__}", policy_kwargs=targets
    )
    return AutoscalingConfig(
        min_replicas=spec.replicas_min,
        max_replicas=spec.replicas_max,
        look_back_period_s=spec.look_back_s,
        # How often replicas report. Called deprecated in favour of an environment variable that 2.60 does not use; the
        # default of 10 s is too late for a burst.
        metrics_interval_s=1.0,
        upscale_delay_s=spec.upscale_delay_s,
        downscale_delay_s=spec.downscale_delay_s,
        policy=policy,
    )


def _version(spec: Spec) -> str:
    """What must be the same for a running replica to stay."""
    what = [spec.version, f"{spec.factory.__module__}:{spec.factory.__qualname__}", spec.config]
    where = [spec.host, spec.port, spec.route_prefix, spec.drain_s, spec.idle_s, spec.log_directory]
    return hashlib.blake2b(json.dumps([what, where], sort_keys=True).encode(), digest_size=8).hexdigest()


class _Lifespan:
    """Runs an application's ASGI lifespan, if it has one, around the listener's life.

    Serve's wrapper would start it after our listener and end it before the listener has drained.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._events = LifespanOn(Config(app, lifespan="auto", log_config=None, log_level=logging.ERROR))

    async def start(self) -> None:
        await self._events.startup()
        if self._events.should_exit:
            raise RuntimeError("the application's start failed; the replica's log has the reason")

    async def stop(self) -> None:
        await self._events.shutdown()


def _without_lifespan(app: ASGIApp) -> ASGIApp:
    async def entry(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})

    return entry


def _keep_to_this_address() -> None:
    """Serve opens a gRPC server per replica on every interface: put it on this node's address, where it is looked for.

    It wants Ray's token, but on one machine nobody else should even reach it.
    """
    from ray.serve._private import replica  # noqa: PLC0415 - Serve's inside, wanted for this alone

    bind: Callable[[Any, str], int] = replica.add_port_to_grpc_server  # type: ignore[attr-defined]
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]

    def bind_here(server: Any, everywhere: str) -> int:
        return bind(server, everywhere.replace("[::]", f"[{address}]" if ":" in address else address))

    replica.add_port_to_grpc_server = bind_here  # type: ignore[attr-defined]
