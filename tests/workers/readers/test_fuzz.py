"""Damaged files of every format: rows, bad rows or an unreadable source, and never another exception or a hang."""

import io
import random
import tarfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workers.readers import READERS
from workers.readers.base import UnitSize, UnreadableSource

FILES = 200
SIZE = UnitSize(rows=7, size_bytes=2000)
TEXTS = [f"some text {index} " * (index % 5) for index in range(40)]


def parquet(compression: str) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"text": TEXTS, "tags": [[text[:2]] for text in TEXTS], "n": range(40), "c": TEXTS})
    pq.write_table(
        table.set_column(3, "c", table["c"].dictionary_encode()), sink, row_group_size=9, compression=compression
    )
    return sink.getvalue()


def tar(kind: int) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=kind) as archive:
        for index, text in enumerate(TEXTS[:20]):
            for name, data in ((f"{index:02d}.txt", text.encode()), (f"{index:02d}.{'x' * 120}", b"1")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def tfrecord() -> bytes:
    from workers.readers.tfrecord import _masked_crc

    records = b""
    for text in TEXTS:
        value = text.encode()[:60]
        bytes_list = b"\x0a" + bytes([len(value)]) + value
        feature = b"\x0a" + bytes([len(bytes_list)]) + bytes_list
        entry = b"\x0a\x04text\x12" + bytes([len(feature)]) + feature
        features = b"\x0a" + bytes([len(entry)]) + entry
        example = b"\x0a" + bytes([len(features)]) + features
        length = len(example).to_bytes(8, "little")
        records += (
            length + _masked_crc(length).to_bytes(4, "little") + example + _masked_crc(example).to_bytes(4, "little")
        )
    return records


CONTENTS: list[tuple[str, str, bytes]] = [
    ("parquet", "a.parquet", parquet("snappy")),
    ("parquet", "a.parquet", parquet("none")),
    ("jsonl", "a.jsonl", "".join(f'{{"text": "{text}", "n": {len(text)}}}\n' for text in TEXTS).encode()),
    ("csv", "a.csv", ("text,n\n" + "".join(f'"{text},\n ""q""",{len(text)}\n' for text in TEXTS)).encode()),
    ("webdataset", "a.tar", tar(tarfile.GNU_FORMAT)),
    ("webdataset", "a.tar", tar(tarfile.PAX_FORMAT)),
    ("tfrecord", "a.tfrecord", tfrecord()),
    ("manifest", "a.txt", b"".join(b"folder/%d.jpg\n" % index for index in range(40))),
]


def damaged(content: bytes, seed: int) -> Iterator[bytes]:
    chance = random.Random(seed)
    for index in range(FILES):
        data = bytearray(content)
        if index % 4 == 0:
            yield bytes(data[: chance.randrange(len(data))])
        elif index % 4 == 1:
            yield chance.randbytes(chance.randrange(3000))
        else:
            for _ in range(1 if index % 4 == 2 else 20):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            yield bytes(data)


@pytest.mark.parametrize(("name", "file_name", "content"), CONTENTS)
def test_damaged_files(reading: Callable[..., Any], name: str, file_name: str, content: bytes) -> None:
    schema = reading(READERS[name], file_name, content).schema()
    for seed, data in enumerate(damaged(content, seed=len(content))):
        began_s = time.monotonic()
        file = reading(READERS[name], file_name, data)
        try:
            file.all(SIZE, schema=schema)
            file.all(SIZE)
        except UnreadableSource:
            pass
        assert READERS[name].sniff(data[:4096]) in (True, False)
        assert time.monotonic() - began_s < 5, f"file {seed} took too long"
