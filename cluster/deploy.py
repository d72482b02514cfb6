"""The short-lived driver that creates actors and applications on a Ray node; they outlive it.

Run by the supervisor as `python -m cluster.deploy` with a plan on standard input. Run again on a live engine it changes
what has changed: actors stay, applications are rolled over replica by replica.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from cluster.data import EngineError
from cluster.plan import Plan
from cluster.ray_node import RayNode
from cluster.settings import Ingress
from storage.journal import Corrupt

if TYPE_CHECKING:
    from actors.account_shard import ShardConfig

_READY_S: Final = 120.0
_SHARD_CPUS: Final = 0.1
_AGAIN_S: Final = 0.2
REFUSED: Final = 4
"""Exit status when the last line on standard error says all there is to know."""


def say(line: str) -> None:
    """Tell the supervisor how far we are."""
    print(line, flush=True)  # noqa: T201 - the way to the supervisor


def deploy(plan: Plan) -> None:
    """Create what the plan names, and return when all of it serves.

    Raises:
        EngineError: a shard refuses its journal, or something does not get ready.
    """
    import ray  # noqa: PLC0415 - reads its environment when imported, which `RayNode.join` has set

    from actors.account_shard import start_shard  # noqa: PLC0415
    from actors.directory import start_directory  # noqa: PLC0415
    from actors.projector import start_projector  # noqa: PLC0415
    from cluster.applications import specs  # noqa: PLC0415
    from cluster.wiring import projector_config, shard_config  # noqa: PLC0415
    from deployments import serving  # noqa: PLC0415

    applications = specs(plan)
    names = ", ".join(spec.name for spec in applications)
    say(f"starting {plan.partitions} shards, the projector and the applications: {names}")
    configs = [shard_config(plan, partition) for partition in range(plan.partitions)]
    for config in configs:
        if config.last_words is not None:
            config.last_words.unlink(missing_ok=True)
    start_directory(plan.data.shards_file)
    shards = [start_shard(config, num_cpus=_SHARD_CPUS) for config in configs]
    projector = start_projector(projector_config(plan), num_cpus=_SHARD_CPUS)
    for shard, config in zip(shards, configs, strict=True):
        _await_shard(shard, config)
    serving.start(proxy_port=plan.application_port if plan.settings.ingress is Ingress.SERVE else 0)
    try:
        serving.run_all(applications)
    except serving.DeployFailed as error:
        raise EngineError(f"{error}; logs are in {plan.data.log}") from error
    ray.get(projector.stats.remote(), timeout=_READY_S)


def _await_shard(shard: Any, config: ShardConfig) -> None:
    """Ray starts a shard again for ever; one that cannot trust its journal will never serve, so say why instead."""
    import ray  # noqa: PLC0415 - see above

    deadline = time.monotonic() + _READY_S
    while True:
        try:
            ray.get(shard.ready.remote(), timeout=max(1.0, deadline - time.monotonic()))
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            words = ""
            if config.last_words is not None and config.last_words.exists():
                words = config.last_words.read_text()
            if words.startswith(Corrupt.__name__):
                raise EngineError(f"the journal or a snapshot cannot be trusted: {words}") from None
            if time.monotonic() > deadline:
                raise EngineError(f"shard {config.partition} does not get ready: {words or error}") from None
            time.sleep(_AGAIN_S)
        else:
            return


def _import_all() -> None:
    """Import what `deploy` needs: while Ray starts there is time for it. Ray's variables are in our environment."""
    import cluster.applications  # noqa: PLC0415
    import cluster.wiring  # noqa: F401, PLC0415


def main() -> None:
    """Entry point of the child process."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    _import_all()
    plan = Plan.from_json(sys.stdin.read())
    node = RayNode(plan.data.ray)
    node.join()
    try:
        deploy(plan)
    except EngineError as error:
        print(error, file=sys.stderr, flush=True)  # noqa: T201
        sys.exit(REFUSED)
    finally:
        node.leave()


if __name__ == "__main__":
    main()
