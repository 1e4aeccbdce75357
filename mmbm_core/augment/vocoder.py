"""Pitch without duration.

Shapes: `B` sounds, `S` samples, `N` bands, `T` frames.
"""

import math

import torch
from torch import Tensor

_WINDOW_S = 0.06


def shift_pitch(samples: Tensor, semitones: Tensor, *, rate_hz: int) -> Tensor:
    """Sounds at another pitch that last as long: stretched by a phase vocoder (Flanagan and Golden, 1966; Laroche and
    Dolson, 1999, eq. 3 to 6), then played faster or slower by as much.

    Args:
        samples: (B, S) float, zero-padded at the end.
        semitones: (B,) -12 .. 12.

    Returns:
        (B, S).
    """
    factor = 2 ** (semitones / 12)
    size = 1 << round(math.log2(_WINDOW_S * rate_hz))
    hop, window = size // 4, torch.hann_window(size, device=samples.device)
    padded = torch.nn.functional.pad(samples, (0, size))  # every frame that a sample is in, however long the padding
    spectrum = torch.stft(padded, size, hop, window=window, pad_mode="constant", return_complex=True)
    bands = torch.arange(size // 2 + 1, device=samples.device)
    audible = bands < len(bands) / factor[:, None]  # the others would come back below, mirrored
    stretched = _stretch(spectrum * audible[..., None], factor, advance=2 * math.pi * hop / size * bands)
    slow = torch.istft(stretched, size, hop, window=window)
    place = torch.arange(samples.shape[1], device=samples.device) * factor[:, None].double()
    return read_at(slow, place, torch.full_like(factor, slow.shape[1]).long())


def _stretch(spectrum: Tensor, factor: Tensor, advance: Tensor) -> Tensor:
    """Spectra (B, N, T) with `factor` (B,) times as many frames, their phases turning as fast as before.

    Args:
        advance: (N,) of the phase of each band's middle in a frame, in radians.
    """
    count = math.ceil(spectrum.shape[2] * float(factor.max())) + 1
    place = torch.arange(count, device=spectrum.device) / factor[:, None]
    low = place.long().clamp(max=spectrum.shape[2] - 1)
    index = torch.stack([low, (low + 1).clamp(max=spectrum.shape[2] - 1)])[:, :, None].expand(-1, -1, len(advance), -1)
    before, after = (spectrum.gather(2, each) for each in index)
    share = (place - low)[:, None]
    size = torch.lerp(before.abs(), after.abs(), share.clamp(max=1)) * (share <= 1)
    turned = after.angle() - before.angle() - advance[:, None]
    turned = turned - 2 * math.pi * (turned / (2 * math.pi)).round() + advance[:, None]
    phase = torch.cat([before.angle()[..., :1], turned[..., :-1]], dim=2).cumsum(2)
    return torch.polar(size, phase)


def read_at(samples: Tensor, place: Tensor, lengths: Tensor) -> Tensor:
    """(B, S'): sounds (B, S) at places (B, S') between samples, interpolated linearly; zero outside `lengths` (B,)."""
    low, last = place.floor().long(), (lengths - 1)[:, None]
    values = torch.lerp(
        samples.gather(1, low.clamp(min=0).minimum(last)),
        samples.gather(1, (low + 1).clamp(min=0).minimum(last)),
        (place - low).to(samples.dtype),
    )
    return values * ((low >= 0) & (low <= last))
