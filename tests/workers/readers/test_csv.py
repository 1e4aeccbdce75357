import csv
import gzip
import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from workers.readers import cursor
from workers.readers.base import UnitSize, UnreadableSource
from workers.readers.csv import CsvReader

READER = CsvReader()
ROWS = [
    {
        "text": f'say "{index}",\n then\r\n more' if index % 3 else f"plain ü {index}",
        "n": index,
        "x": index / 2,
        "ok": index % 2 == 0,
        "none": None,
    }
    for index in range(200)
]


def content(rows: list[dict[str, Any]], **options: Any) -> bytes:
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, rows[0].keys(), **options)
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_units_cover_every_row_once_and_in_order(
    reading: Callable[..., Any],
    sizes: list[UnitSize],
    end: str,
    delimiter: str,
    mark: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cursor, "LOCAL_BLOCK_BYTES", 100)
    data = mark + content(ROWS, lineterminator=end, delimiter=delimiter)
    file = reading(READER, "a.csv", data)
    assert file.schema().types == [pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.string()]
    for size in sizes:
        found = file.all(size)
        assert found.rows == ROWS
        assert not found.bad
        assert all(data[position - 1 : position] == b"\n" for position in found.positions)
    assert max(unit.rows for unit in file.units(sizes[1])) == 7


def test_a_row_of_another_width_costs_itself_alone(reading: Callable[..., Any], sizes: list[UnitSize]) -> None:
    file = reading(READER, "a.csv", b"a,b\n1,x\n2\n3,y,z\n4,w\n")
    for size in sizes:
        found = file.all(size)
        assert found.column("a") == [1, 4]
        assert [row.position for row in found.bad] == [8, 10]


def test_a_quote_that_is_never_closed_costs_its_line_alone(reading: Callable[..., Any], sizes: list[UnitSize]) -> None:
    lines = ["a,b", *(f'{index},"quoted {index}"' for index in range(20))]
    lines[11] = '10,"open'
    for size in sizes:
        found = reading(READER, "a.csv", "\n".join(lines).encode()).all(size)
        assert found.column("a") == [index for index in range(20) if index != 10]
        assert len(found.bad) == 1


def test_types(reading: Callable[..., Any]) -> None:
    data = b"code,big,mixed,flag,list\n007,99999999999999999999,1,TRUE,[1]\n010,1,1.5,false,\n"
    assert reading(READER, "a.csv", data).all().rows == [
        {"code": "007", "big": 99999999999999999999.0, "mixed": 1.0, "flag": True, "list": "[1]"},
        {"code": "010", "big": 1.0, "mixed": 1.5, "flag": False, "list": None},
    ]


def test_a_value_of_another_type_costs_its_row_alone(reading: Callable[..., Any]) -> None:
    found = reading(READER, "a.csv", b"a,b\n1,x\nn/a,x\n3,\xff\n4,y\n").all(
        schema=pa.schema([("a", pa.int64()), ("b", pa.string())])
    )
    assert found.column("a") == [1, 4]
    assert "'a'" in found.bad[0].error and "Unicode" in found.bad[1].error


def test_one_column(reading: Callable[..., Any]) -> None:
    assert reading(READER, "a.csv", b"text\nhello\n\nworld\n").all().column("text") == ["hello", "world"]


@pytest.mark.parametrize("data", ["a,b\n1,2\n".encode("utf-16"), b"a,a\n1,2\n", b"\xff\xfe\xff,b\n1,2\n"])
def test_an_unusable_header_is_unreadable(reading: Callable[..., Any], data: bytes) -> None:
    with pytest.raises(UnreadableSource):
        reading(READER, "a.csv", data).units()


@pytest.mark.parametrize("data", [b"", b"a,b\n", b"a,b"])
def test_no_rows(reading: Callable[..., Any], data: bytes) -> None:
    file = reading(READER, "a.csv", data)
    assert file.all().rows == []
    assert file.units() == []


def test_gzip(reading: Callable[..., Any]) -> None:
    assert reading(READER, "a.csv.gz", gzip.compress(content(ROWS))).all().rows == ROWS


def test_stray_quotes_inside_a_line_are_kept(reading: Callable[..., Any]) -> None:
    found = reading(READER, "a.csv", b'a,b\n5" disk,x\n"abc"def,y\n"p ""q""",z\n').all()
    assert found.column("a") == ['5" disk', "abcdef", 'p "q"']


def test_an_open_quote_in_the_last_line_is_a_bad_row(reading: Callable[..., Any]) -> None:
    found = reading(READER, "a.csv", b'a,b\n1,x\n2,"open').all()
    assert found.column("a") == [1] and "not closed" in found.bad[0].error
