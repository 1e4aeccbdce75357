"""Random changes of sound batches that leave what is said recognisable.

Shapes: `B` batch, `S` samples, `F` frames, `C` mel bands.
"""

import math
from typing import Annotated, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

Share = Annotated[float, Field(ge=0, lt=1)]


class AudioAugment(BaseModel):
    """Each sound draws its own changes, in the order of the fields; all are off unless set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    speed: Share = 0.0
    """Play faster or slower by a factor between 1 / (1 + speed) and 1 + speed; pitch and formants move along."""
    shift_s: Annotated[float, Field(ge=0)] = 0.0
    """Up to so much silence is put before the sound."""
    gain_db: Annotated[float, Field(ge=0)] = 0.0
    """Louder or quieter by up to so much."""
    noise_snr_db: tuple[float, float] | None = None
    """Least and greatest distance of white noise below the sound."""
    freq_masks: Annotated[int, Field(ge=0)] = 0
    """Groups of neighbouring mel bands that are hidden (SpecAugment, 1904.08779)."""
    freq_mask_bands: Annotated[int, Field(ge=1)] = 8
    """Most bands of such a group."""
    time_masks: Annotated[int, Field(ge=0)] = 0
    """Stretches of time that are hidden."""
    time_mask_share: Share = 0.1
    """Longest of such a stretch, as a share of the sound's frames."""

    @model_validator(mode="after")
    def _check(self) -> "AudioAugment":
        if self.noise_snr_db is not None and self.noise_snr_db[0] > self.noise_snr_db[1]:
            raise ValueError(f"noise_snr_db {list(self.noise_snr_db)}: the least comes first")
        return self


class Augmented(NamedTuple):
    """Changed sounds."""

    samples: Tensor
    """(B, S), zero-padded at the end; S may differ from what it was."""
    lengths: Tensor
    """(B,): real samples of each."""


def augment_waveforms(
    samples: Tensor,
    *,
    lengths: Tensor,
    rate_hz: int,
    config: AudioAugment,
    generator: torch.Generator | None = None,
) -> Augmented:
    """Change speed, beginning, loudness and noise of sounds.

    Args:
        samples: (B, S) float, zero-padded at the end.
        lengths: (B,) real samples of each.
    """
    if config.speed or config.shift_s:
        samples, lengths = _warp(samples, lengths, rate_hz, config, generator)
    if config.gain_db:
        gain_db = _uniform(samples, -config.gain_db, config.gain_db, generator)
        samples = samples * _amplitude(gain_db)[:, None]
    if config.noise_snr_db is not None:
        samples = _add_noise(samples, lengths, config.noise_snr_db, generator)
    return Augmented(samples, lengths)


def mask_spectrogram(
    log_mel: Tensor, *, frames: Tensor, config: AudioAugment, generator: torch.Generator | None = None
) -> Tensor:
    """Replace random bands and stretches of (B, F, C) by each sound's mean over its real `frames` (B,)."""
    if not config.freq_masks and not config.time_masks:
        return log_mel
    num_frames, num_bands = log_mel.shape[1:]
    bands = torch.full_like(frames, num_bands)
    hidden = torch.zeros_like(log_mel, dtype=torch.bool)
    for _ in range(config.freq_masks):
        most = torch.full_like(frames, min(config.freq_mask_bands, num_bands))
        hidden |= _stretch(num_bands, bands, most, generator)[:, None, :]
    for _ in range(config.time_masks):
        most = (frames * config.time_mask_share).long()
        hidden |= _stretch(num_frames, frames, most, generator)[:, :, None]
    real = torch.arange(num_frames, device=log_mel.device) < frames[:, None]
    mean = (log_mel.mean(2) * real).sum(1) / frames
    return torch.where(hidden, mean[:, None, None].to(log_mel.dtype), log_mel)


def _uniform(like: Tensor, low: float, high: float, generator: torch.Generator | None) -> Tensor:
    """(B,) on the device of `like`; drawn on the CPU, so that every device sees the same numbers."""
    return torch.empty(len(like)).uniform_(low, high, generator=generator).to(like.device)


def _amplitude(level_db: Tensor) -> Tensor:
    return 10 ** (level_db / 20)


def _warp(
    samples: Tensor, lengths: Tensor, rate_hz: int, config: AudioAugment, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Read each sound at another speed and from a later moment on, by linear interpolation."""
    reach = math.log1p(config.speed)
    factor = _uniform(samples, -reach, reach, generator).exp()
    shift = (_uniform(samples, 0, config.shift_s, generator) * rate_hz).long()
    changed = (lengths / factor).ceil().long() + shift
    at = torch.arange(int(changed.max()), device=samples.device)
    place = (at - shift[:, None]) * factor[:, None]
    last = (lengths - 1)[:, None]
    low = place.floor().long()
    values = torch.lerp(
        samples.gather(1, low.clamp(min=0).minimum(last)),
        samples.gather(1, (low + 1).clamp(min=0).minimum(last)),
        place - low,
    )
    sounding = (low >= 0) & (low <= last)
    return torch.where(sounding, values, torch.zeros_like(values)), changed


def _add_noise(
    samples: Tensor, lengths: Tensor, snr_db: tuple[float, float], generator: torch.Generator | None
) -> Tensor:
    """White noise under the real samples; the padding stays silent, and so does a silent sound."""
    root_mean_square = (samples.square().sum(1) / lengths).sqrt()
    level = root_mean_square * _amplitude(-_uniform(samples, *snr_db, generator))
    noise = torch.randn(samples.shape, generator=generator).to(samples.device) * level[:, None]
    real = torch.arange(samples.shape[1], device=samples.device) < lengths[:, None]
    return samples + noise * real


def _stretch(size: int, lengths: Tensor, most: Tensor, generator: torch.Generator | None) -> Tensor:
    """(B, size) bool: one random stretch of 0..most (B,) places inside the first `lengths` (B,)."""
    width = (_uniform(lengths, 0, 1, generator) * (most + 1)).long().minimum(most)
    start = (_uniform(lengths, 0, 1, generator) * (lengths - width + 1)).long().minimum(lengths - width)
    at = torch.arange(size, device=lengths.device)
    return (at >= start[:, None]) & (at < (start + width)[:, None])
