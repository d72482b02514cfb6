"""The vault made ready, and what an operator does with it: its keys rotated, its record checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import asyncpg

from cluster.data import DataDirectory, EngineError, write_private
from storage import vault, vault_record, vault_rotation
from storage.registry import Registry
from storage.vault_keys import KeyFile, KeysAway, Tampered

_FINGERPRINT: Final = "vault-key-fingerprint"


def key_file(data: DataDirectory) -> KeyFile:
    """Where the embedded mode keeps the vault's master keys; a KMS takes its place here."""
    return KeyFile(Path(data.keys) / "vault.json")


async def prepare(pool: asyncpg.Pool[asyncpg.Record], data: DataDirectory) -> None:
    """Make the vault's keys, schema and roles where they are missing.

    Raises:
        EngineError: the keys are gone, cannot be used safely, or are another vault's.
    """
    registry, keys = Registry(pool), key_file(data)
    if await registry.kept(_FINGERPRINT) is not None and not keys.exists():
        raise EngineError(f"the vault's keys are gone from {data.keys}: without them nothing of it can be read")
    try:
        keys.make()
        fingerprint = keys.fingerprint()
        if await registry.keep(_FINGERPRINT, fingerprint) != fingerprint:
            raise EngineError(f"the keys in {data.keys} are another vault's")
        await vault.create(pool, await vault.Secrets.of(keys))
    except KeysAway as error:
        raise EngineError(str(error)) from None


async def rotate_keys(
    pool: asyncpg.Pool[asyncpg.Record], data: DataDirectory, *, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Put every person's key under a new master, the vault running or not; returns what was done.

    Raises:
        EngineError: there is no vault, another rotation runs, or a key cannot be had or does not open.
    """
    if not await _is_here(pool):
        raise EngineError("there is no vault here yet; it is made when the engine starts with it")
    try:
        done = await vault_rotation.rotate(pool, key_file(data), progress=progress)
    except vault_rotation.RotationRuns:
        raise EngineError("another rotation of the vault's keys is under way") from None
    except (KeysAway, Tampered) as error:
        raise EngineError(f"the rotation stopped, and can be begun again: {error}") from None
    return {"master": done.master, "keys": done.keys, "retired": done.retired}


async def check_record(pool: asyncpg.Pool[asyncpg.Record], data: DataDirectory) -> vault_record.Checked | None:
    """Check the chain of the record of accesses; None when there is no vault.

    How far it was good is kept in DATA/vault-anchor.json, and must be a part of it the next time: that shows what no
    chain can, the loss of its end.

    Raises:
        EngineError: the vault's keys cannot be had.
    """
    if not await _is_here(pool):
        return None
    try:
        key = (await vault.Secrets.of(key_file(data))).chain_key
    except KeysAway as error:
        raise EngineError(str(error)) from None
    anchor = _Anchor(data.root / "vault-anchor.json")
    async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        checked = await vault_record.check(connection, key, anchor.kept())
    if checked.broken is None:
        anchor.keep(checked.head)
    return checked


async def _is_here(pool: asyncpg.Pool[asyncpg.Record]) -> bool:
    return await pool.fetchval("SELECT to_regclass('vault.accesses')") is not None


class _Anchor:
    """Where the chain was last seen whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def kept(self) -> vault_record.Anchor | None:
        try:
            content = json.loads(self._path.read_text())
            return vault_record.Anchor(content["seq"], bytes.fromhex(content["chain"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineError(f"{self._path} cannot be read: {error}") from None

    def keep(self, head: vault_record.Anchor) -> None:
        write_private(self._path, json.dumps({"seq": head.seq, "chain": head.chain.hex()}))
