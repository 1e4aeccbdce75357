"""Each change of a sound batch is what its name says, and a function of the sound and its seed."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from mmbm_core.augment.audio import AudioAugment, Augmented, augment_waveforms, mask_spectrogram
from mmbm_core.augment.draws import Draws

RATE_HZ = 8000
FULL = AudioAugment(
    speed=0.2, shift_s=0.1, pitch_semitones=4, reverb_rt60_s=(0.1, 0.4), gain_db=6, noise_snr_db=(5, 20),
    noise_colour="pink", freq_masks=2, time_masks=2,
)  # fmt: skip


@pytest.fixture
def sounds() -> Augmented:
    """64 tones of 500 Hz, 0.25 to 0.5 s."""
    lengths = torch.randint(2000, 4001, (64,), generator=torch.Generator().manual_seed(0))
    at = torch.arange(4000)
    samples = torch.sin(2 * math.pi * 500 * at / RATE_HZ) * (at < lengths[:, None])
    return Augmented(samples, lengths)


def _augment(sounds: Augmented, *, seed: int = 1, **changes: object) -> Augmented:
    config = AudioAugment(**changes)  # type: ignore[arg-type]
    draws = Draws(seed * 10_000 + torch.arange(len(sounds.samples)))
    return augment_waveforms(sounds.samples, lengths=sounds.lengths, rate_hz=RATE_HZ, config=config, draws=draws)


def test_nothing_is_on_by_default(sounds: Augmented) -> None:
    changed = _augment(sounds)
    assert changed.samples is sounds.samples and changed.lengths is sounds.lengths
    log_mel = torch.randn(2, 5, 4)
    assert (
        mask_spectrogram(log_mel, frames=torch.tensor([5, 3]), config=AudioAugment(), draws=Draws(torch.arange(2)))
        is log_mel
    )


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


def test_pink_noise_has_the_ratio_too(sounds: Augmented) -> None:
    noise = _augment(sounds, noise_snr_db=(10, 10), noise_colour="pink").samples - sounds.samples
    snr_db = 10 * (sounds.samples.square().sum(1) / noise.square().sum(1)).log10()
    torch.testing.assert_close(snr_db, torch.full_like(snr_db, 10), atol=0.5, rtol=0)


def test_pitch_moves_and_duration_stays(sounds: Augmented) -> None:
    changed = _augment(sounds, pitch_semitones=7)
    assert torch.equal(changed.lengths, sounds.lengths)
    semitones = Draws(10_000 + torch.arange(64)).uniform(-7, 7)
    assert semitones.min() < -6 and semitones.max() > 6
    for samples, length, moved in zip(*changed, semitones.tolist(), strict=True):
        bins = torch.fft.rfft(samples[:length] * torch.hann_window(int(length)), n=1 << 16).abs()
        assert int(bins.argmax()) * RATE_HZ / (1 << 16) == pytest.approx(500 * 2 ** (moved / 12), rel=0.02)
        assert not samples[length:].any()
        middle = samples[length // 4 : length // 2].square().mean().sqrt()
        assert 0.6 < middle < 0.75  # that of the tone is 0.71


def test_reverberation_comes_after_the_direct_sound() -> None:
    click = torch.zeros(16, 4000)
    click[:, 100] = 1
    changed = _augment(Augmented(click, torch.full((16,), 3000)), reverb_rt60_s=(0.1, 0.3), reverb_direct_db=(3, 6))
    assert (changed.samples[:, 100] - 1).abs().max() < 1e-3 and changed.samples[:, :100].abs().max() < 1e-4
    direct_db = -10 * changed.samples[:, 101:].square().sum(1).log10()
    assert 2.9 < direct_db.min() < 4 and 5 < direct_db.max() < 6.1
    assert not changed.samples[:, 3000:].any()


def test_vorbis_keeps_length_and_sound(sounds: Augmented) -> None:
    changed = _augment(sounds, vorbis=True)
    assert torch.equal(changed.lengths, sounds.lengths)
    assert not torch.equal(changed.samples, sounds.samples)
    for samples, before, length in zip(changed.samples, sounds.samples, sounds.lengths, strict=True):
        assert torch.corrcoef(torch.stack([samples[:length], before[:length]]))[0, 1] > 0.97
        assert not samples[length:].any()
    long = torch.sin(torch.arange(200_000) * 0.3)[None]
    changed = _augment(Augmented(long, torch.tensor([200_000])), vorbis=True)
    assert torch.corrcoef(torch.cat([changed.samples, long]))[0, 1] > 0.97


@pytest.mark.parametrize(
    "changes",
    [
        {"speed": 0.2, "shift_s": 0.1},
        {"pitch_semitones": 4.0},
        {"reverb_rt60_s": (0.1, 0.4)},
        {"noise_snr_db": (5, 20)},
        {"noise_snr_db": (5, 20), "noise_colour": "pink"},
        {"vorbis": True},
        FULL.model_dump(),
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_sound_changes_the_same_in_any_company_and_padding(changes: dict[str, Any], sounds: Augmented) -> None:
    config, seeds = AudioAugment(**changes), torch.arange(64) * 7919
    together = augment_waveforms(
        sounds.samples, lengths=sounds.lengths, rate_hz=RATE_HZ, config=config, draws=Draws(seeds)
    )
    for i in range(0, 64, 9):
        length = sounds.lengths[i : i + 1]
        for padding in (0, 3000):
            alone = torch.nn.functional.pad(sounds.samples[i : i + 1, : int(length)], (0, padding))
            found = augment_waveforms(
                alone, lengths=length, rate_hz=RATE_HZ, config=config, draws=Draws(seeds[i : i + 1])
            )
            assert torch.equal(found.lengths[0], together.lengths[i])
            last = int(found.lengths[0])
            torch.testing.assert_close(found.samples[0, :last], together.samples[i, :last], atol=1e-4, rtol=1e-3)
    masked = mask_spectrogram(_log_mel(20), frames=torch.tensor([9, 20]), config=config, draws=Draws(seeds[:2]))
    more = mask_spectrogram(_log_mel(30), frames=torch.tensor([9, 20]), config=config, draws=Draws(seeds[:2]))
    torch.testing.assert_close(masked, more[:, :20])


def _log_mel(frames: int) -> Tensor:
    return torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(0))[:, :frames]


def test_a_silent_sound_stays_silent() -> None:
    silence = Augmented(torch.zeros(3, 100), torch.tensor([1, 50, 100]))
    changed = _augment(silence, **{**FULL.model_dump(), "vorbis": True})
    assert changed.samples.abs().max() < 1e-4 and (changed.lengths >= 1).all()


def _hidden(config: AudioAugment, log_mel: Tensor, frames: Tensor) -> Tensor:
    changed = mask_spectrogram(log_mel, frames=frames, config=config, draws=Draws(torch.arange(len(log_mel))))
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


@pytest.mark.parametrize(
    "wrong",
    [
        {"speed": 1.0},
        {"gain_db": -1},
        {"noise_snr_db": (9, 3)},
        {"reverb_rt60_s": (0, 1)},
        {"pitch_semitones": 13},
        {"echo": 1},
    ],
)
def test_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AudioAugment(**wrong)
