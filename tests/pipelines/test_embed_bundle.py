"""`mmbm embed` with trained bundles: the row contract holds as for any other model, on every placement."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mmbm_core.bundle import load_bundle
from mmbm_core.errors import UsageError
from mmbm_core.saved import read_bundle
from pipelines.inspect import inspect
from tests.bundles import FUSIONS, make_model, pooled_alone, save_bundle, subset_rows

COLUMNS = ("embedding", "text_embedding", "image_embedding", "audio_embedding")
TOKENS = {"text": 3, "image": 2}


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory, text_model: str) -> str:
    """A bundle with a fusion of several tokens."""
    model = make_model(text_model, fusion=FUSIONS["attention"], tokens=TOKENS)
    return save_bundle(tmp_path_factory.mktemp("fused") / "bundle", model)


def check(row: dict[str, Any], expected: dict[str, Any]) -> None:
    """The vectors of one row are those of the library."""
    assert row["modalities"] == expected["modalities"]
    for name in COLUMNS:
        assert (row[name] is None) == (expected[name] is None)
        if row[name] is not None:
            np.testing.assert_allclose(row[name], expected[name], atol=1e-4)


@pytest.mark.parametrize("kind", ["none", "bottleneck"])
def test_every_subset_of_modalities(
    embed: Callable[..., Any], write: Callable[..., Path], text_model: str, tmp_path: Path, kind: str
) -> None:
    model = make_model(text_model, fusion=FUSIONS.get(kind), tokens=TOKENS)
    saved = save_bundle(tmp_path / "bundle", model)
    rows = subset_rows()
    none = {"id": "none", "text": " ", "image": None, "audio": None}
    bad = {"id": "bad", "text": "a red disc", "image": b"no image", "audio": None}
    path = write("a.parquet", [*rows, none, bad])
    done = embed(path, model=saved)
    library = load_bundle(saved)
    for row in rows:
        check(done.rows[row["id"]], library.embed([row]).to_pylist()[0])
        np.testing.assert_allclose(done.rows[row["id"]]["embedding"], pooled_alone(model, row), atol=1e-4)
    assert done.quarantine["none"]["error"] == "no text or image or audio in this row"
    assert done.quarantine["bad"]["modality"] == "image" and done.figures["rows_quarantined"] == 2
    vectors = [(name, pa.list_(pa.float32(), 20)) for name in COLUMNS]
    schema = pa.schema([("id", pa.string()), ("modalities", pa.list_(pa.string())), *vectors, ("text", pa.string())])
    assert done.table.schema.remove_metadata() == schema
    assert inspect(str(done.output))["space"] == read_bundle(Path(saved))["space"]

    dropped = embed(path, model=saved, output="dropped", on_bad_modality="drop", unit_rows=2)
    check(dropped.rows["bad"], library.embed([{"text": "a red disc"}]).to_pylist()[0] | dict.fromkeys(COLUMNS[1:]))
    assert dropped.dropped["bad"]["modality"] == "image"
    for id, row in done.rows.items():
        check(dropped.rows[id], row)


def test_equal_values_lists_and_changed_rows(embed: Callable[..., Any], write: Callable[..., Path], fused: str) -> None:
    sound = subset_rows()[2]["audio"]
    rows = [
        {"id": "both", "text": ["a red disc", "one star", "a red disc"], "audio": sound, "n": 1},
        {"id": "text", "text": ["a red disc"], "audio": None, "n": 1},
        {"id": "audio", "text": [], "audio": sound, "n": 1},
    ]
    first = embed(write("a.parquet", rows), model=fused)
    assert first.figures["duplicates"] == 1
    library = load_bundle(fused)
    for row in rows:
        expected = library.embed([{"text": row["text"], "audio": row["audio"]}]).to_pylist()[0]
        check({"image_embedding": None, **first.rows[row["id"]]}, {"image_embedding": None, **expected})
    changed = [{**row, "n": 2} for row in reversed(rows)]
    changed[0] |= {"text": ["words"]}
    second = embed(write("a.parquet", changed), model=fused)
    assert second.figures["rows_reused"] == 2
    for id in ("both", "text"):
        assert {**second.rows[id], "n": 1} == first.rows[id]
    check(
        {"image_embedding": None, **second.rows["audio"]},
        {"image_embedding": None, **library.embed([{"text": ["words"], "audio": sound}]).to_pylist()[0]},
    )


def test_two_columns_of_text_go_into_a_fusion_as_their_mean(
    embed: Callable[..., Any], write: Callable[..., Path], fused: str
) -> None:
    path = write("a.parquet", [{"id": "x", "title": "a red disc", "body": "one star"}, {"id": "y", "title": "words"}])
    done = embed(path, model=fused, columns={"text": ["title", "body"]})
    library = load_bundle(fused)
    title, body, words, mean = (
        library.embed([{"text": text}])["embedding"].to_pylist()[0]
        for text in ("a red disc", "one star", "words", ["a red disc", "one star"])
    )
    np.testing.assert_allclose(done.rows["x"]["title_embedding"], title, atol=1e-4)
    np.testing.assert_allclose(done.rows["x"]["body_embedding"], body, atol=1e-4)
    np.testing.assert_allclose(done.rows["x"]["embedding"], mean, atol=1e-4)
    np.testing.assert_allclose(done.rows["y"]["embedding"], words, atol=1e-4)
    assert done.rows["y"]["title_embedding"] is None


def test_only_what_the_input_holds_is_loaded(
    embed: Callable[..., Any], write: Callable[..., Path], fused: str, text_model: str, tmp_path: Path
) -> None:
    path = write("a.jsonl", [{"id": "x", "text": "a red disc"}])
    done = embed(path, model=fused)
    run = inspect(str(done.output))
    assert run["model"] == f"{fused}#text" and run["space"] == read_bundle(Path(fused))["space"]
    assert done.table.column_names == ["id", "modalities", "embedding", "text"]
    moved = Path(fused).rename(tmp_path / "moved")  # another place, the same space
    try:
        assert embed(path, model=str(moved)).rows == done.rows
    finally:
        moved.rename(fused)
    other = save_bundle(tmp_path / "other", make_model(text_model, fusion=FUSIONS["concat"]))
    with pytest.raises(UsageError, match="vectors of two spaces can't be compared"):
        embed(path, model=other)
    with pytest.raises(UsageError, match="trained with options of its own: leave out pooling of text"):
        embed(path, model=fused, pooling="cls", output="options")


def test_actors_of_their_own_for_each_encoder_and_the_fusion(
    embed: Callable[..., Any], write: Callable[..., Path], fused: str
) -> None:
    rows = [{**row, "id": f"{row['id']} {n}"} for n in range(2) for row in subset_rows()]
    path = write("a.parquet", rows)
    expected = embed(path, model=fused, output="together")
    done = embed(path, model=fused, real=True, placement="per_modality", unit_rows=7)
    assert done.rows.keys() == expected.rows.keys()
    for id, row in done.rows.items():
        check(row, expected.rows[id])


def test_inspect_tells_what_a_bundle_holds(fused: str, text_model: str, tmp_path: Path) -> None:
    facts = inspect(fused)
    assert facts["kind"] == "bundle" and facts["modalities"] == ["text", "image", "audio"]
    assert facts["tasks"]["seen"] == {
        "kind": "recognition", "inputs": {"text": "text", "image": "image", "audio": "audio"}, "label": "label",
        "num_labels": 2, "labels": ["no", "yes"],
    }  # fmt: skip
    assert {m: e["kind"] for m, e in facts["encoders"].items()} == {
        "text": "bert", "image": "image_cnn", "audio": "log_mel",
    }  # fmt: skip
    assert facts["encoders"]["text"] | {"size_bytes": 0} == {
        "kind": "bert", "tokens": 3, "width": 32, "size_bytes": 0,
    }  # fmt: skip
    assert (facts["fusion"], facts["width"]) == ("attention", 20)
    assert facts["metrics"] == {"seen": {"accuracy": 0.5}} and facts["space"] == read_bundle(Path(fused))["space"]
    files = [path for path in Path(fused).rglob("*") if path.is_file()]
    assert facts["files"] == len(files) - 1
    assert facts["size_bytes"] == sum(path.stat().st_size for path in files if path.name != "bundle.json")
    damaged = Path(save_bundle(tmp_path / "b", make_model(text_model, modalities=["text"])))
    (damaged / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match=r"model\.safetensors is damaged"):
        inspect(str(damaged))
