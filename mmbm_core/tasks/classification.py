"""Classes from any modalities: image recognition, intents, labels; with what is out of scope refused.

Shapes: `B` rows, `D` width, `C` classes, `M` modalities.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmbm_core import metrics
from mmbm_core.augment import MixAugment, mix_images, mix_labels
from mmbm_core.augment.changes import Aspect
from mmbm_core.calibration import fit_temperature
from mmbm_core.errors import UsageError
from mmbm_core.metrics import OUT_OF_SCOPE, UNSEEN
from mmbm_core.sample import Modality
from mmbm_core.tasks.base import IGNORED, BaseTaskConfig, Representation, Task, TaskOutput, View

_OWN = "logits of "
BEFORE_REFUSAL = "accuracy_before_refusal"
"""In-scope accuracy had no row been refused."""


class ClassificationConfig(BaseTaskConfig):
    """One class of several for each row."""

    kind: Literal["recognition", "understanding"]
    """Two names of one task: of what images show, of what texts mean."""
    inputs: Annotated[View, Field(min_length=1)]
    """The column of each modality."""
    label: str
    """The column of the class; names or numbers."""
    labels: tuple[str, ...] = ()
    """Class names in the order of the logits; () takes those of the training rows."""
    out_of_scope: str | None = None
    """The label of rows that belong to no class: they are refused, by their confidence."""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.995
    """Share of the right answers on validation rows that refusing has to leave."""
    depends_on: tuple[Aspect, ...] = ()
    """What of a sample tells its class, such as the orientation of a letter; augmentation may not change it."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mix: MixAugment | None = None
    """Mix the images of a training batch in pairs, and their classes with them; rows without a class stay."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    unimodal_logits: bool = False
    """Add each present modality's own logits to the joint ones (I2M2, arXiv 2405.17613). They also have a loss of their
    own, so that no encoder learns less because another one is easier to learn from."""

    @model_validator(mode="after")
    def _check(self) -> "ClassificationConfig":
        if self.mix is not None and set(self.inputs) != {"image"}:
            raise ValueError(
                f"mix blends images and their classes, but inputs are {', '.join(self.inputs)}: what the others say of "
                "a row would belong to one image of two; leave mix out, or give image alone"
            )
        return self

    @property
    def views(self) -> dict[str, View]:
        return {"inputs": self.inputs}

    @property
    def target_columns(self) -> tuple[str, ...]:
        return (self.label,)

    @property
    def label_columns(self) -> tuple[str, ...]:
        return (self.label,)

    def learn(self, counts: Mapping[str, Mapping[str, int]]) -> "ClassificationConfig":
        found = set(counts[self.label])
        if self.out_of_scope is not None and self.out_of_scope not in found:
            raise UsageError(f"no training row has {self.label} = {self.out_of_scope!r}, which is to be out of scope")
        names = sorted(found - {self.out_of_scope}, key=_natural)
        if len(names) < 2:
            raise UsageError(f"column {self.label!r} has {len(names)} classes in the training rows; two are needed")
        if self.labels and set(self.labels) != set(names):
            lacking, more = sorted(set(self.labels) - set(names)), sorted(set(names) - set(self.labels))
            parts = [f"no training row has {', '.join(lacking)}"] if lacking else []
            parts += [f"training rows also have {', '.join(more)}"] if more else []
            raise UsageError(
                f"labels of column {self.label!r}: {'; '.join(parts)}; leave labels out to take what is there"
            )
        return self.model_copy(update={"labels": self.labels or tuple(names)})


class Classes(NamedTuple):
    """Of B rows."""

    probabilities: Tensor
    """(B, C), calibrated."""
    refused: Tensor
    """(B,) bool: out of scope."""


class ClassificationTask(Task):
    """A linear layer on the fused vector, and where asked on each modality's own."""

    metric = "accuracy"
    temperature: Tensor
    threshold: Tensor

    def __init__(self, config: ClassificationConfig, *, modalities: Sequence[Modality], width: int) -> None:
        super().__init__()
        self.config = config
        self.modalities = tuple(modalities)
        self._index: dict[str | None, int] = {name: i for i, name in enumerate(config.labels)}
        self.dropout = nn.Dropout(config.dropout)
        self.joint = nn.Linear(width, len(config.labels))
        own = [m for m in modalities if m in config.inputs] if config.unimodal_logits else []
        self.own = nn.ModuleDict({m: nn.Linear(width, len(config.labels)) for m in own})
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("threshold", torch.zeros(()))

    def encode_targets(self, columns: Mapping[str, Sequence[Any]], ids: Sequence[str]) -> dict[str, np.ndarray]:
        codes = {None: IGNORED, **self._index}
        if self.config.out_of_scope is not None:
            codes[self.config.out_of_scope] = OUT_OF_SCOPE
        values = [None if value is None else str(value) for value in columns[self.config.label]]
        return {"label": np.array([codes.get(value, UNSEEN) for value in values], np.int64)}

    def mix(self, images: Tensor, rows: Tensor, targets: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Images (N, 3, H, W) of `rows` (N,) mixed in pairs, and the targets with `soft` (B, C): shares of the classes.

        The seed comes from torch's global generator on the CPU.
        """
        assert self.config.mix is not None
        label, seed = targets["label"], int(torch.randint(1 << 62, ()))
        mixture = mix_images(images, self.config.mix, mixable=label[rows] >= 0, seed=seed)
        known = label.clamp(min=0)
        soft = nn.functional.one_hot(known, len(self.config.labels)).float()
        soft[rows] = mix_labels(known[rows], mixture, num_classes=len(self.config.labels))
        return mixture.images, {**targets, "soft": soft}

    def forward(self, views: Mapping[str, Representation], targets: Mapping[str, Tensor]) -> TaskOutput:
        view, label = views["inputs"], targets["label"]
        target, smoothing = targets.get("soft", label.clamp(min=0)), self.config.label_smoothing
        own = {m: head(self.dropout(view.vectors[m])).float() for m, head in self.own.items()}  # type: ignore[index]
        logits = self._logits(view, own)
        loss = _in_scope_loss(logits, target, (label >= 0) & view.present, smoothing)
        for modality, each in own.items():
            loss = loss + _in_scope_loss(each, target, (label >= 0) & self._present(view, modality), smoothing)
        if self.config.out_of_scope is not None:
            loss = loss + _flat_loss(logits, label == OUT_OF_SCOPE)
        return TaskOutput(loss, {"logits": logits} | {f"{_OWN}{m}": each for m, each in own.items()})

    def _logits(self, view: Representation, own: Mapping[str, Tensor]) -> Tensor:
        """(B, C): joint logits, plus each present modality's own."""
        logits = self.joint(self.dropout(view.fused.pooled)).float()
        for modality, each in own.items():
            present = self._present(view, modality)[:, None]
            logits = logits + torch.where(present, each, torch.zeros_like(each))
        return logits

    def _present(self, view: Representation, modality: str) -> Tensor:
        """(B,) bool"""
        return view.presence[:, self.modalities.index(modality)]  # type: ignore[arg-type]

    def classify(self, view: Representation) -> Classes:
        """What the task says of B rows."""
        own = {m: head(view.vectors[m]).float() for m, head in self.own.items()}  # type: ignore[index]
        logits = self._logits(view, own)
        refused = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        if self.config.out_of_scope is not None:
            refused = torch.logsumexp(logits / self.temperature, dim=-1) < self.threshold
        return Classes(self.probabilities(logits), refused)

    def own_scores(self, output: TaskOutput, targets: Mapping[str, Tensor]) -> dict[Modality, Tensor]:
        rows = targets["label"] >= 0
        right = targets["label"][rows, None]
        own = {n.removeprefix(_OWN): each for n, each in output.predictions.items() if n.startswith(_OWN)}
        return {m: torch.softmax(each[rows], -1).gather(1, right)[:, 0] for m, each in own.items()}  # type: ignore[misc]

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, C): calibrated probabilities."""
        return torch.softmax(logits / self.temperature, dim=-1)

    def score(self, predictions: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]) -> dict[str, float]:
        logits, label = _labelled(predictions["logits"] / self.temperature.item(), targets["label"])
        scores = metrics.classification(logits, label)
        if self.config.out_of_scope is not None:
            scores = {BEFORE_REFUSAL if name == "accuracy" else name: value for name, value in scores.items()}
            scores |= metrics.out_of_scope(logits, label, _confidence(logits), threshold=self.threshold.item())
        return scores

    def calibrate(self, predictions: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]) -> None:
        logits, label = _labelled(predictions["logits"], targets["label"])
        self.temperature.fill_(fit_temperature(logits[label >= 0], label[label >= 0]))
        logits = logits / self.temperature.item()
        if self.config.out_of_scope is not None and (logits.argmax(1) == label).any():
            self.threshold.fill_(metrics.choose_threshold(logits, label, _confidence(logits), keep=self.config.keep))


def _labelled(logits: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return logits[label != IGNORED], label[label != IGNORED]


def _in_scope_loss(logits: Tensor, target: Tensor, usable: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy with classes (B,) or shares of them (B, C), over the rows that have a class and something to
    see it by."""
    losses = nn.functional.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
    return torch.where(usable, losses, torch.zeros_like(losses)).sum() / usable.sum().clamp(min=1)


def _flat_loss(logits: Tensor, refused: Tensor) -> Tensor:
    """Cross-entropy to the uniform distribution on rows out of scope (outlier exposure, arXiv 1812.04606, eq. 1)."""
    flat = -torch.log_softmax(logits, dim=-1).mean(-1)
    return torch.where(refused, flat, torch.zeros_like(flat)).sum() / len(refused)


def _confidence(logits: np.ndarray) -> np.ndarray:
    """(B,): log of the sum of exponents, the negative energy (arXiv 2010.03759, eq. 4)."""
    peak = logits.max(1, keepdims=True)
    return np.asarray((np.log(np.exp(logits - peak).sum(1, keepdims=True)) + peak)[:, 0])


def _natural(name: str) -> tuple[int, float, str]:
    """Numbers by value, before words."""
    return (0, float(name), name) if name.lstrip("-").replace(".", "", 1).isdigit() else (1, 0.0, name)
