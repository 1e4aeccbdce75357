"""Each change of an image is what its name says, and a function of the image and its seed."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from mmbm_core.augment.draws import Draws
from mmbm_core.augment.image import ImageAugment, augment_images, draw_boxes, resize_boxes

FULL = ImageAugment(
    flip=True, crop_px=2, crop_scale=0.5, policy="trivial", brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1,
    grayscale=0.3, cutout_px=5, cutout_share=0.7,
)  # fmt: skip


@pytest.fixture
def images() -> Tensor:
    return torch.randint(256, (64, 3, 16, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _augment(images: Tensor, *, seed: int = 1, **changes: Any) -> Tensor:
    seeds = seed * 10_000 + torch.arange(len(images))
    return augment_images(images, ImageAugment(**changes), draws=Draws(seeds))


def test_nothing_is_on_by_default(images: Tensor) -> None:
    assert _augment(images) is images


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
        found = {place for place, window in windows.items() if torch.equal(window, after)}
        assert found
        seen |= found
    assert len(seen) >= 25
    assert {y for y, _ in seen} == {x for _, x in seen} == set(range(7))
    assert changed.dtype == torch.uint8


def test_crops_are_those_of_torchvision(images: Tensor) -> None:
    boxes = draw_boxes(images, 0.25, Draws(torch.arange(64)))
    changed = resize_boxes(images, boxes)
    for before, after, (left, top, width, height) in zip(images.float(), changed, boxes.tolist(), strict=True):
        wanted = transforms.resized_crop(before, top, left, height, width, [16, 20], antialias=False)
        torch.testing.assert_close(after, wanted, rtol=1e-4, atol=1e-2)


def test_boxes_are_of_all_places_areas_and_aspects() -> None:
    left, top, width, height = draw_boxes(torch.zeros(2000, 3, 64, 48), 0.25, Draws(torch.arange(2000))).unbind(1)
    assert (left >= 0).all() and (top >= 0).all() and (left + width <= 48).all() and (top + height <= 64).all()
    area, aspect = width * height / (64 * 48), (width / 48) / (height / 64)
    assert 0.24 <= area.min() < 0.27 and 0.98 < area.max() <= 1
    inside = (width < 48) & (height < 64)
    assert 0.72 <= aspect[inside].min() < 0.77 and 1.3 < aspect[inside].max() <= 1.39
    assert ((left + width)[width < 30] == 48).any() and (left[width < 30] == 0).any()


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


def test_saturation_is_that_of_torchvision(images: Tensor) -> None:
    changed = _augment(images, saturation=0.5)
    seen = []
    for before, after in zip(images.float() / 255, changed / 255, strict=True):
        inside = (after > 0.01) & (after < 0.99)
        grey = transforms.rgb_to_grayscale(before, 3)
        factor = float(
            ((after - grey)[inside] * (before - grey)[inside]).sum() / (before - grey)[inside].square().sum()
        )
        torch.testing.assert_close(after, transforms.adjust_saturation(before, factor), atol=2e-3, rtol=0)
        seen.append(factor)
    assert 0.5 <= min(seen) < 0.6 and 1.4 < max(seen) <= 1.501


def test_hues_are_turned_as_torchvision_does(images: Tensor) -> None:
    seeds = torch.arange(64)
    changed = augment_images(images, ImageAugment(hue=0.5), draws=Draws(seeds))
    turns = Draws(seeds).uniform(-0.5, 0.5).tolist()
    assert min(turns) < -0.45 and max(turns) > 0.45
    wanted = [transforms.adjust_hue(i, turn) for i, turn in zip(images.float() / 255, turns, strict=True)]
    torch.testing.assert_close(changed / 255, torch.stack(wanted), atol=1e-4, rtol=0)
    grey = torch.full((1, 3, 4, 4), 90.0)
    torch.testing.assert_close(_augment(grey, hue=0.5), grey)


def test_a_share_of_the_images_loses_its_colour(images: Tensor) -> None:
    changed = _augment(images, grayscale=0.4)
    grey = (changed == changed[:, :1]).flatten(1).all(1)
    assert 16 <= int(grey.sum()) <= 36
    assert torch.equal(changed[~grey], images[~grey].float())
    wanted = transforms.rgb_to_grayscale(images[grey].float(), 3)
    torch.testing.assert_close(changed[grey], wanted)


def test_cutout_paints_one_square_in_the_mean_colour(images: Tensor) -> None:
    changed = _augment(images, cutout_px=6)
    mean = images.float().mean((2, 3))
    for before, after, colour in zip(images.float(), changed, mean, strict=True):
        painted = (before != after).any(0)
        rows, columns = painted.any(1).nonzero()[:, 0], painted.any(0).nonzero()[:, 0]
        box = after[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert max(box.shape[1:]) <= 6 and min(box.shape[1:]) >= 3
        torch.testing.assert_close(box, colour[:, None, None].expand_as(box))


def test_a_share_of_the_images_has_the_square(images: Tensor) -> None:
    changed = (_augment(images, cutout_px=6, cutout_share=0.5) != images).flatten(1).any(1)
    assert 20 <= int(changed.sum()) <= 44


@pytest.mark.parametrize("policy", [None, "rand"])
def test_an_image_changes_the_same_in_any_company(policy: Any, images: Tensor) -> None:
    config = FULL.model_copy(update={"policy": policy})
    seeds = torch.randint(1 << 62, (64,), generator=torch.Generator().manual_seed(0))
    changed = augment_images(images, config, draws=Draws(seeds))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(augment_images(images[order], config, draws=Draws(seeds[order])), changed[order])
    for i in range(8):
        alone = augment_images(images[i : i + 1], config, draws=Draws(seeds[i : i + 1]))
        torch.testing.assert_close(alone[0], changed[i])


def test_a_seed_repeats_and_another_differs(images: Tensor) -> None:
    state = torch.get_rng_state()
    first, again, other = (_augment(images, seed=seed, **FULL.model_dump()) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == images.shape and first.min() >= 0 and first.max() <= 255
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "wrong",
    [{"crop_scale": 0}, {"brightness": 1.0}, {"crop_px": -1}, {"hue": 0.6}, {"policy": "auto"}, {"rotate": 5}],
)
def test_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ImageAugment(**wrong)
