"""Texts in other words: by a translation bundle into another language, and by a second one back."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmbm_core.augment.recipe import BackTranslation
from mmbm_core.augment.values import Copies
from mmbm_core.media import Limits
from mmbm_core.predict import Row
from mmbm_core.tasks.generation import Sampling
from workers.serving.engine import Engine, Prepared

_BATCH = 64
"""Texts that are generated at once."""


class BackTranslator:
    """Back-translation (Sennrich et al., 1511.06709) as a paraphrase: the likeliest way there, a drawn way back.

    Args:
        tasks: of translation, there and back.
    """

    def __init__(self, config: BackTranslation, tasks: Sequence[str], *, limits: Limits) -> None:
        self._config = config
        there, back = (
            Engine(model, device="cpu", threads=1, precision="exact", limits=limits)
            for model in (config.there, config.back)
        )
        self._there, self._back = _Translator(there, tasks[0]), _Translator(back, tasks[1])

    def __call__(self, texts: Sequence[str], *, seeds: np.ndarray) -> Copies:
        """Each text in other words, once for each of its seeds (N, K), or what is wrong with it."""
        found: Copies = self._there.prepare(texts)
        good = [i for i, row in enumerate(found) if isinstance(row, dict)]
        for part in (good[at : at + _BATCH] for at in range(0, len(good), _BATCH)):
            rows: list[Any] = [found[i] for i in part]
            abroad = self._there.predictor.search(self._there.task, rows)
            for i, row in zip(part, self._back.prepare(abroad), strict=True):
                found[i] = self._come_back(row, seeds[i]) if isinstance(row, dict) else row
        return found

    def _come_back(self, row: Row, seeds: np.ndarray) -> list[str]:
        config = self._config
        how = [Sampling(temperature=config.temperature, top_p=config.top_p, seed=seed) for seed in seeds.tolist()]
        parts = (how[at : at + _BATCH] for at in range(0, len(how), _BATCH))
        return [
            text for part in parts for text in self._back.predictor.sample(self._back.task, [row] * len(part), part)
        ]


class _Translator:
    def __init__(self, engine: Engine, task: str) -> None:
        assert engine.predictor is not None
        self.engine, self.predictor, self.task = engine, engine.predictor, task

    def prepare(self, texts: Sequence[str]) -> Copies:
        """Of each text a row that the predictor takes, or what is wrong with it."""
        prepared = self.engine.prepare([{"text": text} for text in texts])
        return [dict(each.row) if isinstance(each, Prepared) else each for each in prepared]
