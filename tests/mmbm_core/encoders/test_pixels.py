"""Image preprocessing equals transformers' processors on odd sizes and odd pixel formats."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from mmbm_core.encoders.pixels import PixelSteps
from mmbm_core.errors import MediaError, UsageError
from mmbm_core.media import DEFAULT_LIMITS, decode_image

PROCESSORS = {
    "clip": transformers.CLIPImageProcessor(),
    "siglip": transformers.SiglipImageProcessor(),
    "vit": transformers.ViTImageProcessor(),
    "vit-lanczos": transformers.ViTImageProcessor(resample=1, size={"height": 37, "width": 53}),
    "dinov2": transformers.BitImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}),
    "dinov2-odd": transformers.BitImageProcessor(size={"shortest_edge": 61}, crop_size={"height": 56, "width": 56}),
    "dinov3": transformers.DINOv3ViTImageProcessor(size={"height": 64, "width": 64}),
    "convnext": transformers.ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875),
    "convnext-384": transformers.ConvNextImageProcessor(size={"shortest_edge": 384}),
    "beit": transformers.BeitImageProcessor(),
    "levit": transformers.LevitImageProcessor(),
    "poolformer": transformers.PoolFormerImageProcessor(),
    "efficientnet": transformers.EfficientNetImageProcessor(),
    "no-resize": transformers.BitImageProcessor(do_resize=False, crop_size={"height": 99, "width": 100}),
}


def _pictures() -> dict[str, Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (157, 203, 4), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(noise[:9, :13, :3]).resize((333, 251), Image.Resampling.BICUBIC))
    rgb = Image.fromarray(smooth)
    return {
        "rgb": rgb,
        "small": Image.fromarray(noise[:31, :47, :3]),
        "tall": rgb.resize((63, 301)),
        "gray": rgb.convert("L"),
        "palette": rgb.convert("P"),
        "rgba": Image.fromarray(noise, "RGBA"),
        "deep": Image.fromarray(smooth[..., 0].astype(np.uint16) * 257),
        "bilevel": rgb.convert("1"),
        "cmyk": rgb.convert("CMYK"),
    }


@pytest.mark.parametrize("name", PROCESSORS)
def test_equals_transformers(name: str, encode_image: Any) -> None:
    processor = PROCESSORS[name]
    steps = PixelSteps.from_processor(processor)
    for kind, picture in _pictures().items():
        data = encode_image(picture, "TIFF")
        (item,) = steps.prepare([data], limits=DEFAULT_LIMITS, oversize=None)
        assert not isinstance(item, MediaError), item
        ours = steps.normalise(item.data[None], torch.float32)
        plain = kind not in ("deep", "rgba")  # those have rules of their own, held by test_media
        seen = picture.convert("RGB") if plain else Image.fromarray(decode_image(data))
        theirs = torch.as_tensor(processor(seen, return_tensors="pt")["pixel_values"])
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0, msg=lambda m, k=kind: f"{k}: {m}")
        assert item.cost == ours.shape[-1] * ours.shape[-2] == np.prod(steps.out_size)


def test_crop_rounds_as_torchvision(encode_image: Any) -> None:
    from torchvision.transforms._presets import ImageClassification

    theirs = ImageClassification(crop_size=56, resize_size=61)
    steps = PixelSteps(
        shortest_edge=61, crop=(56, 56), crop_rounds=True, mean=tuple(theirs.mean), std=tuple(theirs.std)
    )
    for kind in ("rgb", "tall", "small"):
        picture = _pictures()[kind]
        (item,) = steps.prepare([encode_image(picture, "PNG")], limits=DEFAULT_LIMITS, oversize=None)
        assert not isinstance(item, MediaError)
        ours = steps.normalise(item.data[None], torch.float32)[0]
        one_level = 1.01 / 255 / min(theirs.std)  # Pillow's resize and torch's round differently
        torch.testing.assert_close(ours, theirs(picture), atol=one_level, rtol=0)


@pytest.mark.parametrize(
    "processor",
    [
        transformers.MobileViTImageProcessor(),
        transformers.Siglip2ImageProcessor(),
        transformers.DetrImageProcessor(),
        transformers.BitImageProcessor(do_center_crop=False),
    ],
    ids=lambda p: type(p).__name__,
)
def test_refuses_what_it_does_not_reproduce(processor: Any) -> None:
    with pytest.raises(UsageError, match=type(processor).__name__):
        PixelSteps.from_processor(processor)


def test_bad_values_give_errors_in_place(encode_image: Any) -> None:
    steps = PixelSteps.from_processor(PROCESSORS["clip"])
    needle = encode_image(Image.new("RGB", (3, 900)), "PNG")
    good = encode_image(_pictures()["rgb"], "PNG")
    items = steps.prepare([b"", good, b"not an image", needle], limits=DEFAULT_LIMITS, oversize=3)
    assert [isinstance(item, MediaError) for item in items] == [True, False, True, True]
