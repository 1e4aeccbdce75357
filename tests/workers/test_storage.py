"""Storage on local disk, in memory (fsspec) and on S3 (moto's server on the loopback address)."""

import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray import cloudpickle

from mmbm_core.errors import MediaError, UsageError
from mmbm_core.urls import UrlPolicy, fetch
from workers.readers.base import UnitSize
from workers.readers.discover import discover
from workers.storage import Storage, open_location


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Storage, str]:
    if request.param == "local":
        return open_location(str(tmp_path))
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
        return open_location("memory://folder")
    return open_location(f"{request.getfixturevalue('s3')}/{request.node.name}")


def test_write_read_list_move_delete(place: tuple[Storage, str]) -> None:
    storage, folder = place
    for name in ("b.txt", "a b%#ü.txt", "sub/c.txt"):
        storage.write_bytes(f"{folder}/{name}", name.encode())
    storage.write_bytes(f"{folder}/b.txt", pa.py_buffer(b"new"))
    listed = list(storage.list(folder))
    assert [entry.path[len(folder) + 1 :] for entry in listed] == ["a b%#ü.txt", "b.txt", "sub/c.txt"]
    assert [entry.size_bytes for entry in listed] == [11, 3, 9]
    assert all(entry.version for entry in listed)
    assert [entry.name for entry in storage.list(folder, recursive=False)] == ["a b%#ü.txt", "b.txt"]
    assert [(entry.name, entry.is_folder) for entry in storage.children(folder)][-1] == ("sub", True)
    assert storage.read_bytes(f"{folder}/b.txt") == b"new"
    with storage.open_input(f"{folder}/sub/c.txt") as file:
        file.seek(4)
        assert file.read() == b"c.txt"
    storage.move(f"{folder}/b.txt", f"{folder}/sub/c.txt")
    assert storage.read_bytes(f"{folder}/sub/c.txt", 3) == b"new"
    assert not storage.exists(f"{folder}/b.txt")
    storage.delete(f"{folder}/sub/c.txt")
    storage.delete(f"{folder}/sub/c.txt")
    storage.delete_dir(folder)
    storage.delete_dir(folder)
    assert not storage.exists(f"{folder}/a b%#ü.txt")


def test_limits_and_missing_paths(place: tuple[Storage, str]) -> None:
    storage, folder = place
    storage.write_bytes(f"{folder}/a.txt", b"0123456789")
    assert storage.read_bytes(f"{folder}/a.txt", 10) == b"0123456789"
    with pytest.raises(MediaError, match="limit of 9 bytes"):
        storage.read_bytes(f"{folder}/a.txt", 9)
    with pytest.raises(UsageError, match="no such path"):
        storage.info(f"{folder}/none")
    with pytest.raises(UsageError, match="no such folder"):
        list(storage.list(f"{folder}/none"))
    with pytest.raises(FileNotFoundError):
        storage.open_input(f"{folder}/none")


def test_locations_come_back_from_paths(place: tuple[Storage, str]) -> None:
    storage, folder = place
    storage.write_bytes(f"{folder}/x.txt", b"x")
    again, path = open_location(storage.uri(f"{folder}/x.txt"))
    assert path == f"{folder}/x.txt" and again.read_bytes(path) == b"x"
    travelled = cloudpickle.loads(cloudpickle.dumps(storage))
    assert travelled.read_bytes(path) == b"x" and travelled.uri(path) == storage.uri(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, folder = open_location(str(tmp_path))
    storage.write_bytes(f"{folder}/a", b"old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        storage.write_bytes(f"{folder}/a", b"new")
    assert os.listdir(tmp_path) == ["a"] and storage.read_bytes(f"{folder}/a") == b"old"


@pytest.mark.parametrize(
    ("location", "words"), [("", "empty"), ("x://y", "x://"), ("nosuch://y", "s3://"), ("s3://", "no bucket")]
)
def test_unusable_locations(location: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        open_location(location)


def test_local_locations(tmp_path: Path) -> None:
    assert open_location("file:///a%20b/c")[1] == "/a b/c"
    assert open_location("a%20b")[1] == os.path.abspath("a%20b")
    assert open_location("~/x")[1] == os.path.expanduser("~/x")
    assert open_location(str(tmp_path))[0].is_local and not open_location("memory://x")[0].is_local


def test_sources_on_s3(s3: str) -> None:
    storage, folder = open_location(f"{s3}/data")
    for index in range(3):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"n": range(index * 10, index * 10 + 10)}), sink, row_group_size=4)
        storage.write_bytes(f"{folder}/part {index}/rows.parquet", sink.getvalue())
        lines = "".join(f'{{"n": {n}}}\n' for n in range(1000))
        storage.write_bytes(f"{folder}-lines/{index}.jsonl", lines.encode())
        storage.write_bytes(f"{folder}-photos/{index}/a.jpg", b"\xff\xd8\xff")
    for location, count in [(f"{s3}/data", 30), (f"{s3}/data/*/rows.parquet", 30), (f"{s3}/data-lines", 3000)]:
        inputs = discover([location])
        numbers = []
        for each, source in inputs.sources():
            schema = inputs.reader.schema(each, source)
            for unit in inputs.reader.units(each, source, UnitSize(rows=7, size_bytes=500)):
                for chunk in inputs.reader.read(each, unit, schema):
                    numbers += chunk.table.column("n").to_pylist()
        assert len(numbers) == count and sorted(set(numbers)) == list(range(min(count, 1000)))
    photos = discover([f"{s3}/data-photos"])
    assert [source.members[0].relative for _, source in photos.sources()] == ["0/a.jpg", "1/a.jpg", "2/a.jpg"]
    each, source = next(iter(photos.sources()))
    unit = next(iter(photos.reader.units(each, source, UnitSize(rows=7, size_bytes=500))))
    chunk = next(iter(photos.reader.read(each, unit, photos.reader.schema(each, source))))
    assert chunk.table.to_pylist() == [{"id": "0/a.jpg", "image": b"\xff\xd8\xff", "label": "0"}]


def test_rows_may_fetch_from_s3_where_it_is_allowed(s3: str) -> None:
    storage, folder = open_location(f"{s3}/media")
    storage.write_bytes(f"{folder}/a b.jpg", b"photo")
    policy = UrlPolicy(schemes=frozenset({"s3"}), max_bytes=5)
    assert fetch(f"{s3}/media/a b.jpg", policy=policy) == b"photo"
    assert fetch("a b.jpg", policy=policy, base=f"{s3}/media") == b"photo"
    with pytest.raises(MediaError, match="no such object"):
        fetch(f"{s3}/media/none", policy=policy)
    with pytest.raises(MediaError, match="limit"):
        fetch(f"{s3}/media/a b.jpg", policy=UrlPolicy(schemes=frozenset({"s3"}), max_bytes=4))
