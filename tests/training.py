"""Tiny sets and recipes that models learn in seconds, and a training without Ray Train's actors to start."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from pipelines import fit as fit_module
from pipelines.recipe import Recipe
from tests.samples import audio_file, encoded
from workers.training.loop import Place
from workers.training.worker import Board, TrainingPlan, run_jobs

COLORS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
PITCHES_HZ = {"red": 300.0, "green": 900.0, "blue": 2700.0}


def color_png(name: str, seed: int, *, size_px: int = 16) -> bytes:
    """A picture of one colour, with noise."""
    noise = np.random.default_rng(seed).normal(0, 30, (size_px, size_px, 3))
    return encoded(Image.fromarray((np.array(COLORS[name]) + noise).clip(0, 255).astype(np.uint8)), "PNG")


def pitch_wav(name: str, seed: int, *, seconds: float = 0.15) -> bytes:
    """A sine of one pitch, with noise."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * 8000)) / 8000
    wave = 0.5 * np.sin(2 * np.pi * PITCHES_HZ[name] * time_s + rng.uniform(0, 6)) + rng.normal(0, 0.05, len(time_s))
    return audio_file("WAV", wave.astype(np.float32), rate_hz=8000)


def color_rows(count: int, *, seed: int = 0, media: bool = True) -> list[dict[str, Any]]:
    """`image`, `audio`, `text`, `label`: each modality alone tells the label."""
    names = list(COLORS)
    rows: list[dict[str, Any]] = []
    for n in range(count):
        name = names[n % 3]
        row: dict[str, Any] = {"id": f"r{seed}-{n:04d}", "text": f"a {name} thing {n % 7}", "label": name}
        if media:
            row |= {"image": color_png(name, seed + n), "audio": pitch_wav(name, seed + n)}
        rows.append(row)
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Parquet or JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def color_dataset(folder: Path, *, train: int = 48, val: int = 24, media: bool = True) -> Path:
    """train.parquet and val.parquet."""
    write_rows(folder / "train.parquet", color_rows(train, media=media))
    write_rows(folder / "val.parquet", color_rows(val, seed=1000, media=media))
    return folder


IMAGE = {
    "model": {"kind": "image_cnn", "size_px": 16, "widths": [8, 16], "depths": [0, 0]}, "training": "full",
}  # fmt: skip
AUDIO = {
    "model": {"kind": "log_mel", "rate_hz": 8000, "num_mels": 16, "widths": [8, 8], "width": 16},
    "training": "full",
}  # fmt: skip
TEXT = {
    "model": {
        "kind": "bert", "vocab_size": 300, "max_tokens": 16, "width": 32, "layers": 1, "heads": 2, "dropout": 0.0,
    },
    "training": "full",
}  # fmt: skip
LABEL = {"kind": "recognition", "inputs": {"image": "image", "audio": "audio"}, "label": "label"}


def recipe(encoders: dict[str, Any], tasks: dict[str, Any], *, data: Any = None, sets: Any = None, model: Any = None,
           **training: Any) -> Recipe:  # fmt: skip
    """A recipe with quick settings."""
    settings = {"epochs": 4, "batch_size": 12, "lr": 1e-2, "evaluations": 2, "warmup": 0.1, "precision": "float32"}
    content: dict[str, Any] = {
        "model": {"encoders": encoders, "width": 32, "tasks": tasks, **(model or {})},
        "training": settings | training,
    }
    content |= {"data": data} if data else {}
    content |= {"sets": sets} if sets else {}
    return Recipe.model_validate(content)


def color_recipe(**training: Any) -> Recipe:
    """Image and audio -> label."""
    return recipe({"image": IMAGE, "audio": AUDIO}, {"color": LABEL}, model={"fusion": {"kind": "gated"}}, **training)


def fit_here(plan: TrainingPlan, settings: Any) -> dict[str, dict[str, Any]]:
    """`fit` in this process: all that is done is done as on a worker of Ray Train."""
    torch.set_num_threads(1)
    board = Board.remote()  # type: ignore[attr-defined]
    run_jobs(plan, Place(rank=0, world=1, device=torch.device("cpu")), board)
    return fit_module.outcomes(board)


class CrewHere:
    """A `Crew` of one, in this process."""

    def __init__(self, kind: Any, *args: Any, most: int) -> None:
        self._actor = kind.__ray_metadata__.modified_class(*args, device="cpu", threads=1)

    def __enter__(self) -> "CrewHere":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def do(self, method: str, calls: Iterable[tuple[Any, ...]], **_: Any) -> Iterator[tuple[int, Any]]:
        yield from ((number, getattr(self._actor, method)(*args)) for number, args in enumerate(calls))
