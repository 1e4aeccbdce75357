"""What lies near what: a contact sheet of vectors, and how often near rows share what they should."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipelines.sheet import Cell, draw_sheet

FACTORS = {"text": "shape", "image": "texture", "audio": "noise"}
"""What rows with near vectors should have in common, by modality."""
_TITLES = {
    "text": "Nearest captions (MiniLM)",
    "image": "Nearest pictures (EfficientNet-Lite0)",
    "audio": "Nearest recordings (MFCC statistics: the same noise and room, whatever the words)",
}
_WORDS = {"text": ("text",), "image": ("text",), "audio": ("noise", "room", "text")}
_FINDS = {
    ("text", "image"): "Words find pictures: the model has seen none of these scenes",
    ("audio", "text"): "Sounds find words",
}
_QUERIES = 3
_NEIGHBOURS = 5

Band = dict[str, list[list[Cell]]]


def neighbours_within(data: str, vectors: str) -> tuple[Band, dict[str, tuple[float, float]]]:
    """Rows near the first ones, one band a modality; and by modality, how often a nearest row shares a factor, and
    how often any row does."""
    facts = pq.read_table(data, columns=["id", "image", "text", "room", *FACTORS.values()])
    bands: Band = {}
    agreement: dict[str, tuple[float, float]] = {}
    for modality, factor in FACTORS.items():
        units = _centred_units(_vectors(vectors, modality, facts["id"].to_pylist()))
        cosines = units @ units.T
        np.fill_diagonal(cosines, -np.inf)
        near = np.argsort(-cosines, axis=1)[:, :_NEIGHBOURS]
        labels = np.array(facts[factor].to_pylist(), dtype=object)
        agreement[modality] = (
            float(np.mean(labels[near[:, 0]] == labels)),
            float(np.mean([np.mean(np.delete(labels, i) == label) for i, label in enumerate(labels)])),
        )
        words = _WORDS[modality]
        bands[_TITLES[modality]] = [
            [_cell(facts, query, words), *(_cell(facts, row, words, score=cosines[query, row]) for row in near[query])]
            for query in range(_QUERIES)
        ]
    return bands, agreement


def neighbours_across(data: str, vectors: str) -> Band:
    """What the first rows' captions and recordings find in a space that they share with pictures."""
    facts = pq.read_table(data, columns=["id", "image", "text"])
    ids = facts["id"].to_pylist()
    bands: Band = {}
    for (asked, found), title in _FINDS.items():
        queries, gallery = (_units(_vectors(vectors, modality, ids)) for modality in (asked, found))
        cosines = queries @ gallery.T
        near = np.argsort(-cosines, axis=1)[:, :_NEIGHBOURS]
        said = "" if asked == "text" else "heard: "
        bands[title] = [
            [
                Cell(image=None, words=f"{said}{facts['text'][query].as_py()}"),
                *(_cell(facts, row, ("text",), score=cosines[query, row], right=row == query) for row in near[query]),
            ]
            for query in range(_QUERIES)
        ]
    return bands


def write_sheet(path: Path, bands: Band) -> None:
    """Draw bands, in a folder that is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(draw_sheet(bands))


def _vectors(folder: str, modality: str, ids: Sequence[str]) -> np.ndarray:
    """(N, D): what a folder of embeddings holds of a modality, in the order of `ids`."""
    table = pq.read_table(folder, columns=["id", f"{modality}_embedding"])
    row_of = {id: row for row, id in enumerate(table["id"].to_pylist())}
    column = table[f"{modality}_embedding"].combine_chunks()
    flat: np.ndarray = column.flatten().to_numpy().reshape(len(column), -1)
    return flat[[row_of[id] for id in ids]].astype(np.float32)


def _units(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)  # type: ignore[no-any-return]


def _centred_units(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors about the mean of the set: what all rows have in common tells none of them apart."""
    return _units(vectors - vectors.mean(axis=0))


def _cell(
    facts: Any, row: Any, words: Sequence[str], *, score: float | None = None, right: bool = False
) -> Cell:  # fmt: skip
    row = int(row)
    return Cell(
        image=facts["image"][row].as_py(),
        words=" / ".join(str(facts[name][row]) for name in words),
        score=None if score is None else float(score),
        right=bool(right),
    )
