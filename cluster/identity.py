"""The store of identities made ready, and what an operator does with it: people, clients, signing keys, over no HTTP."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable
from functools import partial
from typing import Final

import asyncpg

from deployments.identity_oauth import REFRESH_GRANT
from deployments.identity_passwords import Passwords
from deployments.identity_roles import FIRST_PARTY, LEDGER, OPENID, SELF, Role
from deployments.identity_services import Lifetimes
from deployments.identity_signing import make_key
from storage import identity
from storage.identity import OPERATOR, UsernameTaken, Users, derived_key
from storage.identity_clients import Clients
from storage.identity_keys import SigningKeys

ADMINISTRATOR: Final = "admin"


def secret_key(ledger_key: bytes) -> bytes:
    """The key of the hashes of secrets."""
    return derived_key(ledger_key, b"razao.identity")


async def prepare(pool: asyncpg.Pool[asyncpg.Record], ledger_key: bytes, *, say: Callable[[str], None]) -> None:
    """Make what the service cannot be without: its schema, two keys, its own client, the first administrator."""
    await identity.create(pool)
    await SigningKeys(pool).ensure(partial(make_key, ledger_key), OPERATOR)
    life = Lifetimes().access
    scopes = sorted(frozenset().union(*LEDGER.values()) | OPENID | {SELF})
    await Clients(pool, access_life=life).add(
        FIRST_PARTY, "Razao", secret=None, grants=[REFRESH_GRANT], scopes=scopes, by=OPERATOR
    )
    users = Users(pool, access_life=life)
    if not await users.have_role(Role.ADMINISTRATOR):
        password = "-".join(secrets.token_hex(3) for _ in range(4))
        passwords = Passwords()
        try:
            hashed = await passwords.hash(password)
        finally:
            passwords.close()
        try:
            await users.add(
                uuid.uuid4(), ADMINISTRATOR, name="Administrator", person=None, role=Role.ADMINISTRATOR, password=hashed,
                by=OPERATOR,
            )  # fmt: skip
        except UsernameTaken:
            say(f"there is no administrator; make one with `razao users add NAME --role {Role.ADMINISTRATOR}`")
        else:
            say(f"first administrator: {ADMINISTRATOR}, password {password} (shown this once)")
