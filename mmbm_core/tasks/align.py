"""Alignment: each modality of a row finds the others among all rows.

Shapes: `B` rows, `D` width, `M` modalities.
"""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmbm_core import metrics
from mmbm_core.augment import PairAugment, Pairs, draw_pairs, regroup
from mmbm_core.losses import ContrastiveConfig, ContrastiveLoss
from mmbm_core.sample import Modality
from mmbm_core.tasks.base import BaseTaskConfig, Representation, Task, TaskOutput, View

_COPY = 1e-4
"""Vectors of one value differ by rounding alone, whatever batch they came in; relative to the largest component."""


class AlignConfig(BaseTaskConfig):
    """Contrastive alignment of the modalities of a row."""

    kind: Literal["align"]
    inputs: Annotated[View, Field(min_length=2)]
    loss: ContrastiveConfig = ContrastiveConfig()
    group: str | None = None
    """The column that names what rows share (one photograph with several captions); None: the id of the source row."""
    start: Literal["random", "canonical"] = "random"
    """Where the adapters begin. `canonical`: at the solution of canonical correlation analysis of the training rows,
    of the first two of `inputs`, which a third joins by regression; for frozen encoders."""
    ridge: Annotated[float, Field(gt=0)] = 2.0
    """Of that analysis: what is added to each covariance, as a multiple of its mean eigenvalue."""
    joining_ridge: Annotated[float, Field(gt=0)] = 0.5
    """Of the regression by which a third modality joins: a multiple of each feature's variance."""
    mix: PairAugment | None = None
    """Make one image-text pair of two, in a share of a training batch; for encoders that are trained."""

    @model_validator(mode="after")
    def _check(self) -> "AlignConfig":
        if self.mix is not None and set(self.inputs) != {"image", "text"}:
            raise ValueError(
                f"mix makes one image-text pair of two, but inputs are {', '.join(self.inputs)}: what the others hold "
                "would belong to a half of it; leave mix out, or give image and text alone"
            )
        return self

    @property
    def views(self) -> dict[str, View]:
        return {"inputs": self.inputs}

    @property
    def target_columns(self) -> tuple[str, ...]:
        return (self.group,) if self.group else ()


class AlignTask(Task):
    """Contrastive loss over pairs of modalities; scored by retrieval in both directions."""

    metric = "mean_r@10"

    def __init__(self, config: AlignConfig, *, modalities: Sequence[Modality], width: int) -> None:
        super().__init__()
        self.config = config
        self.modalities = tuple(modalities)
        self.contrast = ContrastiveLoss(config.loss, modalities=[m for m in modalities if m in config.inputs])

    def encode_targets(self, columns: Mapping[str, Sequence[Any]], ids: Sequence[str]) -> dict[str, np.ndarray]:
        names = columns[self.config.group] if self.config.group else ids
        return {"group": np.array([_number_of(str(name)) for name in names], np.int64)}

    def mix(self, rows: Tensor, targets: Mapping[str, Tensor]) -> tuple[Pairs, dict[str, Tensor]]:
        """Which of the rows (N,) that have image and text are mixed in pairs, and the targets with their new groups.

        What is mixed is a negative of both its sources and no positive, as any two pairs of a batch are in the paper,
        which leaves the losses as they are (2206.08358): half of an image goes better with both texts than with one.
        The seed comes from torch's global generator on the CPU.
        """
        assert self.config.mix is not None
        pairs = draw_pairs(rows, share=self.config.mix.mixgen, seed=int(torch.randint(1 << 62, ())))
        return pairs, {**targets, "group": regroup(targets["group"], pairs)}

    def forward(self, views: Mapping[str, Representation], targets: Mapping[str, Tensor]) -> TaskOutput:
        view = views["inputs"]
        vectors = {m: view.vectors[m].float() for m in self.modalities if m in self.config.inputs}
        presence = {m: view.presence[:, self.modalities.index(m)] for m in vectors}
        loss = self.contrast(vectors, presence, targets["group"])
        missing = torch.tensor(float("nan"), device=loss.device)
        shown = {m: torch.where(presence[m][:, None], v.detach(), missing) for m, v in vectors.items()}
        return TaskOutput(loss, {str(name): vector for name, vector in shown.items()})

    def score(self, predictions: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]) -> dict[str, float]:
        scores: dict[str, float] = {}
        for query, gallery in permutations(predictions, 2):
            found = _retrieve(predictions[query], predictions[gallery], targets["group"])
            scores |= {f"{name}/{query}>{gallery}": value for name, value in found.items()}
        recalls = [value for name, value in scores.items() if name.startswith("r@10/")]
        return {"mean_r@10": float(np.mean(recalls)) if recalls else 0.0, **scores}


def _retrieve(queries: np.ndarray, gallery: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    asked, chosen = _distinct(queries, groups), _distinct(gallery, groups)
    if not len(asked) or not len(chosen):
        return {}
    return metrics.retrieval(queries[asked], gallery[chosen], query_groups=groups[asked], gallery_groups=groups[chosen])


def _distinct(vectors: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Rows that have a vector; of a group whose rows hold copies of one value (what was not exploded), the first."""
    rows = np.flatnonzero(~np.isnan(vectors[:, 0]))
    _, first, group = np.unique(groups[rows], return_index=True, return_inverse=True)
    spread = np.zeros(len(first))
    np.maximum.at(spread, group, np.abs(vectors[rows] - vectors[rows[first]][group]).max(1))
    scale = np.abs(vectors[rows]).max(initial=0)
    return rows[(spread[group] > _COPY * scale) | (np.arange(len(rows)) == first[group])]


def _number_of(name: str) -> int:
    """63 bits that name a group."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1
