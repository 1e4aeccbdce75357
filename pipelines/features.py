"""Run frozen encoders over a training set once, on actors of their own, and remember where their tokens lie."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from mmbm_core.encoders import build_encoder
from mmbm_core.media import DEFAULT_LIMITS
from mmbm_core.model import Model
from mmbm_core.sample import Modality
from mmbm_core.spec import ModelSpec
from pipelines.parallel import in_actors
from pipelines.progress import Progress, say
from workers.resources import WorkerResources, plan_workers
from workers.storage import Storage
from workers.training.batches import Columns
from workers.training.features import FeatureActor, FeatureSpec, FrozenEncoder, feature_column, stored_errors
from workers.training.feed import Feed


def default_cache() -> str:
    """Where tokens are kept from one training to the next: MMBM_CACHE, or a folder of the user's."""
    return os.environ.get("MMBM_CACHE") or str(Path.home() / ".cache" / "mmbm" / "features")


def frozen_encoders(spec: ModelSpec) -> tuple[dict[Modality, FrozenEncoder], dict[Modality, int]]:
    """Encoders whose tokens are stored, and the width of each; loads each once."""
    frozen, widths = {}, {}
    for modality, config in spec.encoders.items():
        if config.stored and isinstance(config.model, str) and isinstance(config.tokens, int):
            encoder = build_encoder(config.model, **config.options)
            widths[modality] = encoder.width
            frozen[modality] = FrozenEncoder(
                model=config.model, options=config.options, tokens=config.tokens, space=encoder.space_fingerprint()
            )
    return frozen, widths


def bundle_encoders(model: Model, location: str) -> dict[Modality, FrozenEncoder]:
    """Encoders of a bundle, which never change any more: all but those whose tokens can't be stored."""
    return {
        m: FrozenEncoder(
            model=str(c.model), options=c.options, tokens=c.tokens, bundle=location,
            space=model.encoders[m].space_fingerprint(),  # type: ignore[operator]
        )
        for m, c in model.spec.encoders.items()
        if isinstance(c.tokens, int)
    }  # fmt: skip


def store_features(
    feed: Feed, frozen: Mapping[Modality, FrozenEncoder], storage: Storage, folder: str
) -> tuple[Feed, int]:
    """The feed with stored tokens in place of the columns of frozen encoders, and how many values can't be used."""
    bad = 0
    partner = feed.partner
    if partner is not None:
        partner, bad = store_features(partner, frozen, storage, folder)
    stored = tuple(e for e in feed.spec.encodings if e.modality in frozen)
    if not stored:
        return replace(feed, partner=partner), bad
    encoders = {e.modality: frozen[e.modality] for e in stored}
    spec = FeatureSpec(
        rows=replace(feed.spec, encodings=stored, kept=()), encoders=encoders, limits=DEFAULT_LIMITS, storage=storage,
        folder=folder,
    )  # fmt: skip
    paths = [spec.path(unit.unit) for unit in feed.units]
    todo = [i for i, path in enumerate(paths) if not storage.exists(path) and _rows(feed, i)]
    names = ", ".join(encoder.model for encoder in encoders.values())
    total = sum(_rows(feed, i) for i in range(len(paths)))
    kept = total - sum(_rows(feed, i) for i in todo)
    if kept:
        say(f"{names}: the tokens of {kept:,} of {total:,} rows are stored already")
    errors = [
        e for i, path in enumerate(paths) if _rows(feed, i) and i not in todo for e in stored_errors(storage, path)
    ]
    errors += _run(spec, feed, todo)
    if errors:
        say(f"WARNING: {len(errors):,} values that can't be used count as missing; the first: {errors[0]}")
    bad += len(errors)
    units = [replace(unit, features=path if _rows(feed, i) else None)
             for i, (unit, path) in enumerate(zip(feed.units, paths, strict=True))]  # fmt: skip
    left = tuple(e for e in feed.spec.encodings if e.modality not in frozen)
    return replace(feed, spec=replace(feed.spec, encodings=left), units=units, partner=partner), bad


def columns_of(feed: Feed, stored: Mapping[Modality, FrozenEncoder]) -> Columns:
    """Where a batch's values stand once the tokens of some encoders are stored."""
    encodings = feed.spec.encodings + (feed.partner.spec.encodings if feed.partner else ())
    return Columns(
        cells=tuple(e for e in encodings if e.modality not in stored),
        vectors={(e.modality, e.column): feature_column(e) for e in encodings if e.modality in stored},
        tokens={m: encoder.tokens for m, encoder in stored.items()},
    )


def _rows(feed: Feed, unit: int) -> int:
    return len(feed.units[unit].train) + len(feed.units[unit].val)


def _run(spec: FeatureSpec, feed: Feed, todo: list[int]) -> list[str]:
    """Encode units; gives what is wrong with each value that can't be used."""
    if not todo:
        return []
    resources = plan_workers([node["Resources"] for node in ray.nodes() if node["Alive"]])
    actors = [start_actor(FeatureActor, resources, spec) for _ in range(min(resources.workers, len(todo)))]
    progress, rows = Progress(f"encode with {', '.join(e.model for e in spec.encoders.values())}"), 0
    errors: list[list[str]] = [[] for _ in todo]
    whole = sum(_rows(feed, i) for i in todo)
    for number, found in in_actors(actors, "encode", [(feed.units[i].storage, feed.units[i].unit) for i in todo]):
        errors[number] = found
        rows += _rows(feed, todo[number])
        progress.update(rows=rows, fraction=rows / whole)
    progress.update(rows=rows, fraction=1.0, force=True)
    progress.close()
    for actor in actors:
        ray.kill(actor)
    return [error for each in errors for error in each]


def start_actor(kind: Any, resources: WorkerResources, *args: Any) -> Any:
    """One actor with a worker's share of the cluster."""
    placed = kind.options(num_cpus=resources.cpus, num_gpus=resources.gpus)
    return placed.remote(*args, device=resources.device, threads=resources.threads)


__all__ = ["bundle_encoders", "columns_of", "default_cache", "frozen_encoders", "start_actor", "store_features"]
