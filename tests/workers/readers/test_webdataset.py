import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workers.readers import cursor
from workers.readers.base import UnitSize, UnreadableSource
from workers.readers.webdataset import WebDatasetReader

READER = WebDatasetReader()
KEYS = [f"{index:04d}" for index in range(60)]


def members(keys: list[str] = KEYS) -> list[tuple[str, bytes]]:
    return [
        member
        for index, key in enumerate(keys)
        for member in [
            (f"{key}.jpg", bytes([index % 256]) * (index * 37 % 1500)),
            (f"{key}.json", json.dumps({"captions": [f"c{index}"], "n": index}).encode()),
            (f"{key}.cls", str(index).encode()),
        ]
    ]


def content(items: list[tuple[str, bytes]], kind: int = tarfile.GNU_FORMAT, mode: str = "w") -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode, format=kind) as archive:  # type: ignore[call-overload]
        for name, data in items:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def expected() -> list[dict[str, Any]]:
    return [
        {"id": key, "captions": [f"c{index}"], "n": index, "image": members()[3 * index][1], "label": index}
        for index, key in enumerate(KEYS)
    ]


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_units_cover_every_sample_once_and_in_order(
    reading: Callable[..., Any], sizes: list[UnitSize], kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cursor, "LOCAL_BLOCK_BYTES", 700)
    data = content(members(), kind)
    file = reading(READER, "a.tar", data)
    for size in sizes:
        found = file.all(size)
        assert found.rows == expected()
        assert not found.bad
        assert [data[position : position + 4].decode() for position in found.positions] == KEYS
    assert len(file.units(sizes[1])) == 9


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names(reading: Callable[..., Any], sizes: list[UnitSize], kind: int) -> None:
    keys = ["d" * 90 + "/" + "k" * (40 if kind == tarfile.USTAR_FORMAT else 200) + str(index) for index in range(5)]
    file = reading(READER, "a.tar", content([(f"./{key}.txt", b"x") for key in keys], kind))
    for size in sizes:
        assert file.all(size).column("id") == keys


def test_columns(reading: Callable[..., Any]) -> None:
    items = [
        *[("a.PNG", b"p"), ("a.jpg", b"j"), ("a.flac", b"f"), ("a.txt", "ü".encode()), ("a.cls", b" dog\n")],
        *[("a.left.bin", b"l"), ("a.json", b'{"id": 7, "image": "x.jpg", "deep": {"a": [1.5]}, "none": null}')],
        *[(".hidden.txt", b""), ("README", b"")],
    ]
    assert reading(READER, "a.tar", content(items)).all().rows == [
        {"image": b"p", "jpg": b"j", "audio": b"f", "text": "ü", "label": "dog", "left.bin": b"l"}
        | {"id": 7, "deep": {"a": [1.5]}, "none": None}
    ]


def test_content_outside_the_schema_is_not_read(reading: Callable[..., Any]) -> None:
    file = reading(READER, "a.tar", content(members()))
    schema = file.schema().remove(file.schema().get_field_index("image"))
    assert file.all(schema=schema).column("n") == list(range(60))


def test_pieces_of_a_sample_that_are_apart_are_bad_rows(reading: Callable[..., Any], sizes: list[UnitSize]) -> None:
    items = members()
    moved = [*items[3:], ("0000.txt", b"late"), ("zzzz.jpg", b"z")]
    file = reading(READER, "a.tar", content([items[0], *moved]))
    for size in sizes:
        found = file.all(size)
        assert len(found.rows) == 61 and len(found.bad) == 1
        assert "sort" in found.bad[0].error and "'0000'" in found.bad[0].error


def test_an_archive_sorted_by_ending_is_reported_not_split(reading: Callable[..., Any], sizes: list[UnitSize]) -> None:
    items = sorted(members(KEYS[:9]), key=lambda item: item[0].split(".")[1])
    for size in sizes:
        found = reading(READER, "a.tar", content(items)).all(size)
        assert len(found.rows) == 9 and len(found.bad) == 18


def test_a_truncated_last_member_costs_its_sample_alone(reading: Callable[..., Any], sizes: list[UnitSize]) -> None:
    data = content([*members(), ("last.jpg", b"x" * 3000)])
    cut = data[: data.rindex(b"last.jpg") + 512 + 1000]
    for size in sizes:
        found = reading(READER, "a.tar", cut).all(size)
        assert found.column("id") == KEYS
        assert "1000 of 3000" in found.bad[0].error and len(found.bad) == 1


def test_an_archive_cut_between_members_does_not_give_half_a_sample(reading: Callable[..., Any]) -> None:
    data = content(members())
    found = reading(READER, "a.tar", data[: data.rindex(b"0059.json")]).all()
    assert found.column("id") == KEYS[:-1]
    assert "may lack fields" in found.bad[0].error


def test_a_damaged_header_costs_its_sample_alone(reading: Callable[..., Any], sizes: list[UnitSize]) -> None:
    data = bytearray(content(members()))
    at = data.index(b"0030.json")
    whole = {row["id"]: row for row in expected()}
    data[at + 130] ^= 1
    for size in sizes[1:]:
        found = reading(READER, "a.tar", bytes(data)).all(size)
        lost = {row.position for row in found.bad}
        assert at in lost and len(lost) <= 3
        assert set(KEYS) - set(found.column("id")) <= {"0030", "0031"} if size.rows > 7 else True
        assert all(row == whole[row["id"]] for row in found.rows)


def test_bad_fields_cost_their_sample_alone(reading: Callable[..., Any]) -> None:
    items = [("a.txt", b"\xff"), ("b.txt", b"fine"), ("c.json", b"{"), ("d.txt", b"fine")]
    found = reading(READER, "a.tar", content(items)).all()
    assert found.column("id") == ["b", "d"] and len(found.bad) == 2


def test_joined_archives_are_read_whole(reading: Callable[..., Any]) -> None:
    data = content(members(KEYS[:3])) + content(members(KEYS[3:6]))
    assert reading(READER, "a.tar", data).all().column("id") == KEYS[:6]


@pytest.mark.parametrize("data", [b"", b"not a tar" * 1000, b"x"])
def test_what_is_no_archive_is_unreadable(reading: Callable[..., Any], data: bytes) -> None:
    with pytest.raises(UnreadableSource):
        reading(READER, "a.tar", data).units()


def test_gzip(reading: Callable[..., Any]) -> None:
    packed = content(members(), mode="w:gz")
    assert reading(READER, "a.tar.gz", packed).all().rows == expected()
    found = reading(READER, "b.tgz", packed[:-400]).all()
    assert found.rows == expected()[: len(found.rows)] and found.bad


def test_real_data(reading: Callable[..., Any]) -> None:
    path = Path("../shared/data/flickr8k-mini/train-00000.tar").resolve()
    if not path.exists():
        pytest.skip("needs ../shared/data")
    found = reading(READER, str(path)).all(UnitSize(rows=30, size_bytes=1 << 20))
    assert len(found.rows) == 100 and all(len(row["captions"]) == 5 for row in found.rows)
