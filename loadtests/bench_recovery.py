"""How soon it serves: a new ledger, a ledger of a million accounts, and a shard of that size that was killed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx
import numpy as np
import numpy.typing as npt

from cluster.data import DataDirectory
from cluster.shards import shard_client
from loadtests import traffic
from loadtests.rows import DURABLE, READ, Goal, Row
from loadtests.stacks import ACCOUNT_BALANCE, Engine, engine
from storage.events import EVENT, NO_LIMIT, SLOTS, Code, Kind

Say = Callable[[str], None]

BATCH_ROWS: Final = 8190
_NIGHT: Final = 20 * 60 << 16 | 6 * 60
_PATIENCE_S: Final = 60.0


def recovery(data: Path, *, accounts: int, say: Say) -> list[Row]:
    """Start, fill one shard, kill it, start again."""
    with engine(data) as first:
        started = first.seconds_to_ready
        say(f"a new ledger was ready in {started:.1f} s; opening {accounts:,} accounts on one shard")
        numbers = np.arange(1, accounts + 1, dtype=np.uint64) * np.uint64(SLOTS)
        seconds = asyncio.run(_fill(first, numbers))
        say(f"opened and funded them in {seconds:.1f} s; waiting for the query side")
        behind = first.await_projection()
        back = [_killed(first, int(numbers[0]), int(numbers[1]), say) for _ in range(3)]
    with engine(data) as second:
        again = second.seconds_to_ready
        _pay(second, int(numbers[0]), int(numbers[1]))
    name = f"{accounts:,} accounts"
    return [
        Row("recovery", "start-up of a new ledger", started, "s", READ, note="database made, kernel compiled before"),
        Row("recovery", f"start-up, {name}", again, "s", READ, note="everything stopped before"),
        Row(
            "recovery",
            f"a killed shard of {name} serves again",
            max(back),
            "s",
            DURABLE,
            (Goal("<", 5),),
            note=f"kill -9 to the first 201; {', '.join(f'{one:.2f}' for one in back)}",
        ),
        Row(
            "recovery",
            f"opening and funding {name} in batches",
            2 * accounts / seconds,
            "events/s",
            DURABLE,
            note=f"query side caught up {behind:.1f} s later",
        ),
    ]


async def _fill(target: Engine, accounts: npt.NDArray[np.uint64]) -> float:
    begun = time.monotonic()
    async with shard_client(DataDirectory(target.data)) as client:
        for part in np.array_split(accounts, len(accounts) // (BATCH_ROWS // 2) + 1):
            outcome = await client.apply(_openings(part), None, time.monotonic() + _PATIENCE_S)
            codes = outcome.results["code"]
            if (codes != Code.OK).any():
                raise RuntimeError(f"accounts could not be opened: codes {np.unique(codes)}")
    return time.monotonic() - begun


def _openings(accounts: npt.NDArray[np.uint64]) -> npt.NDArray[np.void]:
    """Events that open accounts, each followed by one that funds it."""
    rows = np.zeros(2 * len(accounts), EVENT)
    words = np.frombuffer(traffic.id_block(np.repeat(accounts, 2)), ">u8").reshape(-1, 2)
    rows["id_hi"], rows["id_lo"] = words[:, 0], words[:, 1]
    opened, paid = rows[0::2], rows[1::2]
    opened["kind"], opened["debit"], opened["credit"] = Kind.OPEN, accounts, 1
    opened["amount"] = opened["ref_hi"] = opened["ref_lo"] = NO_LIMIT
    opened["total"] = _NIGHT
    paid["kind"], paid["debit"], paid["credit"], paid["amount"] = Kind.DEPOSIT, 1, accounts, ACCOUNT_BALANCE
    return rows


def _killed(target: Engine, debit: int, credit: int, say: Say) -> float:
    """Kill the shard of partition 0 and say after how many seconds it has made a transfer."""
    pid = next(shard["pid"] for shard in target.status()["shards"] if shard["name"] == "shard-000")
    begun = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    _pay(target, debit, credit)
    taken = time.monotonic() - begun
    say(f"shard-000 (pid {pid}) killed; the next transfer was durable after {taken:.2f} s")
    return taken


def _pay(target: Engine, debit: int, credit: int) -> None:
    """One transfer, repeated with its id for as long as the outcome is not sure.

    Raises:
        RuntimeError: it was refused, or there is no outcome.
    """
    id_ = (next(traffic.ids()) + traffic.slot(str(debit).encode())).decode()
    body = {"id": id_, "debit_account": str(debit), "credit_account": str(credit), "amount": 1}
    headers = {"Authorization": f"Bearer {target.token}"}
    deadline = time.monotonic() + _PATIENCE_S
    with httpx.Client(base_url=f"http://{target.host}", headers=headers, timeout=30, trust_env=False) as client:
        while time.monotonic() < deadline:
            answer = client.post("/v1/transfers", json=body)
            if answer.status_code == httpx.codes.CREATED:
                return
            if answer.status_code not in {429, 503}:
                raise RuntimeError(f"the transfer was answered {answer.status_code}: {answer.text}")
            time.sleep(0.02)
    raise RuntimeError(f"no transfer within {_PATIENCE_S:.0f} s")
