"""The row contract of `mmbm embed`: what goes in, what comes out, what becomes of bad rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmbm_core.bundle import load_bundle
from mmbm_core.errors import UsageError
from tests.samples import audio_file, image_file, tone

MIXED = "efficientnet-lite0,mfcc"


def vector_of(model: str, **row: Any) -> dict[str, Any]:
    """The vectors that the library gives a row of its own."""
    return load_bundle(model).embed([row]).to_pylist()[0]


def normalised(vector: Any) -> np.ndarray:
    return np.asarray(vector) / np.linalg.norm(vector)


def test_ids_are_given_or_made_and_unique_in_a_unit(embed: Callable[..., Any], write: Callable[..., Path]) -> None:
    write("a.parquet", [{"id": n, "text": f"text number {n}"} for n in (7, 8, 7, None)])
    write("b.parquet", [{"id": None, "text": "words"}, {"id": None, "text": "a star"}])
    done = embed(write("a.parquet", [{"id": n, "text": f"text number {n}"} for n in (7, 8, 7, None)]).parent)
    assert set(done.rows) == {"7", "8", "a.parquet#3", "b.parquet#0", "b.parquet#1"}
    assert done.figures["rows_in"] == 6 and done.figures["rows_quarantined"] == 1
    line = done.quarantine["7"]
    assert (line["stage"], line["modality"]) == ("id", None) and "duplicate id in a.parquet" in line["error"]
    assert line["source"].endswith("in/a.parquet#2")


def test_ids_from_a_named_column_travel_with_it(embed: Callable[..., Any], write: Callable[..., Path]) -> None:
    path = write("a.jsonl", [{"key": {"name": "first"}, "text": "a red disc"}, {"key": {"name": ""}, "text": "a star"}])
    done = embed(path, id_column="key.name")
    assert next(iter(done.rows)) == "first" and done.rows["first"]["key"] == {"name": "first"}
    assert list(done.rows)[1].startswith("a.jsonl#")
    both = write("b.jsonl", [{"id": "x", "key": "y", "text": "a red disc"}])
    with pytest.raises(UsageError, match=r"source columns id have names that the output needs.*drop_columns=id"):
        embed(both, id_column="key", output="other")
    assert list(embed(both, id_column="key", drop_columns="id", output="other").rows) == ["y"]


def test_every_modality_may_be_missing_but_not_all(
    embed: Callable[..., Any], write: Callable[..., Path], text_model: str
) -> None:
    image, audio = image_file(), audio_file()
    rows = [
        {"id": "all", "text": "a red disc", "image": image, "audio": audio, "label": 3},
        {"id": "text", "text": "a red disc", "image": None, "audio": None, "label": None},
        {"id": "image", "text": None, "image": image, "audio": None, "label": 1},
        {"id": "audio", "text": " \n", "image": None, "audio": audio, "label": 2},
        {"id": "none", "text": "", "image": None, "audio": None, "label": 9},
        {"id": "empty", "text": "a", "image": b"", "audio": None, "label": 9},
    ]
    model = f"{text_model},{MIXED}"
    done = embed(write("a.parquet", rows), model=model)
    assert {id: row["modalities"] for id, row in done.rows.items()} == {
        "all": ["text", "image", "audio"], "text": ["text"], "image": ["image"], "audio": ["audio"],
    }  # fmt: skip
    assert done.quarantine["none"]["error"] == "no text or image or audio in this row"
    assert (done.quarantine["empty"]["modality"], done.quarantine["empty"]["error"]) == ("image", "zero bytes")
    bundle = load_bundle(model)
    for id, row in done.rows.items():
        source = next(r for r in rows if r["id"] == id)
        alone = bundle.embed([{m: source[m] for m in ("text", "image", "audio")}]).to_pylist()[0]
        for modality in ("text", "image", "audio"):
            column = f"{modality}_embedding"
            assert (row[column] is None) == (modality not in row["modalities"])
            if row[column] is not None:
                np.testing.assert_allclose(row[column], alone[column], atol=1e-4)
        assert row["label"] == source["label"]
    widths = {"text_embedding": 32, "image_embedding": 1280, "audio_embedding": 640}
    assert done.table.schema.remove_metadata() == pa.schema(
        [("id", pa.string()), ("modalities", pa.list_(pa.string()))]
        + [(name, pa.list_(pa.float32(), width)) for name, width in widths.items()]
        + [("text", pa.string()), ("label", pa.int64())]
    )


def test_half_vectors_and_media_on_request(embed: Callable[..., Any], write: Callable[..., Path]) -> None:
    image = {"bytes": image_file(), "path": "x.png"}
    path = write("a.parquet", [{"text": "a red disc", "image": image, "secret": "s"}])
    done = embed(path, vectors="float16", keep_media=True, drop_columns="secret")
    (row,) = done.rows.values()
    assert done.table.schema.field("text_embedding").type == pa.list_(pa.float16(), 32)
    assert row["image"] == image and "secret" not in row
    assert np.isclose(np.linalg.norm(normalised(row["text_embedding"])), 1)
    assert "image" not in embed(path, output="without").table.column_names


def test_several_captions_are_one_row_or_one_row_each(
    embed: Callable[..., Any], write: Callable[..., Path], text_model: str
) -> None:
    captions = ["a red disc", "seven green rings under one star", "a red disc"]
    path = write("a.parquet", [{"id": "x", "captions": captions, "n": 1}, {"id": "y", "captions": [], "n": 2},
                               {"id": "z", "captions": [None, "words"], "n": 3}])  # fmt: skip
    done = embed(path)
    each = [normalised(vector_of(text_model, text=c)["text_embedding"]) for c in captions]
    np.testing.assert_allclose(done.rows["x"]["text_embedding"], normalised(np.mean(each, 0)), atol=1e-4)
    assert done.rows["x"]["captions"] == captions and "y" in done.quarantine
    assert done.figures["duplicates"] == 1

    done = embed(path, explode="captions", output="exploded")
    assert set(done.rows) == {"x#0", "x#1", "x#2", "z#1"}
    assert [done.rows[f"x#{n}"]["captions"] for n in range(3)] == captions
    assert done.rows["x#1"]["n"] == 1
    np.testing.assert_allclose(normalised(done.rows["x#1"]["text_embedding"]), each[1], atol=1e-4)
    assert done.rows["x#0"]["text_embedding"] == done.rows["x#2"]["text_embedding"]
    assert {k: done.figures[k] for k in ("rows_in", "rows_out", "rows_exploded", "rows_written")} == {
        "rows_in": 3, "rows_out": 2, "rows_exploded": 3, "rows_written": 4,
    }  # fmt: skip
    assert set(done.quarantine) == {"y#0", "z#0"}


def test_fixed_size_lists_explode_too(embed: Callable[..., Any], write: Callable[..., Path]) -> None:
    pair = pa.FixedSizeListArray.from_arrays(pa.array(["a red disc", "one star", "words", "rings"]), 2)
    done = embed(write("a.parquet", pa.table({"texts": pair})), explode="texts")
    assert [row["texts"] for row in done.rows.values()] == ["a red disc", "one star", "words", "rings"]


def test_two_text_columns_are_two_encodings(
    embed: Callable[..., Any], write: Callable[..., Path], text_model: str
) -> None:
    path = write("a.jsonl", [{"title": "a red disc", "meta": {"body": "one star", "n": 1}}, {"title": "words"}])
    done = embed(path, columns={"text": ["title", "meta.body"]})
    first, second = done.rows.values()
    expected = [vector_of(text_model, text=t)["text_embedding"] for t in ("a red disc", "one star")]
    np.testing.assert_allclose(first["title_embedding"], expected[0], atol=1e-4)
    np.testing.assert_allclose(first["meta_body_embedding"], expected[1], atol=1e-4)
    assert second["meta_body_embedding"] is None and second["modalities"] == ["text"]
    assert first["meta"] == {"body": "one star", "n": 1}
    with pytest.raises(UsageError, match=r"title.*name each once"):
        embed(path, columns={"text": ["title", "title"]}, output="twice")


def test_wrong_columns_are_refused_with_the_way_out(embed: Callable[..., Any], write: Callable[..., Path]) -> None:
    path = write("a.jsonl", [{"text": "a red disc", "modalities": "x", "meta": {"body": "words"}}])
    for given, message in (
        ({"columns": {"text": ["txt"]}}, "no column 'txt'; the columns are text, modalities, meta"),
        ({"columns": {"text": ["meta.bdy"]}}, "no column 'meta.bdy'.*meta.body"),
        ({"columns": {"audio": ["text"]}}, "the model encodes text only"),
        ({"id_column": "key"}, "no column 'key'"),
        ({"explode": "captions"}, "no column 'captions'"),
        ({"drop_columns": "gone"}, "drop_columns names gone; the columns are"),
        ({}, "source columns modalities have names.*drop_columns=modalities"),
    ):
        with pytest.raises(UsageError, match=message):
            embed(path, **given)
    with pytest.raises(UsageError, match="nothing to embed"):
        embed(write("b.jsonl", [{"n": 1}]))
    assert len(embed(path, drop_columns="modalities").rows) == 1


def test_what_the_model_cannot_encode_is_left_out(embed: Callable[..., Any], write: Callable[..., Path]) -> None:
    done = embed(write("a.parquet", [{"text": "a red disc", "image": image_file(), "audio": audio_file()}]))
    assert done.table.column_names == ["id", "modalities", "text_embedding", "text"]


def test_types_that_differ_between_files_make_one_schema(embed: Callable[..., Any], write: Callable[..., Path]) -> None:
    write("a.jsonl", [{"id": "a", "text": "a star", "n": 1, "empty": None, "only_a": True}])
    path = write("b.jsonl", [{"id": "b", "text": "words", "n": 1.5, "empty": None, "tags": ["x"]}])
    done = embed(path.parent)
    schema = done.table.schema
    assert (schema.field("n").type, schema.field("tags").type) == (pa.float64(), pa.list_(pa.string()))
    assert (done.rows["a"]["n"], done.rows["b"]["n"], done.rows["b"]["only_a"]) == (1.0, 1.5, None)
    frame = done.table.to_pandas()
    assert len(frame["text_embedding"][0]) == 32
    duckdb = pytest.importorskip("duckdb")
    query = f"select sum(len(text_embedding)), max(n) from '{done.output}/part-*.parquet'"
    assert duckdb.connect().execute(query).fetchall() == [(64, 1.5)]


def test_a_shared_space_has_one_embedding(
    embed: Callable[..., Any], write: Callable[..., Path], clip_model: str
) -> None:
    rows = [
        {"id": "both", "text": "a red disc", "image": image_file()},
        {"id": "text", "text": "a red disc", "image": None},
        {"id": "image", "text": None, "image": image_file()},
    ]
    done = embed(write("a.parquet", rows), model=clip_model).rows
    assert done["text"]["text_embedding"] is None and done["image"]["image_embedding"] is None
    np.testing.assert_allclose(done["both"]["text_embedding"], done["text"]["embedding"], atol=1e-6)
    np.testing.assert_allclose(done["both"]["image_embedding"], done["image"]["embedding"], atol=1e-6)
    mean = normalised(np.add(done["text"]["embedding"], done["image"]["embedding"]))
    np.testing.assert_allclose(done["both"]["embedding"], mean, atol=1e-5)
    library = vector_of(clip_model, text="a red disc", image=image_file())
    np.testing.assert_allclose(library["embedding"], done["both"]["embedding"], atol=1e-4)

    alone = embed(write("text/b.parquet", [{"text": "a red disc"}]), model=clip_model, output="alone")
    assert alone.table.column_names == ["id", "modalities", "embedding", "text"]
    np.testing.assert_allclose(*[list(r.values())[2] for r in (*alone.rows.values(), {**done["text"]})], atol=1e-6)


def test_bytes_and_numbers_are_text_where_a_text_column_holds_them(
    embed: Callable[..., Any], write: Callable[..., Path], text_model: str
) -> None:
    table = pa.table({"id": ["a", "b"], "t": pa.array([b"a red disc", b"\xff\xfe"]), "n": [12, 13]})
    done = embed(write("a.parquet", table), columns={"text": ["t"]})
    expected = vector_of(text_model, text="a red disc")["text_embedding"]
    np.testing.assert_allclose(done.rows["a"]["text_embedding"], expected, atol=1e-4)
    assert done.quarantine["b"]["error"] == "text is not valid UTF-8"
    done = embed(write("a.parquet", table), columns={"text": ["n"]}, output="numbers")
    expected = vector_of(text_model, text="12")["text_embedding"]
    np.testing.assert_allclose(done.rows["a"]["text_embedding"], expected, atol=1e-4)


def test_a_vector_does_not_depend_on_its_neighbours(
    embed: Callable[..., Any], write: Callable[..., Path], text_model: str
) -> None:
    random = np.random.default_rng(0)
    words = ["a", "red", "disc", "beside", "the", "blue", "square", "seven", "green", "rings"]
    rows = [
        {
            "id": str(n),
            "text": " ".join(random.choice(words, random.integers(1, 40))),
            "audio": audio_file(wave=tone(seconds=random.uniform(0.05, 1.5), pitch_hz=random.uniform(100, 2000))),
            "image": image_file(seed=n, width=int(random.integers(20, 200)), height=int(random.integers(20, 200))),
        }
        for n in range(24)
    ]
    model = f"{text_model},{MIXED}"
    together = embed(write("a/a.parquet", rows), model=model).rows
    order = random.permutation(24)
    apart = embed(write("b/a.parquet", [rows[n] for n in order]), model=model, unit_rows=3, output="apart").rows
    for id, row in together.items():
        for modality in ("text", "image", "audio"):
            np.testing.assert_allclose(row[f"{modality}_embedding"], apart[id][f"{modality}_embedding"], atol=1e-4)


def test_the_whole_flow_on_actors(embed: Callable[..., Any], write: Callable[..., Path], text_model: str) -> None:
    rows = [{"id": f"r{n}", "text": f"text number {n % 90}", "audio": None} for n in range(100)]
    rows[5]["audio"], rows[6]["audio"] = audio_file(), b"bad"
    model = f"{text_model},mfcc"
    done = embed(write("a.parquet", rows), model=model, precision="fast", unit_rows=20, real=True)
    assert set(done.quarantine) == {"r6"} and len(done.rows) == 99
    run = json.loads((done.output / "_run.json").read_text())
    assert run["state"] == "complete" and run["figures"]["rows_in"] == 100
    exact = load_bundle(model).embed([{"text": f"text number {n}"} for n in range(90)])["text_embedding"].to_pylist()
    for n in (0, 50, 99):
        one, other = normalised(done.rows[f"r{n}"]["text_embedding"]), normalised(exact[n % 90])
        assert one @ other >= 0.999
    assert done.figures["duplicates"] == 0  # equal texts lie in different units
    assert pq.read_schema(done.parts[0]).field("audio_embedding").type == pa.list_(pa.float32(), 640)
