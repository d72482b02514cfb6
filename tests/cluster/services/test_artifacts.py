"""Pinned files: nothing is used whose content was not pinned, and nothing half-written stands in the cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cluster.services.artifacts import ArtifactError, Pin, cache_directory, fetch, read_lock

# A small file that the broker's lock names too.
SMALL = "org.jspecify:jspecify:1.0.0"


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def small() -> str:
    """The line that pins the small file, taken from the broker's lock."""
    lock = Path(__file__).parents[3] / "cluster" / "services" / "kafka.lock"
    return next(line for line in lock.read_text().splitlines() if line.startswith(SMALL))


def _lock(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "test.lock"
    path.write_text("# a comment\n\n" + "\n".join(lines) + "\n")
    return path


def test_a_file_is_downloaded_once_and_afterwards_needs_no_network(
    tmp_path: Path, small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    lock = _lock(tmp_path, small)
    (path,) = fetch(lock, progress=said.append)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == read_lock(lock)[0].sha256
    assert said == [f"downloaded 1 of 1 (0 MB): {SMALL}"]
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert fetch(lock, progress=said.append) == [path]
    assert len(said) == 1


def test_a_file_that_is_not_the_pinned_one_is_refused_and_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not the file that was pinned"):
        fetch(_lock(tmp_path, f"{SMALL} sha256:{'0' * 64}"))
    assert not [path for path in cache_directory().rglob("*") if path.is_file() and path.suffix == ".jar"]


def test_a_file_damaged_in_the_cache_is_fetched_again(tmp_path: Path, small: str) -> None:
    lock = _lock(tmp_path, small)
    (path,) = fetch(lock)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert fetch(lock) == [path]
    assert path.read_bytes() == whole


def test_what_the_repository_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot download org\.jspecify:jspecify:0\.0\.404"):
        fetch(_lock(tmp_path, f"org.jspecify:jspecify:0.0.404 sha256:{'0' * 64}"))


@pytest.mark.parametrize("line", ["a:b:1", "a:b:1 sha256:12", "a:b sha256:" + "0" * 64])
def test_a_line_that_pins_nothing_is_refused(line: str) -> None:
    with pytest.raises(ArtifactError, match="not a pinned artifact"):
        Pin.parse(line)


def test_every_lock_beside_the_servers_pins_every_file_it_names() -> None:
    locks = sorted((Path(__file__).parents[3] / "cluster" / "services").glob("*.lock"))
    assert [lock.name for lock in locks] == ["kafka.lock", "keycloak.lock"]
    assert all(read_lock(lock) for lock in locks)
