"""Similarity: the correlations of scipy, as loss and as score."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from mmbm_core.fusion.base import Fused
from mmbm_core.tasks.base import Representation
from mmbm_core.tasks.similarity import SimilarityConfig, SimilarityTask, correlation


def task(**given: Any) -> SimilarityTask:
    config = {"kind": "similarity", "left": {"text": "a"}, "right": {"text": "b"}, "score": "s"} | given
    return SimilarityTask(SimilarityConfig.model_validate(config), modalities=("text",), width=3)


def view(vectors: torch.Tensor, present: list[bool]) -> Representation:
    mask = torch.ones(len(vectors), 1, dtype=torch.bool)
    return Representation(Fused(vectors[:, None], mask, vectors), {"text": vectors}, torch.tensor(present)[:, None])


def test_the_correlation_is_that_of_scipy_and_zero_where_there_is_none() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 20))
    assert correlation(torch.from_numpy(x), torch.from_numpy(y)).item() == pytest.approx(pearsonr(x, y).statistic)
    for size in (0, 1, 4):
        same = torch.full((size,), 0.5, requires_grad=True)
        assert correlation(same, torch.arange(size, dtype=torch.float32)).item() == 0.0


def test_rows_without_a_side_or_a_score_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(6, 3, generator=generator, requires_grad=True) for _ in range(2))
    with torch.no_grad():
        a[3] = float("nan")  # a missing vector may hold anything
    left, right = view(a, [True, True, True, False, True, True]), view(b, [True, True, True, True, False, True])
    made = task()
    score = torch.from_numpy(made.encode_targets({"s": [1, "2.5", None, 3, 0, 1.5]}, list("abcdef"))["score"])
    output = made({"left": left, "right": right}, {"score": score})
    cosine = torch.nn.functional.cosine_similarity(a[[0, 1, 5]], b[[0, 1, 5]]).detach().numpy()
    assert output.loss.item() == pytest.approx(1 - pearsonr(cosine, [1, 2.5, 1.5]).statistic, abs=1e-6)
    output.loss.backward()
    assert b.grad is not None and b.grad[:2].abs().sum() > 0 and (b.grad[4] == 0).all()


def test_a_batch_of_equal_scores_leaves_the_weights_alone() -> None:
    a, b = (torch.randn(3, 3, requires_grad=True) for _ in range(2))
    output = task()({"left": view(a, [True] * 3), "right": view(b, [True] * 3)}, {"score": torch.ones(3)})
    output.loss.backward()
    assert a.grad is not None and (a.grad == 0).all() and torch.isfinite(output.loss)


def test_only_the_order_of_scores_counts_as_in_scipy() -> None:
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 6, 50).astype(np.float32)
    cosine = np.tanh(gold / 5 + rng.normal(0, 0.4, 50)).astype(np.float32)
    gold[7] = float("nan")
    usable = ~np.isnan(gold)
    found = task().score({"cosine": cosine}, {"score": gold})
    assert found["spearman"] == pytest.approx(spearmanr(cosine[usable], gold[usable]).statistic)
    assert task().score({"cosine": cosine}, {"score": 2 * gold**3 + 1})["spearman"] == pytest.approx(found["spearman"])
