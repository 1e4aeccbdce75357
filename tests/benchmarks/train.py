"""Training throughput: `mmbm train` and a plain PyTorch loop with a DataLoader, interleaved in one run.

    make bench-train
    python tests/benchmarks/train.py --rows 2000 --repeats 1

Both train the same model on the same Parquet file with the same decoding, batch size and threads. Rows/s of the steps,
with the wait for data, without start-up, validation and checkpoints.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mmbm_core.encoders.scratch import build_scratch
from mmbm_core.media import DEFAULT_LIMITS
from mmbm_core.model import Batch, Model, Values
from mmbm_core.spec import ModelSpec

RECIPE: dict[str, Any] = {
    "model": {
        "encoders": {"image": {"model": {"kind": "image_cnn", "widths": [32, 64, 128]}, "training": "full"}},
        "width": 128,
        "tasks": {"class": {"kind": "recognition", "inputs": {"image": "image"}, "label": "label"}},
    },
    "training": {"epochs": 2, "batch_size": 64, "evaluations": 1, "precision": "float32", "checkpoint_s": 3600},
}
CLASSES = 10


def make_rows(file: Path, rows: int) -> None:
    """JPEGs of 32 x 32 pixels that show their class as a colour under noise."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, rows)
    images = []
    for label in labels:
        pixels = np.clip(rng.normal(20 * label + 30, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, "JPEG", quality=90)
        images.append(sink.getvalue())
    ids = [str(i) for i in range(rows)]
    pq.write_table(pa.table({"id": ids, "image": images, "label": [str(label) for label in labels]}), file)


def ours(file: Path, folder: Path, threads: int) -> float:
    """Rows/s of `mmbm train`."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    output = tempfile.mkdtemp(dir=folder)
    os.rmdir(output)
    command = [str(Path(sys.executable).with_name("mmbm")), "train", str(recipe), str(file), "--output", output]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(json.loads(done.stdout)["rows_per_s"])


class Rows(Dataset[tuple[Any, int]]):
    """Decodes a row when it is asked for, as torch's own examples do."""

    def __init__(self, file: Path, encoder: Any) -> None:
        table = pq.read_table(file)
        self.images, self.labels = table["image"].to_pylist(), table["label"].to_pylist()
        self.encoder = encoder

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.encoder.prepare("image", [self.images[index]], limits=DEFAULT_LIMITS)[0], int(self.labels[index])


def plain(file: Path, folder: Path, threads: int) -> float:
    """Rows/s of a plain loop in a process of its own."""
    command = [sys.executable, __file__, "--plain", str(file), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout)


def run_plain(file: Path, threads: int) -> float:
    """The plain loop itself."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    spec = ModelSpec.model_validate(RECIPE["model"])
    labels = tuple(str(i) for i in range(CLASSES))
    spec = spec.model_copy(update={"tasks": {"class": spec.tasks["class"].model_copy(update={"labels": labels})}})
    encoder = build_scratch(spec.encoders["image"].model)  # type: ignore[arg-type]
    model = Model(spec, widths={"image": encoder.width}, encoders={"image": encoder}).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    settings = RECIPE["training"]
    loader = DataLoader(
        Rows(file, encoder), batch_size=settings["batch_size"], shuffle=True, drop_last=True, num_workers=1,
        collate_fn=list, persistent_workers=True, multiprocessing_context="fork",
    )  # fmt: skip
    rows, started = 0, 0.0
    for _ in range(settings["epochs"]):
        for batch in loader:
            started = started or time.monotonic()
            items, targets = zip(*batch, strict=True)
            values = Values(torch.arange(len(items)), [encoder.collate("image", items)])
            ready = Batch([""] * len(items), {("image", "image"): values}, {"class": {"label": torch.tensor(targets)}})
            optimizer.zero_grad(set_to_none=True)
            model(ready)["class"].loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rows += len(items)
    return rows / (time.monotonic() - started)


def main() -> None:
    """Print both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        print(run_plain(args.plain, args.threads))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        file = folder / "rows.parquet"
        make_rows(file, args.rows)
        found: dict[str, list[float]] = {"mmbm train": [], "plain loop": []}
        for _ in range(args.repeats):
            found["mmbm train"].append(ours(file, folder, args.threads))
            found["plain loop"].append(plain(file, folder, args.threads))
    for name, values in found.items():
        print(f"{name:12} {statistics.median(values):8.1f} rows/s  {min(values):.1f} to {max(values):.1f}")
    medians = [statistics.median(values) for values in found.values()]
    print(f"ratio of medians {medians[0] / medians[1]:.2f}")


if __name__ == "__main__":
    main()
