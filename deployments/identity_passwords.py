"""Passwords: what is accepted as one (NIST SP 800-63B-4, 3.1.1), and Argon2id (RFC 9106) in threads of its own.

A hash takes some 20 ms of one core and 19 MiB, on purpose; so no more than a few run at once, whatever comes, and the
event loop and the other processes on the machine keep their time. An unknown user costs the same as a wrong password.
"""

from __future__ import annotations

import asyncio
import os
import threading
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Final, TypeVar

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError
from zxcvbn.frequency_lists import FREQUENCY_LISTS

from deployments.problems import OVERLOADED, WEAK_PASSWORD, ProblemError, malformed

T = TypeVar("T")

LENGTH_MIN: Final = 15
"""Characters, where a password is all that is asked for (NIST SP 800-63B-4, 3.1.1.2)."""
LENGTH_MAX: Final = 256
_NICENESS: Final = 19
_CONTEXT: Final = ("razao", "password", "senha")
_COMMON: Final = frozenset(FREQUENCY_LISTS["passwords"])


def normalized(password: str) -> str:
    """The form that is hashed: NFKC, so that two keyboards agree."""
    return unicodedata.normalize("NFKC", password)


def check_password(password: str, *, username: str, name: str, length_min: int, field: str = "password") -> str:
    """The normalized password.

    Raises:
        ProblemError: too short, too long, common, or made of the username, the name or the service's name.
    """
    if len(password) > LENGTH_MAX:
        raise malformed(field, f"A password has at most {LENGTH_MAX} characters")
    if any(ord(c) < 0x20 or "\ud800" <= c <= "\udfff" for c in password):
        raise malformed(field, "This must not contain control characters")
    password = normalized(password)
    if len(password) < length_min:
        raise ProblemError(WEAK_PASSWORD, f"A password has at least {length_min} characters", field=field)
    if len(password) > LENGTH_MAX:
        raise malformed(field, f"A password has at most {LENGTH_MAX} characters")
    if _is_common(password.casefold(), username, name):
        raise ProblemError(WEAK_PASSWORD, "The password is one of those that are tried first", field=field)
    return password


def _is_common(password: str, username: str, name: str) -> bool:
    words = [word for word in (username, *name.casefold().split(), *_CONTEXT) if len(word) > 2]
    left = password
    for word in sorted(words, key=len, reverse=True):
        left = left.replace(word, "")
    letters = "".join(c for c in left if c.isalpha())
    if 2 * len(letters) < len(left):
        letters = ""  # a few letters between many digits spell something by chance
    # Whole, repeated, lengthened by digits, or nothing besides what anybody knows of the user: the same guess.
    stems = {password, left, letters, left.strip("0123456789!?.-_ @#"), _period(password), _period(left)}
    return (
        any(stem in _COMMON or len(set(stem)) <= 2 for stem in stems if len(stem) >= 4)
        or len(left) < 4
        or (_is_sequence(password))
    )


def _period(text: str) -> str:
    """What a text repeats: `abc` of `abcabcabc`, the text itself when it repeats nothing."""
    again = (text + text).find(text, 1)
    return text[:again]


def _is_sequence(text: str) -> bool:
    """`123456789…`, `abcdef…`, also backwards."""
    steps = {ord(b) - ord(a) for a, b in pairwise(text)}
    return steps in ({1}, {-1}) or text in "12345678901234567890" * 2


def _step_back() -> None:
    """Whoever moves money goes first: this thread takes what time is left (on Linux a priority is a thread's)."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


class Passwords:
    """Hashes and verifies, at most `threads` at once, and at most `waiting` more in the queue."""

    def __init__(self, *, threads: int = 1, waiting: int = 128, memory_kib: int = 19 * 1024, passes: int = 2) -> None:
        self._hasher = PasswordHasher(
            time_cost=passes, memory_cost=memory_kib, parallelism=1, hash_len=32, salt_len=16, type=Type.ID
        )
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="argon2", initializer=_step_back)
        self._most = threads + waiting
        self._here = 0
        self._nobody = self._hasher.hash("nobody has this password")

    async def hash(self, password: str) -> str:
        """A PHC string of a normalized password."""
        return await self._run(self._hasher.hash, password)

    async def verify(self, known: str | None, password: str) -> bool:
        """Whether `known` is a hash of it. Of None, after just the same work: no."""
        matches = await self._run(self._matches, known or self._nobody, password)
        return matches and known is not None

    def is_outdated(self, known: str) -> bool:
        """Whether it was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(known)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _matches(self, known: str, password: str) -> bool:
        try:
            return self._hasher.verify(known, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, work: Callable[..., T], *arguments: str) -> T:
        if self._here >= self._most:
            raise ProblemError(OVERLOADED, "Too many logins wait already")
        self._here += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)
        finally:
            self._here -= 1
