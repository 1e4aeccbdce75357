"""Rows behind URIs come in pieces that fit into memory, in order, with the next ones already under way."""

import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mmbm_core.errors import MediaError
from mmbm_core.media import Limits
from mmbm_core.rows import Encoding
from mmbm_core.urls import UrlPolicy
from workers import guard as guard_module
from workers.guard import Quarantine, RowGuard
from workers.output import Output
from workers.readers.base import BadRow, Chunk, UnitSize
from workers.spec import ModelSpec, RunSpec
from workers.storage import open_location

SCHEMA = pa.schema([("name", pa.string()), ("image_uri", pa.string()), ("n", pa.int64())])
IMAGE = Encoding(column="image_uri", modality="image", output="image_embedding", uri=True)


def make_guard(folder: Path, **given: Any) -> RowGuard:
    storage, path = open_location(str(folder / "out"))
    model = ModelSpec(model="m", kernels={}, spaces={}, widths={"image": 2, "text": 2}, shared=(), options={})
    settings: dict[str, Any] = {"encodings": (IMAGE,), "id_column": "name", "explode": None} | given
    spec = RunSpec(
        output=Output(storage=storage, folder=path), model=model, format="parquet", source_schema=SCHEMA,
        kept=("n",), vectors="float32", on_bad_modality="quarantine", limits=Limits(), budget={},
        unit_size=UnitSize(rows=1000, size_bytes=1 << 20), urls=UrlPolicy(roots=(str(folder),)), device="cpu",
        threads=1, **settings,
    )  # fmt: skip
    return RowGuard(spec, uri=f"{folder}/a.parquet", relative="a.parquet", base=str(folder))


def chunk_of(names: list[str | None], uris: list[str | None], *, bad: list[BadRow] | None = None) -> Chunk:
    table = pa.table([names, uris, list(range(len(names)))], schema=SCHEMA)
    return Chunk(table=table, positions=[10 * n for n in range(len(names))], bad=bad or [])


def test_fetched_rows_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(200):
        (tmp_path / f"{n}.png").write_bytes(bytes(1000) + str(n).encode())
    monkeypatch.setattr(guard_module, "_PIECE_BYTES", 20_000)
    fetched: list[str] = []
    lock = threading.Lock()
    plain = guard_module.fetch

    def count(uri: str, **options: Any) -> bytes:
        with lock:
            fetched.append(uri)
        return plain(uri, **options)

    monkeypatch.setattr(guard_module, "fetch", count)
    uris = [None if n == 7 else f"{n}.png" for n in range(200)]
    pieces, met = [], 0
    for rows in make_guard(tmp_path)(chunk_of([str(n) for n in range(200)], uris), Quarantine()):
        met += len(rows.ids)
        pieces.append(rows)
        assert len(fetched) <= met + 40  # a few ahead, not the whole chunk
        ((_, cells),) = rows.cells
        assert sum(len(c[0]) for c in cells if isinstance(c, tuple)) < 22_000
        assert len(cells) == len(rows.sources) == len(rows.parents) == rows.table.num_rows
    assert len(pieces) >= 9
    cells = [cell for rows in pieces for cell in rows.cells[0][1]]
    assert [None if c is None else int(c[0][1000:]) for c in cells] == [None if n == 7 else n for n in range(200)]  # type: ignore[index, union-attr]
    assert [id for rows in pieces for id in rows.ids] == [str(n) for n in range(200)]
    assert [n for rows in pieces for n in rows.table["n"].to_pylist()] == list(range(200))
    assert pieces[1].sources[0] == f"{tmp_path}/a.parquet#{10 * len(pieces[0].ids)}"


def test_ids_and_bad_rows_are_accounted_for(tmp_path: Path) -> None:
    guard, quarantine = make_guard(tmp_path), Quarantine()
    (tmp_path / "x.png").write_bytes(b"x")
    first = chunk_of(["a", "a", None], ["x.png", "x.png", "../y.png"], bad=[BadRow(position=5, error="torn")])
    (rows,) = guard(first, quarantine)
    (more,) = guard(chunk_of(["a", "b"], ["x.png", None]), quarantine)
    assert (rows.ids, more.ids, guard.rows_in) == (["a", "a.parquet#20"], ["b"], 6)
    assert (rows.parents, more.parents) == ([0, 2], [5])
    assert [line["id"] for line in quarantine.lines] == ["a.parquet#5", "a", "a"]
    assert isinstance(rows.cells[0][1][1], MediaError)
    assert more.cells[0][1] == [None]
