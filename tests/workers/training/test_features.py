"""Stored tokens of frozen encoders: those the encoder gives, computed once, and anew where a source has changed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmbm_core.encoders import build_encoder
from mmbm_core.encoders.segments import segment_tokens
from mmbm_core.media import DEFAULT_LIMITS
from pipelines import features as features_module
from pipelines.dataset import Wanted, index_set, open_set
from pipelines.features import columns_of, frozen_encoders, store_features
from pipelines.recipe import DataSettings
from tests.training import CrewHere, recipe, write_rows
from workers.storage import open_location
from workers.training import features as stored_module
from workers.training.batches import BatchMaker
from workers.training.feed import Feed

WANTED = Wanted(columns=frozenset({("text", "text")}), targets=frozenset({"label"}), labels=frozenset({"label"}))
TEXTS = [f"a red disc {n} beside the blue square" for n in range(30)]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each unit that an encoder ran over."""
    monkeypatch.setattr(features_module, "Crew", CrewHere)
    found: list[int] = []
    embed = stored_module.embed_cells

    def counted(columns: Any, **given: Any) -> Any:
        found.append(len(columns[0][1]))
        return embed(columns, **given)

    monkeypatch.setattr(stored_module, "embed_cells", counted)
    return found


def opened(folder: Path) -> Feed:
    given = DataSettings()
    return index_set(open_set([str(folder)], WANTED, given, seed=0), given, storage=open_location(str(folder))[0]).feed


def task() -> dict[str, Any]:
    return {"label": {"kind": "understanding", "inputs": {"text": "text"}, "label": "label"}}


@pytest.mark.parametrize("tokens", [1, 3])
def test_tokens_are_those_of_the_encoder(
    ray_cluster: None, encoded: list[int], text_model: str, tmp_path: Path, tokens: int
) -> None:
    texts: list[str | None] = [*TEXTS[:8], None, "word " * 300, TEXTS[0]]
    rows = [{"id": f"r{n}", "text": text, "label": n % 2} for n, text in enumerate(texts)]
    write_rows(tmp_path / "in" / "val.jsonl", rows)
    write_rows(tmp_path / "in" / "train.jsonl", rows[:2])
    spec = recipe({"text": {"model": text_model, "tokens": tokens}}, task()).model
    frozen, widths = frozen_encoders(spec)
    storage, folder = open_location(str(tmp_path / "cache"))
    feed = opened(tmp_path / "in")
    stored = store_features(feed, frozen, storage, folder)
    assert (stored.bad_values, stored.values_cut) == (0, 1) and widths == {"text": 32}
    table = stored.feed.read([i for i, unit in enumerate(stored.feed.units) if len(unit.val)], "val")
    columns = columns_of(feed, frozen)
    values = BatchMaker(columns, {}, {}, DEFAULT_LIMITS, torch.device("cpu")).make(table).batch.values["text", "text"]
    assert values.rows.tolist() == [n for n, text in enumerate(texts) if text]
    encoder = build_encoder(text_model).eval()
    with torch.inference_mode():
        for at, text in enumerate(text for text in texts if text):
            items = encoder.prepare("text", [text])
            alone = segment_tokens(encoder("text", encoder.collate("text", items)), tokens)  # type: ignore[arg-type]
            np.testing.assert_allclose(values.data[at], alone[0], atol=1e-4)


def test_what_is_stored_is_not_computed_again(
    ray_cluster: None, encoded: list[int], text_model: str, tmp_path: Path
) -> None:
    def rows(count: int, *, shift: int = 0) -> list[dict[str, Any]]:
        return [{"id": f"r{n}", "text": TEXTS[n + shift], "label": n % 2} for n in range(count)]

    def store(model: Any = None) -> int:
        frozen, _ = frozen_encoders(recipe({"text": model or {"model": text_model}}, task()).model)
        storage, folder = open_location(str(tmp_path / "cache"))
        encoded.clear()
        store_features(opened(tmp_path / "in"), frozen, storage, folder)
        return sum(encoded)

    write_rows(tmp_path / "in" / "a.jsonl", rows(20))
    write_rows(tmp_path / "in" / "b.jsonl", rows(7))
    assert store() == 27
    assert store() == 0
    write_rows(tmp_path / "in" / "b.jsonl", rows(9, shift=5))
    assert store() == 9, "the file that changed"
    write_rows(tmp_path / "in" / "c.jsonl", rows(4))
    assert store() == 4, "the file that is new"
    assert store({"model": text_model, "tokens": 2}) == 33, "other tokens"
    assert store({"model": text_model, "options": {"pooling": "cls"}}) == 33, "another pooling"
    assert store() == 0
