"""Checks a username and a password, at a pace that a guesser cannot live with and a person does not notice.

Three leaky buckets, filled before anything is looked at. One address at one account, and one address at all accounts
(spraying): full, they refuse with 429 until they have dripped, and who goes on knocking makes it no longer. All
addresses at one account: full, it only slows down, because refusing would let anybody lock anybody out; an address
from which the account was entered before does not even notice. What is said, and how long it takes, is the same for
unknown users.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from deployments.identity_call import Call
from deployments.identity_passwords import LENGTH_MAX, normalized
from deployments.identity_schema import USERNAME_MAX
from deployments.identity_services import Services
from deployments.problems import TOO_MANY_ATTEMPTS, WRONG_CREDENTIALS, ProblemError, malformed
from storage.identity import User, canonical_username

_TRUSTED_BURST: Final = 1e9
_TRUSTED_DRIP_S: Final = 1.0


class LetIn(NamedTuple):
    """Who has shown their password, and the hash that it fits: a login is written against that hash alone."""

    user: User
    password: str


async def check_credentials(call: Call, username: str, password: str) -> LetIn:
    """Who it is.

    Raises:
        ProblemError: nobody (401, always the same), or too fast (429).
    """
    services, pace = call.services, call.services.pace
    for field, value, most in (("username", username, USERNAME_MAX), ("password", password, LENGTH_MAX)):
        if not 1 <= len(value) <= most or any("\ud800" <= c <= "\udfff" or c == "\0" for c in value):
            raise malformed(field, f"This must have 1 to {most} characters")
    canonical = canonical_username(username)
    pair, address = f"pair\0{call.address}\0{canonical}", f"address\0{call.address}"
    trusted = services.digest(f"trusted\0{call.address}\0{canonical}")
    await refuse_too_fast(call, address, pace.address_burst, pace.address_drip_s)
    await refuse_too_fast(call, pair, pace.pair_burst, pace.pair_drip_s)
    if not await services.attempts.known(trusted):
        await _slow_down(call, f"account\0{canonical}")

    let_in = await _verified(services, canonical, normalized(password))
    if let_in is None:
        raise wrong_credentials()
    await services.attempts.forget(services.digest(pair))
    await services.attempts.give_back(services.digest(address))
    await services.attempts.take(trusted, burst=_TRUSTED_BURST, drip_s=_TRUSTED_DRIP_S)
    return let_in


async def _verified(services: Services, canonical: str, password: str) -> LetIn | None:
    found = await services.users.to_log_in(canonical)
    user, known = found if found is not None else (None, None)
    matches = await services.passwords.verify(known, password)
    if user is None or known is None or not matches or user.disabled:
        return None
    if services.passwords.is_outdated(known):
        better = await services.passwords.hash(password)
        if not await services.users.rehash(user.sub, known, better):
            # Somebody was faster: the same with a better hash, or with another password.
            return await _verified(services, canonical, password)
        known = better
    return LetIn(user, known)


def wrong_credentials() -> ProblemError:
    """The refusal of a login, always the same."""
    return ProblemError(WRONG_CREDENTIALS, WRONG_CREDENTIALS.title, headers={"www-authenticate": "Bearer"})


async def refuse_too_fast(call: Call, what: str, burst: float, drip_s: float) -> None:
    """Count an attempt; raises ProblemError (429) when there were too many."""
    bucket = call.services.digest(what)
    _, wait_s = await call.services.attempts.take(bucket, burst=burst, drip_s=drip_s)
    if wait_s:
        raise ProblemError(TOO_MANY_ATTEMPTS, TOO_MANY_ATTEMPTS.title, headers={"retry-after": str(int(wait_s) + 1)})


async def _slow_down(call: Call, what: str) -> None:
    pace = call.services.pace
    bucket = call.services.digest(what)
    level, wait_s = await call.services.attempts.take(bucket, burst=pace.account_burst, drip_s=pace.account_drip_s)
    if wait_s or level > pace.account_burst / 2:
        await call.services.pause(pace.pause_s_max * min(1.0, level / pace.account_burst))
