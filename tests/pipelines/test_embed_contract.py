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
from mmbm_core.errors import RunError, UsageError
from tests.samples import all_files, audio_file, fuzzed, image_file, tone

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
    assert list(done.rows)[0] == "first" and done.rows["first"]["key"] == {"name": "first"}
    assert list(done.rows)[1].startswith("a.jsonl#")
    both = write("b.jsonl", [{"id": "x", "key": "y", "text": "a red disc"}])
    with pytest.raises(UsageError, match="source columns id have names that the output needs.*drop_columns=id"):
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
        + [("label", pa.int64())]
    )


def test_half_vectors_and_media_on_request(embed: Callable[..., Any], write: Callable[..., Path]) -> None:
    image = {"bytes": image_file(), "path": "x.png"}
    path = write("a.parquet", [{"text": "a red disc", "image": image, "secret": "s"}])
    done = embed(path, half=True, keep_media=True, drop_columns="secret")
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
    assert done.table.column_names == ["id", "modalities", "text_embedding"]


def test_uris_are_fetched_below_the_input_and_nowhere_else(
    embed: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "outside.png").write_bytes(image_file())
    path = write("a.jsonl", [
        {"id": "relative", "image_uri": "media/x.png", "audio_uri": "media/x.wav"},
        {"id": "absolute", "image_uri": str(tmp_path / "in/media/x.png")},
        {"id": "late", "image_uri": "media/late.png"},
        {"id": "outside", "image_uri": "../outside.png"},
        {"id": "web", "image_uri": "https://192.0.2.1/x.png"},
        {"id": "scheme", "image_uri": "gopher://x/y"},
        {"id": "both", "image_uri": "media/none.png", "audio_uri": "media/none.wav"},
        {"id": "none", "image_uri": None, "audio_uri": ""},
    ])  # fmt: skip
    media = path.parent / "media"
    media.mkdir()
    (media / "x.png").write_bytes(image_file())
    (media / "x.wav").write_bytes(audio_file())
    done = embed(path, model=MIXED)
    assert set(done.rows) == {"relative", "absolute"}
    assert done.rows["relative"]["modalities"] == ["image", "audio"]
    assert done.rows["relative"]["image_embedding"] == done.rows["absolute"]["image_embedding"]
    assert done.rows["absolute"]["image_uri"].endswith("x.png")
    lines = done.quarantine
    assert lines["late"]["stage"] == "fetch" and "No such file" in lines["late"]["error"]
    assert "outside the input folder" in lines["outside"]["error"]
    assert "--allow-scheme https" in lines["web"]["error"] and "can't be fetched" in lines["scheme"]["error"]
    assert lines["both"]["modality"] == "image,audio" and lines["both"]["error"].startswith("image: ")
    assert lines["none"]["stage"] == "row"

    (media / "late.png").write_bytes(image_file(seed=1))
    assert embed(path, model=MIXED).figures["rows_reused"] == 8  # nothing changed that a run looks at
    again = embed(path, model=MIXED, retry_errors=True)
    assert set(again.rows) == {"relative", "absolute", "late"}
    assert again.rows["relative"] == done.rows["relative"] and "late" not in again.quarantine


def test_hugging_face_structs_hold_bytes_or_a_path(embed: Callable[..., Any], write: Callable[..., Path]) -> None:
    path = write("a.parquet", [
        {"id": "bytes", "image": {"bytes": image_file(), "path": "gone.png"}},
        {"id": "path", "image": {"bytes": None, "path": "x.png"}},
        {"id": "gone", "image": {"bytes": None, "path": "gone.png"}},
        {"id": "none", "image": {"bytes": None, "path": None}},
        {"id": "null", "image": None},
    ])  # fmt: skip
    (path.parent / "x.png").write_bytes(image_file())
    done = embed(path, model="efficientnet-lite0")
    assert done.rows["bytes"]["image_embedding"] == done.rows["path"]["image_embedding"]
    assert set(done.rows) == {"bytes", "path"}
    assert [done.quarantine[id]["stage"] for id in ("gone", "none", "null")] == ["fetch", "row", "row"]


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
    assert duckdb.sql(f"select count(*) from '{done.output}/part-*.parquet'").fetchone() == (2,)


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
    assert alone.table.column_names == ["id", "modalities", "embedding"]
    np.testing.assert_allclose(*[list(r.values())[2] for r in (*alone.rows.values(), {**done["text"]})], atol=1e-6)


@pytest.fixture(scope="module")
def bad_rows() -> dict[str, dict[str, Any]]:
    """One row for each way to be bad, and good ones between them."""
    image, audio = image_file("JPEG"), audio_file("FLAC")
    mp4 = b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(3000)
    rows: dict[str, dict[str, Any]] = {
        "good": {"text": "a red disc", "image": image, "audio": audio},
        "image zero": {"image": b""},
        "image video": {"image": mp4},
        "image sound": {"image": audio},
        "image text": {"image": b"not a picture"},
        "audio zero": {"audio": b""},
        "audio video": {"audio": mp4},
        "audio image": {"audio": image},
        "audio long": {"audio": audio_file("FLAC", np.zeros(21 * 8000, np.int16), rate_hz=8000)},
        "image bomb": {"image": image_file("PNG", width=1100, height=1000)},
        "text long": {"text": "x" * 1001},
        "text 10 MB": {"text": "many words " * 1_000_000},
        "none": {},
        "ok unicode": {"text": "nul \0 \u202eright to left\u202c 👩‍👩‍👧‍👦 e" + "\u0301" * 200},
        "ok rtl": {"text": "שלום \u200f عالم"},
    }
    for kind, data in all_files().items():
        for percent in (1, 30, 60, 95):
            column = "audio" if kind in ("WAV", "FLAC", "OGG", "MP3") else "image"
            cut = data[: max(1, len(data) * percent // 100)]
            if not (kind == "MP3" and percent == 95):
                rows[f"{column} cut {kind} {percent}"] = {column: cut}
    return rows


LIMITS = {"max_text_bytes": 1000, "max_image_px": 1_000_000, "max_audio_s": 20}


def test_bad_rows_are_quarantined_and_good_ones_kept(
    embed: Callable[..., Any], write: Callable[..., Path], text_model: str, bad_rows: dict[str, dict[str, Any]]
) -> None:
    empty = {"text": None, "image": None, "audio": None}
    path = write("a.parquet", [{"id": id, **empty, **row} for id, row in bad_rows.items()])
    model = f"{text_model},{MIXED}"
    done = embed(path, model=model, **LIMITS)
    good = {id for id in bad_rows if id.startswith(("ok", "good"))}
    assert set(done.rows) == good and set(done.quarantine) == set(bad_rows) - good
    for id, line in done.quarantine.items():
        assert line["modality"] == (None if id == "none" else id.split()[0])
        assert line["error"] and "0x" not in line["error"] and len(line["error"]) < 300
        position = int(line["source"].rsplit("#", 1)[1])
        assert list(bad_rows)[position] == id

    mixed = [{"id": id, **empty, **row, "text": row.get("text", "a red disc")} for id, row in bad_rows.items()]
    done = embed(write("b.parquet", mixed), model=model, output="dropped", on_bad_modality="drop", **LIMITS)
    lost = {"text long", "text 10 MB"}
    assert set(done.rows) == set(bad_rows) - lost and set(done.quarantine) == lost
    assert set(done.dropped) == set(bad_rows) - good - lost - {"none"}
    assert done.figures["modalities_dropped"] == len(done.dropped)
    assert done.rows["image video"]["modalities"] == ["text"]
    assert done.rows["image video"]["image_embedding"] is None
    assert done.dropped["image video"]["modality"] == "image"


def test_a_dropped_modality_is_recorded_again_when_its_source_changes(
    embed: Callable[..., Any], write: Callable[..., Path], text_model: str
) -> None:
    rows = [{"id": f"r{n}", "text": f"text number {n}", "audio": b"bad" if n == 3 else audio_file()} for n in range(6)]
    model = f"{text_model},mfcc"
    first = embed(write("a.parquet", rows), model=model, on_bad_modality="drop")
    rows[0]["text"] = "one star"
    second = embed(write("a.parquet", rows), model=model, on_bad_modality="drop")
    assert second.figures["rows_reused"] == 4 and set(second.dropped) == set(first.dropped) == {"r3"}
    assert second.figures["modalities_dropped"] == 1


def test_fuzzed_media_end_in_the_output_or_in_quarantine(embed: Callable[..., Any], write: Callable[..., Path]) -> None:
    files = list(fuzzed(list(all_files().values()), 120, seed=7))
    rows = [{"id": str(n), "image": data, "audio": data} for n, data in enumerate(files)]
    done = embed(write("a.parquet", rows), model=MIXED, on_bad_modality="drop")
    assert set(done.rows) | set(done.quarantine) == {str(n) for n in range(120)}
    vectors = [row[f"{m}_embedding"] for row in done.rows.values() for m in row["modalities"]]
    assert len(vectors) > 10 and all(np.isfinite(vector).all() for vector in vectors)


def test_the_run_fails_where_all_or_too_much_is_bad(embed: Callable[..., Any], write: Callable[..., Path]) -> None:
    rows = [{"id": str(n), "audio": b"bad" if n % 2 else audio_file()} for n in range(20)]
    path = write("a.parquet", rows)
    with pytest.raises(RunError, match="10 of 20 rows are quarantined, more than --max-error-rate 0.4"):
        embed(path, model="mfcc", max_error_rate=0.4)
    assert embed(path, model="mfcc", max_error_rate=0.5).figures["rows_reused"] == 20
    with pytest.raises(RunError, match="no row was written: 2 rows read, 2 quarantined"):
        embed(write("none/b.parquet", rows[1:4:2]), model="mfcc", output="other")


def test_a_source_that_cannot_be_read_is_one_line(embed: Callable[..., Any], write: Callable[..., Path]) -> None:
    path = write("a.parquet", [{"id": "x", "text": "words"}])
    (path.parent / "b.parquet").write_bytes(b"PAR1 nothing PAR1")
    done = embed(path.parent)
    assert list(done.rows) == ["x"]
    assert done.quarantine["b.parquet"]["stage"] == "open" and done.figures["rows_in"] == 2


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
