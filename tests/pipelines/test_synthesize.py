"""Whole worlds on a real Ray: the same rows however they are cut, restarts, refusals."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from mmbm_core.synth import SCHEMA, World, make_row, schema_of
from pipelines.synthesize import synthesize


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    was_running = ray.is_initialized()
    ray.init(num_cpus=2, include_dashboard=False, ignore_reinit_error=True, log_to_driver=False)
    yield
    if not was_running:
        ray.shutdown()


def parts_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for part in parts_of(folder) for row in pq.ParquetFile(part).read().to_pylist()]


def test_parts_hold_the_rows_and_a_restart_makes_what_is_missing(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    seen: list[tuple[int, int]] = []
    result = synthesize(
        output=str(tmp_path), rows=10, seed=3, rows_per_file=4, progress=lambda done, total: seen.append((done, total))
    )
    assert result["rows_in"] == result["rows_out"] == 10
    assert result["rows_reused"] == result["rows_quarantined"] == 0
    assert len(seen) == 3 and seen[-1] == (10, 10)
    assert [part.name for part in parts_of(tmp_path)] == [f"part-{index:05d}-of-00003.parquet" for index in range(3)]
    assert all(pq.read_schema(part).remove_metadata() == SCHEMA for part in parts_of(tmp_path))
    written = rows_of(tmp_path)
    expected = pa.Table.from_pylist([make_row(index, seed=3) for index in range(10)], schema=SCHEMA).to_pylist()
    assert written == expected

    # As a killed run leaves it: one part missing, a draft in its place.
    lost, kept = parts_of(tmp_path)[1], parts_of(tmp_path)[0]
    draft = tmp_path / f"_{lost.name}.0123.tmp"
    lost.rename(draft)
    kept_at = kept.stat().st_mtime_ns
    again = synthesize(output=str(tmp_path), rows=10, seed=3, rows_per_file=4)
    assert (again["rows_reused"], again["rows_out"]) == (6, 10)
    assert kept.stat().st_mtime_ns == kept_at and not draft.exists()
    assert rows_of(tmp_path) == written
    assert json.loads((tmp_path / "_run.json").read_text())["rows_reused"] == 6


def test_rows_do_not_depend_on_how_they_are_cut(tmp_path: Path) -> None:
    for rows_per_file in (3, 100, None):
        synthesize(output=str(tmp_path / str(rows_per_file)), rows=7, rows_per_file=rows_per_file, speech=False)
    assert len(parts_of(tmp_path / "3")) == 3 and len(parts_of(tmp_path / "100")) == 1
    assert rows_of(tmp_path / "3") == rows_of(tmp_path / "100") == rows_of(tmp_path / "None")


def test_another_world_in_the_folder_is_refused_unless_overwritten(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"output": str(tmp_path), "rows": 5, "rows_per_file": 5, "speech": False}
    synthesize(**settings, seed=1)
    for other in ({"seed": 2}, {"seed": 1, "rows": 6}, {"seed": 1, "rows_per_file": 4}):
        with pytest.raises(ValueError, match=r"was made with .*=.*overwrite"):
            synthesize(**(settings | other))
    assert rows_of(tmp_path)[0]["id"].startswith("synth-1-")
    synthesize(**(settings | {"rows": 4, "rows_per_file": 2}), seed=2, overwrite=True)
    assert [row["id"] for row in rows_of(tmp_path)] == [f"synth-2-{index:09d}" for index in range(4)]


@pytest.mark.parametrize("name", ["mine.parquet", "part-00000-of-00001.parquet"])
def test_other_peoples_files_are_never_touched(tmp_path: Path, name: str) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / name)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="another output folder"):
            synthesize(output=str(tmp_path), rows=2, speech=False, overwrite=overwrite)
    assert pq.ParquetFile(tmp_path / name).read().to_pylist() == [{"a": 1}]


def test_a_torn_part_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "part-00000-of-00001.parquet").write_bytes(b"PAR1 torn")
    assert synthesize(output=f"file://{tmp_path}", rows=2, speech=False)["rows_reused"] == 0
    assert len(rows_of(tmp_path)) == 2


def test_wrong_numbers_are_refused_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows must be 1 or more; got 0; seed must be 0 or more; got -1"):
        synthesize(output=str(tmp_path / "new"), rows=0, seed=-1)
    assert not (tmp_path / "new").exists()


def test_parts_of_a_world_of_ones_own(tmp_path: Path) -> None:
    world = World.model_validate({"colours": {"rust": {"rgb": [183, 65, 14]}, "blue": None}, "shapes": ["star"]})
    settings: dict[str, Any] = {"rows": 6, "rows_per_file": 3, "speech": False, "output": str(tmp_path)}
    synthesize(**settings, world=world)
    assert all(pq.read_schema(part).remove_metadata() == schema_of(world) for part in parts_of(tmp_path))
    made = [make_row(index, seed=0, speech=False, world=world) for index in range(6)]
    assert rows_of(tmp_path) == pa.Table.from_pylist(made, schema=schema_of(world)).to_pylist()
    run = json.loads((tmp_path / "_run.json").read_text())
    assert run["settings"]["world"] == world.fingerprint == World.model_validate(run["world"]).fingerprint

    parts_of(tmp_path)[1].unlink()
    assert synthesize(**settings, world=world)["rows_reused"] == 3
    with pytest.raises(ValueError, match=rf"was made with world={world.fingerprint}; use the same"):
        synthesize(**settings)
    synthesize(**settings, overwrite=True)
    with pytest.raises(ValueError, match=r"was made with world=built-in; use the same"):
        synthesize(**settings, world=world)
    # The built-in world goes without saying, as it did before there were others: its parts are kept.
    said = {"seed": 0, "rows": 6, "rows_per_file": 3, "speech": False, "version": 2}
    assert json.loads(pq.read_schema(parts_of(tmp_path)[0]).metadata[b"mmbm.synth"]) == said
    assert json.loads((tmp_path / "_run.json").read_text())["settings"] == said
