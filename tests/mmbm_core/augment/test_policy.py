"""Each operation is torchvision's, and all are equally likely."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms.v2 import RandAugment
from torchvision.transforms.v2 import functional as F

from mmbm_core.augment.draws import Draws
from mmbm_core.augment.policy import OPERATIONS, apply_policy

REFERENCES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda image, s: image,
    "shear x": lambda image, s: F.affine(image, 0.0, [0, 0], 1.0, [math.degrees(math.atan(s)), 0.0], center=[0, 0]),
    "shear y": lambda image, s: F.affine(image, 0.0, [0, 0], 1.0, [0.0, math.degrees(math.atan(s))], center=[0, 0]),
    "translate x": lambda image, s: F.affine(image, 0.0, [int(s), 0], 1.0, [0.0, 0.0]),
    "translate y": lambda image, s: F.affine(image, 0.0, [0, int(s)], 1.0, [0.0, 0.0]),
    "rotate": lambda image, s: F.rotate(image, s),
    "brightness": lambda image, s: F.adjust_brightness(image, 1 + s),
    "colour": lambda image, s: F.adjust_saturation(image, 1 + s),
    "contrast": lambda image, s: F.adjust_contrast(image, 1 + s),
    "sharpness": lambda image, s: F.adjust_sharpness(image, 1 + s),
    "posterize": lambda image, s: F.posterize(image, 8 - round(s)),
    "solarize": lambda image, s: F.solarize(image, 255 - s),
    "autocontrast": lambda image, s: F.autocontrast(image),
    "equalize": lambda image, s: F.equalize(image),
}


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Smooth ones: 31 of 24 x 40 pixels."""
    coarse = torch.randint(40, 216, (31, 3, 6, 8), generator=torch.Generator().manual_seed(0)).float()
    return torch.nn.functional.interpolate(coarse, (24, 40), mode="bilinear").to(torch.uint8)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_torchvision(name: str, images: Tensor) -> None:
    operation = OPERATIONS[name]
    strength = torch.linspace(-operation.trivial if operation.signed else 0, operation.trivial, 31)
    found = operation.apply(images, strength).to(torch.uint8)
    wanted = torch.stack([REFERENCES[name](i, s) for i, s in zip(images, strength.tolist(), strict=True)])
    assert found.shape == images.shape
    differing = ((found.int() - wanted.int()).abs() > 1).float().mean()
    assert differing < 0.005  # a pixel read from half-way between two may be either
    if operation.trivial:
        assert not torch.equal(found, images)


def _operations_of(before: Tensor, after: Tensor) -> set[str]:
    """Names of the operations, at any strength of TrivialAugment, that explain a change."""
    found = set()
    for name, operation in OPERATIONS.items():
        most = operation.trivial
        for share in torch.linspace(0, 1, 31).tolist() if most else [0.0]:
            for sign in (1, -1) if operation.signed else (1,):
                changed = operation.apply(before[None], torch.tensor([sign * share * most]))[0].to(torch.uint8)
                if torch.equal(changed, after):
                    found.add(name)
    return found


def test_one_operation_of_a_known_strength_each(images: Tensor) -> None:
    changed = apply_policy(images[:6], "trivial", draws=Draws(torch.arange(6)))
    explained = [_operations_of(*pair) for pair in zip(images[:6], changed, strict=True)]
    assert all(explained)
    assert len(set().union(*(names for names in explained if len(names) == 1))) >= 3


def test_operations_and_signs_are_equally_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations are replaced by ones that say which they are and how strong."""
    num = 4000

    def say(number: int) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda images, strength: torch.stack(
            [torch.full_like(strength, number), (strength.abs() * 10).round(), strength.sign() + 1], dim=1
        )[..., None, None]

    for number, (name, operation) in enumerate(list(OPERATIONS.items())):
        monkeypatch.setitem(OPERATIONS, name, operation._replace(apply=say(number), trivial=3.0))
    said = apply_policy(torch.zeros(num, 3, 1, 1), "trivial", draws=Draws(torch.arange(num)))[..., 0, 0]
    chosen, strength, sign = said.unbind(1)
    assert stats.chisquare(np.bincount(chosen.numpy(), minlength=len(OPERATIONS))).pvalue > 1e-3
    assert stats.chisquare(np.bincount(strength.numpy(), minlength=31)).pvalue > 1e-3
    signed = torch.tensor([operation.signed for operation in OPERATIONS.values()])[chosen.long()] & (strength > 0)
    assert set(sign[signed].tolist()) == {0, 2} and set(sign[~signed].tolist()) <= {1, 2}
    assert stats.chisquare(np.bincount(sign[signed].numpy() // 2)).pvalue > 1e-3


def test_rand_augment_is_two_operations_of_torchvisions_strength(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, list[float]] = {}

    def record(name: str) -> Callable[[Tensor, Tensor], Tensor]:
        def apply(images: Tensor, strength: Tensor) -> Tensor:
            calls.setdefault(name, []).extend(strength.abs().tolist())
            return images

        return apply

    for name, operation in list(OPERATIONS.items()):
        monkeypatch.setitem(OPERATIONS, name, operation._replace(apply=record(name)))
    apply_policy(torch.zeros(200, 3, 20, 40), "rand", draws=Draws(torch.arange(200)))
    assert sum(map(len, calls.values())) == 400 and set(calls) == set(OPERATIONS)
    names = {"colour": "Color", "autocontrast": "AutoContrast"}
    for name, strengths in calls.items():
        space, signed = RandAugment._AUGMENTATION_SPACE[names.get(name, name.title().replace(" ", ""))]
        assert signed == OPERATIONS[name].signed
        magnitudes = space(31, 20, 40)
        if magnitudes is None:
            continue
        wanted = float(magnitudes[9])
        wanted = {"posterize": 8 - wanted, "solarize": 255 * (1 - wanted)}.get(name, wanted)
        found = [round(s) for s in strengths] if name == "posterize" else strengths
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_an_image_changes_the_same_in_any_company(policy: str, images: Tensor) -> None:
    seeds = torch.arange(31)
    changed = apply_policy(images, policy, draws=Draws(seeds))  # type: ignore[arg-type]
    assert changed.dtype == torch.uint8 and changed.shape == images.shape
    for i in range(31):
        alone = apply_policy(images[i : i + 1], policy, draws=Draws(seeds[i : i + 1]))  # type: ignore[arg-type]
        assert torch.equal(alone[0], changed[i])


def test_images_of_one_pixel() -> None:
    tiny = torch.full((40, 3, 1, 1), 7, dtype=torch.uint8)
    assert apply_policy(tiny, "trivial", draws=Draws(torch.arange(40))).shape == tiny.shape
