"""`razao redeploy`: roll a running engine's replicas over to new settings or new code, one after the other.

Each new replica serves before an old one leaves, and one that leaves finishes what it has: no request is lost. Shards
go on; what they are told is fixed until the engine is started again.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Final

from cluster.data import DataDirectory, EngineError
from cluster.plan import Plan
from cluster.ray_node import RayNode
from cluster.settings import Settings

_FIXED: Final = ("ingress", "transport", "tiers", "vault_port", "vault_allowlist", "vault_client_ca")
"""What the gateway and the shards were started with."""


def redeploy(settings: Settings, *, say: Callable[[str], None]) -> None:
    """Deploy again on the engine in `settings.data`, with these settings.

    Raises:
        EngineError: no engine runs there, or deploying failed.
    """
    data = DataDirectory(settings.data)
    if data.holder() is None or data.running() is None:
        raise EngineError(f"no engine runs on {data.root}; start one with `razao up`")
    current = Plan.load(data)
    fixed = {name: getattr(current.settings, name) for name in _FIXED}
    plan = dataclasses.replace(current, settings=settings.model_copy(update=fixed | current.store_settings()))
    done = subprocess.run(
        [sys.executable, "-m", "cluster.deploy"],
        input=plan.as_json(),
        env={**os.environ, **RayNode(data.ray).environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise EngineError(f"deploying failed: {done.stderr.strip()[-4000:]}")
    say("every replica serves with the settings of now")
