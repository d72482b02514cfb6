"""`razao down`: end a running engine in good order, and what a killed one left behind."""

from __future__ import annotations

import os
import signal
import time

from cluster import processes
from cluster.data import DataDirectory, EngineError
from cluster.ray_node import RayNode

_GRACE_S = 90.0


def stop(data: DataDirectory) -> str:
    """Stop the engine of `data`; returns a line that says what was done.

    Raises:
        EngineError: there is no ledger, or the engine did not end in time.
    """
    secrets = data.secrets()
    holder = data.holder()
    if holder:
        os.kill(holder, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_S
        while processes.alive(holder):
            if time.monotonic() > deadline:
                raise EngineError(f"the engine (pid {holder}) did not stop within {_GRACE_S:.0f} s")
            time.sleep(0.05)
    node = RayNode(data.ray)
    left = len(node.processes())
    node.stop()
    left += processes.end_all(secrets.engine)
    data.retract()
    if holder:
        return f"stopped the engine on {data.root}"
    return f"no engine was running on {data.root}" + (f"; ended {left} processes left behind" if left else "")
