"""The short-lived driver that creates actors and applications on a Ray node; they outlive it.

Run by the supervisor as `python -m cluster.deploy` with a plan on standard input. Run again on a live engine it changes
what has changed: actors stay, applications are rolled over replica by replica.
"""

from __future__ import annotations

import logging
import sys
from typing import Final

from cluster.plan import Plan
from cluster.ray_node import RayNode
from cluster.settings import Ingress

_SHARD_CPUS: Final = 0.1


def say(line: str) -> None:
    """Tell the supervisor how far we are."""
    print(line, flush=True)  # noqa: T201 - the way to the supervisor


def deploy(plan: Plan) -> None:
    """Create what the plan names, and return when all of it serves."""
    import ray  # noqa: PLC0415 - reads its environment when imported, which `RayNode.join` has set

    from actors.account_shard import start_shard  # noqa: PLC0415
    from actors.directory import start_directory  # noqa: PLC0415
    from actors.projector import start_projector  # noqa: PLC0415
    from cluster.wiring import payments_spec, projector_config, shard_config  # noqa: PLC0415
    from deployments import serving  # noqa: PLC0415

    say(f"starting {plan.partitions} shards, the projector and the payments application")
    directory = start_directory(plan.data.shards_file)
    shards = [start_shard(shard_config(plan, p), num_cpus=_SHARD_CPUS) for p in range(plan.partitions)]
    projector = start_projector(projector_config(plan), num_cpus=_SHARD_CPUS)
    serving.start(proxy_port=plan.application_port if plan.settings.ingress is Ingress.SERVE else 0)
    serving.run(payments_spec(plan))
    ray.get([directory.shards.remote(), projector.stats.remote(), *(shard.ready.remote() for shard in shards)])


def main() -> None:
    """Entry point of the child process."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    plan = Plan.from_json(sys.stdin.read())
    node = RayNode(plan.data.ray)
    node.join()
    deploy(plan)
    node.leave()


if __name__ == "__main__":
    main()
