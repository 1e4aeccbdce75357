"""A residual network on log-mel spectrograms, trained from scratch, with a small transformer on top where asked.

Padding never reaches a result: norms see real frames only and leave zeros elsewhere, which is what a convolution pads
with. Shapes: `B` batch, `S` samples, `F` frames, `T` tokens (frames of the last map), `C` channels, `D` width.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors.torch import save_file
from torch import Tensor, nn

from mmbm_core.augment.audio import AudioAugment, augment_waveforms, mask_spectrogram
from mmbm_core.augment.draws import Draws
from mmbm_core.compress.pruning import Group, Slot, transformer_groups
from mmbm_core.compress.stored import load_network
from mmbm_core.encoders.base import ENCODER_FILE, Encoder, EncoderOutput, Item, check_options
from mmbm_core.encoders.mfcc import Waveforms
from mmbm_core.encoders.sound import prepare_sounds
from mmbm_core.encoders.speech import masked_mean
from mmbm_core.errors import MediaError
from mmbm_core.fusion.attention import encoder_layer
from mmbm_core.media import DEFAULT_LIMITS, Limits
from mmbm_core.sample import Modality

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]

_FLOOR = 1e-6
"""Added to mel energies before the logarithm, as MfccEncoder does."""

_TIME_STRIDES = 2
"""So many stages halve time; all halve frequency. At hops of 10 ms a token is 40 ms."""


class LogMelConfig(BaseModel):
    """Sizes of the analysis and of the network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["log_mel"] = "log_mel"
    rate_hz: Annotated[int, Field(ge=1000)] = 16_000
    """Sounds are resampled to this."""
    num_mels: Count = 64
    window_s: Seconds = 0.025
    hop_s: Seconds = 0.010
    trim_db: Annotated[float, Field(gt=0)] = 30.0
    """Ends whose frames are this far below the loudest frame are left out."""
    max_s: Seconds = 30.0
    """Longer sounds are cut here."""
    widths: Annotated[tuple[Count, ...], Field(min_length=1)] = (32, 64, 128)
    """Channels of each stage of the network."""
    width: Count = 128
    """D."""
    layers: Annotated[int, Field(ge=0)] = 0
    """Transformer layers over the tokens."""
    heads: Count = 4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Of the tokens and in the transformer."""

    @model_validator(mode="after")
    def _check(self) -> "LogMelConfig":
        if self.layers and self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of twice the heads ({self.heads})")
        if self.num_mels < 1 << len(self.widths):
            raise ValueError(f"num_mels {self.num_mels} can't be halved {len(self.widths)} times: give fewer widths")
        return self


class LogMelEncoder(Encoder):
    """Log-mel spectrogram -> residual network over time and frequency -> tokens (B, T, D); vector = their mean (B, D).

    Of `augment`, the masks come in `forward` while training: they are of spectrograms.
    """

    modalities = ("audio",)
    core_parts = ("stages", "project", "layers", "norm")
    hann: Tensor
    mels: Tensor

    def __init__(self, config: LogMelConfig | None = None) -> None:
        super().__init__()
        import torchaudio

        self.config = config = config or LogMelConfig()
        self.window, self.hop = (round(s * config.rate_hz) for s in (config.window_s, config.hop_s))
        self.fft = 1 << (self.window - 1).bit_length()
        mels = torchaudio.functional.melscale_fbanks(
            self.fft // 2 + 1, 20.0, config.rate_hz / 2, config.num_mels, config.rate_hz
        )
        self.register_buffer("hann", torch.hann_window(self.window), persistent=False)
        self.register_buffer("mels", mels, persistent=False)
        self.stages = nn.ModuleList(
            _Stage(*pair, time_stride=2 if i < _TIME_STRIDES else 1)
            for i, pair in enumerate(pairwise((1, *config.widths)))
        )
        bands = math.ceil(config.num_mels / (1 << len(config.widths)))
        self.project = nn.Linear(config.widths[-1] * bands, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            encoder_layer(config.width, heads=config.heads, feed_forward=4, dropout=config.dropout)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)

    @property
    def width(self) -> int:
        return self.config.width

    def budget(self, modality: Modality) -> int:
        return (60 if self.device.type == "cpu" else 960) * self.config.rate_hz

    def preprocessing(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json")

    def fast_kernels(self) -> tuple[str, ...]:
        return self.onnx_kernels()

    @property
    def network(self) -> nn.Module:
        return self

    def groups(self) -> list[Group]:
        """The channels of each stage, those inside its residual block, and the neurons of the transformer."""
        found: list[Group] = []
        for place in range(len(self.stages)):
            name, stage = f"stages.{place}", self.stages[place]
            units = int(stage.convs[0].weight.shape[0])  # type: ignore[union-attr, index]
            if place + 1 < len(self.stages):
                reader = Slot(f"stages.{place + 1}.convs.0", reads=True)
            else:
                reader = Slot("project", reads=True, block=self.project.in_features // units)
            made = [f"{name}.{part}" for part in ("convs.0", "norms.0", "convs.2", "norms.2")]
            outer = [*(Slot(each, reads=False) for each in made), Slot(f"{name}.convs.1", reads=True), reader]
            inside = [Slot(f"{name}.convs.1", reads=False), Slot(f"{name}.norms.1", reads=False)]
            inner_units = int(stage.convs[1].weight.shape[0])  # type: ignore[union-attr, index]
            last = Slot(f"{name}.convs.2", reads=True)
            found.append(Group(f"{name}.channels", units, tuple(outer), square=True))
            found.append(Group(f"{name}.inner", inner_units, (*inside, last), square=True))
        return found + transformer_groups(self)

    def save(self, folder: Path) -> None:
        (folder / ENCODER_FILE).write_text(self.config.model_dump_json())
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")

    def prepare(
        self, modality: Modality, values: Sequence[bytes], *, limits: Limits = DEFAULT_LIMITS
    ) -> list[Item | MediaError]:
        """Waveforms (S,) of peak 1 without quiet ends; cost is S."""
        items = prepare_sounds(values, rate_hz=self.config.rate_hz, max_s=self.config.max_s, limits=limits)
        return [item if isinstance(item, MediaError) else self._trim(item) for item in items]

    def _trim(self, item: Item) -> Item:
        peak = np.abs(item.data).max()
        samples = item.data / peak if peak else item.data
        kept = trim_quiet(samples, window=self.window, hop=self.hop, trim_db=self.config.trim_db)
        return Item(kept, cost=len(kept), cut=item.cut)

    def collate(self, modality: Modality, items: Sequence[Item]) -> Waveforms:
        lengths = torch.tensor([item.cost for item in items])
        samples = nn.utils.rnn.pad_sequence([torch.from_numpy(item.data) for item in items], batch_first=True)
        return Waveforms(samples.to(self.device), lengths.to(self.device))

    def augmented(self, modality: Modality, batch: Waveforms) -> Waveforms:
        if not isinstance(self.augment, AudioAugment):
            return batch
        rate_hz, draws = self.config.rate_hz, Draws.fresh(len(batch.samples), batch.samples.device)
        return Waveforms(
            *augment_waveforms(batch.samples, lengths=batch.lengths, rate_hz=rate_hz, config=self.augment, draws=draws)
        )

    def forward(self, modality: Modality, batch: Waveforms) -> EncoderOutput:
        log_mel, frames = self._spectrogram(batch)
        real = torch.arange(log_mel.shape[1], device=log_mel.device) < frames[:, None]
        tokens = self.run_core(log_mel, real)
        mask = real[:, :: 1 << min(_TIME_STRIDES, len(self.config.widths))]
        return EncoderOutput(tokens, mask, masked_mean(tokens, mask))

    def core(self, log_mel: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """(B, F, C), mask (B, F) -> (B, T, D)"""
        x = log_mel[:, None].contiguous(memory_format=torch.channels_last)
        for stage in self.stages:
            x, mask = stage(x, mask)
        tokens = self.dropout(self.project(x.transpose(1, 2).flatten(2)))
        if self.layers:
            tokens = tokens + _positions(tokens)
        for layer in self.layers:
            tokens = layer(tokens, src_key_padding_mask=~mask)
        return self.norm(tokens)  # type: ignore[no-any-return]

    def noise(self, lengths: Sequence[int], *, generator: torch.Generator) -> list[Item]:
        most = round(self.config.max_s * self.config.rate_hz)
        sizes = [min(length * self.hop << _TIME_STRIDES, most) for length in lengths]
        return [Item((torch.rand(size, generator=generator) - 0.5).numpy(), cost=size) for size in sizes]

    def _spectrogram(self, batch: Waveforms) -> tuple[Tensor, Tensor]:
        """Log-mel (B, F, C) of mean 0 and deviation 1 over each sound's frames, and the number of those (B,)."""
        samples, lengths = batch
        with torch.autocast(samples.device.type, enabled=False):  # a logarithm of half-precision sums is too coarse
            spectrum = torch.stft(
                samples, self.fft, self.hop, self.window, self.hann, pad_mode="constant", return_complex=True
            )
            power = spectrum.real.square() + spectrum.imag.square()
            frames = 1 + lengths // self.hop
            log_mel = _standardise(torch.log(power.transpose(1, 2) @ self.mels + _FLOOR), frames)
            if self.training and isinstance(self.augment, AudioAugment):
                draws = Draws.fresh(len(log_mel), log_mel.device)
                log_mel = mask_spectrogram(log_mel, frames=frames, config=self.augment, draws=draws)
            return log_mel, frames


class _Stage(nn.Module):
    """Halve frequency and maybe time, then a residual block (He et al., 1512.03385)."""

    def __init__(self, width_in: int, width_out: int, *, time_stride: int) -> None:
        super().__init__()
        self.time_stride = time_stride
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width_out, 3, stride, padding=1, bias=False)
            for width, stride in ((width_in, (time_stride, 2)), (width_out, 1), (width_out, 1))
        )
        self.norms = nn.ModuleList(_RealNorm(width_out) for _ in self.convs)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, T, bands), zero where `mask` (B, T) is False -> the same of the next map."""
        mask = mask[:, :: self.time_stride]
        x = self.norms[0](self.convs[0](x), mask).relu()
        y = self.norms[1](self.convs[1](x), mask).relu()
        return (x + self.norms[2](self.convs[2](y), mask)).relu(), mask


class _RealNorm(nn.BatchNorm1d):
    """Batch norm over real frames; padding becomes zero."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """(B, C, T, bands) by mask (B, T)."""
        if not self.training:
            normed = nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
            return normed.masked_fill(~mask[:, None, :, None], 0)
        rows = x.permute(0, 2, 3, 1)
        real = rows[mask]
        normed = torch.zeros_like(rows)
        normed[mask] = super().forward(real.flatten(0, 1)).view_as(real)
        return normed.permute(0, 3, 1, 2)


def _standardise(log_mel: Tensor, frames: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over the real frames of each sound (B, F, C); zero in its padding."""
    real = (torch.arange(log_mel.shape[1], device=log_mel.device) < frames[:, None])[..., None]
    count = frames[:, None, None] * log_mel.shape[2]
    centred = (log_mel - (log_mel * real).sum((1, 2), keepdim=True) / count) * real
    return centred / (centred.square().sum((1, 2), keepdim=True) / count).sqrt().clamp(min=1e-3)


def _positions(tokens: Tensor) -> Tensor:
    """Sines and cosines (T, D) of the place of each token (Vaswani et al., 1706.03762, 3.5)."""
    length, width = tokens.shape[1:]
    rates = torch.exp(torch.arange(0, width, 2, device=tokens.device) * (-math.log(10_000) / width))
    angles = torch.arange(length, device=tokens.device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).to(tokens.dtype)


def trim_quiet(samples: np.ndarray, *, window: int, hop: int, trim_db: float) -> np.ndarray:
    """(S,) without the ends whose windows are `trim_db` below the loudest window."""
    ends = np.arange(hop, len(samples) + hop, hop).clip(max=len(samples))
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    power = (energy[ends] - energy[(ends - window).clip(min=0)]) / window
    loud = np.flatnonzero(power >= power.max() * 10 ** (-trim_db / 10))
    return samples[max(0, ends[loud[0]] - window) : ends[loud[-1]]]


def load_log_mel(folder: Path, **config: Any) -> LogMelEncoder:
    """What `LogMelEncoder.save` wrote.

    Args:
        config: fields of LogMelConfig.

    Raises:
        UsageError: an option that is none of them.
    """
    check_options(config, *LogMelConfig.model_fields)
    encoder = LogMelEncoder(LogMelConfig(**config))
    load_network(encoder, folder)
    return encoder
