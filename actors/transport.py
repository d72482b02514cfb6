"""How a client reaches a shard: a link takes whole frames and gives whole frames back.

Framed TCP streams (the data plane) and Ray actor calls (`actors/ray_calls.py`, for jobs and tools) pass one contract
suite; the simulation has a third implementation, which fails. None of them retries: that is the client's business,
which resends the same ids.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from actors import frames
from actors.frames import FrameProtocol, FrameType, Malformed


class Unreachable(ConnectionError):  # noqa: N818
    """No shard of the partition could be reached now. It may be soon: ask again."""


class Address(NamedTuple):
    """Where a shard listens, as the directory knows it."""

    host: str
    port: int
    epoch: int


Locate = Callable[[int], Awaitable[Address | None]]
"""The address of a partition's shard, or None while there is none. May raise OSError."""


class Receiver(Protocol):
    """Who gets what comes back on a link."""

    def received(self, link: Link, kind: FrameType, request: int, payload: bytearray) -> None:
        """One frame. `Malformed` ends the link."""
        ...

    def lost(self, link: Link) -> None:
        """The link is gone: whatever was not answered may or may not have been done. Called once."""
        ...


class Link(Protocol):
    """A way to one shard's process, while both live."""

    partition: int
    epoch: int

    def send(self, data: bytes) -> None:
        """Send one frame. Never raises: a lost link is told to the receiver."""
        ...

    def close(self) -> None:
        """Give the link up; the receiver hears nothing more."""
        ...


class Transport(Protocol):
    """Makes links."""

    async def connect(self, partition: int, receiver: Receiver, epoch: int) -> Link:
        """A link to the partition's present shard, whose epoch is at least `epoch`.

        Raises:
            Unreachable: there is none now.
        """
        ...

    async def moved(self, link: Link) -> bool:
        """Whether the partition has another shard than the link's. False when that cannot be learnt."""
        ...


class TcpTransport:
    """Framed streams to the addresses that a directory gives."""

    def __init__(self, locate: Locate, secret: bytes, partitions: int, *, timeout_s: float = 2.0) -> None:
        self._locate = locate
        self._secret = secret
        self._partitions = partitions
        self._timeout_s = timeout_s

    async def connect(self, partition: int, receiver: Receiver, epoch: int) -> Link:
        """See `Transport`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                address = await self._locate(partition)
                if address is None:
                    raise Unreachable(f"partition {partition} has no shard in the directory")
                stream = _ClientStream(partition, receiver)
                loop = asyncio.get_running_loop()
                await loop.create_connection(lambda: stream, address.host, address.port)
                hello = frames.Hello(partition, self._partitions, max(epoch, address.epoch), self._secret)
                await stream.greet(hello)
                return stream
        except (OSError, TimeoutError) as error:
            raise Unreachable(f"partition {partition}: {error}") from error

    async def moved(self, link: Link) -> bool:
        """See `Transport`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                address = await self._locate(link.partition)
        except (OSError, TimeoutError):
            return False
        return address is not None and address.epoch > link.epoch


class _ClientStream(FrameProtocol):
    """One TCP stream, which is a `Link` once it was welcomed."""

    def __init__(self, partition: int, receiver: Receiver) -> None:
        super().__init__(frames.HELLO_MAX)
        self.partition = partition
        self.epoch = -1  # not welcomed yet; a ledger's first shard has the epoch 0
        self._receiver: Receiver | None = receiver
        self._welcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def greet(self, hello: frames.Hello) -> None:
        """Say hello and wait for the welcome; a refusal or a lost stream raises OSError."""
        self.write(frames.encode_hello(hello))
        try:
            await self._welcome
        except BaseException:
            self.close()
            raise

    def send(self, data: bytes) -> None:
        """See `Link`."""
        self.write(data)

    def close(self) -> None:
        """See `Link`."""
        self._receiver = None
        if self.transport is not None:
            self.transport.abort()

    def on_frame(self, kind: FrameType, request: int, payload: bytearray) -> None:
        """Welcome first, then whatever the receiver takes."""
        if self._welcome.done():
            if self._receiver is not None:
                self._receiver.received(self, kind, request, payload)
            return
        if kind is not FrameType.WELCOME:
            raise Malformed("refused")
        self.epoch = frames.decode_welcome(payload)
        self.payload_max = frames.PAYLOAD_MAX
        self._welcome.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        if not self._welcome.done():
            self._welcome.set_exception(Unreachable(f"partition {self.partition}: refused or lost ({exc})"))
        receiver, self._receiver = self._receiver, None
        if receiver is not None and self.epoch >= 0:
            receiver.lost(self)
