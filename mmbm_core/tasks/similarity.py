"""How alike two views of a row are: semantic similarity of sentence pairs, or of any two views.

Shapes: `B` rows, `D` width.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from mmbm_core import metrics
from mmbm_core.sample import Modality
from mmbm_core.tasks.base import BaseTaskConfig, Representation, Task, TaskOutput, View


class SimilarityConfig(BaseTaskConfig):
    """Score of a pair: the cosine of its two views, trained to order pairs as their gold scores do."""

    kind: Literal["similarity"]
    left: Annotated[View, Field(min_length=1)]
    right: Annotated[View, Field(min_length=1)]
    score: str
    """The column of the gold score; only its order counts."""
    scale: Annotated[float, Field(gt=0)] = 20.0

    @property
    def views(self) -> dict[str, View]:
        return {"left": self.left, "right": self.right}

    @property
    def target_columns(self) -> tuple[str, ...]:
        return (self.score,)


class SimilarityTask(Task):
    """No weights of its own: the cosine is what retrieval will use.

    The loss is CoSENT's (Su, 2022, https://kexue.fm/archives/8847): log(1 + sum of exp(scale (cos_j - cos_i)) over the
    pairs (i, j) of a batch where i has the higher gold score).
    """

    metric = "spearman"

    def __init__(self, config: SimilarityConfig, *, modalities: Sequence[Modality], width: int) -> None:
        super().__init__()
        self.config = config

    def encode_targets(self, columns: Mapping[str, Sequence[Any]], ids: Sequence[str]) -> dict[str, np.ndarray]:
        return {"score": np.array([_number(value) for value in columns[self.config.score]], np.float32)}

    def forward(self, views: Mapping[str, Representation], targets: Mapping[str, Tensor]) -> TaskOutput:
        left, right = views["left"], views["right"]
        cosine = nn.functional.cosine_similarity(left.fused.pooled.float(), right.fused.pooled.float(), dim=-1)
        usable = left.present & right.present & ~torch.isnan(targets["score"])
        loss = cosent(cosine[usable], targets["score"][usable], scale=self.config.scale)
        return TaskOutput(loss + 0 * cosine.nan_to_num().sum(), {"cosine": cosine.detach()})

    def score(self, predictions: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]) -> dict[str, float]:
        usable = ~np.isnan(targets["score"])
        return metrics.similarity(predictions["cosine"][usable], targets["score"][usable])


def cosent(cosine: Tensor, score: Tensor, *, scale: float) -> Tensor:
    """CoSENT loss of pairs (B,) with their gold scores (B,)."""
    higher = score[:, None] > score[None, :]
    differences = scale * (cosine[None, :] - cosine[:, None])[higher]
    return torch.logsumexp(torch.cat([differences, differences.new_zeros(1)]), dim=0)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")
