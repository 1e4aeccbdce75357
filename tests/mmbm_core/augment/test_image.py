"""Each change of an image batch is what its name says, and repeats by its generator's seed."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from mmbm_core.augment.image import ImageAugment, augment_images

FULL = ImageAugment(flip=True, crop_px=2, crop_scale=0.5, brightness=0.3, contrast=0.3, cutout_px=5)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(256, (64, 3, 16, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _augment(images: Tensor, *, seed: int = 1, **changes: object) -> Tensor:
    return augment_images(images, ImageAugment(**changes), generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]


def test_nothing_is_on_by_default(images: Tensor) -> None:
    assert augment_images(images, ImageAugment()) is images


def test_half_of_the_images_are_mirrored(images: Tensor) -> None:
    changed = _augment(images, flip=True)
    mirrored = (changed == images.flip(-1)).flatten(1).all(1)
    same = (changed == images).flatten(1).all(1)
    assert (mirrored ^ same).all()
    assert 16 <= int(mirrored.sum()) <= 48
    assert changed.dtype == torch.uint8


def test_shifts_are_windows_of_the_reflected_image(images: Tensor) -> None:
    changed = _augment(images, crop_px=3)
    padded = F.pad(images.float(), (3, 3, 3, 3), mode="reflect").to(torch.uint8)
    seen = set()
    for before, after in zip(padded, changed, strict=True):
        windows = {(y, x): before[:, y : y + 16, x : x + 20] for y in range(7) for x in range(7)}
        seen |= {place for place, window in windows.items() if torch.equal(window, after)}
    assert len(seen) >= 25
    assert {y for y, _ in seen} == {x for _, x in seen} == set(range(7))
    assert changed.dtype == torch.uint8


def test_crops_show_a_share_of_the_area() -> None:
    ramp = torch.stack([torch.arange(64.0).expand(64, 64), torch.arange(64.0)[:, None].expand(64, 64)])
    images = torch.cat([ramp, ramp[:1]])[None].repeat(200, 1, 1, 1)
    changed = _augment(images, crop_scale=0.25)
    width = (changed[:, 0, 32, 62] - changed[:, 0, 32, 1]) / 61
    height = (changed[:, 1, 62, 32] - changed[:, 1, 1, 32]) / 61
    area, aspect = width * height, width / height
    assert 0.24 <= area.min() < 0.35 and 0.85 < area.max() <= 1.01
    assert 0.74 <= aspect.min() < 0.85 and 1.2 < aspect.max() <= 1.34
    assert changed.min() >= 0 and changed.max() <= 63


def test_brightness_multiplies() -> None:
    images = torch.full((300, 3, 4, 4), 100.0)
    factor = _augment(images, brightness=0.4).flatten(1) / 100
    torch.testing.assert_close(factor, factor[:, :1].expand_as(factor))
    assert 0.6 <= factor.min() < 0.65 and 1.35 < factor.max() <= 1.4


def test_contrast_keeps_the_mean(images: Tensor) -> None:
    middle = images.float().clamp(100, 150)
    changed = _augment(middle, contrast=0.4)
    torch.testing.assert_close(changed.mean((1, 2, 3)), middle.mean((1, 2, 3)))
    factor = changed.std((1, 2, 3)) / middle.std((1, 2, 3))
    assert 0.6 <= factor.min() < 0.7 and 1.3 < factor.max() <= 1.4


def test_cutout_paints_one_square_in_the_mean_colour(images: Tensor) -> None:
    changed = _augment(images, cutout_px=6)
    mean = images.float().mean((2, 3))
    for before, after, colour in zip(images.float(), changed, mean, strict=True):
        painted = (before != after).any(0)
        rows, columns = painted.any(1).nonzero()[:, 0], painted.any(0).nonzero()[:, 0]
        box = after[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert max(box.shape[1:]) <= 6 and min(box.shape[1:]) >= 3
        torch.testing.assert_close(box, colour[:, None, None].expand_as(box))


def test_a_seed_repeats_and_another_differs(images: Tensor) -> None:
    first, again, other = (
        augment_images(images, FULL, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(3)
    assert torch.equal(first, augment_images(images, FULL))
    assert first.shape == images.shape and first.min() >= 0 and first.max() <= 255


@pytest.mark.parametrize("wrong", [{"crop_scale": 0}, {"brightness": 1.0}, {"crop_px": -1}, {"rotate": 5}])
def test_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ImageAugment(**wrong)  # type: ignore[arg-type]
