"""`mmbm quickstart`: make scenes, embed their captions, pictures and speech, show the nearest neighbours."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipelines.embed import EmbedRequest, embed
from pipelines.progress import Progress, say
from pipelines.sheet import Cell, draw_sheet
from pipelines.synthesize import synthesize

ROWS = 240
_QUERIES = 3
_NEIGHBOURS = 5
_FACTORS = {"text": "shape", "image": "texture", "audio": "noise"}
"""What rows with near vectors should have in common, by modality."""


def quickstart(output: str, *, rows: int = ROWS, seed: int = 0) -> dict[str, Any]:
    """The whole tour on the embedded default data, in a local folder; Ray must be initialised.

    Raises:
        UsageError: the folder holds something else.
    """
    started = time.monotonic()
    folder = Path(output)
    say(f"1/3 making {rows} scenes with captions and speech")
    progress = Progress("synthesize")
    data = str(folder / "data")
    made = synthesize(
        output=data,
        rows=rows,
        seed=seed,
        progress=lambda done, total: progress.update(rows=done, fraction=done / total),
    )
    progress.close()
    say("2/3 embedding text, image and audio, each with an encoder of its own")
    vectors = str(folder / "vectors")
    embedded = embed(EmbedRequest(inputs=[data], output=vectors))
    say("3/3 looking for nearest neighbours")
    sheet = folder / "neighbours.png"
    agreement = show_neighbours(data, vectors, sheet)
    for modality, (found, chance) in agreement.items():
        say(
            f"  {modality}: nearest rows share the {_FACTORS[modality]} in {found:.0%} of cases, {chance:.0%} by chance"
        )
    say(_next_steps(folder, sheet))
    return {
        **{k: embedded[k] for k in ("rows_in", "rows_out", "rows_quarantined", "rows_reused", "rows_per_s")},
        "neighbours_share": {m: round(found, 3) for m, (found, _) in agreement.items()},
        "by_chance": {m: round(chance, 3) for m, (_, chance) in agreement.items()},
        "seconds": round(time.monotonic() - started, 1),
        "synthesize_rows_per_s": made["rows_per_s"],
        "sheet": str(sheet),
        "output": vectors,
    }


def show_neighbours(data: str, vectors: str, sheet: Path) -> dict[str, tuple[float, float]]:
    """Write the contact sheet; by modality, how often a nearest row shares a factor, and how often any row does."""
    facts = pq.read_table(data, columns=["id", "image", "text", "room", *_FACTORS.values()])
    table = pq.read_table(vectors)
    row_of = {id: row for row, id in enumerate(facts["id"].to_pylist())}
    order = np.array([row_of[id] for id in table["id"].to_pylist()])
    bands: dict[str, list[list[Cell]]] = {}
    agreement: dict[str, tuple[float, float]] = {}
    for modality, factor in _FACTORS.items():
        column = table[f"{modality}_embedding"].combine_chunks()
        units = np.empty((len(order), column.type.list_size), dtype=np.float32)
        units[order] = _centred_units(column.flatten().to_numpy().reshape(len(order), -1))
        near, cosines = _nearest(units)
        labels = np.array(facts[factor].to_pylist(), dtype=object)
        agreement[modality] = (
            float(np.mean(labels[near[:, 0]] == labels)),
            float(np.mean([np.mean(np.delete(labels, i) == label) for i, label in enumerate(labels)])),
        )
        bands[_TITLES[modality]] = [_band_row(facts, query, near, cosines, modality) for query in range(_QUERIES)]
    sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet.write_bytes(draw_sheet(bands))
    return agreement


_TITLES = {
    "text": "Nearest captions (MiniLM)",
    "image": "Nearest pictures (EfficientNet-Lite0)",
    "audio": "Nearest recordings (MFCC statistics: the same noise and room, whatever the words)",
}


_WORDS = {"text": ("text",), "image": ("text",), "audio": ("noise", "room", "text")}


def _centred_units(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors about the mean of the set: what all rows have in common tells none of them apart."""
    centred = vectors - vectors.mean(axis=0)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)  # type: ignore[no-any-return]


def _nearest(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices (N, K) and cosines (N, N) of the K nearest other rows."""
    cosines = units @ units.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1)[:, :_NEIGHBOURS], cosines


def _band_row(facts: Any, query: int, near: np.ndarray, cosines: np.ndarray, modality: str) -> list[Cell]:
    return [
        Cell(
            image=facts["image"][int(row)].as_py(),
            words=" / ".join(str(facts[name][int(row)]) for name in _WORDS[modality]),
            score=None if row == query else float(cosines[query, row]),
        )
        for row in [query, *near[query]]
    ]


def _next_steps(folder: Path, sheet: Path) -> str:
    return f"""look at {sheet}, then try
  mmbm inspect {folder}/vectors
  mmbm embed YOUR_FOLDER --output vectors --dry-run
  mmbm embed YOUR_FOLDER --output vectors
  python -c "import pandas; print(pandas.read_parquet('{folder}/vectors').head())\""""
