from typing import Any

import pyarrow as pa
import pytest

from workers.readers.tabular import conform, infer_schema, merge_schemas, rows_to_chunk

MEDIA = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    ("left", "right", "merged"),
    [
        (pa.null(), pa.int64(), pa.int64()),
        (pa.int8(), pa.int32(), pa.int32()),
        (pa.uint8(), pa.int8(), pa.int16()),
        (pa.uint64(), pa.int8(), pa.int64()),
        (pa.int64(), pa.float32(), pa.float64()),
        (pa.float16(), pa.float32(), pa.float32()),
        (pa.int64(), pa.string(), pa.string()),
        (pa.bool_(), pa.int64(), pa.string()),
        (pa.null(), pa.null(), pa.string()),
        (pa.large_string(), pa.string(), pa.string()),
        (pa.large_binary(), pa.binary(), pa.binary()),
        (pa.dictionary(pa.int8(), pa.string()), pa.null(), pa.string()),
        (pa.list_(pa.null()), pa.large_list(pa.int8()), pa.list_(pa.int8())),
        (pa.list_(pa.null()), pa.null(), pa.list_(pa.string())),
        (pa.list_(pa.float32(), 4), pa.list_(pa.float32(), 4), pa.list_(pa.float32(), 4)),
        (
            pa.struct([("a", pa.null())]),
            pa.struct([("b", pa.int8())]),
            pa.struct([("a", pa.string()), ("b", pa.int8())]),
        ),
        (MEDIA, MEDIA, MEDIA),
        (pa.binary(), MEDIA, MEDIA),
        (pa.timestamp("us"), pa.timestamp("us"), pa.timestamp("us")),
    ],
)
def test_merged_types(left: pa.DataType, right: pa.DataType, merged: pa.DataType) -> None:
    for first, second in ((left, right), (right, left)):
        schema = merge_schemas([pa.schema([("c", first)]), pa.schema([("c", second), ("d", pa.int8())])])
        expected = pa.struct(sorted([(f.name, f.type) for f in merged])) if pa.types.is_struct(merged) else merged
        found = schema.field("c").type
        assert (
            pa.struct(sorted([(f.name, f.type) for f in found])) if pa.types.is_struct(found) else found
        ) == expected
        assert schema.names == ["c", "d"]


def test_inferred_types() -> None:
    rows: list[dict[str, Any]] = [
        {"i": 1, "f": 1, "s": "x", "b": b"x", "l": [], "d": {"a": 1}, "n": None, "e": {}, "huge": 1 << 70},
        {"i": None, "f": 0.5, "l": [1, 2.5], "d": {"b": [None]}, "late": True},
    ]
    types = {field.name: field.type for field in infer_schema(rows)}
    assert types["i"] == pa.int64() and types["f"] == pa.float64() and types["b"] == pa.binary()
    assert types["l"] == pa.list_(pa.float64()) and types["n"] == pa.null() and types["late"] == pa.bool_()
    assert types["e"] == pa.null() and types["huge"] == pa.string()
    assert types["d"] == pa.struct([("a", pa.int64()), ("b", pa.list_(pa.null()))])


def test_an_object_with_very_many_keys_is_text() -> None:
    assert infer_schema([{"d": {str(key): 1 for key in range(1000)}}]).field("d").type == pa.string()


def test_deep_nesting_is_text() -> None:
    value: object = 1
    for _ in range(500):
        value = [value]
    rows: list[dict[str, Any]] = [{"d": value}]
    schema = merge_schemas([infer_schema(rows)])
    assert rows_to_chunk(rows, [0], schema).table.num_rows == 1


def test_values_that_do_not_fit_cost_their_rows_alone() -> None:
    schema = pa.schema([("f", pa.float64()), ("l", pa.list_(pa.string())), ("d", pa.struct([("a", pa.int64())]))])
    rows: list[dict[str, Any]] = [
        {"f": (1 << 60) + 1, "l": ["x", 1], "d": {"a": 1, "other": 2}},
        {"f": "x"},
        {"l": "abc"},
        {"d": [1]},
        {"d": {"a": "x"}},
        {"f": None, "other": 1},
    ]
    chunk = rows_to_chunk(rows, [10, 11, 12, 13, 14, 15], schema)
    assert chunk.positions == [10, 15]
    assert chunk.table.to_pylist() == [
        {"f": float((1 << 60) + 1), "l": ["x", "1"], "d": {"a": 1}},
        {"f": None, "l": None, "d": None},
    ]
    assert [bad.position for bad in chunk.bad] == [11, 12, 13, 14]
    assert "column 'd'" in chunk.bad[2].error and "struct<a: int64>" in chunk.bad[2].error


def test_rows_without_columns_are_still_counted() -> None:
    assert rows_to_chunk([{}, {}], [0, 1], pa.schema([])).table.num_rows == 2


def test_bytes_become_media_structs_and_stay_bytes() -> None:
    chunk = conform(pa.table({"image": [b"a", None]}), [0, 1], pa.schema([("image", MEDIA)]))
    assert chunk.table.column("image").to_pylist() == [{"bytes": b"a", "path": None}, None]
    same = conform(pa.table({"image": [b"a"]}), [0], pa.schema([("image", pa.binary())]))
    assert same.table.column("image").to_pylist() == [b"a"]


def test_anything_can_be_text() -> None:
    table = pa.table(
        {"v": pa.array([[1], None]), "t": pa.array([0, 1], pa.date32()), "m": pa.array([{"a": 1.5}, None])}
    )
    schema = pa.schema([("v", pa.string()), ("t", pa.string()), ("m", pa.string())])
    assert conform(table, [0, 1], schema).table.to_pylist() == [
        {"v": "[1]", "t": "1970-01-01", "m": '{"a": 1.5}'},
        {"v": None, "t": "1970-01-02", "m": None},
    ]
