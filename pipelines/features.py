"""Run frozen encoders over a training set once, on actors of their own, and remember where their tokens lie."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mmbm_core.encoders import build_encoder
from mmbm_core.media import DEFAULT_LIMITS
from mmbm_core.model import Model
from mmbm_core.sample import Modality
from mmbm_core.spec import ModelSpec
from pipelines.parallel import Crew
from pipelines.progress import Progress, say
from workers.storage import Storage
from workers.training.batches import Columns
from workers.training.features import FeatureActor, FeatureSpec, FrozenEncoder, Trouble, feature_column, stored_trouble
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


class Stored(NamedTuple):
    """A feed whose tokens are stored."""

    feed: Feed
    """With stored tokens in place of the columns of frozen encoders."""
    bad_values: int
    """Values that can't be used and count as missing."""
    values_cut: int
    """Values that are longer than their encoder takes."""


def store_features(feed: Feed, frozen: Mapping[Modality, FrozenEncoder], storage: Storage, folder: str) -> Stored:
    """Run frozen encoders over all rows of a feed whose tokens are not stored yet."""
    bad = cut = 0
    partner = feed.partner
    if partner is not None:
        partner, bad, cut = store_features(partner, frozen, storage, folder)
    stored = tuple(e for e in feed.spec.encodings if e.modality in frozen)
    if not stored:
        return Stored(replace(feed, partner=partner), bad, cut)
    encoders = {e.modality: frozen[e.modality] for e in stored}
    spec = FeatureSpec(
        rows=replace(feed.spec, encodings=stored, kept=()), encoders=encoders, limits=DEFAULT_LIMITS, storage=storage,
        folder=folder,
    )  # fmt: skip
    paths = [spec.path(unit.unit) if _rows(feed, i) else None for i, unit in enumerate(feed.units)]
    trouble = _fill(spec, feed, paths)
    if trouble.errors:
        say(
            f"WARNING: {len(trouble.errors):,} values that can't be used count as missing; the first: "
            f"{trouble.errors[0]}"
        )
    units = [replace(unit, features=path) for unit, path in zip(feed.units, paths, strict=True)]
    left = tuple(e for e in feed.spec.encodings if e.modality not in frozen)
    filled = replace(feed, spec=replace(feed.spec, encodings=left), units=units, partner=partner)
    return Stored(filled, bad + len(trouble.errors), cut + trouble.cut)


def _fill(spec: FeatureSpec, feed: Feed, paths: Sequence[str | None]) -> Trouble:
    """Write the files of units that are not there yet."""
    kept = {i: path for i, path in enumerate(paths) if path and spec.storage.exists(path)}
    todo = [i for i, path in enumerate(paths) if path and i not in kept]
    if kept:
        names = ", ".join(encoder.model for encoder in spec.encoders.values())
        count, total = sum(_rows(feed, i) for i in kept), sum(_rows(feed, i) for i in range(len(paths)))
        say(f"{names}: the tokens of {count:,} of {total:,} rows are stored already")
    found = [stored_trouble(spec.storage, path) for path in kept.values()] + _run(spec, feed, todo)
    return Trouble([e for each in found for e in each.errors], sum(each.cut for each in found))


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


def _run(spec: FeatureSpec, feed: Feed, todo: list[int]) -> list[Trouble]:
    """Encode units."""
    if not todo:
        return []
    progress, rows = Progress(f"encode with {', '.join(e.model for e in spec.encoders.values())}"), 0
    trouble = [Trouble([], 0) for _ in todo]
    whole = sum(_rows(feed, i) for i in todo)
    calls = [(feed.units[i].storage, feed.units[i].unit) for i in todo]
    with Crew(FeatureActor, spec, most=len(todo)) as crew:
        for number, found in crew.do("encode", calls):
            trouble[number] = found
            rows += _rows(feed, todo[number])
            progress.update(rows=rows, fraction=rows / whole)
    progress.update(rows=rows, fraction=1.0, force=True)
    progress.close()
    return trouble


__all__ = ["bundle_encoders", "columns_of", "default_cache", "frozen_encoders", "store_features"]
