"""The shard's door: framed streams from replicas and other shards, and the same frames as single calls.

A stream begins with a hello that shows the engine's secret; before that nothing is looked at, and nothing large is
received. A frame that does not fit the protocol ends its stream, with nothing of it applied; so does a request whose
number is not above the last one's, and so a stream carries each request once at most. A peer that does not read its
answers is not read from either.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from actors import frames
from actors.frames import Array, FrameProtocol, FrameType, Malformed
from actors.shard import Replies, Shard
from storage.events import Code

_LOG: Final = logging.getLogger(__name__)
_HELLO_S: Final = 5.0
_STREAMS_MAX: Final = 1_024
_APPLY: Final = FrameType.APPLY  # on Python 3.11 an enum's member is looked up by a function

Identity = Callable[[], dict[str, Any]]
"""What the process adds to a shard's statistics: name, pid, host."""


def dispatch(
    shard: Shard, stats: Identity, kind: FrameType, request: int, payload: bytearray, replies: Answers
) -> None:
    """Hand one frame to the shard; the answers come to `replies`."""
    if kind is _APPLY:
        rows, notes = frames.decode_events(kind, payload)
        shard.apply(rows, notes, replies, request)
    elif kind is FrameType.READ:
        ids, actors = frames.decode_read(payload)
        shard.read(ids, actors, replies, request)
    elif kind is FrameType.LEGS:
        rows, _ = frames.decode_events(kind, payload)
        shard.legs(rows, replies, request)
    elif kind in {FrameType.STATS, FrameType.CLOCK}:
        if kind is FrameType.CLOCK:
            shard.accept_clock()
        answer = json.dumps({**stats(), **shard.stats()}).encode()
        replies.write(frames.frame(FrameType.STATS_ANSWER, request, answer))
    else:
        raise Malformed("not a request")


class Answers(Replies):
    """A shard's answers as frames."""

    def write(self, data: bytes) -> None:
        """Send one frame, or several."""
        raise NotImplementedError

    def answered(self, request: int, results: Array, positions: dict[int, int]) -> None:
        """See `Replies`."""
        self.write(frames.encode_answer(FrameType.RESULTS, request, results, positions))

    def resolved(self, request: int, indices: Array, results: Array, positions: dict[int, int]) -> None:
        """See `Replies`."""
        self.write(frames.encode_answer(FrameType.LATER, request, results, positions, indices))

    def states(self, request: int, states: Array, positions: dict[int, int]) -> None:
        """See `Replies`."""
        self.write(frames.encode_answer(FrameType.STATES, request, states, positions))


class ShardServer:
    """Listens for one shard."""

    def __init__(self, shard: Shard, secret: bytes, identity: Identity) -> None:
        if not secret:
            raise ValueError("a stream without a secret would be open to all")
        self.shard = shard
        self.secret = secret
        self.identity = identity
        self.streams: set[_Stream] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int = 0) -> int:
        """Listen; returns the port (a free one when `port` is 0)."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Stream(self), host, port, backlog=1_024)
        return int(self._server.sockets[0].getsockname()[1])

    def stop_listening(self) -> None:
        """Take no new streams and read no more requests; what was received is still answered."""
        if self._server is not None:
            self._server.close()
        for stream in self.streams:
            stream.stop_reading()

    async def close(self) -> None:
        """End all streams after their answers were written."""
        self.stop_listening()
        for stream in list(self.streams):
            if stream.transport is not None:
                stream.transport.close()
        if self._server is not None:
            await self._server.wait_closed()


class _Stream(FrameProtocol, Answers):
    """One client's stream."""

    def __init__(self, server: ShardServer) -> None:
        super().__init__(frames.HELLO_MAX)
        self._server = server
        self._welcomed = False
        self._stopped = False
        self._request = 0  # the last one's number
        self._hello_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a hello, not for long."""
        super().connection_made(transport)
        if len(self._server.streams) >= _STREAMS_MAX:
            self.malformed()
            return
        self._server.streams.add(self)
        self._hello_timer = asyncio.get_running_loop().call_later(_HELLO_S, self.malformed)

    def connection_lost(self, exc: Exception | None) -> None:
        """Answers to this stream go nowhere from now on."""
        self.transport = None
        self._server.streams.discard(self)
        if self._hello_timer is not None:
            self._hello_timer.cancel()

    def answered_all(self, answers: Sequence[tuple[int, Array]], positions: dict[int, int]) -> None:
        """One write, so one system call, for all."""
        self.write(frames.encode_results(answers, positions))

    def on_frame(self, kind: FrameType, request: int, payload: bytearray) -> None:
        """Hello first, then requests."""
        if self._welcomed:
            if request <= self._request:
                raise Malformed("a request's number came again")
            self._request = request
            dispatch(self._server.shard, self._server.identity, kind, request, payload, self)
        elif kind is FrameType.HELLO:
            self._greet(frames.decode_hello(payload))
        else:
            raise Malformed("no hello")

    def _greet(self, hello: frames.Hello) -> None:
        shard = self._server.shard
        if not frames.secrets_equal(self._server.secret, hello.secret):
            _LOG.warning("shard %d: a stream with a wrong secret was closed", shard.partition)
            raise Malformed("wrong secret")
        here = (hello.partition, hello.partitions) == (shard.partition, shard.partitions)
        if not here or hello.epoch > shard.epoch or not shard.serving:
            self.write(frames.encode_welcome(FrameType.REFUSED, shard.epoch))
            if here:
                shard.suspect(hello.epoch)  # there is a newer shard: are we still the writer?
            if self.transport is not None:
                self.transport.close()
            return
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        self._welcomed = True
        self.payload_max = frames.PAYLOAD_MAX
        self.write(frames.encode_welcome(FrameType.WELCOME, shard.epoch))

    def pause_writing(self) -> None:
        """The peer does not read: neither do we."""
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        """It reads again."""
        if self.transport is not None and not self._stopped:
            self.transport.resume_reading()

    def stop_reading(self) -> None:
        """No more requests from this stream."""
        self._stopped = True
        self.pause_writing()


class SingleCall(Answers):
    """One frame in, one frame out: the same protocol where a transport has calls instead of streams."""

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole  # wait for rows in flight too
        self._results: Array | None = None
        self._positions: dict[int, int] = {}
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def write(self, data: bytes) -> None:
        """See `Answers`."""
        if not self.answer.done():
            self.answer.set_result(data)

    def answered(self, request: int, results: Array, positions: dict[int, int]) -> None:
        """See `Replies`."""
        if self._whole and bool((results["code"] == Code.IN_FLIGHT).any()):
            self._results, self._positions = results.copy(), dict(positions)
        else:
            super().answered(request, results, positions)

    def resolved(self, request: int, indices: Array, results: Array, positions: dict[int, int]) -> None:
        """See `Replies`."""
        if self._results is None:
            return
        self._results[indices] = results
        for partition, offset in positions.items():
            self._positions[partition] = max(offset, self._positions.get(partition, -1))
        if not bool((self._results["code"] == Code.IN_FLIGHT).any()):
            super().answered(request, self._results, self._positions)


async def exchange(shard: Shard, stats: Identity, data: bytes, *, whole: bool) -> bytes:
    """Answer one frame with one frame. `whole`: only when no row is IN_FLIGHT any more.

    Raises:
        Malformed: `data` is no request.
    """
    kind, request, payload = frames.split(data)
    call = SingleCall(whole=whole)
    dispatch(shard, stats, kind, request, payload, call)
    return await call.answer
