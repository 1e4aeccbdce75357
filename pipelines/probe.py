"""The probe: what a worker of this run can do, tried on a sample where workers run, before the run is settled.

Resolves the precision (fast kernels only where their vectors agree with exact ones) and measures rows per second.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from mmbm_core.bundle import EXACT, Bundle
from mmbm_core.encoders import modalities_of
from mmbm_core.media import Limits
from mmbm_core.rows import Encoding, cells_of
from mmbm_core.sample import MODALITIES, Modality
from workers.columns import get_column
from workers.encode import load_worker_bundle
from workers.resources import WorkerResources
from workers.spec import ModelSpec

MIN_COSINE = 0.999
SAMPLE_VALUES = 24


@dataclass(kw_only=True)
class ProbeResult:
    """What the probe found out."""

    model: ModelSpec
    names: dict[Modality, str]
    """Model name by modality."""
    cosine: dict[str, float] = field(default_factory=dict)
    """Smallest cosine of a fast vector to the exact one, by model name."""
    fell_back: dict[str, str] = field(default_factory=dict)
    """Kernels that were tried and left, by model name."""
    prepare_s: dict[Modality, float] = field(default_factory=dict)
    """Seconds a value: tokenizing, or decoding and resizing."""
    model_s: dict[Modality, float] = field(default_factory=dict)
    """Seconds a value: the model itself."""
    bad: dict[Modality, int] = field(default_factory=dict)
    """Sample values that could not be used."""

    def seconds_per_row(self, per_row: dict[Modality, float]) -> float:
        """Of one worker. `per_row` is how many values of each modality a row holds."""
        return sum(n * (self.prepare_s.get(m, 0) + self.model_s.get(m, 0)) for m, n in per_row.items())


def run_probe(
    model: str, samples: dict[Modality, list[Any]], *, precision: str, options: dict[str, dict[str, Any]],
    resources: WorkerResources, limits: Limits, budget: dict[Modality, int], kernels: dict[str, str] | None,
) -> ProbeResult:  # fmt: skip
    """Run the probe in a task with a worker's share of the cluster.

    Args:
        samples: some values of each modality.
        kernels: what an earlier run of this output settled on; then nothing is measured.
    """
    task = _probe.options(num_cpus=resources.cpus, num_gpus=resources.gpus)
    return ray.get(task.remote(model, samples, precision, options, resources, limits, budget, kernels))  # type: ignore[no-any-return]


@ray.remote(max_retries=1)
def _probe(
    model: str, samples: dict[Modality, list[Any]], precision: str, options: dict[str, dict[str, Any]],
    resources: WorkerResources, limits: Limits, budget: dict[Modality, int], kernels: dict[str, str] | None,
) -> ProbeResult:  # fmt: skip
    shared: dict[str, Any] = {
        "device": resources.device, "threads": resources.threads, "options": options, "limits": limits, "budget": budget,
    }  # fmt: skip
    model = needed_models(model, samples)
    exact = load_worker_bundle(model, precision=EXACT, **shared)
    if kernels is None and precision == "fast":
        chosen = load_worker_bundle(model, precision="fast", **shared)
        cosine, fell_back = _compare(exact, chosen, samples)
        used = {name: EXACT if name in fell_back else kernel for name, kernel in chosen.kernels.items()}
        if fell_back:
            chosen = load_worker_bundle(model, kernels=used, **shared)
    else:
        chosen, cosine, fell_back = exact, {}, {}
        used = kernels or exact.kernels
    result = ProbeResult(
        model=ModelSpec(
            model=model, kernels=used, spaces=exact.spaces, widths=exact.widths,
            shared=tuple(m for m in MODALITIES if m in exact.shared), options=options,
        ),
        names=exact.names, cosine=cosine, fell_back=fell_back,
    )  # fmt: skip
    if kernels is None:
        _measure(chosen, samples, result)
    return result


def needed_models(model: str, modalities: Iterable[Modality]) -> str:
    """The names of `model` that encode one of `modalities`; all of them where none does."""
    names = [name.strip() for name in model.split(",") if name.strip()]
    needed = [name for name in names if set(modalities_of(name)) & set(modalities)]
    return ",".join(needed or names)


def _compare(
    exact: Bundle, fast: Bundle, samples: dict[Modality, list[Any]]
) -> tuple[dict[str, float], dict[str, str]]:
    cosine: dict[str, float] = {}
    for modality, values in samples.items():
        name = exact.names[modality]
        one, other = (b.encode_values(modality, values) for b in (exact, fast))
        good = [i for i in range(len(values)) if i not in one.errors and i not in other.errors]
        if good and fast.kernels[name] != EXACT:
            smallest = float(_cosines(one.values[good], other.values[good]).min())
            cosine[name] = min(cosine.get(name, 1.0), round(smallest, 6))
    return cosine, {name: fast.kernels[name] for name, value in cosine.items() if value < MIN_COSINE}


def _cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(1) / np.maximum(norms, 1e-12)  # type: ignore[no-any-return]


def _measure(bundle: Bundle, samples: dict[Modality, list[Any]], result: ProbeResult) -> None:
    """Time per value, after one run that warms up."""
    for modality, values in samples.items():
        if not values:
            continue
        bundle.encode_values(modality, values[:4])
        encoder = bundle.encoders[modality].encoder
        started = time.perf_counter()
        prepared = encoder.prepare(modality, values, limits=bundle.limits)
        middle = time.perf_counter()
        vectors = bundle.encode_values(modality, values)
        total = time.perf_counter() - middle
        result.prepare_s[modality] = (middle - started) / len(values)
        result.model_s[modality] = max(total - (middle - started), 1e-6) / len(values)
        result.bad[modality] = len(vectors.errors)
        del prepared


def sample_values(
    rows: Sequence[dict[str, Any]], encodings: Sequence[Encoding], *, limit: int = SAMPLE_VALUES
) -> dict[Modality, list[Any]]:
    """Up to `limit` values of each modality that the rows hold themselves (URIs are not followed)."""
    found: dict[Modality, list[Any]] = {}
    for encoding in encodings:
        cells = [] if encoding.uri else cells_of([get_column(row, encoding.column) for row in rows], encoding.modality)
        values = [value for cell in cells if isinstance(cell, tuple) for value in cell]
        found[encoding.modality] = (found.get(encoding.modality, []) + values)[:limit]
    return found
