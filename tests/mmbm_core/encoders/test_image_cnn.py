"""The residual network: shapes, saving, batches, augmentation only in training, and that it learns."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from pydantic import ValidationError

from mmbm_core.augment.image import ImageAugment
from mmbm_core.encoders import build_encoder, modalities_of
from mmbm_core.encoders.image_cnn import ImageCnnConfig, ImageCnnEncoder
from mmbm_core.errors import UsageError

TINY = ImageCnnConfig(size_px=16, widths=(8, 16), depths=(1, 0), dropout=0.1)


def _encoder() -> ImageCnnEncoder:
    """With running statistics that a saved network has to keep."""
    torch.manual_seed(0)
    encoder = ImageCnnEncoder(TINY).train()
    for _ in range(3):
        encoder("image", torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8))
    return encoder.eval()


def test_shapes(photos: list[bytes]) -> None:
    encoder = ImageCnnEncoder().eval()
    items = encoder.prepare("image", photos)
    assert all(item.data.shape == (3, 32, 32) and item.data.dtype == torch.uint8 for item in items)  # type: ignore[union-attr]
    output = encoder("image", encoder.collate("image", items))  # type: ignore[arg-type]
    cells = (32 >> len(ImageCnnConfig().widths)) ** 2
    assert output.tokens.shape == (5, cells, encoder.width) and output.mask.all()
    torch.testing.assert_close(output.vector, output.tokens.mean(1))


def test_a_row_is_the_same_in_any_batch_and_fast(photos: list[bytes], encode: Any, check_encoder: Any) -> None:
    encoder = _encoder()
    check_encoder(encoder, "image", photos, encode(encoder, "image", photos))


def test_saved_and_loaded_again(tmp_path: Path, photos: list[bytes], encode: Any) -> None:
    encoder = _encoder()
    encoder.save(tmp_path)
    again = build_encoder(str(tmp_path))
    assert modalities_of(str(tmp_path)) == ("image",)
    assert again.space_fingerprint() == encoder.space_fingerprint()
    assert (encode(again, "image", photos) == encode(encoder, "image", photos)).all()
    with pytest.raises(UsageError, match="allowed here: kind, size_px"):
        build_encoder(str(tmp_path), pooling="mean")


def test_augmentation_is_apart_from_encoding() -> None:
    encoder = _encoder()
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    plain = encoder("image", images).vector
    encoder.augment = ImageAugment(cutout_px=8)
    assert torch.equal(encoder("image", images).vector, plain)
    torch.manual_seed(1)
    first = encoder.augmented("image", images)
    torch.manual_seed(1)
    assert torch.equal(encoder.augmented("image", images), first)
    assert not torch.equal(encoder.augmented("image", images), first)
    assert not torch.equal(images, first)


def test_it_learns_discs_from_squares(encode_image: Any) -> None:
    torch.manual_seed(0)
    encoder = ImageCnnEncoder(TINY).train()
    encoder.augment = ImageAugment(flip=True, crop_px=1)
    files = []
    for i in range(64):
        picture = Image.new("RGB", (16, 16), (i, 90, 200 - i))
        x, y = 1 + i % 5, 1 + i // 13
        draw = ImageDraw.Draw(picture)
        (draw.ellipse if i % 2 else draw.rectangle)((x, y, x + 9, y + 9), fill=(250 - i, 40, i))
        files.append(encode_image(picture, "PNG"))
    images = encoder.collate("image", encoder.prepare("image", files))  # type: ignore[arg-type]
    label = torch.arange(64) % 2
    head = torch.nn.Linear(encoder.width, 2)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(
            head(encoder("image", encoder.augmented("image", images)).vector), label
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    encoder.eval()
    assert (head(encoder("image", images).vector).argmax(1) == label).float().mean() >= 0.95


@pytest.mark.parametrize(
    "wrong", [{"depths": (1,)}, {"size_px": 8, "widths": (8,) * 4, "depths": (0,) * 4}, {"widths": ()}, {"heads": 2}]
)
def test_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ImageCnnConfig(**wrong)
