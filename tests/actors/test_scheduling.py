"""A thread that runs in batches is the only one in its process that does, and whom it starts does too."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from actors.scheduling import run_in_batches

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux alone has the policy")


def test_it_concerns_the_calling_thread_and_what_it_starts() -> None:
    seen: list[int] = []

    def look() -> None:
        seen.append(os.sched_getscheduler(0))

    def work() -> None:
        run_in_batches()
        look()
        later = threading.Thread(target=look)
        later.start()
        later.join()

    before = os.sched_getscheduler(0)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [os.SCHED_BATCH, os.SCHED_BATCH]
    assert os.sched_getscheduler(0) == before


def test_a_process_that_is_gone_is_no_error() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    run_in_batches(process.pid)
