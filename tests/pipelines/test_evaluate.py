"""Evaluation on a real Ray: the figures that training gave, every subset of modalities, siblings, generated texts."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
from scipy import stats

from mmbm_core.errors import UsageError
from pipelines.recipe import Recipe
from tests.training import AUDIO, IMAGE, LABEL, TEXT, color_recipe, color_rows, recipe, write_rows

Run = Callable[..., dict[str, Any]]


def test_a_model_beside_its_siblings(train: Run, evaluate: Run, colors: Path, tmp_path: Path) -> None:
    """Other seeds, each modality alone, concatenation: each scored exactly as training scored it."""
    trained = train(color_recipe(epochs=1), colors, seeds=2, baselines=True)
    names = {"seed-1", "only-image", "only-audio", "concat"}
    assert set(trained["siblings"]) == names
    assert {path.name for path in (tmp_path / "out" / "siblings").iterdir()} == names
    found = evaluate(colors)
    assert (found["rows_in"], found["rows_out"], found["rows_quarantined"]) == (24, 24, 0)
    plain = {name: value for name, value in found["metrics"].items() if "[" not in name}
    assert plain == {name.removeprefix("color/"): value for name, value in trained["metrics"].items()}
    subsets = {name.partition("[")[2].rstrip("]") for name in found["metrics"] if "[" in name}
    assert subsets == {"image", "audio"}
    assert set(found["siblings"]) == names
    for name in names:
        scores = {n: v for n, v in found["siblings"][name]["color"].items() if "[" not in n}
        assert scores == {n.removeprefix("color/"): v for n, v in trained["siblings"][name].items()}
    values = [found["metrics"]["nll"], found["siblings"]["seed-1"]["color"]["nll"]]
    told = found["seeds"]["color"]["nll"]
    low, high = stats.t.interval(0.95, 1, np.mean(values), stats.sem(values))
    assert (told["mean"], 2 * told["half_width"], told["count"]) == pytest.approx((np.mean(values), high - low, 2))
    spec = json.loads((tmp_path / "out/siblings/only-audio/bundle.json").read_text())["spec"]
    assert list(spec["encoders"]) == ["audio"] and spec["tasks"]["color"]["inputs"] == {"audio": "audio"}

    again = evaluate(colors / "val.parquet", bundle="out/siblings/only-image", report=str(tmp_path / "report"))
    expected = {n.removeprefix("color/"): v for n, v in trained["siblings"]["only-image"].items()}
    assert again["metrics"] == expected and "siblings" not in again
    told = json.loads((tmp_path / "report" / "report.json").read_text())
    assert told["tasks"]["color"]["metrics"] == expected
    assert np.sum(told["tasks"]["color"]["details"]["confusion"]) == 24


def test_what_training_never_saw_counts_as_wrong(train: Run, evaluate: Run, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "in" / "t.jsonl", color_rows(60, media=False))
    task = {"kind": "understanding", "inputs": {"text": "text"}, "label": "label"}
    train(recipe({"text": TEXT}, {"label": task}, epochs=8), data)
    rows = color_rows(30, seed=7, media=False)
    clean = evaluate(write_rows(tmp_path / "new" / "a.jsonl", rows))
    assert clean["metrics"]["accuracy"] == 1.0
    for n in range(6):
        rows[n]["label"] = "violet"
    rows[10]["label"] = None  # no label: not counted
    unseen = evaluate(write_rows(tmp_path / "new" / "b.jsonl", rows))
    assert unseen["metrics"]["accuracy"] == pytest.approx(23 / 29, abs=1e-6)
    for row in rows:
        row["label"] = "violet"
    none = evaluate(write_rows(tmp_path / "new" / "c.jsonl", rows))
    assert none["metrics"]["accuracy"] == 0.0 and "nll" not in none["metrics"]


NUMBERS = {"one": "ein", "two": "zwei", "three": "drei", "four": "vier"}
ADJECTIVES = {"red": "roter", "blue": "blauer", "old": "alter", "new": "neuer"}
NOUNS = {"cat": "kater", "dog": "hund", "ball": "ball", "tree": "baum"}


def sentences() -> list[dict[str, str]]:
    """English and German of a toy grammar, in which the words change places."""
    rows = []
    for (a, x), (b, y), (c, z) in itertools.product(NUMBERS.items(), ADJECTIVES.items(), NOUNS.items()):
        rows.append({"id": f"{a}-{b}-{c}", "en": f"i see {a} {b} {c}", "de": f"{x} {z} {y} ist da"})
    order = np.random.default_rng(0).permutation(len(rows))
    return [rows[i] for i in order]


def test_a_toy_grammar_is_translated(train: Run, evaluate: Run, tmp_path: Path) -> None:
    rows = sentences()
    write_rows(tmp_path / "in" / "train.jsonl", rows[:52])
    write_rows(tmp_path / "in" / "val.jsonl", rows[52:])
    decoder = {"layers": 1, "heads": 2, "feed_forward": 2, "dropout": 0.0, "vocab_size": 300, "max_tokens": 12}
    task = {"kind": "translation", "inputs": {"text": "en"}, "target": "de", "decoder": decoder, "beams": 3}
    given = recipe({"text": TEXT | {"tokens": "all"}}, {"t": task}, epochs=45, batch_size=13, lr=1e-2)
    trained = train(given, tmp_path / "in")
    found = evaluate(tmp_path / "in", report=str(tmp_path / "report"))
    metrics = found["metrics"]
    assert metrics["bleu"] > 90 and metrics["bleu_greedy"] > 90
    assert metrics["chrf2"] > 90 and metrics["chrf2_greedy"] > 90
    assert metrics["perplexity"] == trained["metrics"]["t/perplexity"] < 1.5
    details = json.loads((tmp_path / "report" / "report.json").read_text())["tasks"]["t"]["details"]
    assert "tok:13a" in details["signatures"]["bleu"]
    assert len(details["samples"]) == 12
    shown = [sample["generated"] for sample in details["samples"]]
    references = [[sample["reference"] for sample in details["samples"]]]
    assert sacrebleu.corpus_bleu(shown, references).score == pytest.approx(metrics["bleu"], abs=1e-3)


def test_tasks_and_bundles_that_are_not_there(train: Run, evaluate: Run, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "in" / "t.jsonl", color_rows(40, media=False))
    train(recipe({"text": TEXT}, {"label": LABEL | {"inputs": {"text": "text"}}}, epochs=1), data)
    with pytest.raises(UsageError, match="no task 'lable' in .*out; its tasks are label"):
        evaluate(data, task="lable")
    with pytest.raises(UsageError, match="in is no bundle: it has no bundle.json; `mmbm train` writes bundles"):
        evaluate(data, bundle="in")
    with pytest.raises(UsageError, match="the recipe reads label, text; the columns are id, n"):
        evaluate(write_rows(tmp_path / "in" / "other.jsonl", [{"id": "a", "n": 1}]))
    bad = tmp_path / "in" / "bad.jsonl"
    bad.write_text('{"id": "a", "text": "x", "label": "red"}\n{"id"\n')
    found = evaluate(bad)
    assert (found["rows_in"], found["rows_out"], found["rows_quarantined"]) == (2, 1, 1)
    weights = tmp_path / "out" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UsageError, match="bundle file .*model.safetensors is damaged: copy the bundle again"):
        evaluate(data)


def test_alignment_is_scored_beside_siblings_that_lack_it(train: Run, evaluate: Run, colors: Path) -> None:
    """One space for sounds and pictures, and a task whose baselines can't be asked for retrieval."""
    tasks = {
        "align": {"kind": "align", "inputs": {"image": "image", "audio": "audio"}, "group": "label"},
        "color": LABEL,
    }
    given = color_recipe(epochs=2)
    spec = given.model.model_dump(mode="json") | {"tasks": tasks}
    both = Recipe.model_validate(given.model_dump(mode="json") | {"model": spec})
    trained = train(both, colors, baselines=True)
    assert set(trained["siblings"]) == {"only-image", "only-audio", "concat"}
    found = evaluate(colors, task="align")
    assert found["metrics"]["gallery/image>audio"] == 24 and 0 <= found["metrics"]["r@1/image>audio"] <= 1
    assert found["metrics"]["r@1/image>audio"] == trained["metrics"]["align/r@1/image>audio"]
    assert found["siblings"]["only-image"] == {} and "align" in found["siblings"]["concat"]


def test_rows_without_ids_are_each_their_own_match(train: Run, evaluate: Run, tmp_path: Path) -> None:
    """Their ids are made of the file's name and a number: what they share there makes no pair of them."""
    for name, rows in (("train", color_rows(24)), ("val", color_rows(24, seed=1000))):
        write_rows(tmp_path / "in" / f"{name}.parquet", [{k: v for k, v in row.items() if k != "id"} for row in rows])
    align = {"align": {"kind": "align", "inputs": {"image": "image", "audio": "audio"}}}
    train(recipe({"image": IMAGE, "audio": AUDIO}, align, epochs=1), tmp_path / "in")
    metrics = evaluate(tmp_path / "in")["metrics"]
    assert metrics["gallery/image>audio"] == 24 and metrics["r@1/image>audio"] < 0.5  # three colors, eight rows each
