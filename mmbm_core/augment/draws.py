"""Random numbers of samples, each a function of the sample's seed alone: not of its batch, its place there, its padding
or the device.

Shapes: `B` samples.
"""

import hashlib

import torch
from torch import Tensor

_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_FACTORS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))


class Draws:
    """A stream of numbers for each of B samples, by hashing its seed and a counter (SplitMix64, Steele et al., 2014).

    Every call moves all streams on by one, so the numbers also depend on which calls came before.

    Args:
        seeds: (B,) int64; numbers are made on its device.
    """

    def __init__(self, seeds: Tensor) -> None:
        self._state = _hash(seeds)

    @classmethod
    def fresh(cls, count: int, device: torch.device) -> "Draws":
        """Of `count` samples whose seeds torch's global generator on the CPU draws."""
        return cls(torch.randint(1 << 62, (count,)).to(device))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(B,) float32 in low .. high."""
        return low + (high - low) * _fraction(self._bits(1)[:, 0])

    def integers(self, low: int, high: int | Tensor) -> Tensor:
        """(B,) int64 from `low` to below `high`, which may be (B,) and is at most 2^31 away."""
        return low + ((high - low) * _shift(self._bits(1)[:, 0], 32) >> 32)

    def normal(self, count: int) -> Tensor:
        """(B, count) float32, standard normal (Box and Muller, 1958); a larger count begins with the same numbers."""
        bits = self._bits(-(-count // 2))
        radius = (-2 * ((_shift(bits, 32).float() + 1) * 2**-32).log()).sqrt()
        angle = 2 * torch.pi * _fraction(bits << 32)
        return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2).flatten(1)[:, :count]

    def _bits(self, count: int) -> Tensor:
        """(B, count) int64, all bits random."""
        self._state = self._state + _STEP
        start = _hash(self._state)
        return _hash(start[:, None] + torch.arange(count, device=start.device) * _STEP)


def sample_seed(*parts: int | str) -> int:
    """The seed, from 0 to below 2^62, that names such as (run's seed, epoch, row's id) stand for."""
    digest = hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) >> 2


def _hash(x: Tensor) -> Tensor:
    """SplitMix64's finaliser; int64 products wrap around."""
    x = (x ^ _shift(x, 30)) * _FACTORS[0]
    x = (x ^ _shift(x, 27)) * _FACTORS[1]
    return x ^ _shift(x, 31)


def _shift(x: Tensor, places: int) -> Tensor:
    """To the right, zeros coming in: torch's own shift repeats the sign."""
    return (x >> places) & ((1 << (64 - places)) - 1)


def _fraction(x: Tensor) -> Tensor:
    """float32 in [0, 1) of the 24 highest bits."""
    return _shift(x, 40).float() * 2**-24
