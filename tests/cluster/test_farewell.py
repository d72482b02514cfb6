"""Who has something to finish is waited for, who has finished or is dead is not."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from cluster.farewell import Farewell


async def test_who_has_promised_is_asked_and_waited_for(tmp_path: Path) -> None:
    farewell = Farewell(tmp_path)
    farewell.promise()
    asked = asyncio.create_task(farewell.asked())
    asking = asyncio.create_task(asyncio.to_thread(farewell.ask, 60.0))
    await asked
    assert not asking.done()
    farewell.finished()
    assert await asking == []


def test_who_does_not_finish_is_named_and_who_is_dead_is_not_waited_for(tmp_path: Path) -> None:
    farewell = Farewell(tmp_path)
    assert farewell.ask(60.0) == []
    code = "import sys, pathlib, cluster.farewell as f; f.Farewell(pathlib.Path(sys.argv[1])).promise()"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert len(list((tmp_path / "unfinished").iterdir())) == 1
    assert farewell.ask(60.0) == []
    farewell.promise()
    assert farewell.ask(0.0) == [os.getpid()]
    farewell.forget()
    assert not list(tmp_path.iterdir())
