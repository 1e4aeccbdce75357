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
    """Score of a pair: the cosine of its two views, trained to rise with the gold score."""

    kind: Literal["similarity"]
    left: Annotated[View, Field(min_length=1)]
    right: Annotated[View, Field(min_length=1)]
    score: str
    """The column of the gold score, in any unit."""

    @property
    def views(self) -> dict[str, View]:
        return {"left": self.left, "right": self.right}

    @property
    def target_columns(self) -> tuple[str, ...]:
        return (self.score,)


class SimilarityTask(Task):
    """No weights of its own: the cosine is what retrieval will use.

    The loss is 1 minus the correlation of cosines and gold scores in a batch. Losses over the pairs of a batch that are
    in the wrong order (CoSENT) look most at the noisiest scores: on STS-B they end lower than they begin.
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
        loss = 1 - correlation(cosine[usable], targets["score"][usable])
        return TaskOutput(loss + 0 * cosine.nan_to_num().sum(), {"cosine": cosine.detach()})

    def score(self, predictions: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]) -> dict[str, float]:
        usable = ~np.isnan(targets["score"])
        return metrics.similarity(predictions["cosine"][usable], targets["score"][usable])


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation of (B,) and (B,); 0 where one of them does not vary."""
    x, y = x - x.mean(), y - y.mean()
    spread = x.norm() * y.norm()
    return (x * y).sum() / spread if len(x) > 1 and spread > 0 else x.new_zeros(())


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")
