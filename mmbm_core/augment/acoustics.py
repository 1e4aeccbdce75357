"""Noise and rooms, generated.

Shapes: `B` sounds, `S` samples, `K` samples of a filter.
"""

from typing import Literal

import torch
from torch import Tensor

from mmbm_core.augment.draws import Draws

Colour = Literal["white", "pink"]

_LEAST_PINK_HZ = 20.0
_FIRST_WALL_S = 0.005
"""The first reflection comes this much after the direct sound: a wall more than a metre away."""


def noise(count: int, colour: Colour, *, rate_hz: int, draws: Draws) -> Tensor:
    """(B, count) Gaussian noise; a larger count begins with the same samples.

    The power of pink noise falls as 1 / f above 20 Hz: white noise through the filter (1 - 1/z)^(-1/2) (Kasdin, 1995,
    eq. 104).
    """
    if colour == "white":
        return draws.normal(count)
    at = torch.arange(1, round(rate_hz / _LEAST_PINK_HZ), dtype=torch.float32)
    taps = torch.cat([torch.ones(1), ((at - 0.5) / at).cumprod(0)])
    white = draws.normal(len(taps) - 1 + count)
    return convolve(white, taps.to(white.device)[None])[:, len(taps) - 1 :]


def impulse_responses(*, rt60_s: Tensor, direct_db: Tensor, longest_s: float, rate_hz: int, draws: Draws) -> Tensor:
    """(B, K): the direct sound, which is 1, then Gaussian noise that decays exponentially (Polack's model, 1988).

    Args:
        rt60_s: (B,) time in which the reverberation falls by 60 dB.
        direct_db: (B,) energy of the direct sound over that of the reverberation.
        longest_s: of K; at least the longest `rt60_s`.
    """
    count = round(longest_s * rate_hz)
    time_s = torch.arange(count, device=rt60_s.device) / rate_hz
    tail = draws.normal(count) * 10 ** (-3 * time_s / rt60_s[:, None])
    tail = tail * (time_s >= _FIRST_WALL_S)
    energy = tail.square().sum(1, keepdim=True).clamp(min=1e-12)
    response = tail * (10 ** (-direct_db / 10))[:, None].div(energy).sqrt()
    response[:, 0] = 1
    return response


def convolve(samples: Tensor, filters: Tensor) -> Tensor:
    """(B, S): the beginnings of sounds (B, S) through filters (B, K) or (1, K), by FFT."""
    size = 1 << (samples.shape[1] + filters.shape[1] - 2).bit_length()
    spectrum = torch.fft.rfft(samples, size) * torch.fft.rfft(filters, size)
    return torch.fft.irfft(spectrum, size)[:, : samples.shape[1]]
