"""Random changes of sounds that leave what is said recognisable.

Shapes: `B` batch, `S` samples, `F` frames, `C` mel bands.
"""

import io
import math
from typing import Annotated, NamedTuple

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor

from mmbm_core.augment.acoustics import Colour, convolve, impulse_responses, noise
from mmbm_core.augment.draws import Draws
from mmbm_core.augment.vocoder import read_at, shift_pitch


def _ordered(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError(f"{list(limits)}: the least comes first")
    return limits


Share = Annotated[float, Field(ge=0, lt=1)]
Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
Seconds = Annotated[float, Field(gt=0)]

_CODEC_LEVEL = 1.0
"""Strongest compression of libsndfile's Vorbis."""
_CODEC_BLOCK = 1 << 16
"""Samples that libvorbis is given at once: it puts them on the stack."""


class AudioAugment(BaseModel):
    """Each sound draws its own changes, in the order of the fields; all are off unless set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    speed: Share = 0.0
    """Play faster or slower by a factor between 1 / (1 + speed) and 1 + speed; pitch and formants move along."""
    shift_s: Annotated[float, Field(ge=0)] = 0.0
    """Up to so much silence is put before the sound."""
    pitch_semitones: Annotated[float, Field(ge=0, le=12)] = 0.0
    """Higher or lower by up to so much; the duration stays."""
    reverb_rt60_s: Annotated[tuple[Seconds, Seconds], AfterValidator(_ordered)] | None = None
    """Least and greatest time in which the reverberation of a room falls by 60 dB; None: no room."""
    reverb_direct_db: Range = (0.0, 15.0)
    """Least and greatest energy of the direct sound over that of the reverberation."""
    gain_db: Annotated[float, Field(ge=0)] = 0.0
    """Louder or quieter by up to so much."""
    noise_snr_db: Range | None = None
    """Least and greatest distance of noise below the sound."""
    noise_colour: Colour = "white"
    vorbis: bool = False
    """Through Ogg Vorbis at its lowest quality and back. On the CPU, sound by sound: 5 ms a second of sound, which is
    meant for augmenting once, before training."""
    freq_masks: Annotated[int, Field(ge=0)] = 0
    """Groups of neighbouring mel bands that are hidden (SpecAugment, 1904.08779)."""
    freq_mask_bands: Annotated[int, Field(ge=1)] = 8
    """Most bands of such a group."""
    time_masks: Annotated[int, Field(ge=0)] = 0
    """Stretches of time that are hidden."""
    time_mask_share: Share = 0.1
    """Longest of such a stretch, as a share of the sound's frames."""


class Augmented(NamedTuple):
    """Changed sounds."""

    samples: Tensor
    """(B, S), zero-padded at the end; S may differ from what it was."""
    lengths: Tensor
    """(B,): real samples of each."""


def augment_waveforms(
    samples: Tensor, *, lengths: Tensor, rate_hz: int, config: AudioAugment, draws: Draws
) -> Augmented:
    """All changes but the masks, which are those of spectrograms.

    Args:
        samples: (B, S) float, zero-padded at the end.
        lengths: (B,) real samples of each.
        draws: of B samples.
    """
    if config.speed or config.shift_s:
        samples, lengths = _warp(samples, lengths, rate_hz, config, draws)
    real = torch.arange(samples.shape[1], device=samples.device) < lengths[:, None]
    if config.pitch_semitones:
        semitones = draws.uniform(-config.pitch_semitones, config.pitch_semitones)
        samples = shift_pitch(samples, semitones, rate_hz=rate_hz) * real
    if config.reverb_rt60_s is not None:
        samples = _reverberate(samples, rate_hz, config, draws) * real
    if config.gain_db:
        samples = samples * _amplitude(draws.uniform(-config.gain_db, config.gain_db))[:, None]
    if config.noise_snr_db is not None:
        disturbance = noise(samples.shape[1], config.noise_colour, rate_hz=rate_hz, draws=draws) * real
        level = _loudness(samples, lengths) / _loudness(disturbance, lengths)
        samples = samples + disturbance * (level * _amplitude(-draws.uniform(*config.noise_snr_db)))[:, None]
    if config.vorbis:
        samples = _compress(samples, lengths, rate_hz)
    return Augmented(samples, lengths)


def mask_spectrogram(log_mel: Tensor, *, frames: Tensor, config: AudioAugment, draws: Draws) -> Tensor:
    """Replace random bands and stretches of (B, F, C) by each sound's mean over its real `frames` (B,)."""
    if not config.freq_masks and not config.time_masks:
        return log_mel
    num_frames, num_bands = log_mel.shape[1:]
    bands = torch.full_like(frames, num_bands)
    hidden = torch.zeros_like(log_mel, dtype=torch.bool)
    for _ in range(config.freq_masks):
        most = torch.full_like(frames, min(config.freq_mask_bands, num_bands))
        hidden |= _stretch(num_bands, bands, most, draws)[:, None, :]
    for _ in range(config.time_masks):
        most = (frames * config.time_mask_share).long()
        hidden |= _stretch(num_frames, frames, most, draws)[:, :, None]
    real = torch.arange(num_frames, device=log_mel.device) < frames[:, None]
    mean = (log_mel.mean(2) * real).sum(1) / frames
    return torch.where(hidden, mean[:, None, None].to(log_mel.dtype), log_mel)


def _amplitude(level_db: Tensor) -> Tensor:
    return 10 ** (level_db / 20)


def _warp(samples: Tensor, lengths: Tensor, rate_hz: int, config: AudioAugment, draws: Draws) -> tuple[Tensor, Tensor]:
    """Read each sound at another speed and from a later moment on, by linear interpolation."""
    reach = math.log1p(config.speed)
    factor = draws.uniform(-reach, reach).exp()
    shift = (draws.uniform(0, config.shift_s) * rate_hz).long()
    changed = (lengths / factor).ceil().long() + shift
    at = torch.arange(int(changed.max()), device=samples.device)
    place = (at - shift[:, None]) * factor[:, None].double()
    return read_at(samples, place, lengths), changed


def _reverberate(samples: Tensor, rate_hz: int, config: AudioAugment, draws: Draws) -> Tensor:
    """Sounds in rooms, without what is heard after their end."""
    assert config.reverb_rt60_s is not None
    responses = impulse_responses(
        rt60_s=draws.uniform(*config.reverb_rt60_s), direct_db=draws.uniform(*config.reverb_direct_db),
        longest_s=config.reverb_rt60_s[1], rate_hz=rate_hz, draws=draws,
    )  # fmt: skip
    return convolve(samples, responses)


def _loudness(samples: Tensor, lengths: Tensor) -> Tensor:
    """(B,) root mean square over the real samples."""
    return (samples.square().sum(1) / lengths).sqrt()


def _compress(samples: Tensor, lengths: Tensor, rate_hz: int) -> Tensor:
    """Each sound as a lossy codec leaves it."""
    import soundfile

    changed = torch.zeros(samples.shape)
    for row, sound, length in zip(changed, samples.cpu(), lengths.tolist(), strict=True):
        file = io.BytesIO()
        kind = {"format": "OGG", "subtype": "VORBIS", "compression_level": _CODEC_LEVEL}
        with soundfile.SoundFile(file, "w", rate_hz, 1, **kind) as writer:
            for block in sound[:length].split(_CODEC_BLOCK):
                writer.write(block.numpy())
        file.seek(0)
        row[:length] = torch.from_numpy(soundfile.read(file, dtype="float32")[0])
    return changed.to(samples.device)


def _stretch(size: int, lengths: Tensor, most: Tensor, draws: Draws) -> Tensor:
    """(B, size) bool: one random stretch of 0..most (B,) places inside the first `lengths` (B,)."""
    width = draws.integers(0, most + 1)
    start = draws.integers(0, lengths - width + 1)
    at = torch.arange(size, device=lengths.device)
    return (at >= start[:, None]) & (at < (start + width)[:, None])
