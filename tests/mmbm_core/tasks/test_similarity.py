"""Similarity: CoSENT by hand, and the correlation of scipy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from mmbm_core.fusion.base import Fused
from mmbm_core.tasks.base import Representation
from mmbm_core.tasks.similarity import SimilarityConfig, SimilarityTask, cosent


def task(**given: Any) -> SimilarityTask:
    config = {"kind": "similarity", "left": {"text": "a"}, "right": {"text": "b"}, "score": "s"} | given
    return SimilarityTask(SimilarityConfig.model_validate(config), modalities=("text",), width=3)


def view(vectors: torch.Tensor, present: list[bool]) -> Representation:
    mask = torch.ones(len(vectors), 1, dtype=torch.bool)
    return Representation(Fused(vectors[:, None], mask, vectors), {"text": vectors}, torch.tensor(present)[:, None])


def test_cosent_by_hand() -> None:
    cosine, gold = [0.9, 0.2, 0.5, 0.4], [1.0, 3.0, 3.0, 0.0]
    total = 1.0
    for i in range(4):
        for j in range(4):
            if gold[i] > gold[j]:
                total += math.exp(20 * (cosine[j] - cosine[i]))
    found = cosent(torch.tensor(cosine), torch.tensor(gold), scale=20.0)
    assert found.item() == pytest.approx(math.log(total), rel=1e-6)
    assert cosent(torch.tensor([0.3, 0.1]), torch.tensor([2.0, 2.0]), scale=20.0).item() == 0.0
    assert cosent(torch.zeros(0), torch.zeros(0), scale=20.0).item() == 0.0
    huge = cosent(torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 0.0]), scale=1e4)
    assert huge.item() == pytest.approx(2e4)


def test_rows_without_a_side_or_a_score_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 3, generator=generator, requires_grad=True) for _ in range(2))
    with torch.no_grad():
        a[3] = float("nan")  # a missing vector may hold anything
    left, right = view(a, [True, True, True, False, True]), view(b, [True, True, True, True, False])
    made = task(scale=5.0)
    score = torch.from_numpy(made.encode_targets({"s": [1, "2.5", None, 3, 0]}, list("abcde"))["score"])
    output = made({"left": left, "right": right}, {"score": score})
    cosine = torch.nn.functional.cosine_similarity(a[:2], b[:2])
    expected = torch.log(1 + torch.exp(5 * (cosine[0] - cosine[1])))
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert b.grad is not None and b.grad[:2].abs().sum() > 0 and (b.grad[4] == 0).all()


def test_only_the_order_of_scores_counts_as_in_scipy() -> None:
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 6, 50).astype(np.float32)
    cosine = np.tanh(gold / 5 + rng.normal(0, 0.4, 50)).astype(np.float32)
    gold[7] = float("nan")
    usable = ~np.isnan(gold)
    found = task().score({"cosine": cosine}, {"score": gold})
    assert found["spearman"] == pytest.approx(spearmanr(cosine[usable], gold[usable]).statistic)
    assert task().score({"cosine": cosine}, {"score": 2 * gold**3 + 1})["spearman"] == pytest.approx(found["spearman"])
