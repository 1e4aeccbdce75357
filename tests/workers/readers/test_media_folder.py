import os
from pathlib import Path

import pytest

from workers.readers.base import BadRow, UnitSize
from workers.readers.discover import discover


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for index in range(25):
        for folder in ("", "cat/", "dog/small/"):
            path = tmp_path / "photos" / f"{folder}{index:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\xff\xd8\xff" + bytes(index))
    (tmp_path / "photos" / "notes.md").write_text("not a photo")
    (tmp_path / "photos" / ".hidden.jpg").write_bytes(b"\xff\xd8\xff")
    return tmp_path / "photos"


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_units_cover_every_file_once(photos: Path, rows: int) -> None:
    inputs = discover([str(photos)])
    assert inputs.format == "image_folder"
    found = []
    for storage, source in inputs.sources():
        schema = inputs.reader.schema(storage, source)
        for unit in inputs.reader.units(storage, source, UnitSize(rows=rows, size_bytes=1 << 40)):
            assert len(unit.source.members) == unit.rows == unit.stop - unit.start <= rows
            for chunk in inputs.reader.read(storage, unit, schema):
                assert chunk.positions == list(range(unit.start, unit.stop))
                found += chunk.table.to_pylist()
    assert [(row["id"], row["label"]) for row in found] == [
        (f"{folder}{index:02d}.jpg", label)
        for folder, label in (("", None), ("cat/", "cat"), ("dog/small/", "small"))
        for index in range(25)
    ]
    assert all(row["image"] == (photos / row["id"]).read_bytes() for row in found)
    assert inputs.ignored == 1


def test_a_file_that_can_not_be_read_costs_itself_alone(photos: Path) -> None:
    os.symlink("/nowhere.jpg", photos / "07x.jpg")
    inputs = discover([str(photos / "*.jpg")])
    storage, source = next(iter(inputs.sources()))
    unit = next(iter(inputs.reader.units(storage, source, UnitSize(rows=100, size_bytes=1 << 40))))
    chunk = next(iter(inputs.reader.read(storage, unit, inputs.reader.schema(storage, source))))
    assert chunk.table.num_rows == 25
    assert [type(bad) for bad in chunk.bad] == [BadRow] and "07x.jpg" in chunk.bad[0].error


def test_a_changed_file_changes_the_version_of_its_unit_alone(photos: Path) -> None:
    def versions() -> list[str]:
        inputs = discover([str(photos / "cat")])
        storage, source = next(iter(inputs.sources()))
        units = inputs.reader.units(storage, source, UnitSize(rows=5, size_bytes=1 << 40))
        return [unit.source.version for unit in units]

    before = versions()
    (photos / "cat" / "12.jpg").write_bytes(b"\xff\xd8\xff changed")
    assert [old == new for old, new in zip(before, versions(), strict=True)] == [True, True, False, True, True]


def test_sounds(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF\0\0\0\0WAVE")
    inputs = discover([str(tmp_path)])
    storage, source = next(iter(inputs.sources()))
    assert inputs.format == "audio_folder"
    assert inputs.reader.schema(storage, source).names == ["id", "audio", "label"]
