"""XOR of a sentence and a picture: what fusion is for. Neither of the two tells the truth, nor does their sum, nor
their place in a shared space; any fusion does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmbm_core.bundle import load_bundle
from mmbm_core.fusion import FUSIONS
from mmbm_core.saved import load_model, save_model
from mmbm_core.synth import make_row
from pipelines.recipe import load_recipe

pytestmark = pytest.mark.slow

REACHED, CHANCE = 0.95, 0.6
ROWS = {"train": (0, 600), "unseen": (1, 400)}
"""Seed and number of rows."""
COLUMNS = ["id", "statement", "image", "truth"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.parquet, and unseen.parquet of another seed."""
    folder = tmp_path_factory.mktemp("scenes")
    for name, (seed, count) in ROWS.items():
        rows = [make_row(index, seed=seed, speech=False) for index in range(count)]
        pq.write_table(pa.Table.from_pylist(rows).select(COLUMNS), folder / f"{name}.parquet")
    return folder


def scores(found: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in found["metrics"].items() if name.startswith("accuracy")}


@pytest.mark.parametrize("kind", FUSIONS)
def test_any_fusion_tells_and_no_modality_alone(
    kind: str, scenes: Path, train: Callable[..., Any], evaluate: Callable[..., Any]
) -> None:
    recipe = load_recipe("synth-xor", settings=[f"model.fusion={{kind: {kind}}}"])
    train(recipe, scenes / "train.parquet")
    found = scores(evaluate(scenes / "unseen.parquet"))
    print(kind, found)
    assert found["accuracy"] >= REACHED
    assert max(found["accuracy[text]"], found["accuracy[image]"]) < CHANCE


def test_logits_of_each_modality_and_their_sum_do_not_tell(
    scenes: Path, tmp_path: Path, train: Callable[..., Any], evaluate: Callable[..., Any]
) -> None:
    """A model of each modality alone; and a fused one with I2M2's logits, of which the joint ones are taken away."""
    settings = ["model.tasks.truth.unimodal_logits=true"]
    trained = train(load_recipe("synth-xor", settings=settings), scenes / "train.parquet", baselines=True)
    assert set(trained["siblings"]) == {"only-text", "only-image", "concat"}
    found = evaluate(scenes / "unseen.parquet")
    siblings = {name: each["truth"]["accuracy"] for name, each in found["siblings"].items()}
    model, content = load_model(tmp_path / "out")
    for parameter in model.tasks["truth"].joint.parameters():  # type: ignore[union-attr]
        parameter.data.zero_()
    (tmp_path / "sum").mkdir()
    save_model(model, tmp_path / "sum", facts={"recipe": content["recipe"]})
    alone = scores(evaluate(scenes / "unseen.parquet", bundle="sum"))
    print("with unimodal logits", scores(found), siblings, "without joint logits", alone)
    assert found["metrics"]["accuracy"] >= REACHED and siblings["concat"] >= REACHED
    assert max(siblings["only-text"], siblings["only-image"], *alone.values()) < CHANCE


def test_alignment_alone_does_not_tell(scenes: Path, tmp_path: Path, train: Callable[..., Any]) -> None:
    """Statements and pictures in one space: a linear layer on their mean, on both, or on their cosine."""
    from sklearn.linear_model import LogisticRegression

    align = "{align: {kind: align, inputs: {text: statement, image: image}}}"
    recipe = load_recipe("synth-xor", settings=[f"model.tasks={align}", "model.fusion=null", "training.batch_size=128"])
    train(recipe, scenes / "train.parquet")
    bundle = load_bundle(str(tmp_path / "out"))
    sides: dict[str, tuple[dict[str, np.ndarray], list[str]]] = {}
    for name in ROWS:
        rows = pq.read_table(scenes / f"{name}.parquet").to_pylist()
        table = bundle.embed([{"text": row["statement"], "image": row["image"]} for row in rows])
        text, image, mean = (matrix(table, f"{part}embedding") for part in ("text_", "image_", ""))
        views = {"mean": mean, "both": np.hstack([text, image]), "cosine": (text * image).sum(1, keepdims=True)}
        sides[name] = views, [row["truth"] for row in rows]
    (known, truths), (unseen, answers) = sides["train"], sides["unseen"]
    found = {
        (name, strength): LogisticRegression(C=strength, max_iter=2000).fit(x, truths).score(unseen[name], answers)
        for name, x in known.items()
        for strength in (1, 100)
    }
    print(found)
    assert max(found.values()) < CHANCE


def matrix(table: pa.Table, column: str) -> np.ndarray:
    values = table[column].combine_chunks()
    flat: np.ndarray = values.flatten().to_numpy().reshape(len(values), -1)
    return flat
