"""The vault's master keys: what they open and what not, who may read their file, and what a rotation leaves."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.vault_keys import KeyFile, KeysAway, Tampered, Wrapped, seal, unseal

KEY = bytes(range(32))


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    """One with keys."""
    found = KeyFile(tmp_path / "keys" / "vault.json")
    found.make()
    return found


@given(st.binary(max_size=200), st.binary(max_size=50), st.binary(max_size=50), st.integers(0, 400))
def test_what_was_sealed_opens_only_whole_and_in_its_context(
    plain: bytes, context: bytes, other: bytes, at: int
) -> None:
    sealed = seal(KEY, plain, context)
    assert unseal(KEY, sealed, context) == plain
    assert plain not in sealed or len(plain) < 4
    with pytest.raises(Tampered):
        unseal(bytes(32), sealed, context)
    changed = bytearray(sealed)
    changed[at % len(sealed)] ^= 1
    for spoilt in (bytes(changed), sealed[:-1], sealed[:5], b""):
        with pytest.raises(Tampered):
            unseal(KEY, spoilt, context)
    if other != context:
        with pytest.raises(Tampered):
            unseal(KEY, sealed, other)


def test_the_file_is_its_owners_alone_and_is_made_once(file: KeyFile, tmp_path: Path) -> None:
    path = tmp_path / "keys" / "vault.json"
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    file.make()
    KeyFile(path).make()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["vault.json"]


async def test_a_wrapped_key_opens_in_its_context_whichever_process_asks(file: KeyFile, tmp_path: Path) -> None:
    wrapped = await file.wrap(KEY, b"row 1")
    assert KEY not in wrapped.blob
    assert await KeyFile(tmp_path / "keys" / "vault.json").unwrap(wrapped, b"row 1") == KEY
    with pytest.raises(Tampered):
        await file.unwrap(wrapped, b"row 2")
    with pytest.raises(KeysAway):
        await file.unwrap(Wrapped("another", wrapped.blob), b"row 1")


async def test_a_rotation_by_another_process_is_seen_at_once(file: KeyFile, tmp_path: Path) -> None:
    before = await file.wrap(KEY, b"row")
    secret = await file.secret(b"purpose")
    other = KeyFile(tmp_path / "keys" / "vault.json")
    master = await other.rotate()
    after = await file.wrap(KEY, b"row")
    assert after.master == master != before.master
    assert await file.unwrap(before, b"row") == KEY
    assert await other.retire(master) == [before.master]
    assert await file.unwrap(after, b"row") == KEY
    assert await file.secret(b"purpose") == secret != await file.secret(b"another")
    with pytest.raises(KeysAway):
        await file.unwrap(before, b"row")
    assert before.master not in (tmp_path / "keys" / "vault.json").read_text()


@pytest.mark.parametrize("content", ["", "{}", '{"root": "00", "current": "a", "masters": {}}', "[]", "null"])
async def test_a_file_that_is_no_key_file_is_refused_without_showing_it(
    file: KeyFile, content: str, tmp_path: Path
) -> None:
    path = tmp_path / "keys" / "vault.json"
    key = json.loads(path.read_text())["root"]
    path.write_text(content)
    with pytest.raises(KeysAway) as refused:
        await file.wrap(KEY, b"row")
    assert key not in str(refused.value)


async def test_a_file_that_others_may_read_is_not_used(file: KeyFile, tmp_path: Path) -> None:
    await file.wrap(KEY, b"row")
    (tmp_path / "keys" / "vault.json").chmod(0o604)
    with pytest.raises(KeysAway, match="0600"):
        await file.wrap(KEY, b"row")
