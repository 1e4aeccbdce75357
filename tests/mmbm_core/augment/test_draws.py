"""Numbers are evenly spread, independent of each other, and a function of a sample's seed alone."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from mmbm_core.augment.draws import Draws, sample_seed

ADJACENT = torch.arange(20_000)
LEAST_P = 1e-3
"""Fixed seeds: these tests pass or fail for good."""


def test_the_hash_is_splitmix64() -> None:
    """Against Vigna's splitmix64.c in Python's integers."""

    def splitmix(state: int) -> int:
        z = state % (1 << 64)
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % (1 << 64)
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % (1 << 64)
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    seeds = [0, 1, 12345, (1 << 62) - 1]
    drawn = Draws(torch.tensor(seeds)).uniform().tolist()
    wanted = [splitmix(splitmix(splitmix(seed) + golden)) for seed in seeds]
    assert drawn == [(word >> 40) / (1 << 24) for word in wanted]


def test_uniform_numbers_of_adjacent_seeds() -> None:
    draws = Draws(ADJACENT)
    for _ in range(5):
        assert stats.kstest(draws.uniform(-2, 3).numpy(), stats.uniform(-2, 5).cdf).pvalue > LEAST_P


def test_uniform_numbers_of_one_seed_by_counter() -> None:
    draws = Draws(torch.arange(3))
    drawn = torch.stack([draws.uniform() for _ in range(5000)], dim=1)
    assert all(stats.kstest(row.numpy(), "uniform").pvalue > LEAST_P for row in drawn)


def test_normal_numbers() -> None:
    assert stats.kstest(Draws(torch.tensor([7])).normal(50_001)[0].numpy(), "norm").pvalue > LEAST_P
    assert stats.kstest(Draws(ADJACENT).normal(1)[:, 0].numpy(), "norm").pvalue > LEAST_P


def test_integers_are_equally_likely_and_may_end_differently_for_each_sample() -> None:
    draws = Draws(ADJACENT)
    assert stats.chisquare(np.bincount(draws.integers(-2, 5).numpy() + 2, minlength=7)).pvalue > LEAST_P
    high = ADJACENT % 50 + 1
    drawn = draws.integers(0, high)
    assert (drawn >= 0).all() and (drawn < high).all() and int(drawn.max()) == 49
    assert (Draws(ADJACENT).integers(0, (1 << 31) - 1) >= 0).all()


def _independent(first: Tensor, second: Tensor) -> bool:
    """By a chi-square test of the places of pairs on an 8 x 8 board."""
    table = np.histogram2d(first.numpy(), second.numpy(), bins=8, range=[[0, 1], [0, 1]])[0]
    return bool(stats.chisquare(table.flatten()).pvalue > LEAST_P)


def test_counters_and_adjacent_seeds_are_independent() -> None:
    draws = Draws(ADJACENT)
    first, second = draws.uniform(), draws.uniform()
    assert _independent(first, second)
    assert _independent(first[:-1], first[1:])
    assert _independent(first[:-1], second[1:])
    angle = torch.special.ndtr(Draws(ADJACENT).normal(2))
    assert _independent(angle[:, 0], angle[:, 1])  # of one pair of Box and Muller


def test_a_sample_draws_the_same_in_any_company() -> None:
    seeds = torch.randint(1 << 62, (16,), generator=torch.Generator().manual_seed(0))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))

    def drawn(seeds: Tensor) -> tuple[Tensor, ...]:
        draws = Draws(seeds)
        return draws.uniform(), draws.normal(5), draws.integers(0, 100), draws.uniform()

    together = drawn(seeds)
    for whole, part in zip(together, drawn(seeds[order]), strict=True):
        assert torch.equal(whole[order], part)
    for whole, part in zip(together, drawn(seeds[3:4]), strict=True):
        assert torch.equal(whole[3:4], part)


@pytest.mark.parametrize("count", [1, 4, 7])
def test_more_normal_numbers_begin_with_the_same(count: int) -> None:
    seeds = torch.arange(3)
    torch.testing.assert_close(Draws(seeds).normal(1000)[:, :count], Draws(seeds).normal(count))


def test_fresh_ones_follow_the_global_generator() -> None:
    torch.manual_seed(5)
    first, second = (Draws.fresh(8, torch.device("cpu")).uniform() for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(Draws.fresh(8, torch.device("cpu")).uniform(), first)
    assert not torch.equal(first, second)


def test_seeds_of_names_differ_and_repeat() -> None:
    seeds = [sample_seed(run, epoch, f"row{i}") for run in range(5) for epoch in range(5) for i in range(200)]
    assert len(set(seeds)) == 5000 and all(0 <= seed < 1 << 62 for seed in seeds)
    assert stats.kstest(np.array(seeds) / (1 << 62), "uniform").pvalue > LEAST_P
    assert sample_seed(1, "a") == sample_seed(1, "a") == 1230825533613027869
    assert (
        len({sample_seed(1, "2"), sample_seed(1, 2), sample_seed("1", 2), sample_seed(12), sample_seed("\ud800")}) == 5
    )
