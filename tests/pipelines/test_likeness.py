"""Vectors of the presets mean something on real data: the figures of README, "Likeness"."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmbm_core.bundle import load_bundle

DATA = Path(__file__).parents[3] / "shared" / "data"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="needs the real data sets in ../shared/data"),
]


def test_minilm_orders_sentence_pairs_as_people_do() -> None:
    from scipy.stats import spearmanr

    rows = [json.loads(line) for line in (DATA / "stsb" / "dev.jsonl").read_text().splitlines()]
    bundle = load_bundle("minilm")
    a, b = (vectors(bundle.embed([{"text": row[key]} for row in rows]), "text") for key in ("text_a", "text_b"))
    assert spearmanr((a * b).sum(1), [row["score"] for row in rows]).statistic >= 0.867


def test_a_linear_probe_tells_pictures_apart() -> None:
    train, labels = pictures("train-0000[01].parquet")
    val, val_labels = pictures("val-*.parquet")
    assert probe(train, labels, C=1e-3).score(val, val_labels) >= 0.765


def test_a_linear_probe_understands_a_speaker_it_never_heard() -> None:
    files = sorted((DATA / "fsdd" / "train").glob("*/*.wav"))
    speakers = np.array([file.stem.split("_")[1] for file in files])
    digits = np.array([file.parent.name for file in files])
    sounds = vectors(load_bundle("mfcc").embed([{"audio": file.read_bytes()} for file in files]), "audio")
    scores = []
    for speaker in sorted(set(speakers)):
        known = speakers != speaker
        scores.append(probe(sounds[known], digits[known], C=0.01).score(sounds[~known], digits[~known]))
    print(dict(zip(sorted(set(speakers)), np.round(scores, 3), strict=True)))
    assert np.mean(scores) >= 0.745


def pictures(pattern: str) -> tuple[np.ndarray, list[str]]:
    tables = [pq.read_table(file) for file in sorted((DATA / "cifar10-mini").glob(pattern))]
    rows = [{"image": image} for table in tables for image in table["image"].to_pylist()]
    labels = [label for table in tables for label in table["label"].to_pylist()]
    bundle = load_bundle("efficientnet-lite0", kernels={"efficientnet-lite0": "float32+folded+jpeg-3x"})
    return vectors(bundle.embed(rows), "image"), labels


def vectors(table: Any, modality: str) -> np.ndarray:
    column = table[f"{modality}_embedding"].combine_chunks()
    flat: np.ndarray = column.flatten().to_numpy().reshape(len(column), -1)
    return flat


def probe(x: np.ndarray, y: Any, *, C: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, C=C)).fit(x, y)
