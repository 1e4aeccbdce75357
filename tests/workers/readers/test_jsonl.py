import gzip
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from workers.readers import cursor
from workers.readers.base import UnitSize, UnreadableSource
from workers.readers.jsonl import JsonlReader

READER = JsonlReader()
ROWS = [
    {"text": f"line {index} " + "ü" * (index % 40), "n": index, "tags": ["a"] * (index % 3)} for index in range(300)
]


def content(rows: list[dict[str, Any]], end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n  \n"])
def test_units_cover_every_row_once_and_in_order(
    reading: Callable[..., Any], sizes: list[UnitSize], end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cursor, "LOCAL_BLOCK_BYTES", 100)  # lines lie across blocks
    data = content(ROWS, end)
    file = reading(READER, "a.jsonl", data)
    for size in sizes:
        found = file.all(size)
        assert found.rows == ROWS
        assert not found.bad
        for position, row in zip(found.positions, ROWS, strict=True):
            assert json.loads(data[position:].split(b"\n")[0]) == row


def test_row_ranges_are_about_as_asked(reading: Callable[..., Any]) -> None:
    units = reading(READER, "a.jsonl", content(ROWS)).units(UnitSize(rows=50, size_bytes=1 << 30))
    assert 5 <= len(units) <= 8


def test_bad_lines_cost_themselves_alone(reading: Callable[..., Any], sizes: list[UnitSize]) -> None:
    lines = [
        b'{"text": "a"}',
        b"{",
        b"[1]",
        b'{"text": "\xff"}',
        b"null",
        b'{"text": "b"}',
        b'{"n": ' + b"9" * 5000 + b"}",
    ]
    lines += [b"[" * 5000, b'{"text": "\\ud800"}', b'{"text": "c"}']
    file = reading(READER, "a.jsonl", b"\n".join(lines))
    for size in sizes:
        found = file.all(size)
        assert found.column("text") == ["a", "b", "c"]
        assert len(found.bad) == 7
        starts = [sum(len(line) + 1 for line in lines[:index]) for index in range(len(lines))]
        assert sorted([*found.positions, *(row.position for row in found.bad)]) == starts


def test_a_value_of_another_type_names_column_types_and_way_out(reading: Callable[..., Any]) -> None:
    file = reading(READER, "a.jsonl", content([{"n": 1}, {"n": "two"}, {"n": 3}]))
    found = file.all(schema=pa.schema([("n", pa.int64())]))
    assert found.column("n") == [1, 3]
    assert "'n'" in found.bad[0].error and "a string" in found.bad[0].error and "int64" in found.bad[0].error
    assert "--set" in found.bad[0].error and "two" not in found.bad[0].error


def test_mixed_columns_become_text(reading: Callable[..., Any]) -> None:
    found = reading(READER, "a.jsonl", content([{"v": 1}, {"v": "x"}, {"v": {"a": [1]}}, {"v": None}])).all()
    assert found.column("v") == ["1", "x", '{"a": [1]}', None]


def test_columns_that_come_late_are_seen(reading: Callable[..., Any]) -> None:
    rows = [{"text": "x" * 1000, **({"late": 1} if index > 5000 else {})} for index in range(8000)]
    assert reading(READER, "a.jsonl", content(rows)).schema().names == ["text", "late"]


def test_a_line_over_the_limit_is_a_bad_row(reading: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cursor, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(cursor, "LOCAL_BLOCK_BYTES", 100)
    data = content([{"text": "a"}, {"text": "x" * 5000}, {"text": "b"}])
    for size in (UnitSize(rows=1 << 40, size_bytes=200), UnitSize(rows=1 << 40, size_bytes=1 << 40)):
        found = reading(READER, "a.jsonl", data).all(size, schema=pa.schema([("text", pa.string())]))
        assert found.column("text") == ["a", "b"]
        assert [row.position for row in found.bad] == [14]


def test_byte_order_mark_and_missing_last_line_end(reading: Callable[..., Any]) -> None:
    assert reading(READER, "a.jsonl", b'\xef\xbb\xbf{"a": 1}\n{"a": 2}').all().column("a") == [1, 2]


def test_an_empty_file_has_no_rows(reading: Callable[..., Any]) -> None:
    file = reading(READER, "a.jsonl", b"")
    assert file.units() == [] and len(file.schema()) == 0


def test_gzip_is_one_unit_and_a_cut_one_keeps_what_came_before(reading: Callable[..., Any]) -> None:
    packed = gzip.compress(content(ROWS * 50))
    file = reading(READER, "a.jsonl.gz", packed)
    assert len(file.units(UnitSize(rows=10, size_bytes=100))) == 1
    assert file.all().rows == ROWS * 50
    found = reading(READER, "b.jsonl.gz", packed[: len(packed) // 2]).all()
    assert found.rows and found.rows == (ROWS * 50)[: len(found.rows)]
    assert len(found.bad) == 1


def test_a_bomb_is_not_inflated_to_its_end(reading: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cursor, "_INFLATED_BYTES", 1 << 20)
    file = reading(READER, "a.jsonl.gz", gzip.compress(b'{"a": 1}\n' + b" " * (20 << 20)))
    assert "inflates to over" in file.all().bad[0].error


def test_a_file_that_is_gone_is_unreadable(reading: Callable[..., Any], tmp_path: Any) -> None:
    file = reading(READER, "a.jsonl", b'{"a": 1}\n')
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(UnreadableSource):
        file.units()
