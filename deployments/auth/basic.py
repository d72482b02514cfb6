"""HTTP Basic (RFC 7617) against a service's own users, fast for those whom it has let in a moment ago.

A password costs 25 ms of a core to check, so who was let in is remembered: by a keyed digest of the whole header, under
a key that lives no longer than the process. All remembered users are looked up again every `LOOK_S`; a user who was
changed or disabled meanwhile is forgotten. When the last look is older than `FRESH_S`, nobody is let in on memory:
first there must be another look. So a change holds within a second, and while the store is away nobody comes in.
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import secrets
import time
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Final, NamedTuple, Protocol

from deployments.auth.middleware import Headers
from deployments.auth.tokens import Identity
from deployments.identity_passwords import LENGTH_MAX, Passwords, normalized
from deployments.problems import TOO_MANY_ATTEMPTS, UNAUTHENTICATED, WRONG_CREDENTIALS, ProblemError
from storage.identity import canonical_username

LOOK_S: Final = 0.4
FRESH_S: Final = 0.9
REMEMBERED_S: Final = 300.0
_REMEMBERED_MAX: Final = 10_000
_HEADER_BYTES_MAX: Final = 2048
_NAME_MAX: Final = 64


class User(Protocol):
    """A user as the store has them."""

    @property
    def id(self) -> bytes: ...
    @property
    def version(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def password(self) -> str: ...
    @property
    def disabled(self) -> bool: ...


class Users(Protocol):
    """Where users are looked up; raises when that cannot be done."""

    async def by_name(self, name: str) -> User | None:
        """The user of a canonical name."""
        ...

    async def versions(self, ids: Iterable[bytes]) -> Mapping[bytes, int]:
        """The present versions of those that there are; another version is a changed user."""
        ...


class Remembered(NamedTuple):
    """Somebody who was let in."""

    identity: Identity
    user: bytes
    version: int
    until: float  # time.monotonic seconds


class Pace(NamedTuple):
    """How fast wrong passwords may come: so many at once, then one each so many seconds."""

    pair_burst: float = 5  # of one address at one name
    pair_drip_s: float = 30.0
    address_burst: float = 100  # of one address at all names
    address_drip_s: float = 5.0


class BasicBackend:
    """A `Backend` for the middleware. `keep_looking` must run beside it."""

    def __init__(self, users: Users, passwords: Passwords, realm: str, *, pace: Pace | None = None) -> None:
        self._users = users
        self._passwords = passwords
        self._pace = pace or Pace()
        self._buckets = Buckets()
        self.realm = realm
        self._key = secrets.token_bytes(32)
        self._remembered: OrderedDict[bytes, Remembered] = OrderedDict()
        self._checking: dict[bytes, asyncio.Task[Remembered]] = {}
        self._looking: asyncio.Task[None] | None = None
        self._looked = 0.0

    def known(self, headers: Headers) -> Identity | None:
        """Who was let in with this very header, if that still holds."""
        value = headers.get(b"authorization")
        if value is None:
            return None
        found = self._remembered.get(blake2b(value, digest_size=16, key=self._key).digest())
        if found is None:
            return None
        now = time.monotonic()
        return found.identity if now < found.until and now < self._looked + FRESH_S else None

    async def authenticate(self, headers: Headers) -> Identity:
        """Check the password, or, of somebody remembered, whether anything has changed."""
        value = headers.get(b"authorization")
        if value is None:
            raise self._refused(ProblemError(UNAUTHENTICATED, "User and password are needed"))
        digest = blake2b(value, digest_size=16, key=self._key).digest()
        if digest in self._remembered:
            await self.look()
            if (identity := self.known(headers)) is not None:
                return identity
        checking = self._checking.get(digest)
        if checking is None:
            # Whoever opens many connections at once with one password has it checked once.
            checking = asyncio.create_task(self._check(value, headers.get(b"razao-client-address", b"")))
            self._checking[digest] = checking
            checking.add_done_callback(lambda done: self._checked(digest, done))
        return (await asyncio.shield(checking)).identity

    async def look(self) -> None:
        """Look all remembered users up, and forget those who were changed; together with whoever is just looking."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
            self._looking.add_done_callback(lambda _: setattr(self, "_looking", None))
        await asyncio.shield(self._looking)

    async def keep_looking(self) -> None:
        """For ever, every `LOOK_S`; while the store is away, nobody is let in on memory."""
        while True:
            with contextlib.suppress(Exception):  # whoever asks next is told what the matter is
                await self.look()
            await asyncio.sleep(LOOK_S)

    def close(self) -> None:
        """End the threads that check passwords."""
        self._passwords.close()

    async def _look(self) -> None:
        began = time.monotonic()
        ids = {found.user for found in self._remembered.values()}
        versions = await self._users.versions(ids) if ids else {}
        # Who came in while this look was under way was looked up later than it began.
        for digest, found in list(self._remembered.items()):
            if began >= found.until or (found.user in ids and versions.get(found.user) != found.version):
                del self._remembered[digest]
        self._looked = began

    def _checked(self, digest: bytes, done: asyncio.Task[Remembered]) -> None:
        del self._checking[digest]
        if done.cancelled() or done.exception() is not None:
            return
        self._remembered[digest] = done.result()
        while len(self._remembered) > _REMEMBERED_MAX:
            self._remembered.popitem(last=False)

    async def _check(self, value: bytes, address: bytes) -> Remembered:
        name, password = self._credentials(value)
        pair, alone = (address, name), (address,)
        self._count(pair, self._pace.pair_burst, self._pace.pair_drip_s)
        try:
            self._count(alone, self._pace.address_burst, self._pace.address_drip_s)
        except ProblemError:
            self._buckets.give_back(pair)  # what is refused fills nothing
            raise
        user = await self._users.by_name(name)
        matches = await self._passwords.verify(None if user is None else user.password, password)
        # A password may wait its turn for seconds: meanwhile the user may have been changed.
        if not matches or user is None or user.disabled or await self._users.by_name(name) != user:
            raise self._refused(ProblemError(WRONG_CREDENTIALS, WRONG_CREDENTIALS.title))
        self._buckets.give_back(alone)
        self._buckets.give_back(pair)
        until = time.monotonic() + REMEMBERED_S
        return Remembered(Identity(user.name, frozenset(), time.time() + REMEMBERED_S), user.id, user.version, until)

    def _credentials(self, value: bytes) -> tuple[str, str]:
        """Name and password of a header (RFC 7617, 2)."""
        scheme, _, given = value.partition(b" ")
        if scheme.lower() != b"basic" or len(value) > _HEADER_BYTES_MAX:
            raise self._refused(ProblemError(UNAUTHENTICATED, "Authorization must be Basic, with user and password"))
        try:
            name, colon, password = b64decode(given.strip(b" "), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            colon = ""
        if not colon:
            raise self._refused(ProblemError(UNAUTHENTICATED, "The credentials cannot be read"))
        if not 0 < len(name) <= _NAME_MAX or not 0 < len(password) <= LENGTH_MAX:
            raise self._refused(ProblemError(WRONG_CREDENTIALS, WRONG_CREDENTIALS.title))
        return canonical_username(name), normalized(password)

    def _count(self, bucket: tuple[object, ...], burst: float, drip_s: float) -> None:
        wait_s = self._buckets.take(bucket, burst, drip_s, time.monotonic())
        if wait_s:
            headers = {"retry-after": str(int(wait_s) + 1)}
            raise ProblemError(TOO_MANY_ATTEMPTS, TOO_MANY_ATTEMPTS.title, headers=headers)

    def _refused(self, problem: ProblemError) -> ProblemError:
        problem.headers["www-authenticate"] = 'Basic charset="UTF-8"'
        return problem


class Buckets:
    """Leaky buckets of one process, at most `most`: the one that was filled longest ago makes room."""

    def __init__(self, most: int = 50_000) -> None:
        self._levels: OrderedDict[tuple[object, ...], tuple[float, float]] = OrderedDict()
        self._most = most

    def take(self, bucket: tuple[object, ...], burst: float, drip_s: float, now: float) -> float:
        """Count an attempt before it is made; seconds to wait when it is refused, which does not count."""
        level, at = self._levels.get(bucket, (0.0, now))
        level = max(0.0, level - (now - at) / drip_s)
        if level + 1 > burst:
            return (level + 1 - burst) * drip_s
        self._levels[bucket] = (level + 1, now)
        self._levels.move_to_end(bucket)
        while len(self._levels) > self._most:
            self._levels.popitem(last=False)
        return 0.0

    def give_back(self, bucket: tuple[object, ...]) -> None:
        """An attempt that was no guess after all."""
        if bucket in self._levels:
            level, at = self._levels[bucket]
            self._levels[bucket] = (max(0.0, level - 1), at)
