import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workers.readers import parquet
from workers.readers.base import UnitSize, UnreadableSource
from workers.readers.parquet import ParquetReader
from workers.readers.tabular import merge_schemas

READER = ParquetReader()
TABLE = pa.table(
    {
        "id": [f"r{index}" for index in range(300)],
        "image": pa.array([{"bytes": bytes([index % 256]) * index, "path": None} for index in range(300)]),
        "n": pa.array(range(300), pa.int32()),
    }
)


def content(table: pa.Table = TABLE, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


@pytest.mark.parametrize("group_rows", [1, 13, 100, 300])
def test_units_cover_every_row_once_and_in_order(
    reading: Callable[..., Any], sizes: list[UnitSize], group_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_BATCH_ROWS", 11)
    file = reading(READER, "a.parquet", content(row_group_size=group_rows))
    for size in sizes:
        found = file.all(size)
        assert found.rows == TABLE.to_pylist()
        assert found.positions == list(range(300))


def test_units_keep_to_the_size_asked(reading: Callable[..., Any]) -> None:
    file = reading(READER, "a.parquet", content(row_group_size=13))
    assert all(unit.rows <= 26 for unit in file.units(UnitSize(rows=26, size_bytes=1 << 40)))
    assert len(file.units(UnitSize(rows=26, size_bytes=1 << 40))) == 12


def test_a_damaged_row_group_costs_itself_alone(reading: Callable[..., Any]) -> None:
    data = bytearray(content(row_group_size=100, compression="snappy", write_page_checksum=True))
    column = pq.ParquetFile(io.BytesIO(bytes(data))).metadata.row_group(1).column(0)
    data[column.data_page_offset + 40] ^= 0xFF
    found = reading(READER, "a.parquet", bytes(data)).all()
    assert found.positions == [*range(100), *range(200, 300)]
    assert [row.position for row in found.bad] == [100]
    assert "100 rows" in found.bad[0].error


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1", content()[:-10], b"text"])
def test_a_file_without_a_footer_is_unreadable(reading: Callable[..., Any], data: bytes) -> None:
    file = reading(READER, "a.parquet", data)
    for use in (file.schema, file.units):
        with pytest.raises(UnreadableSource):
            use()


def test_columns_are_cast_to_the_schema_of_the_run(reading: Callable[..., Any]) -> None:
    table = pa.table(
        {
            "a": pa.array([1, 2], pa.int8()),
            "b": pa.array(["x", "y"], pa.large_string()),
            "c": pa.array(["u", "v"]).dictionary_encode(),
            "d": pa.array([[1], [2, 3]]),
            "e": pa.array([{"k": 1}, {"k": 2}]),
        }
    )
    other = pa.schema(
        [
            ("a", pa.float32()),
            ("c", pa.string()),
            ("d", pa.string()),
            ("e", pa.struct([("l", pa.string())])),
            ("f", pa.null()),
        ]
    )
    file = reading(READER, "a.parquet", content(table))
    schema = merge_schemas([file.schema(), other])
    assert file.all(schema=schema).rows == [
        {"a": 1.0, "b": "x", "c": "u", "d": "[1]", "e": {"k": 1, "l": None}, "f": None},
        {"a": 2.0, "b": "y", "c": "v", "d": "[2, 3]", "e": {"k": 2, "l": None}, "f": None},
    ]


def test_a_value_that_can_not_be_cast_costs_its_row_alone(reading: Callable[..., Any]) -> None:
    file = reading(READER, "a.parquet", content(pa.table({"a": ["1", "2", "three"]})))
    found = file.all(schema=pa.schema([("a", pa.int64())]))
    assert found.column("a") == [1, 2]
    assert [row.position for row in found.bad] == [2]
    bad_text = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff"))
    found = reading(READER, "b.parquet", content(pa.table({"a": bad_text}))).all()
    assert found.column("a") == ["a"] and "Unicode" in found.bad[0].error


def test_no_wanted_column_still_counts_the_rows(reading: Callable[..., Any]) -> None:
    found = reading(READER, "a.parquet", content()).all(schema=pa.schema([("other", pa.string())]))
    assert found.rows == [{"other": None}] * 300


def test_two_columns_of_one_name_are_unreadable(reading: Callable[..., Any]) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(UnreadableSource, match="'a'"):
        reading(READER, "a.parquet", content(table)).schema()


def test_real_data(reading: Callable[..., Any]) -> None:
    path = Path("../shared/data/cifar10-mini/val-00000.parquet").resolve()
    if not path.exists():
        pytest.skip("needs ../shared/data")
    found = reading(READER, str(path)).all(UnitSize(rows=64, size_bytes=1 << 20))
    assert len(found.rows) == 1000 and all(row["image"].startswith(b"\xff\xd8") for row in found.rows)


def test_a_value_that_the_file_holds_once_does_not_fill_the_memory(reading: Callable[..., Any]) -> None:
    table = pa.table({"text": pa.array(["x" * (1 << 20)] * 2000).dictionary_encode()})
    file = reading(READER, "a.parquet", content(table))
    assert Path(file.source.path).stat().st_size < 1 << 20
    chunks = READER.read(file.storage, file.units()[0], file.schema())
    assert next(iter(chunks)).table.nbytes < 300 << 20
