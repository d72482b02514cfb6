"""Snapshots: what was saved is what is loaded, or an older one is, or none; never a damaged one."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from storage.events import ACCOUNT, EVENT
from storage.record import Position
from storage.snapshots import SnapshotStore

KEY = b"k" * 32
ARRAYS: dict[str, np.ndarray] = {
    "accounts": np.zeros(100, ACCOUNT),
    "index": np.arange(1000, dtype=np.int32),
    "empty": np.zeros(0, EVENT),
    "table": np.arange(12, dtype=np.uint64).reshape(3, 4),
}
ARRAYS["accounts"]["id"] = np.arange(100)


def position(offset: int) -> Position:
    return Position(offset, 3, offset - 1, bytes(range(32)))


def save(store: SnapshotStore, offset: int) -> Path:
    return Path(store.save(0, position(offset), ARRAYS, {"utc_offset_s": -10800}).path)


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path, KEY)
    file = store.save(0, position(42), ARRAYS, {"utc_offset_s": -10800})
    snapshot = store.load_newest(0)
    assert snapshot is not None
    assert snapshot.position == position(42)
    assert snapshot.meta == {"utc_offset_s": -10800}
    assert list(snapshot.arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert snapshot.arrays[name].dtype == array.dtype
        assert np.array_equal(snapshot.arrays[name], array)
        assert snapshot.arrays[name].flags.writeable
    assert Path(file.path).stat().st_size == file.bytes
    assert store.files(0) == [file]


def test_partitions_do_not_mix_and_without_any_there_is_none(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "later", KEY)
    assert store.load_newest(0) is None
    save(store, 1)
    assert store.load_newest(1) is None


def test_only_the_newest_stay(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path, KEY, keep=2)
    for offset in (5, 9, 30, 100):
        save(store, offset)
    assert [file.offset for file in store.files(0)] == [100, 30]


def test_the_one_just_saved_stays_beside_any_with_greater_offsets(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path, KEY, keep=1)
    save(store, 100)
    save(store, 5)
    assert [file.offset for file in store.files(0)] == [5]


def test_dropping_removes_all_of_them(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "later", KEY)
    store.drop()
    save(store, 1)
    store.drop()
    assert store.files(0) == []
    save(store, 2)
    assert [file.offset for file in store.files(0)] == [2]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_makes_the_older_one_load(
    tmp_path_factory: pytest.TempPathFactory, where: float, bit: int
) -> None:
    store = SnapshotStore(tmp_path_factory.mktemp("snapshots"), KEY)
    save(store, 10)
    newest = save(store, 20)
    content = bytearray(newest.read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    newest.write_bytes(content)
    snapshot = store.load_newest(0)
    assert snapshot is not None
    assert snapshot.position == position(10)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(where=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_makes_the_older_one_load(tmp_path_factory: pytest.TempPathFactory, where: float) -> None:
    store = SnapshotStore(tmp_path_factory.mktemp("snapshots"), KEY)
    save(store, 10)
    newest = save(store, 20)
    os.truncate(newest, int(where * newest.stat().st_size))
    snapshot = store.load_newest(0)
    assert snapshot is not None
    assert snapshot.position == position(10)


def test_a_header_that_asks_for_a_terabyte_allocates_nothing(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path, KEY)
    newest = save(store, 20)
    newest.write_bytes(newest.read_bytes().replace(b"[1000]", b"[9999999999999]"))
    assert store.load_newest(0) is None


def test_passing_over_is_logged_with_the_file_and_the_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = SnapshotStore(tmp_path, KEY)
    newest = save(store, 20)
    newest.write_bytes(newest.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert store.load_newest(0) is None
    assert str(newest) in caplog.text
    assert "bytes" in caplog.text


def test_another_ledgers_snapshot_or_one_under_another_name_is_not_taken(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path, KEY)
    path = save(store, 20)
    assert SnapshotStore(tmp_path, b"another" * 4).load_newest(0) is None
    path.rename(path.with_name(path.name.replace("20.", "21.")))
    assert store.load_newest(0) is None


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_process_killed_while_saving_leaves_the_older_one(tmp_path: Path, moment: str) -> None:
    program = f"""
import os, pathlib, signal, sys
import numpy as np
from storage.record import Position
from storage.snapshots import SnapshotStore
store = SnapshotStore({str(tmp_path)!r}, {KEY!r})
store.save(0, Position(10, 3, 9, bytes(range(32))), {{"a": np.arange(1000)}}, {{}})
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
if {moment!r} == "fsync": os.fsync = die
else: pathlib.Path.replace = die
store.save(0, Position(20, 3, 19, bytes(range(32))), {{"a": np.arange(1000)}}, {{}})
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False, cwd=Path(__file__).parents[2])
    assert ended.returncode == -signal.SIGKILL
    store = SnapshotStore(tmp_path, KEY)
    snapshot = store.load_newest(0)
    assert snapshot is not None
    assert snapshot.position.offset == 10
    assert len(list((tmp_path / "0000").iterdir())) == 2
    left = next((tmp_path / "0000").glob("*.unfinished"))
    os.utime(left, (0, 0))
    save(store, 30)
    assert not left.exists()


def test_a_failed_save_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    store = SnapshotStore(tmp_path, KEY)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(store, 1)
    assert list((tmp_path / "0000").iterdir()) == []


def test_an_object_store_holds_them_as_well(tmp_path: Path) -> None:
    # Any file system that is not the local one is written by a single put.
    remote = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    store = SnapshotStore("ledger/snapshots", KEY, keep=1, filesystem=remote)
    for offset in (1, 2):
        store.save(0, position(offset), ARRAYS, {})
    snapshot = store.load_newest(0)
    assert snapshot is not None
    assert snapshot.position == position(2)
    assert [file.offset for file in store.files(0)] == [2]
    store.drop()
    assert store.load_newest(0) is None


def test_arrays_larger_than_a_piece_are_whole_and_strided_ones_too(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path, KEY)
    large = np.random.default_rng(1).integers(0, 2**63, 3 * 2**20 + 1)
    store.save(0, position(1), {"large": large, "strided": large[::3]}, {})
    snapshot = store.load_newest(0)
    assert snapshot is not None
    assert np.array_equal(snapshot.arrays["large"], large)
    assert np.array_equal(snapshot.arrays["strided"], large[::3])


def test_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="objects"):
        SnapshotStore(tmp_path, KEY).save(0, position(1), {"bad": np.array([object()])}, {})
