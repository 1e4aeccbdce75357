"""Embedding throughput: `mmbm embed`, the limit of this machine, and its peers, interleaved in one run.

    make bench-embed                       the whole table
    python tests/benchmarks/embed.py --scale 0.2 --repeats 1 --only text-long

Every contender is a fresh process that embeds the same Parquet files with the same weights and writes Parquet. Steady
state leaves out what comes before the first row: imports, model loading, starting workers. `limit` is one process a
core, one torch thread each, decoding, encoding and writing in a loop tuned by hand, without a framework. Vectors are
compared row by row with exact ones before a time counts.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import data as make  # noqa: E402

MIN_COSINE = 0.999


@dataclass(frozen=True)
class Case:
    """One dataset with the contenders that can embed it."""

    modality: str
    model: str
    rows: int
    contenders: tuple[str, ...]


_TEXT = ("ours-fast", "limit-fast", "sentence-transformers", "sentence-transformers-bf16", "ours-exact", "limit-exact")
_IMAGE = ("ours-fast", "limit-fast", "plain", "ray-documented", "daft", "ours-exact", "limit-exact")
CASES = {
    "text-short": Case("text", "minilm", 24_000, (*_TEXT, "daft")),
    "text-long": Case("text", "minilm", 8_000, (*_TEXT, "daft")),
    "image-small": Case("image", "efficientnet-lite0", 3_000, ("ours-fast", "limit-fast", "plain", "ray-documented")),
    "image-1024x768": Case("image", "clip", 4_000, _IMAGE),
    "audio": Case("audio", "mfcc", 12_000, ("ours-fast", "limit-fast", "plain")),
}


def main() -> None:
    """Print the table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=sorted(CASES), help="some cases (default: all)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of rows")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory(prefix="mmbm-bench-") as scratch:
        for name in args.only or CASES:
            results[name] = run_case(name, CASES[name], Path(scratch), args.repeats, args.scale)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))


def run_case(name: str, case: Case, scratch: Path, repeats: int, scale: float) -> dict[str, dict[str, float]]:
    """Interleave the contenders of a case; print its rows of the table."""
    rows = max(64, int(case.rows * scale))
    dataset = scratch / name
    model = case.model if case.model != "clip" else make.small_clip(scratch / "clip")
    write_dataset(name, dataset, rows)
    reference = run_contender("limit-exact", case, model, dataset, scratch / "reference")[1]
    rates: dict[str, list[float]] = {c: [] for c in case.contenders}
    starts: dict[str, list[float]] = {c: [] for c in case.contenders}
    cosines: dict[str, float] = {}
    for repeat in range(repeats):
        for contender in case.contenders if repeat % 2 == 0 else reversed(case.contenders):
            try:
                figures, vectors = run_contender(contender, case, model, dataset, scratch / "out")
            except subprocess.CalledProcessError as error:
                print(f"{name} {contender}: failed\n{error.stderr[-800:]}", file=sys.stderr)
                continue
            cosines[contender] = min(cosines.get(contender, 1.0), smallest_cosine(reference, vectors))
            rates[contender].append(figures["rows_per_s"])
            starts[contender].append(figures["start_s"])
    limit = statistics.median(rates["limit-fast"]) if rates.get("limit-fast") else float("nan")
    print(f"\n{name}: {rows} rows, {model if case.model != 'clip' else 'small CLIP'}, {repeats} runs each, interleaved")
    print(f"{'':28}{'rows/s median':>14}{'min':>9}{'max':>9}{'of limit':>10}{'start s':>9}{'cosine':>9}")
    table = {}
    for contender, measured in rates.items():
        if not measured:
            continue
        median = statistics.median(measured)
        start = statistics.median(starts[contender])
        note = "" if cosines[contender] >= MIN_COSINE else "  not equal"
        print(
            f"{contender:28}{median:>14.1f}{min(measured):>9.1f}{max(measured):>9.1f}{median / limit:>10.2f}"
            f"{start:>9.1f}{cosines[contender]:>9.5f}{note}",
            flush=True,
        )
        table[contender] = {
            "rows_per_s": median, "min": min(measured), "max": max(measured), "of_limit": median / limit,
            "start_s": start, "cosine": cosines[contender],
        }  # fmt: skip
    return table


def write_dataset(name: str, folder: Path, rows: int) -> None:
    """The rows of a case, the same every time."""
    if name.startswith("text"):
        make.write_parquet(folder, "text", make.texts(rows, kind=name.removeprefix("text-")))
    elif name == "audio":
        make.write_parquet(folder, "audio", make.sounds(rows))
    else:
        size = (1024, 768) if name.endswith("768") else (200, 150)
        distinct = make.jpegs(min(rows, 600), size_px=size)
        # JPEG readers ignore what follows the end mark: no two files are equal, so nothing can be skipped as seen.
        values = [distinct[i % len(distinct)] + i.to_bytes(4, "big") for i in range(rows)]
        make.write_parquet(folder, "image", values)


def run_contender(
    contender: str, case: Case, model: str, dataset: Path, output: Path
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """One fresh process; its figures and vectors by id."""
    shutil.rmtree(output, ignore_errors=True)
    if contender.startswith("ours"):
        command = [sys.executable, "-m", "deploy.cli.main", "embed", str(dataset), "--output", str(output)]
        command += ["--model", model, "--precision", contender.removeprefix("ours-")]
    else:
        script = HERE / "contenders.py"
        command = [sys.executable, str(script), contender, case.modality, model, str(dataset), str(output)]
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "TOKENIZERS_PARALLELISM": "false"}
    started = time.time()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=3600)
    seconds = time.time() - started
    vectors = read_vectors(output)
    if contender.startswith("ours"):
        return our_steady_state(output, started), vectors
    steady = json.loads(done.stdout.splitlines()[-1])
    return {"rows_per_s": steady["rows_per_s"], "start_s": seconds - steady["seconds"]}, vectors


def our_steady_state(output: Path, started: float) -> dict[str, float]:
    """Rows per second by the clock: from the begin of the first unit to the last file written."""
    entries = [json.loads(line) for file in (output / "_ledger").iterdir() for line in file.read_text().splitlines()]
    begin = min(e["ended_s"] - e["seconds"] for e in entries)
    end = max(part.stat().st_mtime for part in output.glob("part-*.parquet"))
    return {"rows_per_s": sum(e["rows_in"] for e in entries) / (end - begin), "start_s": begin - started}


def read_vectors(folder: Path) -> dict[str, np.ndarray]:
    """Vectors by id from any contender's Parquet."""
    table = pq.read_table(folder)
    column = next(c for c in table.column_names if c.endswith("embedding"))
    ids = table["id"].to_pylist()
    flat = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return dict(zip(ids, flat.reshape(len(ids), -1), strict=True))


def smallest_cosine(reference: dict[str, np.ndarray], vectors: dict[str, np.ndarray]) -> float:
    """1 where every row is there and points the same way."""
    if reference.keys() != vectors.keys():
        return -1.0
    ids = sorted(reference)
    a, b = np.stack([reference[i] for i in ids]), np.stack([vectors[i] for i in ids])
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


if __name__ == "__main__":
    main()
