"""The page for strangers says what the code says: columns, kinds and codes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa

from storage.events import EVENT, FIRST_STATELESS, RESULT, Code, Kind
from storage.record import Chain, encode

PAGE = (Path(__file__).parents[2] / "docs" / "journal.md").read_text()


def _section(title: str) -> str:
    return PAGE.split(f"# {title}\n", 1)[1].split("\n#", 1)[0]


def test_every_kind_is_on_the_page_with_its_number() -> None:
    said = {int(number): name for number, name in re.findall(r"(\d+) ([a-z]+(?: [a-z]+)?)", _section("Kinds"))}
    assert said == {kind.value: kind.name.lower().replace("_", " ") for kind in Kind}


def test_every_code_that_a_record_has_is_on_the_page_with_its_number() -> None:
    said = {int(number): name for number, name in re.findall(r"(\d+)\s([a-z]+(?:-[a-z]+)*)[:,.]", _section("Codes"))}
    assert said == {code.value: code.name.lower().replace("_", "-") for code in Code if code < FIRST_STATELESS}


def test_every_column_and_every_key_of_the_metadata_is_on_the_page_with_its_type() -> None:
    rows, results = np.zeros(2, EVENT), np.zeros(2, RESULT)
    for array in (rows, results):
        for name in array.dtype.names or ():
            array[name] = 1
    rows["at"] = [1, 3]
    content = encode(rows, results, [b"", None], partition=0, sequence=0, epoch=0, utc_offset_s=0, chain=Chain(b"key"))
    schema = pa.ipc.open_stream(content).schema
    listed = dict(re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| `?(\w+)", _section("A data record"), re.MULTILINE))
    columns = {name: kind for names, kind in listed.items() for name in re.findall(r"\w+", names)}
    wanted = {field.name: str(field.type) for field in schema}
    assert {name: columns[name] for name in wanted} == wanted
    keys = {key.decode() for key in schema.metadata}
    assert set(columns) == set(wanted) | keys
