"""The shard's protocol by Ray actor calls: for jobs and tools that have no stream, and to compare with.

A frame is an argument, the answering frame is the result. Rows that are in flight are asked for by a second call with
the same ids, which waits: so nothing needs to be kept on the shard's side between calls.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import numpy as np
import ray

from actors import frames
from actors.directory import NAMESPACE
from actors.frames import FrameType, Malformed
from actors.transport import Link, Receiver, Unreachable
from storage.events import Code

_LOST: Final = (ray.exceptions.RayError, TimeoutError)


def actor_name(partition: int) -> str:
    """The name of a partition's shard actor."""
    return f"shard-{partition:03d}"


class RayTransport:
    """Links to the named shard actors of this cluster. A lost call may have been executed: its ids are sent again."""

    def __init__(self, partitions: int, *, timeout_s: float = 5.0) -> None:
        self._partitions = partitions
        self._timeout_s = timeout_s

    async def connect(self, partition: int, receiver: Receiver, epoch: int) -> Link:
        """See `Transport`."""
        try:
            handle = await asyncio.get_running_loop().run_in_executor(None, _find, partition)
            async with asyncio.timeout(self._timeout_s):
                found = await _result(handle.hello.remote())
        except (*_LOST, ValueError) as error:
            raise Unreachable(f"partition {partition}: {error}") from error
        if found is None or found["partitions"] != self._partitions or found["epoch"] < epoch:
            raise Unreachable(f"partition {partition} is served by {found}")
        return _CallLink(partition, found["epoch"], handle, receiver)

    async def moved(self, link: Link) -> bool:
        """See `Transport`."""
        try:
            handle = await asyncio.get_running_loop().run_in_executor(None, _find, link.partition)
            async with asyncio.timeout(self._timeout_s):
                found = await _result(handle.hello.remote())
        except (*_LOST, ValueError):
            return False
        return found is not None and found["epoch"] > link.epoch


class _CallLink:
    """Calls to one actor, as long as it keeps its epoch."""

    def __init__(self, partition: int, epoch: int, handle: Any, receiver: Receiver) -> None:
        self.partition = partition
        self.epoch = epoch
        self._handle = handle
        self._receiver: Receiver | None = receiver
        self._calls: set[asyncio.Task[None]] = set()

    def send(self, data: bytes) -> None:
        """See `Link`."""
        call = asyncio.get_running_loop().create_task(self._call(data))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    def close(self) -> None:
        """See `Link`."""
        self._receiver = None
        for call in self._calls:
            call.cancel()

    async def _call(self, data: bytes) -> None:
        try:
            kind, request, payload = await self._exchange(data, whole=False)
            first = None if kind is not FrameType.RESULTS else frames.decode_answer(kind, payload).rows
            self._deliver(kind, request, payload)
            if first is not None and (first["code"] == Code.IN_FLIGHT).any():
                await self._finish(data, request, first)
        except (ray.exceptions.RayError, TimeoutError, Malformed):
            self._lose()

    def _lose(self) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.lost(self)

    async def _finish(self, data: bytes, request: int, first: frames.Array) -> None:
        """Ask again for the rows in flight; this answer comes when the other shards have decided.

        To the shard these are repeats, to the caller they are not: the flags stay as they were in the first answer.
        """
        in_flight = np.flatnonzero(first["code"] == Code.IN_FLIGHT)
        _, _, payload = frames.split(data)
        rows, _ = frames.decode_events(FrameType.APPLY, payload)
        again = frames.encode_events(FrameType.APPLY, request, [rows[in_flight].tobytes()], None)
        _, _, answer = await self._exchange(again, whole=True)
        found = frames.decode_answer(FrameType.RESULTS, answer)
        results = found.rows.copy()
        results["flags"] = first["flags"][in_flight]
        later = frames.encode_answer(FrameType.LATER, request, results, found.positions, in_flight)
        self._deliver(*frames.split(later))

    async def _exchange(self, data: bytes, *, whole: bool) -> tuple[FrameType, int, bytearray]:
        answer = await _result(self._handle.exchange.remote(data, self.epoch, whole))
        return frames.split(answer)

    def _deliver(self, kind: FrameType, request: int, payload: bytearray) -> None:
        if self._receiver is not None:
            self._receiver.received(self, kind, request, payload)


def _find(partition: int) -> Any:
    return ray.get_actor(actor_name(partition), namespace=NAMESPACE)


async def _result(reference: Any) -> Any:
    """A call's result without blocking the loop."""
    return await asyncio.wrap_future(reference.future())
