"""How the kernel shares the cores among the processes that a payment passes.

Each of them is woken by the one before it, and by default interrupts whoever runs for it: on busy cores a gateway, a
replica and a shard then take turns request by request, each time with cold caches. As batch work (sched(7)) they wait
for the core to come free, and find several requests waiting. Where a core is free nothing changes.
"""

from __future__ import annotations

import os
from contextlib import suppress


def run_in_batches(pid: int = 0) -> None:
    """Have a thread interrupt nobody when it wakes, unless an operator has chosen for it.

    `pid`: a thread's, or a process's with one; 0: the calling one.
    """
    if hasattr(os, "SCHED_BATCH"):  # Linux
        with suppress(OSError):  # it is gone, or not ours to tell
            if os.sched_getscheduler(pid) == os.SCHED_OTHER:
                os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))
