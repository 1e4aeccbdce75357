"""Mixed images are the combinations that the papers define, and labels follow them."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch import Tensor

from mmbm_core.augment.mix import MixAugment, Mixture, mix_images, mix_labels

COUNT = 200


@pytest.fixture
def images() -> Tensor:
    return torch.randint(256, (COUNT, 3, 20, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _mix(images: Tensor, *, seed: int = 1, mixable: Tensor | None = None, **config: Any) -> Mixture:
    chosen = torch.ones(len(images), dtype=torch.bool) if mixable is None else mixable
    return mix_images(images, MixAugment(**config), mixable=chosen, seed=seed)


def test_off_is_the_identity(images: Tensor) -> None:
    mixture = _mix(images)
    assert mixture.images is images and (mixture.shares == 1).all()


def test_mixup_is_the_convex_combination(images: Tensor) -> None:
    mixed, partners, shares = _mix(images, mixup=0.4)
    assert sorted(partners.tolist()) == list(range(COUNT))
    share = shares[:, None, None, None]
    torch.testing.assert_close(mixed, share * images.float() + (1 - share) * images[partners].float())
    drawn = shares[partners != torch.arange(COUNT)]
    assert stats.kstest(drawn.numpy(), stats.beta(0.4, 0.4).cdf).pvalue > 1e-3


def test_cutmix_puts_a_box_of_the_partner_in(images: Tensor) -> None:
    mixed, partners, shares = _mix(images, cutmix=1.0)
    assert mixed.dtype == torch.uint8
    for before, other, after, share in zip(images, images[partners], mixed, shares.tolist(), strict=True):
        foreign = (after != before).any(0)
        if not foreign.any():
            assert share == 1 or torch.equal(before, other)
            continue
        rows, columns = foreign.any(1).nonzero()[:, 0], foreign.any(0).nonzero()[:, 0]
        box = (..., slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
        assert torch.equal(after[box], other[box])
        assert after[box][0].numel() == pytest.approx((1 - share) * 20 * 32, abs=1e-3)
    assert shares.min() < 0.35 and shares[shares < 1].max() > 0.9


def test_labels_sum_to_one_and_follow_the_shares(images: Tensor) -> None:
    labels = torch.arange(COUNT) % 7
    for config in ({"mixup": 0.2}, {"cutmix": 1.0}):
        mixture = _mix(images, **config)
        soft = mix_labels(labels, mixture, num_classes=7)
        torch.testing.assert_close(soft.sum(1), torch.ones(COUNT))
        other = labels[mixture.partners]
        rows = labels != other
        torch.testing.assert_close(soft[rows, labels[rows]], mixture.shares[rows])
        torch.testing.assert_close(soft[rows, other[rows]], 1 - mixture.shares[rows])
        assert (soft[~rows].max(1).values > 1 - 1e-6).all()


@pytest.mark.parametrize("config", [{"mixup": 1.0}, {"cutmix": 1.0}])
def test_rows_that_can_not_be_mixed_stay_alone(config: dict[str, float], images: Tensor) -> None:
    mixable = torch.arange(COUNT) % 3 > 0
    mixture = _mix(images, mixable=mixable, **config)
    alone = ~mixable
    assert torch.equal(mixture.images[alone].float(), images[alone].float()) and (mixture.shares[alone] == 1).all()
    assert torch.equal(mixture.partners[alone], alone.nonzero()[:, 0])
    assert mixable[mixture.partners[mixable]].all()
    assert _mix(images[:3], mixable=torch.zeros(3, dtype=torch.bool), **config).partners.tolist() == [0, 1, 2]


def test_with_both_on_each_batch_takes_one(images: Tensor) -> None:
    kinds = [_mix(images[:4], seed=seed, mixup=1.0, cutmix=1.0).images.dtype for seed in range(200)]
    assert 70 < kinds.count(torch.uint8) < 130  # CutMix


def test_a_seed_repeats_and_another_differs(images: Tensor) -> None:
    first, again, other = (_mix(images, seed=seed, mixup=0.2) for seed in (3, 3, 4))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.partners, other.partners) and not torch.equal(first.shares, other.shares)


def test_refused() -> None:
    with pytest.raises(ValidationError):
        MixAugment(mixup=-1)
