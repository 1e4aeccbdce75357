"""How fast a bundle is on this machine, by the code that `mmbm embed` and `mmbm serve` run: from encoded values to
vectors, or for a task that writes, to texts."""

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import pyarrow as pa
import ray
import torch

from mmbm_core.encoders.base import Item
from mmbm_core.media import DEFAULT_LIMITS
from mmbm_core.predict import Predictor
from mmbm_core.sample import MODALITIES, Modality
from mmbm_core.saved import load_model
from mmbm_core.tasks.generation import Sampling
from mmbm_core.tasks.seq2seq import Seq2SeqTask
from workers.bundles import local_bundle
from workers.probe import Probe

Row = Mapping[Modality, Any]
_KERNEL_SAMPLES = 24
BATCHES = {1: 24, 32: 6}
"""Rows of a request, and how many of such requests a round times."""


class Round(NamedTuple):
    """Seconds."""

    latencies_s: dict[int, list[float]]
    """Of requests, by their rows."""
    per_s: float
    """Rows, or generated tokens, a second, over all rows at once."""


@ray.remote(max_restarts=0)
class SpeedActor:
    """Holds one bundle and runs rows through it.

    Args:
        rows: what each has, as encoded files and strings.
    """

    def __init__(self, bundle: str, rows: Sequence[Row], *, threads: int) -> None:
        torch.set_num_threads(threads)
        self._rows = list(rows)
        with local_bundle(bundle) as folder:
            model, _ = load_model(folder)
        task = next(iter(model.tasks))
        self._runner: _Embedder | _Writer
        if isinstance(model.tasks[task], Seq2SeqTask):
            self._runner = _Writer(Predictor(model), task)
        else:
            del model
            self._runner = _Embedder(bundle, self._rows, threads)
        with suppress(OSError), open("/proc/self/clear_refs", "w") as file:  # forget the peak of loading and trying
            file.write("5")

    def kernels(self) -> dict[Modality, str]:
        """What the encoder of each modality runs on."""
        return self._runner.kernels

    def time_round(self) -> Round:
        """Time requests of one row and of several, then all rows at once."""
        found: dict[int, list[float]] = {}
        for size, count in BATCHES.items():
            starts = [i * size % max(1, len(self._rows) - size + 1) for i in range(count)]
            found[size] = [self._time(self._rows[start : start + size])[0] for start in starts]
        seconds, count = self._time(self._rows)
        return Round(found, count / seconds)

    def _time(self, rows: Sequence[Row]) -> tuple[float, int]:
        began = time.perf_counter()
        count = self._runner(rows)
        return time.perf_counter() - began, count

    def peak_mib(self) -> float:
        """Largest resident memory of this process since the bundle was loaded."""
        with open("/proc/self/status") as file:
            told = dict(line.split(":", 1) for line in file)
        return round(int(told["VmHWM"].split()[0]) / 1024, 1)


class _Embedder:
    """Rows to vectors, on the fastest kernels that agree with exact ones."""

    def __init__(self, bundle: str, rows: Sequence[Row], threads: int) -> None:
        given = [m for m in MODALITIES if any(m in row for row in rows)]
        samples = {m: [row[m] for row in rows if m in row][:_KERNEL_SAMPLES] for m in given}
        probe = Probe(
            model=bundle, samples=samples, precision="fast", options={}, device="cpu", threads=threads,
            limits=DEFAULT_LIMITS, budget={}, kernels=None,
        )  # fmt: skip
        found = probe.run()
        self.kernels = {modality: found.model.kernels[name] for modality, name in found.names.items()}
        self._bundle, self._given = probe.load(found.model.kernels), given

    def __call__(self, rows: Sequence[Row]) -> int:
        self._bundle.embed(pa.table({m: [row.get(m) for row in rows] for m in self._given}))
        return len(rows)


class _Writer:
    """Rows to texts, the likeliest token each time; counts tokens."""

    def __init__(self, predictor: Predictor, task: str) -> None:
        self.kernels: dict[Modality, str] = {}
        self._predictor, self._task = predictor, task
        self._encoders: Any = predictor.model.encoders

    def __call__(self, rows: Sequence[Row]) -> int:
        made = [{m: self._encoders[m].prepare(m, [value])[0] for m, value in row.items()} for row in rows]
        prepared = [{m: item for m, item in row.items() if isinstance(item, Item)} for row in made]
        texts = self._predictor.sample(self._task, prepared, [Sampling()] * len(rows))
        tokenizer = self._predictor.writers[self._task].decoder.tokenizer
        return sum(len(tokenizer(text)["input_ids"]) for text in texts) + len(texts)


def summary(rounds: Sequence[Round], peak_mib: float) -> dict[str, float]:
    """Medians of several rounds: `p50_ms` and `p95_ms` by rows of a request, `per_s`, `peak_mib`."""
    told: dict[str, float] = {}
    for size in BATCHES:
        times = sorted(seconds * 1e3 for each in rounds for seconds in each.latencies_s[size])
        told[f"p50_ms_{size}"] = round(statistics.median(times), 3)
        told[f"p95_ms_{size}"] = round(times[min(len(times) - 1, int(0.95 * len(times)))], 3)
    return told | {"per_s": round(statistics.median(each.per_s for each in rounds), 2), "peak_mib": peak_mib}
