"""`make simulate`: histories with fresh seeds on all cores for a given time, or one seed again.

A failure prints its seed, its plan and the command that replays it; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import multiprocessing
import os
import secrets
import sys
import time
import traceback
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Final

from actors.recovery import warm_up
from tests.model.histories import history, plan_of
from tests.model.simulation import run

_PROGRESS_S: Final = 1.0


def main() -> int:
    """See the module; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", type=float, default=600.0, help="seconds (600)")
    parser.add_argument("--seed", type=int, help="run this history alone")
    parser.add_argument("--first", type=int, help="seeds from here on, instead of fresh ones")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if options.seed is not None:
        logging.basicConfig(level=logging.WARNING)
        print(plan_of(options.seed))
        print(run(history(options.seed)))
        return 0
    warm_up()  # once, not in each process
    first = secrets.randbelow(2**40) if options.first is None else options.first
    return search(first, options.time, options.cores)


def search(first: int, seconds: float, cores: int) -> int:
    """Run seeds from `first` on until the time is up or one fails; returns the exit code."""
    begun = told = time.monotonic()
    total: Counter[str] = Counter()
    done = 0
    print(f"seeds from {first} on, {seconds:.0f} s, {cores} processes")
    seeds = itertools.count(first)
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(attempt, next(seeds)) for _ in range(2 * cores)}
        while running:
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for one in ended:
                seed, failure, counts = one.result()
                if failure:
                    pool.shutdown(wait=False, cancel_futures=True)
                    print(f"\n{failure}\nseed {seed} fails: {plan_of(seed)}\nreplay: make simulate SEED={seed}")
                    return 1
                total.update(counts)
                done += 1
            now = time.monotonic()
            if now < begun + seconds:
                running |= {pool.submit(attempt, next(seeds)) for _ in ended}
            if now - told > _PROGRESS_S:
                told = now
                _tell(done, now - begun)
    _tell(done, time.monotonic() - begun)
    print(f"\nevery claim held: {dict(total)}")
    return 0


def _tell(done: int, elapsed_s: float) -> None:
    line = f"{done} histories, {done / elapsed_s * 60:.0f} a minute, {elapsed_s:.0f} s"
    print(f"\r{line}  " if sys.stdout.isatty() else line, end="" if sys.stdout.isatty() else "\n", flush=True)


def attempt(seed: int) -> tuple[int, str, dict[str, int]]:
    """One history: the seed, what failed or nothing, and its counts."""
    logging.disable(logging.CRITICAL)  # shards that die say so; here they die all the time
    try:
        return seed, "", run(history(seed))
    except Exception:  # noqa: BLE001 - whatever it is, the seed must be told
        return seed, traceback.format_exc(), {}


if __name__ == "__main__":
    sys.exit(main())
