"""Texts in other words: by a translation bundle into another language, and by a second one back."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmbm_core.augment.recipe import BackTranslation
from mmbm_core.augment.values import Copies
from mmbm_core.errors import MediaError
from mmbm_core.media import Limits
from mmbm_core.predict import Row
from mmbm_core.tasks.generation import Sampling
from workers.serving.engine import Engine, Prepared

_BATCH = 64
"""Texts that are generated at once."""
_EMPTY = MediaError("its translation is empty")


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

    @property
    def values_cut(self) -> int:
        """Texts so far of which a model read the beginning only."""
        return self._there.values_cut + self._back.values_cut

    def __call__(self, texts: Sequence[str], *, seeds: np.ndarray) -> Copies:
        """Each text in other words, once for each of its seeds (N, K), or what is wrong with it."""
        found: Copies = []
        for at in range(0, len(texts), _BATCH):
            found += self._translate(texts[at : at + _BATCH], seeds[at : at + _BATCH])
        return found

    def _translate(self, texts: Sequence[str], seeds: np.ndarray) -> Copies:
        found = self._there.prepare(texts)
        good = [i for i, row in enumerate(found) if isinstance(row, dict)]
        for i, row in zip(good, self._back.prepare(self._there.search([found[i] for i in good])), strict=True):
            found[i] = row
        pairs = [(i, seed) for i, row in enumerate(found) if isinstance(row, dict) for seed in seeds[i].tolist()]
        said: dict[int, list[str]] = {i: [] for i, row in enumerate(found) if isinstance(row, dict)}
        for at in range(0, len(pairs), _BATCH):  # each says what it would say alone
            part = pairs[at : at + _BATCH]
            drawn = self._back.draw([found[i] for i, _ in part], [self._sampling(seed) for _, seed in part])
            for (i, _), text in zip(part, drawn, strict=True):
                said[i].append(text)
        copies = [said.get(i, each) for i, each in enumerate(found)]
        return [_EMPTY if isinstance(c, list) and not all(map(str.strip, c)) else c for c in copies]

    def _sampling(self, seed: int) -> Sampling:
        return Sampling(temperature=self._config.temperature, top_p=self._config.top_p, seed=seed)


class _Translator:
    """One way."""

    def __init__(self, engine: Engine, task: str) -> None:
        assert engine.predictor is not None
        self.engine, self.predictor, self.task = engine, engine.predictor, task
        self.values_cut = 0

    def prepare(self, texts: Sequence[str]) -> list[Any]:
        """Of each text a row that the model takes, or what is wrong with it."""
        prepared = self.engine.prepare([{"text": text} for text in texts])
        self.values_cut += sum(item.cut for p in prepared if isinstance(p, Prepared) for item in p.row.values())
        both = zip(texts, prepared, strict=True)
        return [_EMPTY if not t.strip() else dict(p.row) if isinstance(p, Prepared) else p for t, p in both]

    def search(self, rows: Sequence[Row]) -> list[str]:
        """The likeliest translations."""
        return self.predictor.search(self.task, rows) if rows else []

    def draw(self, rows: Sequence[Row], how: Sequence[Sampling]) -> list[str]:
        """Translations that are drawn."""
        return self.predictor.sample(self.task, rows, how)
