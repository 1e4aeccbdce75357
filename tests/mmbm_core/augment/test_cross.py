"""Two pairs become one by MixGen's definition, and no row is in two of them."""

import pytest
import torch
from pydantic import ValidationError

from mmbm_core.augment.cross import PairAugment, Pairs, blend_images, draw_pairs, regroup


@pytest.mark.parametrize(("share", "count"), [(0.5, 5), (0.25, 3), (0.1, 1), (0.01, 0)])
def test_a_share_of_the_rows_is_mixed_with_others_that_stay(share: float, count: int) -> None:
    rows = torch.arange(3, 14)
    pairs = draw_pairs(rows, share=share, seed=1)
    drawn = torch.cat(pairs).tolist()
    assert len(pairs.rows) == len(pairs.partners) == count
    assert len(set(drawn)) == 2 * count and set(drawn) <= set(rows.tolist())


def test_a_seed_repeats_and_another_does_not() -> None:
    rows = torch.arange(40)
    first, again, other = (torch.stack(draw_pairs(rows, share=0.25, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_nothing_is_mixed_where_there_is_no_other() -> None:
    for rows in (torch.arange(0), torch.arange(1)):
        assert not len(draw_pairs(rows, share=0.5, seed=0).rows)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_mixed_image_is_half_of_each(dtype: torch.dtype) -> None:
    images = torch.randint(256, (5, 3, 4, 6), generator=torch.Generator().manual_seed(0)).to(dtype)
    before = images.clone()
    mixed = blend_images(images, Pairs(torch.tensor([4, 1]), torch.tensor([0, 2])))
    for place, other in ((4, 0), (1, 2)):
        torch.testing.assert_close(mixed[place], 0.5 * before[place].float() + 0.5 * before[other].float())
    assert torch.equal(mixed[[0, 2, 3]], before[[0, 2, 3]].float()) and torch.equal(images, before)


def test_a_new_pair_is_of_no_group_of_its_sources_unless_they_share_it() -> None:
    groups = torch.tensor([7, 1 << 62, 7, 1 << 62, 5, 5, 7])
    mixed = regroup(groups, Pairs(torch.tensor([0, 3, 4]), torch.tensor([1, 2, 5])))
    assert torch.equal(mixed[[1, 2, 5, 6]], groups[[1, 2, 5, 6]])
    assert mixed[0] < 0 and mixed[0] == mixed[3]  # of the same two, in either order
    assert mixed[4] == 5
    others = regroup(groups, Pairs(torch.tensor([0]), torch.tensor([4])))
    assert others[0] < 0 and others[0] != mixed[0]


@pytest.mark.parametrize("share", [0, -0.1, 0.6])
def test_a_share_that_leaves_no_partners_is_refused(share: float) -> None:
    with pytest.raises(ValidationError):
        PairAugment(mixgen=share)
