"""`mmbm augment`: copies that are a function of row and seed, with where they come from; bad rows; the page."""

import base64
import io
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from mmbm_core.augment.recipe import AugmentRecipe
from mmbm_core.errors import UsageError
from mmbm_core.media import decode_audio, decode_image
from mmbm_core.predict import Predictor
from pipelines import augment as augment_module
from pipelines import embed as embed_module
from pipelines.augment import RECIPES, AugmentRequest, load_augment_recipe
from pipelines.preview import preview
from pipelines.recipe_file import known_recipes
from pipelines.request import RowsSettings
from tests.bundles import make_model, make_talker, save_bundle
from tests.pipelines.conftest import EmbeddingHere, Here
from tests.samples import audio_file, image_file, tone

FLIP = {"image": {"flip": True}, "copies": 3}


class Done:
    """What a run wrote."""

    def __init__(self, output: Path, figures: dict[str, Any]) -> None:
        self.figures, self.output = figures, output
        parts = sorted(output.glob("part-*.parquet"))
        self.table = pa.concat_tables([pq.ParquetFile(part).read() for part in parts])
        self.rows = {row["id"]: row for row in self.table.to_pylist()}
        lines = [pq.ParquetFile(part).read().to_pylist() for part in sorted((output / "_quarantine").glob("*.parquet"))]
        self.quarantine = {line["id"]: line for part in lines for line in part}


def request(recipe: dict[str, Any], source: Path, output: Path, **given: Any) -> AugmentRequest:
    settings = {name: given.pop(name) for name in list(given) if name in RowsSettings.model_fields}
    return AugmentRequest(
        inputs=[str(source)], output=str(output), recipe=AugmentRecipe.model_validate(recipe),
        settings=RowsSettings(**settings), **given,
    )  # fmt: skip


@pytest.fixture
def augment(ray_cluster: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Done]:
    """`augment(recipe, INPUT, key=value)`: fields of the request or its settings."""

    def run(recipe: dict[str, Any], source: Path, *, output: str = "out", real: bool = False, **given: Any) -> Done:
        if not real:
            monkeypatch.setattr(augment_module, "Stream", Here)
            monkeypatch.setattr(embed_module, "EmbeddingStream", EmbeddingHere)
        done = Done(tmp_path / output, augment_module.augment(request(recipe, source, tmp_path / output, **given)))
        f = done.figures
        assert f["rows_in"] == f["rows_out"] + f["rows_quarantined"] and f["rows_written"] == done.table.num_rows
        return done

    return run


def pictures(count: int) -> list[dict[str, Any]]:
    kinds = ("PNG", "JPEG")
    return [{"id": f"r{n}", "image": image_file(kinds[n % 2], n, width=24, height=16 + n % 3), "label": n % 4}
            for n in range(count)]  # fmt: skip


def test_each_row_has_its_copies_with_where_they_come_from(augment: Any, write: Any) -> None:
    rows = pictures(10)
    done = augment(FLIP, write("a.parquet", rows), seed=7)
    assert list(done.rows) == [f"r{n}{copy}" for n in range(10) for copy in ("", "~1", "~2", "~3")]
    mirrored = 0
    for row in rows:
        assert done.rows[row["id"]] == {
            **row, "source_id": row["id"], "augmentation": None, "augmentation_seed": None
        }  # fmt: skip
        for k in (1, 2, 3):
            copy = done.rows[f"{row['id']}~{k}"]
            assert (copy["source_id"], copy["label"], copy["augmentation_seed"]) == (row["id"], row["label"], 7)
            assert re.fullmatch(r"[0-9a-f]{16}", copy["augmentation"])
            pixels, source = (decode_image(each["image"]).astype(int) for each in (copy, row))
            assert copy["image"][:2] == row["image"][:2]  # a JPEG stays one
            same, other = (np.abs(pixels - each).mean() for each in (source, source[:, ::-1]))
            assert min(same, other) < 4 and max(same, other) > 8
            mirrored += other < same
    assert 5 <= mirrored <= 25
    assert done.figures["rows_in"] == 10 and done.figures["rows_written"] == 40


def test_copies_are_the_same_however_the_run_is_cut(augment: Any, write: Any) -> None:
    source = write("a.parquet", pictures(20))
    recipe = {"image": {"policy": "trivial", "crop_scale": 0.6}, "copies": 2}
    first = augment(recipe, source, output="1", seed=3)
    cut = augment(recipe, source, output="2", seed=3, unit_rows=3)
    other = augment(recipe, source, output="3", seed=4)
    assert first.rows == cut.rows and len(list((cut.output).glob("part-*"))) > 4
    changed = [first.rows[f"r{n}~1"]["image"] != other.rows[f"r{n}~1"]["image"] for n in range(20)]
    assert sum(changed) > 15
    assert first.rows["r0~1"]["image"] != first.rows["r0~2"]["image"]


def test_sounds_stay_at_their_rate(augment: Any, write: Any) -> None:
    rows = [{"id": f"s{n}", "audio": audio_file(wave=tone(seconds=0.4, rate_hz=8000), rate_hz=8000)} for n in range(4)]
    recipe = {"audio": {"noise_snr_db": [20, 20]}, "copies": 2, "keep_source": False}
    done = augment(recipe, write("a.parquet", rows))
    assert len(done.rows) == 8 and "s0" not in done.rows
    clean = decode_audio(rows[0]["audio"], rate_hz=8000)
    for row in done.rows.values():
        assert soundfile.info(io.BytesIO(row["audio"])).samplerate == 8000
        noise = decode_audio(row["audio"], rate_hz=8000) - clean
        snr_db = 10 * np.log10(np.mean(clean**2) / np.mean(noise**2))
        assert snr_db == pytest.approx(20, abs=0.5)


def test_texts_are_spoken_anew(augment: Any, write: Any) -> None:
    pytest.importorskip("espeakng_loader")
    rows = [{"id": "a", "captions": ["a red disc", "one disc that is red"]}, {"id": "b", "captions": ["a ring"]},
            {"id": "c", "captions": []}]  # fmt: skip
    done = augment({"speak": True, "copies": 2}, write("a.jsonl", rows))
    sounds = [done.rows[f"{row}~{k}"]["audio"] for row in "ab" for k in (1, 2)]
    assert len(set(sounds)) == 4 and all(len(decode_audio(s, rate_hz=16_000)) > 8000 for s in sounds)
    assert done.rows["a"]["audio"] is None and done.rows["a~1"]["captions"] == rows[0]["captions"]
    assert set(done.quarantine) == {"c"}


def test_bad_rows_are_quarantined_once_or_lose_a_modality(augment: Any, write: Any) -> None:
    rows = [{**row, "text": "a disc"} for row in pictures(6)]
    rows[2]["image"] = rows[2]["image"][:40]
    rows[3]["image"] = None
    source = write("a.parquet", rows)
    recipe = {**FLIP, "text": {"drop": 0.5}}
    done = augment(recipe, source)
    assert set(done.quarantine) == {"r2"} and done.quarantine["r2"]["stage"] == "augment"
    assert len(done.rows) == 20 and done.rows["r3~1"]["image"] is None
    kept = augment(recipe, source, output="2", on_bad_modality="drop")
    assert not kept.quarantine and kept.rows["r2~1"]["image"] is None and kept.rows["r2~1"]["text"]


def test_the_gate_leaves_out_what_is_there_already_and_what_is_labelled_wrongly(
    augment: Any, write: Any, text_model: str
) -> None:
    words = {"disc": "a red disc lies left of a disc", "ring": "three green rings and a ring"}
    rows = [{"id": f"r{n}", "text": f"{words[label]} {n}", "label": label}
            for n in range(120) for label in [("disc", "ring")[n % 2]]]  # fmt: skip
    rows += [{**rows[3], "id": "again"}, {"id": "wrong", "text": f"{words['disc']} 900", "label": "ring"}]
    recipe = {"gate": {"model": text_model, "duplicates": 0.999999, "label": "label"}, "text": {"typos": 0.2}}
    source = write("a.jsonl", rows)
    done = augment(recipe, source)
    assert done.quarantine["again"]["error"] == "nearly equal to r3"
    assert done.quarantine["wrong"]["error"] == "label ring is doubtful: looks like disc"
    assert {line["stage"] for line in done.quarantine.values()} == {"gate"}
    assert [id for id, line in done.quarantine.items() if "doubtful" in line["error"]] == ["wrong"]
    assert len(done.rows) == 2 * (122 - len(done.quarantine)) and "again~1" not in done.rows
    only = augment({"gate": recipe["gate"], "copies": 0}, source, output="2")
    assert set(only.rows) == {row["id"] for row in rows} - set(done.quarantine)
    with pytest.raises(UsageError, match="no column 'lable' of labels"):
        augment({"gate": {"model": text_model, "label": "lable"}, "copies": 0}, source, output="3")


def test_the_gate_looks_at_columns_that_no_copy_changes_and_at_rows_that_lack_some(
    augment: Any, write: Any, clip_model: str
) -> None:
    rows = [{**row, "text": f"a disc of {row['id']}"} for row in pictures(12)]
    rows[3]["text"], rows[4]["image"] = None, None
    rows += [{**rows[3], "id": "again"}, {**rows[5], "id": "says another thing", "text": "three green rings"}]
    recipe = {"gate": {"model": clip_model, "duplicates": 0.9999999}, **FLIP}
    columns = {"columns": {"text": ["text"], "image": ["image"]}}
    done = augment(recipe, write("a.parquet", rows), **columns)
    assert {id: line["error"] for id, line in done.quarantine.items()} == {"again": "nearly equal to r3"}
    assert done.rows["r3~1"]["text"] is None


def test_rarer_classes_get_more_copies(augment: Any, write: Any) -> None:
    labels = ["many"] * 6 + ["two", "two", "one", None] + ["three"] * 3
    rows = [{**row, "label": label} for row, label in zip(pictures(13), labels, strict=True)]
    source = write("a.parquet", rows)
    recipe = {"image": {"flip": True}, "copies": 1, "balance": "label"}
    done = augment(recipe, source)
    counts = Counter(row["label"] for row in done.rows.values())
    assert counts == {"many": 12, "two": 12, "one": 12, "three": 12, None: 2}
    cut = augment(recipe, source, output="cut", unit_rows=2)
    assert cut.rows == done.rows
    uneven = augment(recipe, write("b.parquet", rows[:6] + rows[10:12]), output="uneven")  # 12 rows of 2 is 5 each
    assert Counter(row["label"] for row in uneven.rows.values()) == {"many": 12, "three": 12}
    with pytest.raises(UsageError, match=r"label 'one' has 1 rows .* takes 5999 copies of each"):
        augment({**recipe, "copies": 999}, source, output="none")
    gated = augment({**recipe, "gate": {"model": "efficientnet-lite0", "duplicates": 0.99}}, write(
        "d.parquet", [*rows[:3], {**rows[0], "id": "twice"}, *rows[10:12]]
    ), output="gated")  # fmt: skip
    assert "twice" in gated.quarantine
    assert Counter(row["label"] for row in gated.rows.values()) == {"many": 6, "three": 6}
    fifth = augment({**recipe, "keep_source": False}, write("c.parquet", rows[:5] + rows[10:]), output="fifth")
    found = Counter(row["label"] for row in fifth.rows.values())  # 5 / 3 copies of each: one or two
    assert found["many"] == 5 and 3 <= found["three"] <= 6


def test_rows_without_a_label_get_one_that_a_model_is_sure_of(
    augment: Any, write: Any, text_model: str, tmp_path: Path
) -> None:
    model = make_model(text_model, modalities=("image", "text"))
    bundle = save_bundle(tmp_path / "bundle", model)
    rows = [{**row, "text": f"disc {n}" if n % 2 else None, "label": "yes" if n == 3 else None}
            for n, row in enumerate(pictures(12))]  # fmt: skip
    rows[5]["image"], rows[7]["image"], rows[7]["text"] = b"no picture", None, None
    predictor = Predictor(model)
    expected = {}
    for n, row in enumerate(rows):
        if n not in (3, 5, 7):
            items = {m: model.encoders[m].prepare(m, [row[m]])[0] for m in ("image", "text") if row[m] is not None}  # type: ignore[operator]
            expected[row["id"]] = predictor.classify("seen", [items]).probabilities[0].numpy()
    middle = sorted(p.max() for p in expected.values())[3:5]
    threshold = float(np.mean(middle))
    assert middle[1] - middle[0] > 1e-5  # a batch rounds otherwise than a row alone
    recipe = {"copies": 0, "pseudo_labels": {"model": bundle, "confidence": threshold}}
    source = write("a.parquet", rows)
    done = augment(recipe, source)
    sure = {id: p for id, p in expected.items() if p.max() >= threshold}
    assert 0 < len(sure) < len(expected)
    assert done.rows.keys() == {"r3", *sure}
    assert [done.rows["r3"][name] for name in ("label", "label_confidence", "augmentation")] == ["yes", None, None]
    for id, p in sure.items():
        assert done.rows[id]["label"] == ["no", "yes"][p.argmax()]
        assert done.rows[id]["augmentation"] and done.rows[id]["source_id"] == id
        assert done.rows[id]["label_confidence"] == pytest.approx(p.max(), abs=1e-5)
    why = {id: line["error"] for id, line in done.quarantine.items()}
    assert "no label" in why["r5"] and why["r7"] == "no label: the row has no image or text"
    assert all("sure of" in why[id] for id in expected.keys() - sure.keys())
    bare = write("b.parquet", [{k: v for k, v in row.items() if k != "label"} for row in rows])
    copied = augment({**recipe, **FLIP}, bare, output="copied")
    for id in sure:
        assert copied.rows[f"{id}~2"]["label"] == done.rows[id]["label"]
    assert augment(recipe, source, output="cut", unit_rows=2).rows.keys() == done.rows.keys()
    with pytest.raises(UsageError, match=r"no task 'none'; it needs a task of .*: seen"):
        augment(
            {"copies": 0, "pseudo_labels": {"model": bundle, "task": "none"}}, write("c.parquet", rows), output="none"
        )
    numbers = [{**row, "label": n} for n, row in enumerate(pictures(3))]
    with pytest.raises(UsageError, match="column 'label' holds int64"):
        augment({"copies": 0, "pseudo_labels": {"model": bundle}}, write("d.parquet", numbers), output="none")
    with pytest.raises(UsageError, match="can't be labelled"):
        augment(recipe, source, output="none", drop_columns="label")


def test_texts_are_said_in_other_words(augment: Any, write: Any, text_model: str, tmp_path: Path) -> None:
    model = make_talker(text_model)
    bundle = save_bundle(tmp_path / "bundle", model)
    rows = [{"id": f"r{n}", "text": f"{n} red discs", "label": n} for n in range(5)] + [{"id": "none", "text": None}]
    recipe = {"copies": 3, "translate": {"there": bundle, "back": bundle, "temperature": 1.0}}
    source = write("a.jsonl", rows)
    done = augment(recipe, source)
    copies = [done.rows[f"r{n}~{k}"]["text"] for n in range(5) for k in (1, 2, 3)]
    assert len(set(copies)) > 10 and all(done.rows[f"r{n}~1"]["label"] == n for n in range(5))
    assert augment(recipe, source, output="cut", unit_rows=2).rows == done.rows
    likeliest = augment({**recipe, "translate": {"there": bundle, "back": bundle, "temperature": 0.0}}, source,
                        output="likeliest")  # fmt: skip
    predictor = Predictor(model)

    def translate(text: str, **options: Any) -> str:
        items = {"text": model.encoders["text"].prepare("text", [text])[0]}  # type: ignore[operator]
        return predictor.search("german", [items], **options)[0]  # type: ignore[list-item]

    for n in range(5):
        expected = translate(translate(f"{n} red discs"), beams=1)
        assert [likeliest.rows[f"r{n}~{k}"]["text"] for k in (1, 2, 3)] == [expected] * 3
    other = save_bundle(tmp_path / "other", make_model(text_model, modalities=("text",)))
    with pytest.raises(UsageError, match="needs a task of translation that reads text, and has 0"):
        augment({**recipe, "translate": {"there": bundle, "back": other}}, source, output="none")


def test_a_row_that_has_nothing_to_change_stays_as_it_is(augment: Any, write: Any) -> None:
    rows = [{**row, "text": f"a disc of {row['id']}"} for row in pictures(3)]
    rows[1]["image"] = None
    rows.append({**rows[1], "id": "empty", "text": None})
    source = write("a.parquet", rows)
    done = augment(FLIP, source)
    assert done.rows["r1"]["text"] == "a disc of r1" and "r1~1" not in done.rows and "r2~3" in done.rows
    assert set(done.quarantine) == {"empty"} and done.figures["rows_written"] == 9
    alone = augment({**FLIP, "keep_source": False}, source, output="2")
    assert set(alone.quarantine) == {"r1", "empty"} and alone.figures["rows_written"] == 6


def test_a_run_goes_on_where_it_was(augment: Any, write: Any) -> None:
    source = write("a.parquet", pictures(12))
    first = augment(FLIP, source, unit_rows=4)
    again = augment(FLIP, source, unit_rows=4)
    assert again.figures["rows_reused"] == 12 and again.rows == first.rows
    with pytest.raises(UsageError, match="one schema: give another OUTPUT"):
        augment({"text": {"drop": 0.1}}, write("b.jsonl", [{"text": "a b"}]))


def test_struct_and_list_columns(augment: Any, write: Any) -> None:
    files = [image_file("PNG", n, width=8, height=8) for n in range(3)]
    rows = [{"id": "x", "image": {"bytes": files[0], "path": "x.png"}, "texts": ["a b", "c d"]}]
    done = augment({"image": {"flip": True}, "text": {"swap": 0.9}}, write("a.parquet", rows))
    assert done.rows["x"]["image"] == files[0] and isinstance(done.rows["x~1"]["image"], bytes)
    assert len(done.rows["x~1"]["texts"]) == 2


@pytest.mark.parametrize(("recipe", "rows", "message"), [
    (FLIP, [{"id": "a", "text": "b"}], "nothing to embed|no column"),
    ({"speak": True}, [{"id": "a", "text": "b", "source_id": "c"}], "drop_columns=source_id"),
    ({**FLIP, "audio": {"gain_db": 3}}, [{"id": "a", "image": image_file()}], "no column .*--audio-column"),
])  # fmt: skip
def test_what_can_not_be_carried_out(augment: Any, write: Any, recipe: Any, rows: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        augment(recipe, write("a.parquet", rows))


def test_wrong_recipes_are_told(tmp_path: Path) -> None:
    for content, message in {
        "copies: 2": "nothing would change",
        "gate: {}": "nothing would be left out",
        "gate: {duplicates: 0.9}": "copies are what changes make",
        "image: {flip: true}\ncopies: 0": "copies are what changes make",
        "image: {flop: true}": "flop: unknown key; did you mean flip",
        "speak: true\naudio: {gain_db: 2}": "leave audio out",
    }.items():
        (tmp_path / "r.yaml").write_text(content)
        with pytest.raises(UsageError, match=message):
            load_augment_recipe(str(tmp_path / "r.yaml"), settings=[])
    assert all(load_augment_recipe(name, settings=["copies=9"]).copies == 9 for name in known_recipes(RECIPES))


def test_a_page_shows_rows_beside_their_copies(write: Any, tmp_path: Path) -> None:
    rows = [{**row, "audio": audio_file()} for row in pictures(30)]
    rows[1] |= {"id": "<script>alert(1)</script>", "image": b"broken"}
    source, output = write("a.parquet", rows), tmp_path / "out"
    recipe = {**FLIP, "audio": {"gain_db": 3}}
    told = preview(request(recipe, source, output))
    assert told["rows"] == 16 and told["rows_quarantined"] >= 1
    assert [path.name for path in output.iterdir()] == ["preview.html"]
    page = (output / "preview.html").read_text()
    assert "<script>alert" not in page and "http" not in page.split("<body>")[1]
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(images) == 16 * 4 and page.count("data:audio/flac") == 16 * 4
    assert Image.open(io.BytesIO(base64.b64decode(images[0]))).size == (24, 16)


def test_on_a_cluster(augment: Any, write: Any) -> None:
    source = write("a.parquet", pictures(40))
    there, here = augment(FLIP, source, output="1", real=True, unit_rows=8), augment(FLIP, source, output="2")
    assert there.rows == here.rows and len(there.rows) == 160
