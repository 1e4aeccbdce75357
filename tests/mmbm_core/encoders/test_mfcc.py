"""MFCC statistics equal torchaudio's transforms on a sound alone."""

import io
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from torch import Tensor

from mmbm_core.batching import BatchEncoder
from mmbm_core.encoders import build_encoder
from mmbm_core.encoders.base import Item
from mmbm_core.encoders.mfcc import MfccConfig
from mmbm_core.errors import MediaError, UsageError

SOUNDS_S = (1.0, 0.37, 2.713, 0.011, 0.1601)


def _reference(wave: np.ndarray, config: MfccConfig) -> Tensor:
    """Segment means and deviations, one segment after the other: means, then deviations, of values and slopes."""
    mel = {
        "n_fft": 512,
        "win_length": 400,
        "hop_length": 160,
        "f_min": 20.0,
        "n_mels": config.num_mels,
        "pad_mode": "constant",
    }
    mfcc = torchaudio.transforms.MFCC(config.rate_hz, n_mfcc=config.num_coefficients, log_mels=True, melkwargs=mel)(
        torch.from_numpy(wave)
    )
    deltas = torchaudio.functional.compute_deltas(mfcc, win_length=2 * config.delta_frames + 1)
    both = torch.cat([mfcc, deltas]).double()
    mean = torch.nn.functional.adaptive_avg_pool1d(both, config.num_segments)
    square = torch.nn.functional.adaptive_avg_pool1d(both.square(), config.num_segments)
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    return torch.cat([mean, deviation]).T.flatten().float()


@pytest.mark.parametrize("options", [{}, {"num_segments": 3, "num_coefficients": 13, "delta_frames": 4}])
def test_equals_torchaudio(options: dict[str, int], sounds: Any, check_encoder: Any) -> None:
    files = sounds(16_000, *SOUNDS_S)
    encoder = build_encoder("mfcc", **options)
    items = encoder.prepare("audio", files)
    rows = [_reference(item.data, MfccConfig(**options)) for item in items if isinstance(item, Item)]
    check_encoder(encoder, "audio", files, torch.stack(rows).numpy())


def test_loudness_and_silent_ends_do_not_matter(sounds: Any, encode: Any) -> None:
    (file,) = sounds(16_000, 0.8)
    wave, _ = soundfile.read(io.BytesIO(file), dtype="float32")
    encoder = build_encoder("mfcc")
    vectors = encode(encoder, "audio", [file, _wav(wave / 8)])
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-4)
    plain, padded = encoder.prepare("audio", [file, _wav(np.pad(wave, (9_600, 14_400)))])
    assert abs(plain.cost - padded.cost) <= 2 * 400  # type: ignore[union-attr]  # a window at each end


def test_silence_and_one_sample(encode: Any) -> None:
    vectors = encode(build_encoder("mfcc"), "audio", [_wav(np.zeros(8000)), _wav(np.zeros(1)), _wav(np.ones(1))])
    assert vectors.shape == (3, 640)
    assert np.isfinite(vectors).all()


def test_silence_in_a_sound_is_the_same_in_any_batch(sounds: Any) -> None:
    """Deviations of a constant stretch are zero, whatever the rounding of a batch."""
    (file,) = sounds(16_000, 0.3)
    wave, _ = soundfile.read(io.BytesIO(file), dtype="float32")
    gap = _wav(np.concatenate([wave, np.zeros(16_000), wave]))
    encoder = build_encoder("mfcc")
    items = encoder.prepare("audio", [gap, *sounds(16_000, 3.1, 0.2)])
    together = BatchEncoder(encoder, budget={"audio": 10**9})("audio", items)  # type: ignore[arg-type]
    alone = BatchEncoder(encoder, budget={"audio": 1})("audio", items)  # type: ignore[arg-type]
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_long_sounds_are_cut_and_told(sounds: Any) -> None:
    items = build_encoder("mfcc", max_s=1.0, trim_db=200.0).prepare("audio", [*sounds(16_000, 1.0, 1.1), b""])
    assert [(i.cost, i.cut) for i in items if isinstance(i, Item)] == [(16_000, False), (16_000, True)]
    assert isinstance(items[2], MediaError)


def test_unknown_option_names_the_known() -> None:
    with pytest.raises(UsageError, match=r"hops.*num_segments"):
        build_encoder("mfcc", hops=3)


def _wav(wave: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave.astype(np.float32), 16_000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()
