"""Modality dropout by its exact probabilities; arguments that do not fit are told apart."""

import itertools
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from mmbm_core.fusion import Fusion, drop_modalities
from mmbm_core.fusion.concat import ConcatConfig, ConcatFusion

ROWS = 40_000


def _fusion() -> Fusion:
    return ConcatFusion(("text", "image"), width=16, config=ConcatConfig())


@pytest.mark.parametrize("has", [(1, 1, 1), (1, 0, 1), (0, 0, 1)])
@pytest.mark.parametrize("p", [0.3, 0.7, 1.0])
def test_dropout_keeps_each_subset_as_often_as_it_should(has: tuple[int, ...], p: float) -> None:
    """(1 - p)^|S| p^(k - |S|) for S of the k present; the p^k in which all fall go to the k subsets of one."""
    kept = drop_modalities(torch.tensor([has]).bool().repeat(ROWS, 1), p, generator=torch.Generator().manual_seed(0))
    k = sum(has)
    found, expected = [], []
    for subset in itertools.product([0, 1], repeat=3):
        count = int((kept == torch.tensor(subset).bool()).all(1).sum())
        size = sum(subset)
        chance = (1 - p) ** size * p ** (k - size) + (size == 1) * p**k / k
        if size and all(s <= h for s, h in zip(subset, has, strict=True)) and chance > 0:
            found.append(count)
            expected.append(chance * ROWS)
        else:
            assert count == 0
    assert sum(found) == ROWS
    assert len(found) == 1 or chisquare(found, expected).pvalue > 1e-3


def test_dropout_draws_for_each_row_and_repeats() -> None:
    presence = torch.tensor([[True, True, True], [False, True, True], [False, False, False]]).repeat(100, 1)
    first, again = (drop_modalities(presence, 0.5, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert len(first[::3].unique(dim=0)) == 7
    assert not (first & ~presence).any()
    assert torch.equal(drop_modalities(presence, 0.0, generator=None), presence)


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_dropout_is_a_probability(p: float) -> None:
    with pytest.raises(ValueError, match=r"from 0 to 1"):
        drop_modalities(torch.ones(1, 1, dtype=torch.bool), p, generator=None)


def test_refuses_tokens_of_other_modalities(make_batch: Any) -> None:
    batch = make_batch(("text", "audio"), [[True, True]])
    with pytest.raises(ValueError, match=r"\['audio', 'text'\].*takes text, image"):
        _fusion()(*batch)
    with pytest.raises(ValueError, match=r"tokens of \['text'\] and masks of \[\]"):
        _fusion()({"text": batch.tokens["text"]}, {}, batch.presence)


def test_refuses_presence_without_tokens(make_batch: Any) -> None:
    batch = make_batch(("text",), [[True, False], [True, True]])
    with pytest.raises(ValueError, match="rows have image, but there are no tokens"):
        _fusion()(*batch)


def test_refuses_presence_of_another_shape(make_batch: Any) -> None:
    batch = make_batch(("text", "image"), [[True, True, True]])
    with pytest.raises(ValueError, match=r"\(1, 3\); expected a column each for text, image"):
        _fusion()(*batch)
