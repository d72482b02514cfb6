"""Records: they come back as they went in, any Arrow library reads them, and no change to a log goes unnoticed."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage.events import EVENT, RESULT, Kind
from storage.journal import Corrupt, Stored
from storage.record import (
    START,
    Chain,
    Opened,
    Position,
    Reader,
    Record,
    check_format,
    decode,
    decode_open,
    encode,
    encode_open,
)

KEY = b"secret" * 5
PARTITION = 3


def group(count: int, seed: int = 0) -> np.ndarray:
    """Stamped transfers as a shard makes them."""
    rng = np.random.default_rng(seed)
    rows = np.zeros(count, EVENT)
    for name in ("id_hi", "id_lo", "debit", "credit", "actor"):
        rows[name] = rng.integers(0, 2**63, count)
    rows["amount"] = rng.integers(1, 10**6, count)
    rows["at"] = 1_763_000_000_000_000_000 + np.arange(count)
    rows["kind"] = Kind.TRANSFER
    return rows


def sealed(
    rows: np.ndarray,
    results: np.ndarray | None = None,
    notes: Sequence[bytes | None] | None = None,
    *,
    sequence: int = 0,
    epoch: int = 0,
    chain: Chain | None = None,
) -> bytes:
    return encode(
        rows,
        np.zeros(len(rows), RESULT) if results is None else results,
        notes,
        partition=PARTITION,
        sequence=sequence,
        epoch=epoch,
        utc_offset_s=-10_800,
        chain=chain or Chain(KEY),
    )


def unsealed(payload: bytes) -> Record:
    return decode(Stored(7, 0, False, payload), PARTITION, 0, Chain(KEY))


@st.composite
def groups(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[bytes | None] | None]:
    """Any rows at all: every column of any value, many of them zero."""
    count = draw(st.integers(1, 12))
    rows, results = np.zeros(count, EVENT), np.zeros(count, RESULT)
    for array in (rows, results):
        for name in array.dtype.names or ():
            if name != "spare" and draw(st.booleans()):
                array[name] = draw(hnp.arrays(array.dtype[name], count))
    texts: st.SearchStrategy[list[bytes | None]] = st.lists(
        st.none() | st.binary(max_size=40), min_size=count, max_size=count
    )
    return rows, results, draw(st.none() | texts)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(groups())
def test_any_group_comes_back_as_it_went_in(
    content: tuple[np.ndarray, np.ndarray, list[bytes | None] | None],
) -> None:
    rows, results, notes = content
    record = unsealed(sealed(rows, results, notes))
    assert np.array_equal(record.rows, rows)
    assert np.array_equal(record.codes, results["code"])
    assert np.array_equal(record.details, results["detail"])
    assert record.notes == (notes if notes and any(note is not None for note in notes) else None)
    assert (record.offset, record.partition, record.sequence, record.epoch) == (7, PARTITION, 0, 0)
    assert record.utc_offset_s == -10_800


@pytest.mark.parametrize("count", [1, 2, 2047, 2048, 8190])
def test_groups_of_every_size_come_back_compressed_or_not(count: int) -> None:
    rows = group(count)
    notes: list[bytes | None] = [None] * count
    notes[-1] = b'{"description": "caf\xc3\xa9"}'
    record = unsealed(sealed(rows, notes=notes))
    assert np.array_equal(record.rows, rows)
    assert record.notes == notes
    assert record.rows.flags.writeable


def test_rows_taken_from_a_wider_array_are_encoded_as_they_read() -> None:
    rows = group(64)
    record = unsealed(sealed(rows[::2]))
    assert np.array_equal(record.rows, rows[::2])
    assert np.array_equal(unsealed(sealed(rows[::-1])).rows, rows[::-1])


def test_a_stock_arrow_reader_reads_it_and_columns_of_zeros_are_left_out() -> None:
    rows = group(100)
    with pa.ipc.open_stream(sealed(rows)) as stream:
        table = stream.read_all()
        metadata = stream.schema.metadata
    assert table.column_names == ["id_hi", "id_lo", "debit", "credit", "amount", "actor", "kind"]
    assert table["amount"].to_pylist() == rows["amount"].tolist()
    assert metadata[b"partition"] == b"3"
    assert metadata[b"sequence"] == b"0"
    assert metadata[b"epoch"] == b"0"
    assert metadata[b"at"] == str(rows["at"][0]).encode()
    assert metadata[b"chain"].startswith(b"razao/2:")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(groups(), st.integers(0, 10**18), st.integers(0, 10**18))
def test_a_record_made_from_a_template_is_what_arrow_writes(
    content: tuple[np.ndarray, np.ndarray, list[bytes | None] | None], sequence: int, epoch: int
) -> None:
    rows, results, _ = content
    payload = sealed(rows, results, sequence=sequence, epoch=epoch)
    with pa.ipc.open_stream(payload) as stream:
        schema, batch = stream.schema, stream.read_next_batch()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(batch)
    assert sink.getvalue().to_pybytes() == payload
    assert schema.metadata[b"sequence"] == str(sequence).encode()
    assert schema.metadata[b"at"] == str(rows["at"][0]).encode()


def test_times_with_holes_are_kept_as_gaps() -> None:
    rows = group(10)
    rows["at"][5:] += 3
    payload = sealed(rows)
    with pa.ipc.open_stream(payload) as stream:
        assert stream.read_all()["at_gap"].to_pylist() == [0] * 5 + [3] * 5
    assert np.array_equal(unsealed(payload).rows, rows)


def test_a_group_without_rows_or_with_unequal_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="rows"):
        sealed(group(0))
    with pytest.raises(ValueError, match="each"):
        sealed(group(2), np.zeros(1, RESULT))
    with pytest.raises(ValueError, match="each"):
        sealed(group(2), notes=[b"one"])


@pytest.mark.parametrize("key", [b"", b"k" * 65])
def test_a_chain_needs_a_key(key: bytes) -> None:
    with pytest.raises(ValueError, match="key"):
        Chain(key)


def test_an_open_record_tells_who_wrote_it() -> None:
    writer = {"name": "shard-003", "host": "a", "pid": 17, "note": "line\nbreak"}
    payload = encode_open(PARTITION, writer, rules=3, capacity={"ids": 7})
    opened = decode_open(Stored(9, 9, True, payload), PARTITION)
    assert opened == Opened(9, PARTITION, writer, rules=3, capacity={"ids": 7})


class Log:
    """A partition in a list: what a journal's `read` would give."""

    def __init__(self, stored: list[Stored]) -> None:
        self.stored = stored

    async def read(self, _: int, offset: int, until: int | None = None) -> AsyncIterator[Stored]:
        for stored in self.stored[offset:until]:
            yield stored


def history() -> list[Stored]:
    """Three writers, each with some records, late ones of a predecessor among them."""
    chain = Chain(KEY)
    log: list[Stored] = []
    sequence = 0
    for life in range(3):
        epoch = len(log)
        payload = encode_open(PARTITION, {"name": f"writer-{life}"})
        log.append(Stored(epoch, epoch, True, payload))
        chain.absorb_open(epoch, payload)
        for turn in range(3):
            if life and turn == 1:
                # Late: sealed with a state that nobody else continues.
                late = sealed(group(2), epoch=0, chain=Chain(KEY, chain.state))
                log.append(Stored(len(log), 0, False, late))
            rows = group(3, seed=10 * life + turn)
            log.append(Stored(len(log), epoch, False, sealed(rows, sequence=sequence, epoch=epoch, chain=chain)))
            sequence += 1
    return log


HISTORY = history()
LAST_VALID = len(HISTORY) - 1
VOID = {6, 11}


def read(log: Sequence[Stored], position: Position = START) -> tuple[list[Record], Reader]:
    reader = Reader(None, PARTITION, KEY, position)  # type: ignore[arg-type]
    return [record for record in map(reader.take, log) if record is not None], reader


def renumbered(log: Sequence[Stored]) -> list[Stored]:
    """The same records at dense offsets, as somebody who edits a log would leave them; epochs follow their opens."""
    places = {stored.offset: place for place, stored in enumerate(log) if stored.is_open}
    return [
        Stored(place, places.get(stored.epoch, stored.epoch), stored.is_open, stored.payload)
        for place, stored in enumerate(log)
    ]


async def test_the_reader_gives_the_valid_records_and_skips_the_void() -> None:
    reader = Reader(Log(HISTORY), PARTITION, KEY)  # type: ignore[arg-type]
    records = [record async for record in reader.records()]
    assert [record.sequence for record in records] == list(range(9))
    assert reader.void == 2
    assert reader.position.offset == len(HISTORY)


@pytest.mark.parametrize("stop", range(len(HISTORY) + 1))
def test_reading_in_two_parts_is_reading_in_one(stop: int) -> None:
    whole, reader = read(HISTORY)
    head, first = read(HISTORY[:stop])
    tail, second = read(HISTORY[stop:], first.position)
    assert [record.sequence for record in head + tail] == [record.sequence for record in whole]
    assert second.position == reader.position


@settings(max_examples=400, deadline=None, derandomize=True)
@given(which=st.integers(0, LAST_VALID), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_record_that_counts_is_detected_there_or_by_the_next(
    which: int, where: float, bit: int
) -> None:
    victim = HISTORY[which]
    payload = bytearray(victim.payload)
    payload[int(where * len(payload))] ^= 1 << bit
    log = [*HISTORY]
    log[which] = Stored(victim.offset, victim.epoch, victim.is_open, bytes(payload))
    if which in VOID:
        assert len(read(log)[0]) == 9, "a void record's content is nobody's concern"
        return
    with pytest.raises(Corrupt) as raised:
        read(log)
    assert (raised.value.partition, raised.value.offset) == (PARTITION, which)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(which=st.sampled_from([0, 1, 3, 4, LAST_VALID]), where=st.floats(0, 1, exclude_max=True))
def test_a_truncated_record_is_detected(which: int, where: float) -> None:
    victim = HISTORY[which]
    log = [*HISTORY]
    shorter = victim.payload[: int(where * len(victim.payload))]
    log[which] = Stored(victim.offset, victim.epoch, victim.is_open, shorter)
    with pytest.raises(Corrupt) as raised:
        read(log)
    assert raised.value.offset == which


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_log_with_records_removed_doubled_or_swapped_and_renumbered_is_detected(data: st.DataObject) -> None:
    counts = [place for place in range(LAST_VALID) if place not in VOID]
    which = data.draw(st.sampled_from(counts))
    log = [*HISTORY]
    deed = data.draw(st.sampled_from(["removed", "doubled", "swapped"]))
    if deed == "removed":
        del log[which]
    elif deed == "doubled":
        log.insert(which, log[which])
    else:
        other = data.draw(st.sampled_from([place for place in counts if place != which]))
        log[which], log[other] = log[other], log[which]
    with pytest.raises(Corrupt):
        read(renumbered(log))


def test_a_gap_is_detected_at_its_place() -> None:
    with pytest.raises(Corrupt, match="missing") as raised:
        read([*HISTORY[:4], *HISTORY[5:]])
    assert raised.value.offset == 4


def test_a_valid_record_relabelled_as_void_is_missed_by_the_next() -> None:
    log = [*HISTORY]
    log[5] = Stored(5, 0, False, log[5].payload)
    with pytest.raises(Corrupt, match="chain") as raised:
        read(log)
    assert raised.value.offset == 7


@pytest.mark.parametrize("epoch", [1, 99])
def test_a_record_whose_writer_never_took_over_is_not_just_skipped(epoch: int) -> None:
    log = [*HISTORY]
    log[2] = Stored(2, epoch, False, log[2].payload)
    with pytest.raises(Corrupt, match="open record") as raised:
        read(log)
    assert raised.value.offset == 2


def test_a_void_record_relabelled_as_valid_is_refused() -> None:
    log = [*HISTORY]
    void = min(VOID)
    log[void] = Stored(void, read(HISTORY[:void])[1].position.epoch, False, log[void].payload)
    with pytest.raises(Corrupt, match="epoch"):
        read(log)


@pytest.mark.parametrize("version", [1, 3])
def test_another_format_is_named_and_not_guessed_at(version: int) -> None:
    log = [*HISTORY]
    log[1] = Stored(1, 0, False, log[1].payload.replace(b"razao/2:", b"razao/%d:" % version))
    with pytest.raises(Corrupt, match=f"format version {version}, this program reads 2") as raised:
        read(log)
    assert raised.value.offset == 1


def test_the_open_record_of_another_format_is_named_too() -> None:
    text = b'{"razao":1,"partition":3,"writer":{}}'
    check = hashlib.blake2b(text, digest_size=16).hexdigest().encode()
    with pytest.raises(Corrupt, match="format version 1, this program reads 2"):
        decode_open(Stored(0, 0, True, text + b"\n" + check), PARTITION)


def test_the_format_of_any_record_can_be_looked_at_alone() -> None:
    for stored in HISTORY:
        check_format(stored, PARTITION)
    data, opened = HISTORY[1], HISTORY[0]
    for other in (
        Stored(1, 0, False, data.payload.replace(b"razao/2:", b"razao/1:")),
        Stored(0, 0, True, opened.payload.replace(b'"razao":2', b'"razao":1')),
    ):
        with pytest.raises(Corrupt, match="format version 1, this program reads 2"):
            check_format(other, PARTITION)
    for damaged in (b"", b"x", b"[1]\nx"):
        check_format(Stored(0, 0, True, damaged), PARTITION)


def test_a_record_of_another_partition_or_of_another_sequence_is_refused() -> None:
    stored = Stored(7, 0, False, sealed(group(1)))
    with pytest.raises(Corrupt, match="partition 3"):
        decode(stored, 4, 0, Chain(KEY))
    with pytest.raises(Corrupt, match="sequence 0 where 5"):
        decode(stored, PARTITION, 5, Chain(KEY))
    with pytest.raises(Corrupt, match="partition 3"):
        decode_open(Stored(0, 0, True, encode_open(PARTITION, {})), 4)


def test_a_refused_record_leaves_the_reader_where_it_was() -> None:
    _, reader = read(HISTORY[:2])
    before = reader.position
    with pytest.raises(Corrupt):
        reader.take(Stored(2, 0, False, b"damaged"))
    assert reader.position == before
    assert reader.take(HISTORY[2]) is not None
