import gzip
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray import cloudpickle

from mmbm_core.errors import UsageError
from workers.readers import READERS, get_reader
from workers.readers.base import UnitSize, UnreadableSource
from workers.readers.discover import discover
from workers.readers.places import _translate


def parquet(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": ["a"]}), path)


def relatives(*inputs: Path | str, format: str | None = None) -> list[str]:
    return [source.relative for _, source in discover([str(item) for item in inputs], format=format).sources()]


def tar() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    return sink.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("a.jsonl", b'{"a": 1}\n', "jsonl"),
        ("a.json", b'\xef\xbb\xbf\n {"a": 1}\n', "jsonl"),
        ("part-0", b'{"a": 1}\n', "jsonl"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n'), "jsonl"),
        ("a.gz", gzip.compress(b'{"a": 1}\n'), "jsonl"),
        ("a.csv", b"text\nhello\n", "csv"),
        ("a.dat", b"a;b\n1;2\n", "csv"),
        ("a.tar", tar(), "webdataset"),
        ("a", tar(), "webdataset"),
        ("a.tgz", gzip.compress(tar()), "webdataset"),
        ("a.txt", b"a.jpg\nhttps://h/b.png\n", "manifest"),
        ("a.jpg", b"\xff\xd8\xff", "image_folder"),
        ("a.wav", b"RIFF\0\0\0\0WAVE", "audio_folder"),
        ("x.tfrecord-00000-of-00010", b"broken", "tfrecord"),
        ("broken.parquet", b"nothing", "parquet"),
        ("empty.parquet", b"", "parquet"),
        ("empty.jsonl", b"", "jsonl"),
    ],
)
def test_one_file(tmp_path: Path, name: str, content: bytes, format: str) -> None:
    (tmp_path / name).write_bytes(content)
    inputs = discover([str(tmp_path / name)])
    assert inputs.format == format and inputs.ignored == 0
    assert len(list(inputs.sources())) == 1
    in_folder = discover([str(tmp_path)])
    assert in_folder.format == format and len(list(in_folder.sources())) == 1


def test_a_parquet_file_under_any_name(tmp_path: Path) -> None:
    parquet(tmp_path / "data.bin")
    assert discover([str(tmp_path)]).format == "parquet"
    assert relatives(tmp_path) == ["data.bin"]


def test_a_corrupt_first_shard_is_a_source_and_other_files_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "0.parquet").write_bytes(b"broken")
    (tmp_path / "1.parquet").write_bytes(b"")
    for name in ("2.parquet", "sub/3.parquet", "_hidden/4.parquet", ".5.parquet"):
        parquet(tmp_path / name)
    (tmp_path / "README.md").write_text("a, b\n1, 2\n")
    (tmp_path / "dataset_info.json").write_text('{"a": 1}')
    inputs = discover([str(tmp_path)])
    assert [source.relative for _, source in inputs.sources()] == [
        "0.parquet",
        "1.parquet",
        "2.parquet",
        "sub/3.parquet",
    ]
    assert inputs.ignored == discover([str(tmp_path)]).ignored == 2
    for storage, source in list(inputs.sources())[:2]:
        with pytest.raises(UnreadableSource):
            list(inputs.reader.units(storage, source, UnitSize(rows=1, size_bytes=1)))


def test_listing_repeats_and_travels(tmp_path: Path) -> None:
    for index in (10, 2, 1):
        parquet(tmp_path / f"{index}.parquet")
    inputs = cloudpickle.loads(cloudpickle.dumps(discover([str(tmp_path)])))
    first, second = list(inputs.sources()), list(inputs.sources())
    assert first == second
    assert [source.relative for _, source in first] == ["1.parquet", "10.parquet", "2.parquet"]
    storage, source = first[0]
    assert inputs.reader.schema(storage, source).names == ["text"]


def test_globs(tmp_path: Path) -> None:
    for name in ("a/1.parquet", "a/2.parquet", "b/1.parquet", "b/c/1.parquet", "a/x[1].parquet"):
        parquet(tmp_path / name)
    assert relatives(tmp_path / "a/?.parquet") == ["1.parquet", "2.parquet"]
    assert relatives(tmp_path / "*/1.parquet") == ["a/1.parquet", "b/1.parquet"]
    assert relatives(tmp_path / "**/1.parquet") == ["a/1.parquet", "b/1.parquet", "b/c/1.parquet"]
    assert relatives(tmp_path / "b*") == ["b/1.parquet", "b/c/1.parquet"]
    assert relatives(tmp_path / "[!a]/**") == ["b/1.parquet", "b/c/1.parquet"]
    assert relatives(tmp_path / "a/x[1].parquet") == ["x[1].parquet"]


def test_patterns() -> None:
    assert _translate("a.*/[ab]?/**/c") == r"a\.[^/]*/[ab][^/]/(?:[^/]+/)*c"


def test_several_inputs_keep_equal_names_apart_and_are_listed_once(tmp_path: Path) -> None:
    for name in ("train/a.parquet", "val/a.parquet", "val/b.parquet"):
        parquet(tmp_path / name)
    assert relatives(tmp_path / "val", tmp_path / "train") == ["train/a.parquet", "val/a.parquet", "val/b.parquet"]
    assert relatives(tmp_path / "val", tmp_path / "val/a.parquet", tmp_path / "val") == ["a.parquet", "b.parquet"]
    assert relatives(tmp_path, tmp_path / "val") == ["train/a.parquet", "val/a.parquet", "val/b.parquet"]
    assert relatives(tmp_path / "val/b.parquet", tmp_path / "val/a.parquet") == ["a.parquet", "b.parquet"]


def test_a_file_that_several_inputs_list_comes_once(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet", "sub/c.parquet", "sub/d.parquet"):
        parquet(tmp_path / name)
    overlapping = [tmp_path / "*.parquet", tmp_path / "a.parquet", tmp_path / "sub/*.parquet", tmp_path / "*/c.parquet"]
    assert sorted(relatives(*overlapping)) == ["a.parquet", "b.parquet", "sub/c.parquet", "sub/d.parquet"]


def test_many_images_given_one_by_one_are_one_source(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.md"):
        (tmp_path / name).write_bytes(b"\xff\xd8\xff" if name != "c.md" else b"text")
    inputs = discover([str(tmp_path / name) for name in ("b.jpg", "a.jpg", "c.md")])
    assert [[member.relative for member in source.members] for _, source in inputs.sources()] == [["a.jpg", "b.jpg"]]
    assert inputs.ignored == 1


def test_images_with_a_table_beside_them_are_an_image_folder(tmp_path: Path) -> None:
    for index in range(5):
        (tmp_path / f"{index}.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "0.jpg"}))
    assert discover([str(tmp_path)]).format == "image_folder"


def test_forced_formats(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("a,b\n1,2\n")
    assert relatives(tmp_path, format="csv") == ["b.csv"]
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "part-0").write_text("text\nhello\n")
    assert relatives(tmp_path / "rows", format="csv") == ["part-0"]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    parquet(tmp_path / "a" / "a.parquet")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "other").symlink_to(tmp_path / "a")
    assert relatives(tmp_path) == ["a/a.parquet", "other/a.parquet"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "no files in"),
        (["a.md", "b.pdf"], "--format"),
        (["a.csv", "b.csv", "c.jsonl", "d.jsonl"], "several formats"),
        (["a.tar", "b.parquet", "c.parquet", "d.parquet"], "several formats"),
    ],
)
def test_usage_errors_say_what_to_do(tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match=words):
        discover([str(tmp_path)])


def test_more_usage_errors(tmp_path: Path) -> None:
    parquet(tmp_path / "p" / "a.parquet")
    (tmp_path / "c.csv").write_text("a,b\n1,2\n")
    for inputs, format, words in [
        ([], None, "no INPUT"),
        ([str(tmp_path / "none")], None, "no such path"),
        ([str(tmp_path / "*.none")], None, "no file matches"),
        (["nosuch://x"], None, "nosuch://"),
        ([str(tmp_path)], "nosuch", "known: parquet"),
        ([str(tmp_path / "p"), str(tmp_path / "c.csv")], None, "run the command once for each"),
    ]:
        with pytest.raises(UsageError, match=words):
            discover(inputs, format=format)


def test_every_reader_is_in_the_table() -> None:
    assert all(get_reader(name) is reader and reader.extensions for name, reader in READERS.items())
    with pytest.raises(UsageError, match="webdataset"):
        get_reader("tar")


def test_memory_urls() -> None:
    import fsspec

    fsspec.filesystem("memory").pipe({"/d/a.jsonl": b'{"a": 1}\n', "/d/s/b.jsonl": b'{"a": 2}\n'})
    assert relatives("memory://d") == ["a.jsonl", "s/b.jsonl"]
    assert relatives("memory://d/**/*.jsonl") == ["a.jsonl", "s/b.jsonl"]
