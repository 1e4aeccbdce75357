"""The probe: what a worker of this run can do, tried on a sample where workers run, before the run is settled.

Resolves the precision (fast kernels only where their vectors agree with exact ones) and measures rows per second.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mmbm_core.errors import RunError
from mmbm_core.media import Limits
from mmbm_core.names import EXACT, model_names
from mmbm_core.sample import MODALITIES, Modality
from workers.spec import ModelSpec

if TYPE_CHECKING:  # torch loads where encoders do: the driver starts without it
    from mmbm_core.bundle import Bundle
    from mmbm_core.rows import Vectors

MIN_COSINE = 0.9995
"""On the sample: the rows it does not hold vary more, and 0.999 is what they are to keep."""
SAMPLE_VALUES = 24
_TRIES = 2
"""Of the sample; a third worker loads the model alone."""


@dataclass(kw_only=True)
class ProbeResult:
    """What the probe found out."""

    model: ModelSpec
    names: dict[Modality, str]
    """Model name by modality."""
    cosine: dict[str, float] = field(default_factory=dict)
    """Smallest cosine of a fast vector to the exact one, by model name."""
    left: dict[str, dict[str, float]] = field(default_factory=dict)
    """By model name: fast kernels that were left for their cosine, which was below MIN_COSINE."""
    untried: list[str] = field(default_factory=list)
    """Models that stay exact because the sample holds nothing for them."""
    prepare_s: dict[Modality, float] = field(default_factory=dict)
    """Seconds a value: tokenizing, or decoding and resizing."""
    model_s: dict[Modality, float] = field(default_factory=dict)
    """Seconds a value: the model itself."""
    bad: dict[Modality, int] = field(default_factory=dict)
    """Sample values that could not be used."""

    def seconds_per_row(self, per_row: dict[Modality, float]) -> float:
        """Of one worker. `per_row` is how many values of each modality a row holds."""
        return sum(n * (self.prepare_s.get(m, 0) + self.model_s.get(m, 0)) for m, n in per_row.items())


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What to try.

    Args:
        samples: some values of each modality.
        kernels: what an earlier run of this output settled on; then nothing is measured.
    """

    model: str
    samples: dict[Modality, list[Any]]
    precision: str
    options: dict[str, dict[str, Any]]
    device: str
    threads: int
    limits: Limits
    budget: dict[Modality, int]
    kernels: dict[str, str] | None

    @property
    def needed(self) -> str:
        """The models that something is there for."""
        return needed_models(self.model, self.samples)

    def load(self, kernels: dict[str, str] | None = None) -> "Bundle":
        """The needed models, or those that `kernels` names.

        Raises:
            UsageError: one of them can't be loaded as asked.
        """
        from workers.encode import load_worker_bundle

        return load_worker_bundle(
            ",".join(kernels) if kernels else self.needed, kernels=kernels, device=self.device, threads=self.threads,
            options=self.options, limits=self.limits, budget=self.budget,
        )  # fmt: skip

    def run(self) -> ProbeResult:
        """Settle the kernels and measure them."""
        exact = self.load()
        samples = {m: v for m, v in self.samples.items() if m in exact.names}
        used = dict(self.kernels or exact.kernels)
        cosine: dict[str, float] = {}
        left: dict[str, dict[str, float]] = {}
        untried: list[str] = []
        if self.kernels is None and self.precision == "fast":
            for name in exact.kernels:
                values = {m: v for m, v in samples.items() if exact.names.get(m) == name}
                if any(values.values()):
                    used[name], cosine[name], left[name] = settle_kernels(exact, name, values, load=self.load)
                else:
                    untried.append(name)
        result = ProbeResult(
            model=ModelSpec(
                model=self.needed, kernels=used, spaces=exact.spaces, widths=exact.widths,
                shared=tuple(m for m in MODALITIES if m in exact.shared), options=self.options,
                fusion=exact.fuse.name if exact.fuse else "", tokens=exact.tokens,
            ),
            names=exact.names, cosine=cosine, left=left, untried=untried,
        )  # fmt: skip
        if self.kernels is None:
            _measure(exact if used == exact.kernels else self.load(used), samples, result)
        return result

    def attempt(self, number: int) -> "Probe":
        """What to try the first, second, ... time, where each earlier worker was killed: at last without the sample.

        Raises:
            RunError: it was not the sample that killed them.
        """
        if number > _TRIES + 1:
            raise RunError(f"a worker is killed when it loads {self.model}, perhaps for lack of memory")
        return self if number <= _TRIES else self.without_samples()

    def without_samples(self) -> "Probe":
        """To load the same models; samples may be large."""
        return replace(self, samples={modality: [] for modality in self.samples})


def needed_models(model: str, modalities: Iterable[Modality]) -> str:
    """The names of `model`, or of parts of it, that encode one of `modalities`; all of them where none does."""
    from workers.bundles import model_parts

    names, wanted = model_names(model), set(modalities)
    needed: list[str] = []
    for name in names:
        parts = model_parts(name)
        found = [part for part, encoded in parts.items() if wanted & set(encoded)]
        needed += [name] if len(found) == len(parts) else found
    return ",".join(needed or names)


def settle_kernels(
    exact: "Bundle", name: str, samples: dict[Modality, list[Any]], *, load: "Callable[[dict[str, str]], Bundle]"
) -> tuple[str, float, dict[str, float]]:
    """The fastest kernels of `name` that agree with exact on the sample, their smallest cosine, and those left.

    Args:
        samples: values of each modality that the model encodes; not all empty.
    """
    reference = {m: exact.alone(m, exact.encode_values(m, values)) for m, values in samples.items()}
    left: dict[str, float] = {}
    for kernels in _ladder(exact, name, samples.get("image", [])):
        fast = load({name: kernels})
        tried = {m: exact.alone(m, fast.encode_values(m, values)) for m, values in samples.items()}
        smallest = min(_smallest_cosine(reference[m], tried[m]) for m in samples)
        if smallest >= MIN_COSINE:
            return kernels, smallest, left
        left[kernels] = smallest
    return EXACT, 1.0, left


def _ladder(exact: "Bundle", name: str, images: list[Any]) -> list[str]:
    """The fast kernels of `name`; of those that decode at a smaller scale, only what the sample shows."""
    from mmbm_core.encoders.base import jpeg_oversize, without_jpeg

    every = exact.fast_kernels[name]
    shown = _scaled(exact, images, {jpeg_oversize(kernels) for kernels in every} - {None})
    ladder = [k if jpeg_oversize(k) in (None, *shown) else without_jpeg(k) for k in every]
    return [kernels for kernels in dict.fromkeys(ladder) if kernels != "float32"]  # which alone is exact


def _scaled(exact: "Bundle", images: list[Any], oversizes: set[int | None]) -> list[int | None]:
    """Those of `oversizes` at which one of the images is decoded at a smaller scale."""
    if not images or not oversizes:
        return []
    steps: Any = exact.encoders["image"].encoder.steps
    whole, *scaled = [steps.prepare(images, limits=exact.limits, oversize=o) for o in (None, *oversizes)]
    return [o for o, found in zip(oversizes, scaled, strict=True) if any(map(_differ, whole, found))]


def _differ(one: Any, other: Any) -> bool:
    """Do two prepared images, or what is wrong with them, differ?"""
    errors = isinstance(one, Exception), isinstance(other, Exception)
    return errors[0] != errors[1] if any(errors) else not one.data.equal(other.data)


def _smallest_cosine(one: "Vectors", other: "Vectors") -> float:
    if other.errors.keys() - one.errors.keys():  # overflow, most likely
        return 0.0
    good = [i for i in range(len(one.values)) if i not in one.errors]
    return round(float(_cosines(one.values[good], other.values[good]).min(initial=1.0)), 6)


def _cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(1) / np.maximum(norms, 1e-12)  # type: ignore[no-any-return]


def _measure(bundle: "Bundle", samples: dict[Modality, list[Any]], result: ProbeResult) -> None:
    """Time per value, after one run that warms up."""
    for modality, values in samples.items():
        if not values:
            continue
        bundle.encode_values(modality, values[:4])
        encoder = bundle.encoders[modality].encoder
        started = time.perf_counter()
        prepared = encoder.prepare(modality, values, limits=bundle.limits)
        middle = time.perf_counter()
        vectors = bundle.alone(modality, bundle.encode_values(modality, values))
        total = time.perf_counter() - middle
        result.prepare_s[modality] = (middle - started) / len(values)
        result.model_s[modality] = max(total - (middle - started), 1e-6) / len(values)
        result.bad[modality] = len(vectors.errors)
        del prepared
