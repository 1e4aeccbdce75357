"""Where encoders run: three placements of one flow, with the same vectors and the same ledger.

    together      each unit worker holds all encoders
    per_modality  each encoder has actors of its own; a unit's modalities are encoded side by side
    decode_apart  as per_modality, but CPU tasks prepare the values and hand uint8 pixels and token ids on
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from mmbm_core.bundle import Bundle
from mmbm_core.encoders.base import Item
from mmbm_core.errors import MediaError, UsageError
from mmbm_core.media import Limits
from mmbm_core.rows import EncodeValues, Vectors
from mmbm_core.sample import Modality
from workers.encode import load_worker_bundle
from workers.resources import WorkerResources
from workers.spec import ModelSpec, RunSpec

PLACEMENTS = ("together", "per_modality", "decode_apart")
DECODE_CPUS = 0.2
COORDINATOR_CPUS = 0.05
_DECODE_VALUES = 64


def load_checked(
    model: ModelSpec, names: Sequence[str], *, device: str, threads: int, limits: Limits, budget: dict[Modality, int]
) -> Bundle:
    """Load some of a run's encoders as planned.

    Raises:
        UsageError: this node has other weights under the same name.
    """
    bundle = load_worker_bundle(
        ",".join(names),
        device=device,
        threads=threads,
        kernels=model.kernels,
        options=model.options,
        limits=limits,
        budget=budget,
    )
    for name in names:
        if bundle.spaces[name] != model.spaces[name]:
            raise UsageError(
                f"model {name} on this node has fingerprint {bundle.spaces[name]}, the run was planned with "
                f"{model.spaces[name]}: put the same checkpoint on every node"
            )
    return bundle


def open_backend(spec: RunSpec) -> EncodeValues:
    """What a unit worker encodes with."""
    if spec.pools is None:
        bundle = load_checked(
            spec.model,
            list(spec.model.kernels),
            device=spec.device,
            threads=spec.threads,
            limits=spec.limits,
            budget=spec.budget,
        )
        return bundle.encode
    return _RemoteEncoders(spec.pools)


@ray.remote(max_restarts=-1, max_task_retries=-1)
class EncoderActor:
    """One encoder on its own share of the cluster."""

    def __init__(self, model: ModelSpec, name: str, **options: Any) -> None:
        self.bundle = load_checked(model, [name], **options)

    def encode_values(self, modality: Modality, values: list[Any]) -> Vectors:
        return self.bundle.encode_values(modality, values)

    def encode_items(self, modality: Modality, items: list[Item]) -> np.ndarray:
        return self.bundle.encoders[modality](modality, items)


@ray.remote(max_restarts=-1, max_task_retries=-1)
class DecodeActor:
    """Prepares values on CPUs; holds the encoders only for their preprocessing."""

    def __init__(self, model: ModelSpec, **options: Any) -> None:
        self.bundle = load_checked(model, list(model.kernels), **options)

    def prepare(self, modality: Modality, values: list[Any]) -> list[Item | MediaError]:
        encoder = self.bundle.encoders[modality].encoder
        return encoder.prepare(modality, values, limits=self.bundle.limits)


@dataclass(frozen=True, kw_only=True)
class Pools:
    """Handles of the actors that unit workers share."""

    encoders: dict[Modality, list[Any]]
    decoders: list[Any] = field(default_factory=list)


def start_pools(
    placement: str,
    model: ModelSpec,
    resources: WorkerResources,
    *,
    modalities: dict[str, Sequence[Modality]],
    limits: Limits,
    budget: dict[Modality, int],
) -> Pools | None:
    """Start the actors of a placement; None where unit workers hold the encoders themselves.

    Args:
        modalities: by model name.
        resources: what one encoder actor gets; its workers are dealt out to the encoders, at least one each.
    """
    if placement == "together":
        return None
    count = max(1, resources.workers // len(modalities))
    shared = {"limits": limits, "budget": budget, "threads": resources.threads}
    share = 1 if resources.workers >= len(modalities) else resources.workers / len(modalities)
    encoders: dict[Modality, list[Any]] = {}
    for name, served in modalities.items():
        actor = EncoderActor.options(  # type: ignore[attr-defined]
            num_cpus=resources.cpus * share, num_gpus=resources.gpus * share, scheduling_strategy="SPREAD"
        )
        handles = [actor.remote(model, name, device=resources.device, **shared) for _ in range(count)]
        encoders.update(dict.fromkeys(served, handles))
    decoders = []
    if placement == "decode_apart":
        decode = DecodeActor.options(num_cpus=DECODE_CPUS)  # type: ignore[attr-defined]
        decoders = [decode.remote(model, device="cpu", **shared) for _ in range(resources.workers)]
    return Pools(encoders=encoders, decoders=decoders)


class _RemoteEncoders:
    """Encodes through the pools, each actor in turn."""

    def __init__(self, pools: Pools) -> None:
        self._encoders = {m: itertools.cycle(handles) for m, handles in pools.encoders.items()}
        self._decoders = itertools.cycle(pools.decoders) if pools.decoders else None

    def __call__(self, requests: list[tuple[Modality, list[Any]]]) -> list[Vectors]:
        if self._decoders is None:
            jobs = [next(self._encoders[m]).encode_values.remote(m, values) for m, values in requests]
            return list(ray.get(jobs))
        return [self._encode_apart(modality, values) for modality, values in requests]

    def _encode_apart(self, modality: Modality, values: list[Any]) -> Vectors:
        """Windows are decoded in parallel and encoded as they come, in order."""
        assert self._decoders is not None
        starts = range(0, len(values), _DECODE_VALUES)
        windows = [next(self._decoders).prepare.remote(modality, values[s : s + _DECODE_VALUES]) for s in starts]
        prepared = [item for window in ray.get(windows) for item in window]
        good = [i for i, item in enumerate(prepared) if isinstance(item, Item)]
        errors = {i: str(item) for i, item in enumerate(prepared) if isinstance(item, MediaError)}
        actor = next(self._encoders[modality])
        encoded = ray.get(actor.encode_items.remote(modality, [prepared[i] for i in good]))
        vectors = np.zeros((len(values), encoded.shape[1]), dtype=np.float32)
        vectors[good] = encoded
        return Vectors(vectors, errors, {i for i in good if prepared[i].cut})
