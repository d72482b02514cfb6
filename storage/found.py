"""What a shard itself knows of an id: the rows of its journal that the query side may not have yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from storage.events import EVENT, RESULT

Array = npt.NDArray[Any]


class Found(NamedTuple):
    """Every row of records `since` to `head` - 1 of an id's partition that has the id, that refers to it (post, void,
    expire, refund), or that says what became of such a one in flight. In no particular order."""

    rows: Array  # (n,) EVENT
    results: Array  # (n,) RESULT
    offsets: Array  # (n,) int64: the offset of each one's record
    notes: Sequence[bytes | None]
    since: int  # not above `head`; then nothing is told
    head: int  # offset after the newest durable record
    account: int = 0  # whose shard decided the newest use, if it is among the rows; 0: it is not
    owned: bool = False  # whether the asking actor may act for it


def not_told(head: int) -> Found:
    """Of an id: whoever wants to know must ask the query side."""
    return Found(np.zeros(0, EVENT), np.zeros(0, RESULT), np.zeros(0, np.int64), (), head, head)
