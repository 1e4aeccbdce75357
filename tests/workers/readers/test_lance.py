import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mmbm_core.errors import UsageError
from workers.readers.base import UnitSize, UnreadableSource
from workers.readers.discover import discover

lance = pytest.importorskip("lance", reason="needs the extra 'lance'")
ROWS = [{"text": f"t{index}", "image": bytes([index]) * 100, "v": [float(index)] * 4} for index in range(100)]


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    path = str(tmp_path / "sub" / "data.lance")
    schema = pa.schema([("text", pa.large_string()), ("image", pa.binary()), ("v", pa.list_(pa.float32(), 4))])
    lance.write_dataset(pa.Table.from_pylist(ROWS, schema=schema), path, max_rows_per_file=30)
    return path


def read(location: str, size: UnitSize) -> tuple[list[dict[str, Any]], list[int], list[int]]:
    inputs = discover([location])
    rows, positions, units = [], [], []
    for storage, source in inputs.sources():
        schema = inputs.reader.schema(storage, source)
        for unit in inputs.reader.units(storage, source, size):
            units.append(unit.stop - unit.start)
            for chunk in inputs.reader.read(storage, unit, schema):
                rows += chunk.table.to_pylist()
                positions += chunk.positions
    return rows, positions, units


@pytest.mark.parametrize("rows", [1, 7, 30, 60, 1000])
def test_units_cover_every_row_once_and_in_order(dataset: str, rows: int) -> None:
    for location in (dataset, str(Path(dataset).parents[1])):
        found, positions, units = read(location, UnitSize(rows=rows, size_bytes=1 << 40))
        assert found == ROWS and positions == list(range(100))
        assert max(units) <= rows


def test_deleted_rows_are_gone_and_the_version_tells(dataset: str) -> None:
    before = discover([dataset])
    (_, old) = next(iter(before.sources()))
    lance.dataset(dataset).delete("text = 't50'")
    (storage, new) = next(iter(discover([dataset]).sources()))
    assert old.version != new.version
    assert len(read(dataset, UnitSize(rows=7, size_bytes=1 << 40))[0]) == 99
    unit = next(iter(before.reader.units(storage, old, UnitSize(rows=1000, size_bytes=1 << 40))))
    assert unit.rows == 100  # a run reads the version that it planned


def test_a_broken_dataset_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.lance" / "_versions").mkdir(parents=True)
    inputs = discover([str(tmp_path)])
    storage, source = next(iter(inputs.sources()))
    with pytest.raises(UnreadableSource):
        inputs.reader.schema(storage, source)


def test_a_missing_package_is_a_usage_error(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(UsageError, match=r'pip install "mmbm\[lance\]"'):
        list(discover([dataset]).sources())
