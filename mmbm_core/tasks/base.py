"""What every task offers: which columns it reads, a head with its loss, and its metrics.

Shapes: `B` batch, `T` tokens, `D` width, `M` modalities.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from mmbm_core.augment.changes import ASPECTS, Aspect
from mmbm_core.fusion.base import Fused
from mmbm_core.sample import Modality

View = dict[Modality, str]
"""What is fused to one representation: the column that each modality is read from."""

IGNORED = -3
"""Target of a row that has no label: the task does not apply to it."""


class Representation(NamedTuple):
    """A view of B rows, encoded and fused."""

    fused: Fused
    vectors: dict[Modality, Tensor]
    """(B, D) each: one modality alone; anything where it is missing."""
    presence: Tensor
    """(B, M) bool, in canonical order of the model's modalities: what of the view a row has, or was left with."""

    @property
    def present(self) -> Tensor:
        """(B,) bool: rows that have any of the view."""
        return self.presence.any(1)


class TaskOutput(NamedTuple):
    """What a task makes of a batch."""

    loss: Tensor
    """Mean over the rows that the task applies to; zero, with a gradient path, where there is none."""
    predictions: dict[str, Tensor]
    """(B, ...) each: all that `score` needs beside the targets."""


class BaseTaskConfig(BaseModel):
    """Config of a task; its subclasses have a `kind`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    depends_on: tuple[Aspect, ...] = ASPECTS
    """What of a sample the targets tell, or may tell; augmentation may not change it."""

    @property
    def views(self) -> dict[str, View]:
        """The views that the task reads, by the task's own names for them."""
        raise NotImplementedError

    @property
    def target_columns(self) -> tuple[str, ...]:
        """Columns that hold what is to be predicted."""
        return ()

    def learn(self: "Config", counts: Mapping[str, Mapping[str, int]]) -> "Config":
        """The config completed by what the training rows hold: how often each value of each `label_columns` occurs.

        Raises:
            UsageError: nothing can be learnt from them.
        """
        return self

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Columns whose training texts a vocabulary is learnt from; () needs none."""
        return ()

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Target columns whose values are classes."""
        return ()


Config = TypeVar("Config", bound=BaseTaskConfig)


class Task(nn.Module, ABC):
    """A head with its loss and metrics.

    Args:
        config: of this task's kind, completed by `learn`.
        modalities: of the model, in canonical order.
        width: D.
    """

    metric: str
    """The metric that early stopping looks at unless told otherwise."""
    smaller_is_better: frozenset[str] = frozenset({"nll", "ece", "loss", "perplexity", "median_rank"})

    @abstractmethod
    def encode_targets(self, columns: Mapping[str, Sequence[Any]], ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Arrays (B, ...) of the target columns' values; what can't be used is IGNORED or NaN.

        Args:
            ids: of the source rows; rows that one was exploded into share its id.
        """

    @abstractmethod
    def forward(self, views: Mapping[str, Representation], targets: Mapping[str, Tensor]) -> TaskOutput:
        """Predict, and compare with the targets."""

    @abstractmethod
    def score(self, predictions: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Metrics over the rows of a whole set."""

    def assets(self) -> dict[str, bytes]:
        """Files beside the weights that the task is built anew from, by name."""
        return {}

    def own_scores(self, output: TaskOutput, targets: Mapping[str, Tensor]) -> dict[Modality, Tensor]:
        """(B,) by modality: the probability that each modality alone gives the right class; {} where none is asked."""
        return {}

    def calibrate(self, predictions: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]) -> None:
        """Set what is chosen on validation rows after training: temperatures, thresholds."""
        return
