"""A second run into the same OUTPUT: what has not changed is not encoded again, and the output mirrors the input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmbm_core.bundle import load_bundle
from mmbm_core.errors import RunError, UsageError
from pipelines import plan
from tests.samples import audio_file, tone


def texts(count: int) -> list[dict[str, Any]]:
    return [{"id": f"r{n}", "text": f"text number {n}", "n": n} for n in range(count)]


def check_vectors(done: Any, rows: list[dict[str, Any]], model: str) -> None:
    """Each row of the output has the vector of its text, whether taken over or new."""
    expected = load_bundle(model).embed(rows)["text_embedding"].to_pylist()
    assert set(done.rows) == {row["id"] for row in rows}
    for row, vector in zip(rows, expected, strict=True):
        np.testing.assert_allclose(done.rows[row["id"]]["text_embedding"], vector, atol=1e-4)
        assert done.rows[row["id"]]["n"] == row["n"]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_only_changed_rows_are_encoded(
    embed: Callable[..., Any], write: Callable[..., Path], text_model: str, name: str
) -> None:
    rows = texts(200)
    path = write(name, rows)
    write(
        "b.parquet" if name.endswith("parquet") else "b.jsonl", [{**row, "id": f"b-{row['id']}"} for row in rows[:10]]
    )
    first = embed(path.parent, unit_rows=50)
    again = embed(path.parent, unit_rows=50)
    assert again.figures["rows_reused"] == 210 and again.figures["rows_per_s"] == 0
    assert again.parts == first.parts

    for n in range(0, 200, 20):  # 5 %
        rows[n]["text"] += " words"
    for row in rows:
        row["n"] += 1000
    write(name, rows)
    second = embed(path.parent, unit_rows=50)
    assert second.figures["rows_reused"] == 210 - 10
    untouched = [part for part in first.parts if part.name.startswith("part-b")]
    assert set(first.parts) & set(second.parts) == set(untouched)
    assert {p.name for p in (second.output / "_hashes").iterdir()} == {p.name for p in second.parts}
    assert not list(second.output.glob("_staging/*"))
    rows += [{**row, "id": f"b-{row['id']}"} for row in texts(10)]
    check_vectors(second, rows, text_model)


def test_finished_sources_are_not_opened_again(
    embed: Callable[..., Any], write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        path = write(f"{name}.jsonl", [{**row, "id": f"{name}{row['id']}"} for row in texts(50)])
    embed(path.parent, unit_rows=20)
    write("b.jsonl", [{**row, "id": f"b{row['id']}"} for row in texts(60)])
    opened: list[str] = []
    cut = plan.cut_source

    def watched(inputs: Any, spec: Any, storage: Any, source: Any) -> Any:
        opened.append(source.relative)
        return cut(inputs, spec, storage, source)

    monkeypatch.setattr(plan, "cut_source", watched)
    again = embed(path.parent, unit_rows=20)
    assert opened == ["b.jsonl"]
    assert len(again.rows) == 160 and again.figures["rows_reused"] == 150


def test_rows_put_into_the_middle_move_the_others(
    embed: Callable[..., Any], write: Callable[..., Path], text_model: str
) -> None:
    rows = texts(300)
    embed(write("a.jsonl", rows), unit_rows=40)
    rows[150:150] = [{"id": f"new{n}", "text": f"a star {n}", "n": n} for n in range(7)]
    rows = rows[5:]
    second = embed(write("a.jsonl", rows), unit_rows=40)
    assert second.figures["rows_reused"] == 295
    check_vectors(second, rows, text_model)


def test_parts_of_vanished_sources_go(embed: Callable[..., Any], write: Callable[..., Path]) -> None:
    path = write("a.jsonl", texts(5))
    gone = write("gone.jsonl", [{"id": "x", "text": ""}, {"id": "y", "text": "words"}])
    assert set(embed(path.parent).quarantine) == {"x"}
    gone.unlink()
    second = embed(path.parent)
    assert set(second.rows) == {f"r{n}" for n in range(5)} and second.quarantine == {}
    assert second.figures["rows_in"] == second.figures["rows_reused"] == 5


def test_equal_values_are_encoded_once_in_a_unit(embed: Callable[..., Any], write: Callable[..., Path]) -> None:
    rows = [{"id": str(n), "text": f"text number {n % 3}"} for n in range(30)]
    done = embed(write("a.parquet", rows), unit_rows=30)
    assert done.figures["duplicates"] == 27
    assert done.rows["0"]["text_embedding"] == done.rows["27"]["text_embedding"]
    assert done.rows["0"]["text_embedding"] != done.rows["1"]["text_embedding"]


def test_cut_values_are_counted_over_the_whole_output(embed: Callable[..., Any], write: Callable[..., Path]) -> None:
    rows = texts(20)
    rows[3]["text"] = rows[4]["text"] = "red " * 100
    assert embed(write("a.parquet", rows)).figures["values_cut"] == 2
    rows[5]["text"] = "blue " * 100
    second = embed(write("a.parquet", rows))
    assert (second.figures["values_cut"], second.figures["rows_reused"]) == (3, 19)


def test_null_modalities_and_lists_are_taken_over_as_they_are(
    embed: Callable[..., Any], write: Callable[..., Path], text_model: str
) -> None:
    sound = audio_file(wave=tone(pitch_hz=700))
    rows = [
        {"id": "both", "text": ["a red disc", "one star"], "audio": sound, "n": 1},
        {"id": "text", "text": ["a red disc"], "audio": None, "n": 1},
        {"id": "audio", "text": [], "audio": sound, "n": 1},
        {"id": "other", "text": ["one star", "a red disc"], "audio": None, "n": 1},
    ]
    model = f"{text_model},mfcc"
    first = embed(write("a.parquet", rows), model=model)
    second = embed(write("a.parquet", [{**row, "n": 2} for row in reversed(rows)]), model=model)
    assert second.figures["rows_reused"] == 4
    assert {id: {**row, "n": 1} for id, row in second.rows.items()} == first.rows


def test_a_lost_hash_file_costs_only_reuse(
    embed: Callable[..., Any], write: Callable[..., Path], text_model: str
) -> None:
    rows = texts(10)
    first = embed(write("a.parquet", rows))
    next((first.output / "_hashes").iterdir()).write_bytes(b"torn")
    rows[0]["text"] = "a red disc"
    second = embed(write("a.parquet", rows))
    assert second.figures["rows_reused"] == 0
    check_vectors(second, rows, text_model)


def test_another_model_or_other_columns_are_refused(
    embed: Callable[..., Any], write: Callable[..., Path], text_model: str, clip_model: str
) -> None:
    path = write("a.parquet", [{"id": "x", "text": "a red disc", "title": "one star", "n": 1}])
    embed(path)
    with pytest.raises(UsageError, match=r"vectors of two spaces can't be compared.*--overwrite"):
        embed(path, model=clip_model)
    with pytest.raises(UsageError, match=r"(?s)one schema.*--overwrite"):
        embed(path, columns={"text": ["text", "title"]})
    done = embed(path, columns={"text": ["title"]})  # the same schema: the rows are made anew from the other column
    expected = load_bundle(text_model).embed([{"text": "one star"}])["text_embedding"].to_pylist()[0]
    np.testing.assert_allclose(done.rows["x"]["text_embedding"], expected, atol=1e-4)
    assert "embedding" in embed(path, model=clip_model, overwrite=True).table.column_names


def test_rows_over_a_tightened_limit_do_not_keep_their_vectors(
    embed: Callable[..., Any], write: Callable[..., Path]
) -> None:
    path = write("a.jsonl", [{"id": "short", "text": "a"}, {"id": "long", "text": "word " * 100}])
    assert set(embed(path).rows) == {"short", "long"}
    tighter = embed(path, max_text_bytes=50)
    assert set(tighter.rows) == {"short"} and "limit" in tighter.quarantine["long"]["error"]


def test_other_types_of_ids_are_other_units(embed: Callable[..., Any], write: Callable[..., Path]) -> None:
    path = write("a.jsonl", [{"id": n, "text": f"text {n}"} for n in range(3)])
    assert embed(path, drop_columns="id").figures["rows_reused"] == 0
    again = embed(path, drop_columns="id", column_types="id:double")
    assert set(again.rows) == {"0.0", "1.0", "2.0"}


def test_a_run_that_writes_no_row_leaves_what_was_there(
    embed: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write("a.jsonl", texts(5))
    first = embed(path)
    write("a.jsonl", [{"id": "r0", "text": None, "n": 0}])
    with pytest.raises(RunError, match="no row was written"):
        embed(path)
    assert all(part.exists() for part in first.parts)
    assert json.loads((tmp_path / "out" / "_run.json").read_text())["state"] == "failed"
    write("a.jsonl", texts(4))
    assert set(embed(path).rows) == {"r0", "r1", "r2", "r3"}


def test_a_source_that_vanishes_stops_the_run(
    embed: Callable[..., Any], write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one on a disk that this node does not have: its rows are no bad rows."""
    path = write("a.jsonl", texts(5))
    write("b.jsonl", [{"id": "b", "text": "b"}])
    cut = plan.cut_source

    def vanish(inputs: Any, spec: Any, storage: Any, source: Any) -> Any:
        (path.parent / "b.jsonl").unlink(missing_ok=True)
        return cut(inputs, spec, storage, source)

    monkeypatch.setattr(plan, "cut_source", vanish)
    with pytest.raises(RunError, match="can't read .*b.jsonl"):
        embed(path.parent)
    assert set(embed(path.parent).rows) == {f"r{n}" for n in range(5)}
