"""Tiny seeded checkpoints, natural inputs, and what every encoder must hold."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mmbm_core.augment import ImageAugment
from mmbm_core.batching import BatchEncoder
from mmbm_core.encoders.base import Encoder
from mmbm_core.sample import Modality

TEXTS = [
    "A cat sat on the mat.",
    "Rain again tomorrow, said the forecast; bring an umbrella!",
    "yes",
    "The quick brown fox jumps over the lazy dog while the band plays on and on into the summer night.",
    "Über 40 naïve cafés \u2014 and one 日本 restaurant",
]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS


@pytest.fixture(scope="session")
def photos() -> list[bytes]:
    """JPEG photographs and their crops, of odd sizes."""
    china, flower = (Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg"))
    pictures = [
        china,
        flower,
        china.crop((31, 17, 420, 396)),
        flower.crop((100, 50, 333, 401)),
        china.resize((201, 133)),
    ]
    return [_encode_image(picture, "JPEG", quality=92) for picture in pictures]


def _encode_image(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def encode_image() -> Callable[..., bytes]:
    """`encode_image(picture, "PNG")`."""
    return _encode_image


@pytest.fixture(scope="session")
def sounds() -> Callable[..., list[bytes]]:
    """WAV files of voiced-like sounds: `sounds(rate_hz, seconds...)`."""

    def make(rate_hz: int, *seconds: float) -> list[bytes]:
        random = np.random.default_rng(0)
        files = []
        for length_s in seconds:
            t = np.arange(round(length_s * rate_hz)) / rate_hz
            pitch = random.uniform(90, 250) * (1 + 0.1 * np.sin(2 * np.pi * random.uniform(0.5, 3) * t))
            phase = 2 * np.pi * np.cumsum(pitch) / rate_hz
            wave = sum(np.sin(k * phase) * random.uniform(0.1, 1) / k for k in range(1, 12))
            wave = wave * (0.6 + 0.4 * np.sin(2 * np.pi * 2.5 * t)) + 0.02 * random.standard_normal(len(t))
            buffer = io.BytesIO()
            soundfile.write(buffer, (0.2 * wave).astype(np.float32), rate_hz, format="WAV", subtype="FLOAT")
            files.append(buffer.getvalue())
        return files

    return make


@pytest.fixture(scope="session")
def encode() -> Callable[..., np.ndarray]:
    """Vectors (N, D) of values in batches of the encoder's budget."""

    def run(encoder: Encoder, modality: Modality, values: Sequence[Any], **options: Any) -> np.ndarray:
        items = encoder.prepare(modality, values)
        errors = [item for item in items if isinstance(item, Exception)]
        assert not errors, errors
        return BatchEncoder(encoder, **options)(modality, items)  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="session")
def check_encoder(encode: Callable[..., np.ndarray]) -> Callable[..., None]:
    """A row alone is the same row in any batch and equals `reference`; images can be augmented; fast vectors keep their
    direction."""

    def check(encoder: Encoder, modality: Modality, values: Sequence[Any], reference: np.ndarray) -> None:
        encoder.requires_grad_(False)
        together = encode(encoder, modality, values, budget={modality: 10**12})
        alone = encode(encoder, modality, values, budget={modality: 1})
        print(f"reference {np.abs(alone - reference).max():.1e}, batch {np.abs(together - alone).max():.1e}")
        assert together.shape == (len(values), encoder.width)
        np.testing.assert_allclose(alone, reference, atol=1e-4)
        np.testing.assert_allclose(together, alone, atol=1e-5)
        assert encoder.space_fingerprint() == encoder.space_fingerprint()
        if modality == "image":
            _check_augmented(encoder, encoder.collate(modality, encoder.prepare(modality, values)))  # type: ignore[arg-type]
        for kernels in encoder.fast_kernels()[:1]:
            encoder.accelerate(kernels)
        fast = encode(encoder, modality, values)
        cosine = (fast * alone).sum(1) / np.linalg.norm(fast, axis=1) / np.linalg.norm(alone, axis=1)
        print(f"fast cosine {cosine.min():.5f}")
        assert cosine.min() >= 0.999

    return check


def train_tokenizer(kind: str) -> Tokenizer:
    """A tiny tokenizer trained on the texts above: `wordpiece`, `bpe` or `unigram`."""
    specials = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>", "[CLS]", "[SEP]", "[PAD]"]
    made = {
        "wordpiece": (models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer),
        "bpe": (models.BPE(unk_token="[UNK]"), trainers.BpeTrainer),
        "unigram": (models.Unigram(), trainers.UnigramTrainer),
    }
    model, trainer = made[kind]
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    options = {"unk_token": "[UNK]"} if kind == "unigram" else {}
    tokenizer.train_from_iterator(
        TEXTS * 3, trainer(vocab_size=200, special_tokens=specials, show_progress=False, **options)
    )
    return tokenizer


@pytest.fixture(scope="session")
def save_tokenizer() -> Callable[..., Any]:
    """`save_tokenizer(folder, kind="wordpiece", first="[CLS]", last="[SEP]", pad="[PAD]", **options)`."""

    def save(
        folder: Path,
        *,
        kind: str = "wordpiece",
        first: str = "[CLS]",
        last: str = "[SEP]",
        pad: str = "[PAD]",
        **options: Any,
    ) -> Any:
        tokenizer = train_tokenizer(kind)
        ends = [(token, tokenizer.token_to_id(token)) for token in (first, last) if token]
        around = " ".join(filter(None, [first, "$A", last]))
        tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=ends)
        names = {"cls_token": first or None, "sep_token": last or None, "eos_token": last or None}
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token=pad or None, unk_token="[UNK]", **names, **options
        )
        fast.save_pretrained(folder)
        return fast

    return save


@pytest.fixture(scope="session")
def save_model() -> Callable[..., Any]:
    """Seeded weights of `model_class(config)`, away from the flat start that makes all vectors alike."""

    def save(folder: Path, model_class: Any, config: Any) -> Any:
        torch.manual_seed(0)
        model = model_class(config).eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim > 1 and "conv" not in name:
                    weight.normal_(0, max(weight[0].numel(), 1) ** -0.5)
                elif name.endswith("bias"):
                    weight.normal_(0, 0.1)
        model.save_pretrained(folder)
        return model

    return save


def _check_augmented(encoder: Encoder, images: torch.Tensor) -> None:
    encoder.augment = ImageAugment(contrast=0.5)
    changed = encoder.augmented("image", images)
    assert changed.shape == images.shape and not torch.allclose(changed, images.float(), atol=1)
    assert torch.isfinite(encoder("image", changed).vector).all()
    encoder.augment = None
    assert encoder.augmented("image", images) is images
