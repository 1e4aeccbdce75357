"""Which weights a training ends with: the best of those that were scored."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from mmbm_core.model import Model
from workers.training.scoring import Scores


class Kept:
    """The best weights so far, and the running mean of weights where that is what is scored.

    Args:
        average: decay of the running mean; 0 scores the weights as they are.
    """

    def __init__(self, model: Model, *, average: float) -> None:
        self._model, self._average = model, average
        self.mean: dict[str, Tensor] = {n: t.detach().clone() for n, t in self._moving()} if average else {}
        self.best: dict[str, Tensor] = {}
        self.best_score = -math.inf
        self.stale = 0
        """Scores since the best one."""
        self.history: list[dict[str, Any]] = []
        """One entry a scoring: step, loss, scores."""

    def follow(self, step: int) -> None:
        """Take the weights after `step` steps into the mean."""
        decay = min(self._average, (1 + step) / (10 + step))
        for name, tensor in self._moving() if self.mean else ():
            self.mean[name].lerp_(tensor.detach(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the weights that would be kept for as long as this lasts."""
        if not self.mean:
            yield
            return
        last = {n: t.detach().clone() for n, t in self._model.state_dict().items()}
        self._model.load_state_dict({**last, **self.mean})
        try:
            yield
        finally:
            self._model.load_state_dict(last)

    def add(self, value: float, *, step: int, loss: float, scores: Scores) -> None:
        """Keep the weights where `value`, the larger the better, is the best so far."""
        self.history.append({"step": step, "loss": round(loss, 6), "scores": scores})
        self.stale += 1
        if value > self.best_score or not self.best:
            current = {n: t.detach() for n, t in self._model.state_dict().items()} | self.mean
            self.best, self.best_score, self.stale = {n: t.clone() for n, t in current.items()}, value, 0

    def restore(self) -> None:
        """Give the model its best weights."""
        self._model.load_state_dict({**self._model.state_dict(), **self.best})

    @property
    def best_scores(self) -> Scores:
        return self.history[-1 - self.stale]["scores"]  # type: ignore[no-any-return]

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """For a checkpoint, with `facts`."""
        return {"mean": self.mean, "best": self.best}

    def facts(self) -> dict[str, Any]:
        score = self.best_score if math.isfinite(self.best_score) else None
        return {"history": self.history, "stale": self.stale, "best_score": score}

    def load(self, tensors: dict[str, dict[str, Tensor]], facts: dict[str, Any]) -> None:
        """Undo `tensors` and `facts`."""
        device = self._model.device
        self.mean = {n: t.to(device) for n, t in tensors.get("mean", {}).items()}
        self.best = {n: t.to(device) for n, t in tensors.get("best", {}).items()}
        self.history, self.stale = facts["history"], facts["stale"]
        self.best_score = -math.inf if facts["best_score"] is None else facts["best_score"]

    def _moving(self) -> Iterator[tuple[str, Tensor]]:
        """All that training changes: parameters and running statistics."""
        return ((n, t) for n, t in self._model.state_dict().items() if t.is_floating_point())
