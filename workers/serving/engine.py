"""One model, loaded: what requests ask of it.

Shapes: `N` rows, `D` width.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from mmbm_core.bundle import Bundle
from mmbm_core.encoders.base import Item
from mmbm_core.errors import MediaError
from mmbm_core.media import DEFAULT_LIMITS, Limits
from mmbm_core.predict import Predictor, Row
from mmbm_core.sample import MODALITIES, Modality
from mmbm_core.saved import find_part, read_content
from workers.bundles import local_models
from workers.encode import load_worker_bundle

Values = Mapping[Modality, str | tuple[int, ...] | bytes]
"""What a row has: a string or the ids of its tokens, or encoded media."""


_SCALE = 20.0
"""Where a model has learnt none: what sentence-transformers trains text encoders with."""


class Embed(NamedTuple):
    """Work: a vector for each row."""


class Classify(NamedTuple):
    """Work: the classes of each row."""

    task: str


class Classified(NamedTuple):
    """What a model says of a row."""

    labels: tuple[str, ...]
    probabilities: np.ndarray
    """(C,) of the labels."""
    refused: bool
    """Is it out of scope?"""


class Search(NamedTuple):
    """Work: the likeliest text for each row."""

    task: str
    beams: int | None = None
    """None: as the task was trained to."""
    max_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """One task of a model, for clients."""

    kind: str
    modalities: tuple[Modality, ...]
    labels: tuple[str, ...] = ()
    """Of a classifier."""
    max_tokens: int | None = None
    """Of a text that is written, at most."""
    turns: int | None = None
    """Of a dialogue before the answer, that a model of dialogues takes; None: all."""
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model, for clients."""

    model: str
    widths: dict[Modality, int]
    """D of each modality's vectors."""
    shared: bool
    """May the vectors of different modalities be compared, and a row have several?"""
    spaces: dict[str, str]
    """Fingerprint of each encoder: vectors are comparable only within one."""
    tasks: dict[str, TaskFacts]
    scale: float
    """Inverse temperature of cosines, where labels compete."""
    update_error: str = ""
    """Why the model that was deployed last is not this one."""

    @property
    def version(self) -> str:
        """Changes where another model takes over."""
        return f"{self.model} {self.spaces}"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A row ready for the model."""

    row: Row
    cost: float
    """Of a batch that uses the device well."""
    tokens: int
    """Of its text."""


class Engine:
    """A bundle, preset or checkpoint, and all that it can do.

    Args:
        model: names joined by commas; a trained bundle's by folder or URL.

    Raises:
        UsageError: no such model, or it is damaged.
    """

    def __init__(self, model: str, *, device: str, threads: int, precision: str, limits: Limits) -> None:
        self.bundle: Bundle = load_worker_bundle(
            model, device=device, threads=threads, precision=precision, limits=limits
        )
        self.predictor = Predictor(self.bundle.model) if self.bundle.model is not None else None
        self.facts = ModelFacts(
            model=model, widths=self.bundle.widths, shared=bool(self.bundle.shared), spaces=self.bundle.spaces,
            tasks=_task_facts(self.predictor, _metrics(model)), scale=_scale(self.bundle),
        )  # fmt: skip

    def prepare(self, rows: Sequence[Values]) -> list[Prepared | MediaError]:
        """Decode and tokenize N rows; what can't be used gives its error."""
        takes = ", ".join(self.bundle.encoders)
        found: list[dict[Modality, Item]] = [{} for _ in rows]
        errors: dict[int, MediaError] = {}
        for modality in MODALITIES:
            if modality not in self.bundle.encoders:
                alien = MediaError(f"this model takes no {modality}; it takes {takes}")
                errors |= {i: alien for i, row in enumerate(rows) if modality in row}
                continue
            values = {i: self._spelled(row[modality]) for i, row in enumerate(rows) if modality in row}
            usable = {i: v for i, v in values.items() if not isinstance(v, MediaError)}
            items = self.bundle.prepare_values(modality, list(usable.values())) if usable else []
            for at, item in (values | dict(zip(usable, items, strict=True))).items():
                if isinstance(item, Item):
                    found[at][modality] = item
                elif isinstance(item, MediaError):
                    errors.setdefault(at, MediaError(f"{modality}: {item}"))
        return [errors[i] if i in errors else self._prepared(row) for i, row in enumerate(found)]

    def _spelled(self, value: str | tuple[int, ...] | bytes) -> str | bytes | MediaError:
        """The value, or what token ids of the text encoder's own vocabulary say."""
        if not isinstance(value, tuple):
            return value
        encoder = self.bundle.encoders["text"].encoder
        tokenizer = getattr(getattr(encoder, "encoder", encoder), "tokenizer", None)
        if tokenizer is None:
            return MediaError("this model takes no token ids; send the text")
        if max(value) >= len(tokenizer):
            return MediaError(f"there is no token {max(value)}; the model's ids end at {len(tokenizer) - 1}")
        return str(tokenizer.decode(list(value), skip_special_tokens=True))

    def _prepared(self, row: dict[Modality, Item]) -> Prepared:
        cost = sum(item.cost / self.bundle.encoders[m].budget[m] for m, item in row.items())
        return Prepared(row=row, cost=cost, tokens=row["text"].cost if "text" in row else 0)

    def run(self, work: Hashable, rows: Sequence[Row]) -> Sequence[Any]:
        """One batch. Of Embed: vectors (D,) float32; of Classify: Classified; of Search: texts."""
        match work:
            case Embed():
                return self.bundle.embed_prepared(rows)
            case Classify(task):
                return self._classify(task, rows)
            case Search(task, beams, max_tokens):
                return self._tasks.search(task, rows, beams=beams, max_tokens=max_tokens)
        raise TypeError(f"no work of this kind: {work!r}")

    def _classify(self, task: str, rows: Sequence[Row]) -> list[Classified | MediaError]:
        classes, labels = self._tasks.classify(task, rows), self.facts.tasks[task].labels
        both = zip(classes.probabilities.cpu().numpy(), classes.refused.tolist(), strict=True)
        wrong = MediaError("the model gave no number")
        return [Classified(labels, p, refused) if np.isfinite(p).all() else wrong for p, refused in both]

    def canary(self) -> list[Prepared]:
        """A small row of a kind that the model takes: what it must be able to answer."""
        rows: list[Values] = [{"text": "canary"}] if "text" in self.bundle.encoders else []
        return [row for row in self.prepare(rows) if isinstance(row, Prepared)]

    @property
    def _tasks(self) -> Predictor:
        if self.predictor is None:
            raise TypeError("an encoder has no tasks")
        return self.predictor


def _scale(bundle: Bundle) -> float:
    """As an alignment, CLIP or one of its kin learnt it (CLAP: for texts by sound)."""
    modules = [*(encoder.encoder for encoder in bundle.encoders.values()), *([bundle.model] if bundle.model else [])]
    named = [(name, value) for module in modules for name, value in module.named_parameters()]
    found = [v for n, v in named if n.rpartition(".")[2] in ("log_scale", "logit_scale", "logit_scale_a")]
    return float(found[0].exp().mean()) if found else _SCALE


def spaces_of(model: str) -> dict[str, str]:
    """Fingerprint of each encoder, by name, as a loaded model's facts have them."""
    return load_worker_bundle(model, device="cpu", threads=1, precision="exact", limits=DEFAULT_LIMITS).spaces


def _task_facts(predictor: Predictor | None, metrics: Mapping[str, float]) -> dict[str, TaskFacts]:
    if predictor is None:
        return {}
    found = {}
    for name, config in predictor.model.spec.tasks.items():
        own = {k.removeprefix(f"{name}/"): v for k, v in metrics.items() if k.startswith(f"{name}/")}
        reads = tuple(m for m in predictor.model.modalities if any(m in view for view in config.views.values()))
        labels = tuple(getattr(config, "labels", ()))
        writer = predictor.writers.get(name)
        found[name] = TaskFacts(
            kind=config.kind, modalities=reads, labels=labels, metrics=own, turns=getattr(config, "turns", None),
            max_tokens=writer.decoder.max_tokens if writer is not None else None,
        )  # fmt: skip
    return found


def _metrics(model: str) -> dict[str, float]:
    """TASK/METRIC of a bundle, as training measured them."""
    with local_models(model, whole=False) as folders:
        part = find_part(model, folders=folders)
        if part is None:
            return {}
        metrics = read_content(part.folder).get("metrics", {})
    flat = {f"{task}/{name}": v for task, own in metrics.items() if isinstance(own, dict) for name, v in own.items()}
    return flat or {name: v for name, v in metrics.items() if isinstance(v, int | float)}
