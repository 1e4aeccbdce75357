"""Sound without weights: means and deviations of MFCCs and their deltas over equal segments of time.

A sound is scaled to peak 1 and its quiet ends are left out first, so that neither loudness nor the moment of pressing
the button changes the vector.

Shapes: `B` batch, `S` samples, `F` frames, `C` coefficients, `K` segments.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from mmbm_core.encoders.base import ENCODER_FILE, Encoder, EncoderOutput, Item
from mmbm_core.encoders.sound import prepare_sounds
from mmbm_core.errors import MediaError
from mmbm_core.media import DEFAULT_LIMITS, Limits
from mmbm_core.sample import Modality


class MfccConfig(BaseModel):
    """Sizes of the analysis."""

    model_config = ConfigDict(frozen=True)

    rate_hz: int = 16_000
    num_coefficients: int = 20
    num_segments: int = 8
    num_mels: int = 40
    window_s: float = 0.025
    hop_s: float = 0.010
    delta_frames: int = 2
    trim_db: float = 30.0
    """Ends whose frames are this far below the loudest frame are left out."""
    max_s: float = 300.0


class Waveforms(NamedTuple):
    """Sounds of a batch."""

    samples: Tensor
    """(B, S), zero-padded at the end."""
    lengths: Tensor
    """(B,): real samples of each."""


class MfccEncoder(Encoder):
    """MFCC statistics (B, K x C x 4): per segment means and deviations of the coefficients and of their deltas."""

    modalities = ("audio",)
    hann: Tensor
    mels: Tensor
    dct: Tensor

    def __init__(self, config: MfccConfig | None = None) -> None:
        super().__init__()
        import torchaudio

        self.config = config or MfccConfig()
        window = round(self.config.window_s * self.config.rate_hz)
        self.window, self.hop = window, round(self.config.hop_s * self.config.rate_hz)
        fft = 1 << (window - 1).bit_length()
        self.fft = fft
        self.register_buffer("hann", torch.hann_window(window), persistent=False)
        mels = torchaudio.functional.melscale_fbanks(
            fft // 2 + 1, 20.0, self.config.rate_hz / 2, self.config.num_mels, self.config.rate_hz
        )
        dct = torchaudio.functional.create_dct(self.config.num_coefficients, self.config.num_mels, norm="ortho")
        self.register_buffer("mels", mels, persistent=False)
        self.register_buffer("dct", dct, persistent=False)

    def save(self, folder: Path) -> None:
        (folder / ENCODER_FILE).write_text(json.dumps({"kind": "mfcc", **self.config.model_dump()}))

    @property
    def width(self) -> int:
        return self.config.num_segments * self.config.num_coefficients * 4

    def budget(self, modality: Modality) -> int:
        return 30 * self.config.rate_hz

    def fast_kernels(self) -> tuple[str, ...]:
        return ()

    def preprocessing(self) -> dict[str, Any]:
        return {"kind": "mfcc", **self.config.model_dump()}

    def prepare(
        self, modality: Modality, values: Sequence[bytes], *, limits: Limits = DEFAULT_LIMITS
    ) -> list[Item | MediaError]:
        items = prepare_sounds(values, rate_hz=self.config.rate_hz, max_s=self.config.max_s, limits=limits)
        return [item if isinstance(item, MediaError) else self._level(item) for item in items]

    def _level(self, item: Item) -> Item:
        """Peak 1, without quiet ends; silence stays as it is."""
        peak = np.abs(item.data).max()
        if peak == 0:
            return item
        samples = item.data / peak
        ends = np.arange(self.hop, len(samples) + self.hop, self.hop).clip(max=len(samples))
        energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
        power = (energy[ends] - energy[(ends - self.window).clip(min=0)]) / self.window
        loud = np.flatnonzero(power >= power.max() * 10 ** (-self.config.trim_db / 10))
        kept = samples[max(0, ends[loud[0]] - self.window) : ends[loud[-1]]]
        return Item(kept, cost=len(kept), cut=item.cut)

    def collate(self, modality: Modality, items: Sequence[Item]) -> Waveforms:
        lengths = torch.tensor([item.cost for item in items])
        samples = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(item.data) for item in items], batch_first=True)
        return Waveforms(samples.to(self.device), lengths.to(self.device))

    def forward(self, modality: Modality, batch: Waveforms) -> EncoderOutput:
        coefficients = self._mfcc(batch.samples)
        frames = 1 + batch.lengths // self.hop
        deltas = _deltas(coefficients, frames, self.config.delta_frames)
        tokens = torch.cat([coefficients, deltas], dim=-1)
        mask = torch.arange(tokens.shape[1], device=tokens.device) < frames[:, None]
        precise = tokens.double()  # a difference of squares: in float32 the rounding would differ from batch to batch
        mean = _segment_means(precise, frames, self.config.num_segments)
        variance = _segment_means(precise.square(), frames, self.config.num_segments) - mean.square()
        vector = torch.cat([mean, variance.clamp(min=0).sqrt()], dim=-1).flatten(1).float()
        return EncoderOutput(tokens, mask, vector)

    def _mfcc(self, samples: Tensor) -> Tensor:
        """(B, S) -> (B, F, C): the natural log of mel energies, then a DCT, as torchaudio's MFCC(log_mels=True)."""
        spectrum = torch.stft(
            samples, self.fft, self.hop, len(self.hann), self.hann, pad_mode="constant", return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()
        return torch.log(power.transpose(1, 2) @ self.mels + 1e-6) @ self.dct


def _deltas(values: Tensor, frames: Tensor, reach: int) -> Tensor:
    """Slopes over 2 x reach + 1 frames of (B, F, C); the first and last real frames repeat beyond their ends."""
    at = torch.arange(values.shape[1], device=values.device)
    total = torch.zeros_like(values)
    for n in range(1, reach + 1):
        total += n * (_frame(values, at + n, frames) - _frame(values, at - n, frames))
    return total / (2 * sum(n * n for n in range(1, reach + 1)))


def _frame(values: Tensor, at: Tensor, frames: Tensor) -> Tensor:
    index = at[None, :].clamp(min=0).minimum(frames[:, None] - 1)
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def _segment_means(values: Tensor, frames: Tensor, num_segments: int) -> Tensor:
    """(B, F, C) -> (B, K, C): means over K equal parts of each row's own frames (as adaptive average pooling)."""
    k = torch.arange(num_segments, device=values.device)
    starts = (k * frames[:, None]) // num_segments
    stops = ((k + 1) * frames[:, None] + num_segments - 1) // num_segments
    at = torch.arange(values.shape[1], device=values.device)
    inside = (at >= starts[..., None]) & (at < stops[..., None])
    return inside.to(values.dtype) @ values / (stops - starts)[..., None]
