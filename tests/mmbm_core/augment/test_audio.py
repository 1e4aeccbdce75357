"""Each change of a sound batch is what its name says, and repeats by its generator's seed."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from mmbm_core.augment.audio import AudioAugment, Augmented, augment_waveforms, mask_spectrogram

RATE_HZ = 8000
FULL = AudioAugment(speed=0.2, shift_s=0.1, gain_db=6, noise_snr_db=(5, 20), freq_masks=2, time_masks=2)


@pytest.fixture
def sounds() -> Augmented:
    """64 tones of 500 Hz, 0.25 to 0.5 s."""
    lengths = torch.randint(2000, 4001, (64,), generator=torch.Generator().manual_seed(0))
    at = torch.arange(4000)
    samples = torch.sin(2 * math.pi * 500 * at / RATE_HZ) * (at < lengths[:, None])
    return Augmented(samples, lengths)


def _augment(sounds: Augmented, *, seed: int = 1, **changes: object) -> Augmented:
    config = AudioAugment(**changes)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    return augment_waveforms(
        sounds.samples, lengths=sounds.lengths, rate_hz=RATE_HZ, config=config, generator=generator
    )


def test_nothing_is_on_by_default(sounds: Augmented) -> None:
    changed = _augment(sounds)
    assert changed.samples is sounds.samples and changed.lengths is sounds.lengths
    log_mel = torch.randn(2, 5, 4)
    assert mask_spectrogram(log_mel, frames=torch.tensor([5, 3]), config=AudioAugment()) is log_mel


def test_speed_changes_length_and_pitch_alike(sounds: Augmented) -> None:
    changed = _augment(sounds, speed=0.25)
    factor = sounds.lengths / changed.lengths
    assert 0.8 <= factor.min() < 0.85 and 1.2 < factor.max() <= 1.25
    for samples, length, speed in zip(*changed, factor, strict=True):
        bins = torch.fft.rfft(samples[:length] * torch.hann_window(int(length)), n=1 << 16).abs()
        assert int(bins.argmax()) * RATE_HZ / (1 << 16) == pytest.approx(500 * float(speed), rel=0.01)
        assert not samples[length:].any()


def test_shift_puts_silence_before_the_sound(sounds: Augmented) -> None:
    changed = _augment(sounds, shift_s=0.1)
    shift = changed.lengths - sounds.lengths
    assert 0 <= shift.min() < 100 and 700 < shift.max() <= 800
    for i, moved in enumerate(shift.tolist()):
        length = int(sounds.lengths[i])
        assert not changed.samples[i, :moved].any()
        torch.testing.assert_close(changed.samples[i, moved : moved + length], sounds.samples[i, :length])


def test_gain_is_measured(sounds: Augmented) -> None:
    changed = _augment(sounds, gain_db=6)
    gain_db = 20 * (changed.samples.square().sum(1) / sounds.samples.square().sum(1)).sqrt().log10()
    assert -6.001 <= gain_db.min() < -5 and 5 < gain_db.max() <= 6.001


def test_noise_has_the_ratio_asked_for(sounds: Augmented) -> None:
    changed = _augment(sounds, noise_snr_db=(5, 15))
    noise = changed.samples - sounds.samples
    snr_db = 10 * (sounds.samples.square().sum(1) / noise.square().sum(1)).log10()
    assert 4.5 <= snr_db.min() < 6 and 14 < snr_db.max() <= 15.5
    assert all(not row[length:].any() for row, length in zip(noise, sounds.lengths, strict=True))


def test_a_silent_sound_stays_silent() -> None:
    silence = Augmented(torch.zeros(3, 100), torch.tensor([1, 50, 100]))
    changed = _augment(silence, speed=0.2, noise_snr_db=(0, 0), gain_db=3)
    assert not changed.samples.any() and (changed.lengths >= 1).all()


def _hidden(config: AudioAugment, log_mel: Tensor, frames: Tensor) -> Tensor:
    changed = mask_spectrogram(log_mel, frames=frames, config=config, generator=torch.Generator().manual_seed(1))
    hidden = changed != log_mel
    for row, was, length, mask in zip(changed, log_mel, frames, hidden, strict=True):
        torch.testing.assert_close(row[mask], was[:length].mean().expand_as(row[mask]))
    return hidden


def test_masks_are_counted() -> None:
    log_mel = torch.randn(100, 40, 32, generator=torch.Generator().manual_seed(0))
    frames = torch.randint(20, 41, (100,), generator=torch.Generator().manual_seed(0))
    bands = _hidden(AudioAugment(freq_masks=1, freq_mask_bands=6), log_mel, frames)
    widths = bands.all(1).sum(1)
    assert torch.equal(bands.any(1).sum(1), widths)  # whole bands
    assert set(widths.tolist()) == set(range(7))
    stretches = _hidden(AudioAugment(time_masks=1, time_mask_share=0.25), log_mel, frames)
    lengths = stretches.all(2).sum(1)
    assert torch.equal(stretches.any(2).sum(1), lengths)
    assert (lengths <= frames * 0.25).all() and lengths.max() >= 8
    assert not any(mask[length:].any() for mask, length in zip(stretches, frames, strict=True))
    for mask in stretches.all(2):  # neighbours
        places = mask.nonzero()[:, 0]
        assert len(places) == 0 or len(places) == int(places.max() - places.min()) + 1


def test_a_seed_repeats_and_another_differs(sounds: Augmented) -> None:
    first, again, other = (_augment(sounds, seed=seed, **FULL.model_dump()) for seed in (3, 3, 4))
    assert torch.equal(first.samples, again.samples) and torch.equal(first.lengths, again.lengths)
    assert not torch.equal(first.lengths, other.lengths)
    torch.manual_seed(3)
    default = augment_waveforms(sounds.samples, lengths=sounds.lengths, rate_hz=RATE_HZ, config=FULL)
    assert torch.equal(first.samples, default.samples)


@pytest.mark.parametrize(
    "wrong", [{"speed": 1.0}, {"gain_db": -1}, {"noise_snr_db": (9, 3)}, {"freq_mask_bands": 0}, {"echo": 1}]
)
def test_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AudioAugment(**wrong)
