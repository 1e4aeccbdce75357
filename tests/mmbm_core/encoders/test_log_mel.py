"""The network on spectrograms: torchaudio's numbers, blindness to padding, saving, augmentation, and that it learns."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from pydantic import ValidationError

from mmbm_core.augment.audio import AudioAugment
from mmbm_core.encoders import build_encoder, modalities_of
from mmbm_core.encoders.log_mel import LogMelConfig, LogMelEncoder
from mmbm_core.encoders.mfcc import MfccConfig, MfccEncoder, Waveforms
from mmbm_core.errors import MediaError, UsageError

Sounds = Callable[..., list[bytes]]
TINY = LogMelConfig(rate_hz=8000, num_mels=24, widths=(8, 8, 16), width=16)
DEEP = TINY.model_copy(update={"layers": 2, "heads": 2})
LENGTHS_S = (0.004, 0.03, 0.21, 0.5, 1.3, 0.9)


def _encoder(config: LogMelConfig) -> LogMelEncoder:
    """With running statistics and scales away from those of the start."""
    torch.manual_seed(0)
    encoder = LogMelEncoder(config).train()
    with torch.no_grad():
        for norm in (m for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm1d)):
            norm.bias.normal_()
    for _ in range(3):
        encoder("audio", Waveforms(torch.randn(8, 4000), torch.full((8,), 4000)))
    return encoder.eval()


@pytest.mark.parametrize("config", [TINY, DEEP], ids=["convolutions", "transformer"])
def test_padding_and_batch_change_nothing(
    config: LogMelConfig, sounds: Sounds, encode: Any, check_encoder: Any
) -> None:
    encoder = _encoder(config)
    files = [*sounds(8000, *LENGTHS_S), *sounds(44_100, 0.3)]
    check_encoder(encoder, "audio", files, encode(encoder, "audio", files, budget={"audio": 1}))
    items = encoder.prepare("audio", files)
    together = encoder("audio", encoder.collate("audio", items))  # type: ignore[arg-type]
    for i, item in enumerate(items):
        alone = encoder("audio", encoder.collate("audio", [item]))  # type: ignore[list-item]
        assert alone.mask.all() and int(together.mask[i].sum()) == alone.mask.shape[1]
        torch.testing.assert_close(together.tokens[i][together.mask[i]], alone.tokens[0], atol=1e-5, rtol=0)


def test_padding_does_not_reach_the_statistics_of_training() -> None:
    encoder = _encoder(TINY.model_copy(update={"dropout": 0.0})).train()
    samples, lengths = torch.randn(4, 2000), torch.full((4,), 2000)
    short = encoder("audio", Waveforms(samples, lengths)).vector
    padded = encoder("audio", Waveforms(torch.nn.functional.pad(samples, (0, 5000)), lengths)).vector
    torch.testing.assert_close(padded, short, atol=1e-5, rtol=0)


def test_spectrogram_equals_torchaudio() -> None:
    encoder = LogMelEncoder(TINY)
    wave = torch.randn(3000)
    reference = torchaudio.transforms.MelSpectrogram(
        8000, n_fft=256, win_length=200, hop_length=80, f_min=20, n_mels=24, pad_mode="constant"
    )(wave)
    log_mel = (reference + 1e-6).log().T
    found, frames = encoder._spectrogram(Waveforms(wave[None], torch.tensor([3000])))
    assert frames.tolist() == [38]
    torch.testing.assert_close(found[0], (log_mel - log_mel.mean()) / log_mel.std(correction=0), atol=1e-4, rtol=1e-4)


def test_shapes_and_time(sounds: Sounds) -> None:
    encoder = LogMelEncoder(TINY.model_copy(update={"trim_db": 90.0})).eval()
    output = encoder("audio", encoder.collate("audio", encoder.prepare("audio", sounds(8000, 1.0, 0.5))))  # type: ignore[arg-type]
    assert output.tokens.shape == (2, 26, 16)  # 101 frames of 10 ms, halved twice
    assert output.mask.sum(1).tolist() == [26, 13]


def test_quiet_ends_go_as_from_mfcc(sounds: Sounds) -> None:
    samples, _ = soundfile.read(io.BytesIO(sounds(16_000, 0.4)[0]), dtype="float32")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.pad(0.3 * samples, (9000, 5000)), 16_000, format="WAV", subtype="FLOAT")
    ours, theirs = (
        encoder.prepare("audio", [buffer.getvalue()])[0].data  # type: ignore[union-attr]
        for encoder in (LogMelEncoder(LogMelConfig()), MfccEncoder(MfccConfig()))
    )
    np.testing.assert_array_equal(ours, theirs)
    assert 6000 <= len(ours) <= 7000


def test_silence_and_damage(sounds: Sounds, encode: Any) -> None:
    encoder = _encoder(TINY)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(50, np.float32), 8000, format="WAV")
    assert np.isfinite(encode(encoder, "audio", [buffer.getvalue()])).all()
    [item] = encoder.prepare("audio", sounds(8000, 31.0))
    assert item.cut and item.cost <= 30 * 8000  # type: ignore[union-attr]
    assert isinstance(encoder.prepare("audio", [b"RIFFgarbage"])[0], MediaError)


@pytest.mark.parametrize("config", [TINY, DEEP], ids=["convolutions", "transformer"])
def test_saved_and_loaded_again(config: LogMelConfig, tmp_path: Path, sounds: Sounds, encode: Any) -> None:
    encoder = _encoder(config)
    encoder.save(tmp_path)
    again = build_encoder(str(tmp_path))
    assert modalities_of(str(tmp_path)) == ("audio",)
    assert again.space_fingerprint() == encoder.space_fingerprint()
    files = sounds(8000, 0.3, 0.6)
    np.testing.assert_allclose(encode(again, "audio", files), encode(encoder, "audio", files), atol=1e-6)
    with pytest.raises(UsageError, match="allowed here: kind, rate_hz"):
        build_encoder(str(tmp_path), pooling="mean")


def test_augmentation_only_while_training() -> None:
    encoder = _encoder(TINY)
    batch = Waveforms(torch.randn(4, 4000), torch.tensor([4000, 3000, 2000, 100]))
    plain = encoder("audio", batch).vector
    encoder.augment = AudioAugment(speed=0.2, noise_snr_db=(5, 10), freq_masks=1, time_masks=1)
    assert torch.equal(encoder("audio", batch).vector, plain)  # neither speed nor masks
    encoder.train()
    torch.manual_seed(1)
    first = encoder("audio", encoder.augmented("audio", batch))
    torch.manual_seed(1)
    assert torch.equal(encoder("audio", encoder.augmented("audio", batch)).vector, first.vector)
    assert torch.isfinite(first.vector).all()
    assert first.mask.sum(1).tolist() != [13, 10, 7, 1]  # another speed, other lengths


def test_it_learns_rising_from_falling_tones() -> None:
    torch.manual_seed(0)
    encoder = LogMelEncoder(DEEP).train()
    encoder.augment = AudioAugment(speed=0.1, noise_snr_db=(15, 30))
    label = torch.arange(32) % 2
    lengths = torch.randint(1600, 3200, (32,))
    at = torch.arange(3200) / lengths[:, None]
    rise = torch.where(label[:, None] == 1, at, 1 - at) * torch.rand(32, 1) * 800
    samples = (torch.sin(torch.cumsum(2 * torch.pi * (500 + rise) / 8000, 1)) + 0.03 * torch.randn(32, 3200)) * (at < 1)
    head = torch.nn.Linear(encoder.width, 2)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=5e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=60)
    for _ in range(60):
        logits = head(encoder("audio", encoder.augmented("audio", Waveforms(samples, lengths))).vector)
        loss = torch.nn.functional.cross_entropy(logits, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    encoder.eval()
    assert (head(encoder("audio", Waveforms(samples, lengths)).vector).argmax(1) == label).float().mean() >= 0.9


@pytest.mark.parametrize("wrong", [{"layers": 1, "width": 20}, {"num_mels": 4}, {"rate_hz": 10}, {"hop": 1}])
def test_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LogMelConfig(**wrong)
