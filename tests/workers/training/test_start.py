"""Adapters that begin where canonical correlation analysis puts them."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mmbm_core.model import Batch, Model, Values
from mmbm_core.spec import ModelSpec
from workers.training.start import start_adapters

SPEC = {
    "encoders": {"text": {"model": "minilm"}, "image": {"model": "efficientnet-lite0", "tokens": 2}},
    "width": 16,
    "tasks": {"align": {"kind": "align", "inputs": {"text": "t", "image": "i"}, "start": "canonical", "ridge": 0.1}},
}
WIDTHS = {"text": 12, "image": 20}


def batches(rows: int, *, seed: int) -> list[Batch]:
    """Stored tokens that share three factors, of different means and scales; the last row of each batch has no text."""
    mixing = np.random.default_rng(0)
    text, image = (mixing.normal(size=(3, width)) for width in WIDTHS.values())
    rng = np.random.default_rng(seed)
    made = []
    for start in range(0, rows, 50):
        shared = rng.normal(size=(50, 3))
        words = 3 + shared @ text + 0.3 * rng.normal(size=(50, 12))
        pixels = shared[:, None] @ image + 0.5 * rng.normal(size=(50, 2, 20))
        values = {
            ("text", "t"): Values(torch.arange(49), torch.from_numpy(words[:49, None]).float()),
            ("image", "i"): Values(torch.arange(50), torch.from_numpy(10 * pixels).float()),
        }
        ids = [str(i) for i in range(start, start + 50)]
        groups = torch.arange(start, start + 50)
        made.append(Batch(ids, values, {"align": {"group": groups}}))  # type: ignore[arg-type]
    return made


def recall(model: Model, batch: Batch) -> float:
    """How often a text finds its picture among 50."""
    with torch.inference_mode():
        found = model.eval()(batch)["align"].predictions
    text, image = (torch.nn.functional.normalize(found[m][:49], dim=-1) for m in ("text", "image"))
    return (text @ image.T).argmax(1).eq(torch.arange(49)).float().mean().item()


def test_new_rows_find_each_other_before_any_step() -> None:
    torch.manual_seed(0)
    model = Model(ModelSpec.model_validate(SPEC), widths=WIDTHS, encoders={})  # type: ignore[arg-type]
    unseen = batches(50, seed=2)[0]
    assert recall(model, unseen) < 0.2
    task = model.tasks["align"]
    start_adapters(model, task.config, batches(1000, seed=1), world=1)  # type: ignore[arg-type]
    assert recall(model, unseen) > 0.6
    assert all(p.requires_grad for p in model.parameters())
    model.train()(unseen)["align"].loss.backward()  # an ordinary model, that learns on
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.adapters.parameters())


def test_it_is_for_frozen_encoders_alone() -> None:
    trained = SPEC | {"encoders": SPEC["encoders"] | {"text": {"model": "minilm", "training": "full"}}}  # type: ignore
    with pytest.raises(ValidationError, match="start: canonical, for adapters of frozen encoders; text is trained"):
        ModelSpec.model_validate(trained)
