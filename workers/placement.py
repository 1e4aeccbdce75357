"""Where encoders run: three placements of one flow, with the same vectors and the same ledger.

together      each unit worker holds all encoders
per_modality  each encoder, and a trained fusion, has actors of its own; a unit's modalities are encoded side by side
decode_apart  as per_modality, but CPU tasks prepare the values and hand uint8 pixels and token ids on
"""

import itertools
import random
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import ray
from ray.exceptions import RayActorError

from mmbm_core.errors import MediaError, UsageError
from mmbm_core.media import Limits
from mmbm_core.names import EXACT
from mmbm_core.rows import EncodeValues, FuseValues, Vectors
from mmbm_core.sample import Modality
from workers.crashes import WorkerLost
from workers.resources import DECODE_CPUS, WorkerResources
from workers.spec import ModelSpec, RunSpec

if TYPE_CHECKING:  # torch loads where encoders do: the driver and the planner start without it
    from mmbm_core.bundle import Bundle
    from mmbm_core.encoders.base import Item

PLACEMENTS = ("together", "per_modality", "decode_apart")
_DECODE_VALUES = 64
_WINDOWS_AHEAD = 4


def load_checked(
    model: ModelSpec, names: Sequence[str], *, device: str, threads: int, limits: Limits, budget: dict[Modality, int]
) -> "Bundle":
    """Load some of a run's encoders as planned.

    Raises:
        UsageError: this node has other weights under the same name.
    """
    from workers.encode import load_worker_bundle

    bundle = load_worker_bundle(
        ",".join(names),
        device=device,
        threads=threads,
        kernels=model.kernels,
        options=model.options,
        limits=limits,
        budget=budget,
    )
    for name, space in bundle.spaces.items():
        _check_space(model, name, space)
    return bundle


def _check_space(model: ModelSpec, name: str, space: str) -> None:
    if space != model.spaces[name]:
        raise UsageError(
            f"model {name} on this node has fingerprint {space}, the run was planned with {model.spaces[name]}: put "
            "the same checkpoint on every node"
        )


class Backend(NamedTuple):
    """What a unit worker encodes with."""

    encode: EncodeValues
    fuse: FuseValues | None
    """None where no trained fusion follows."""


def open_backend(spec: RunSpec) -> Backend:
    """The encoders of a run: here, or the pools'."""
    if spec.pools is None:
        bundle = load_checked(
            spec.model,
            list(spec.model.kernels),
            device=spec.device,
            threads=spec.threads,
            limits=spec.limits,
            budget=spec.budget,
        )
        return Backend(bundle.encode, bundle.fuse)
    remote = _RemoteEncoders(spec.pools)
    return Backend(remote, remote.fuse if spec.pools.fusion else None)


@ray.remote(max_restarts=-1)
class EncoderActor:
    """One encoder on its own share of the cluster. Calls are not repeated by Ray: a value may be what killed it."""

    def __init__(self, model: ModelSpec, name: str, **options: Any) -> None:
        self.bundle = load_checked(model, [name], **options)

    def encode_values(self, modality: Modality, values: list[Any]) -> Vectors:
        return self.bundle.encode_values(modality, values)

    def encode_prepared(self, modality: Modality, prepared: "list[Item | MediaError]") -> Vectors:
        return self.bundle.encode_prepared(modality, prepared)


@ray.remote(max_restarts=-1)
class FusionActor:
    """The fusion of a trained bundle on its own share of the cluster."""

    def __init__(self, model: ModelSpec, *, device: str, threads: int) -> None:
        from workers.encode import load_worker_fusion

        self._fuse, space = load_worker_fusion(model.fusion, device=device, threads=threads)
        _check_space(model, model.fusion, space)

    def fuse(self, values: dict[Modality, np.ndarray], present: dict[Modality, np.ndarray]) -> np.ndarray:
        return self._fuse(values, present)


@ray.remote(max_restarts=-1)
class DecodeActor:
    """Prepares values on CPUs; holds the encoders only for their preprocessing."""

    def __init__(self, model: ModelSpec, **options: Any) -> None:
        exact = replace(model, kernels=dict.fromkeys(model.kernels, EXACT))  # a CPU need not have the GPU's kernels
        self.bundle = load_checked(exact, list(model.kernels), **options)
        for modality, name in self.bundle.names.items():
            self.bundle.encoders[modality].encoder.kernels = model.kernels[name]

    def prepare(self, modality: Modality, values: list[Any]) -> "list[Item | MediaError]":
        return self.bundle.prepare_values(modality, values)


@dataclass(frozen=True, kw_only=True)
class Pools:
    """Handles of the actors that unit workers share."""

    encoders: dict[Modality, list[Any]]
    fusion: list[Any] = field(default_factory=list)
    decoders: list[Any] = field(default_factory=list)


def start_pools(
    placement: str,
    model: ModelSpec,
    resources: WorkerResources,
    *,
    modalities: Mapping[str, Sequence[Modality]],
    limits: Limits,
    budget: dict[Modality, int],
) -> Pools | None:
    """Start the actors of a placement; None where unit workers hold the encoders themselves.

    Args:
        modalities: by model name.
        resources: what one encoder actor gets; its workers are dealt out to the encoders and the fusion, at least one
            each.
    """
    if placement == "together":
        return None
    num_pools = len(modalities) + bool(model.fusion)
    count = max(1, resources.workers // num_pools)
    shared = {"limits": limits, "budget": budget, "threads": resources.threads}
    share = min(1.0, resources.workers / num_pools)
    gpus = resources.gpus * share
    place: dict[str, Any] = {"num_cpus": resources.cpus * share, "num_gpus": gpus if gpus <= 1 else int(gpus)}
    place["scheduling_strategy"] = "SPREAD"
    encoders: dict[Modality, list[Any]] = {}
    for name, served in modalities.items():
        actor = EncoderActor.options(**place)  # type: ignore[attr-defined]
        handles = [actor.remote(model, name, device=resources.device, **shared) for _ in range(count)]
        encoders.update(dict.fromkeys(served, handles))
    fusion, decoders = [], []
    if model.fusion:
        actor = FusionActor.options(**place)  # type: ignore[attr-defined]
        fusion = [actor.remote(model, device=resources.device, threads=resources.threads) for _ in range(count)]
    if placement == "decode_apart":
        decode = DecodeActor.options(num_cpus=DECODE_CPUS)  # type: ignore[attr-defined]
        decoders = [decode.remote(model, device="cpu", **shared) for _ in range(resources.workers)]
    return Pools(encoders=encoders, fusion=fusion, decoders=decoders)


class _RemoteEncoders:
    """Encodes and fuses through the pools, each actor in turn.

    Raises:
        WorkerLost: an actor died; by then it has been started again.
    """

    def __init__(self, pools: Pools) -> None:
        encoders = {id(a): a for handles in pools.encoders.values() for a in handles}.values()
        self._actors = [*encoders, *pools.fusion, *pools.decoders]
        self._fusion = itertools.cycle(pools.fusion)
        self._encoders = {m: itertools.cycle(handles) for m, handles in pools.encoders.items()}
        self._decoders = itertools.cycle(pools.decoders) if pools.decoders else None

    def __call__(self, requests: list[tuple[Modality, list[Any]]]) -> list[Vectors]:
        with self._recovering():
            if self._decoders is None:
                jobs = [next(self._encoders[m]).encode_values.remote(m, values) for m, values in requests]
                return list(ray.get(jobs))
            return [self._encode_apart(modality, values) for modality, values in requests]

    def fuse(self, values: dict[Modality, np.ndarray], present: dict[Modality, np.ndarray]) -> np.ndarray:
        """One vector a row, as `mmbm_core.rows.FuseValues` says."""
        with self._recovering():
            return ray.get(next(self._fusion).fuse.remote(values, present))  # type: ignore[no-any-return]

    @contextmanager
    def _recovering(self) -> Iterator[None]:
        try:
            yield
        except RayActorError as error:
            ray.get([actor.__ray_ready__.options(max_task_retries=-1).remote() for actor in self._actors])
            time.sleep(random.uniform(0, 2))  # else the unit beside the guilty one dies in step with it, twice
            raise WorkerLost(str(error)) from error

    def _encode_apart(self, modality: Modality, values: list[Any]) -> Vectors:
        """Windows go from a decoder straight to an encoder, few at a time: pixels never pass through here."""
        assert self._decoders is not None
        done: list[Vectors] = []
        pending: deque[Any] = deque()
        for start in range(0, len(values), _DECODE_VALUES):
            prepared = next(self._decoders).prepare.remote(modality, values[start : start + _DECODE_VALUES])
            pending.append(next(self._encoders[modality]).encode_prepared.remote(modality, prepared))
            if len(pending) > _WINDOWS_AHEAD:
                done.append(ray.get(pending.popleft()))
        done += ray.get(list(pending))
        starts = range(0, len(values), _DECODE_VALUES)
        return Vectors(
            np.concatenate([v.values for v in done]),
            {start + i: error for start, v in zip(starts, done, strict=True) for i, error in v.errors.items()},
            {start + i for start, v in zip(starts, done, strict=True) for i in v.cut},
        )
