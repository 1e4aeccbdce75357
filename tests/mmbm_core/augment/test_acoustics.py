"""Generated noise has its spectrum, generated rooms the reverberation asked for."""

import numpy as np
import pytest
import torch
from scipy import signal

from mmbm_core.augment.acoustics import convolve, impulse_responses, noise
from mmbm_core.augment.draws import Draws

RATE_HZ = 16_000


@pytest.mark.parametrize(("colour", "slope"), [("white", 0), ("pink", -10)])
def test_noise_has_its_slope(colour: str, slope: float) -> None:
    """In dB a decade, by Welch's method."""
    samples = noise(60 * RATE_HZ, colour, rate_hz=RATE_HZ, draws=Draws(torch.tensor([1])))[0].numpy()  # type: ignore[arg-type]
    hertz, power = signal.welch(samples, RATE_HZ, nperseg=1 << 13)
    inside = (hertz > 40) & (hertz < 3000)
    assert np.polyfit(np.log10(hertz[inside]), 10 * np.log10(power[inside]), 1)[0] == pytest.approx(slope, abs=0.5)
    start, end = samples[: 10 * RATE_HZ].std(), samples[-10 * RATE_HZ :].std()
    assert start == pytest.approx(end, rel=0.15)  # no silence while the filter fills


@pytest.mark.parametrize("rt60_s", [0.15, 0.5, 1.2])
def test_reverberation_falls_as_asked(rt60_s: float) -> None:
    """By Schroeder's backward integration (1965), between -5 and -25 dB."""
    wanted = torch.full((8,), rt60_s)
    responses = impulse_responses(
        rt60_s=wanted, direct_db=torch.zeros(8), longest_s=1.2, rate_hz=RATE_HZ, draws=Draws(torch.arange(8))
    )
    assert responses.shape == (8, 1.2 * RATE_HZ)
    for tail in responses[:, 1:].double().numpy():
        level_db = 10 * np.log10(np.cumsum(tail[::-1] ** 2)[::-1] + 1e-30)
        level_db -= level_db[0]
        inside = (level_db < -5) & (level_db > -25)
        slope = np.polyfit(np.flatnonzero(inside) / RATE_HZ, level_db[inside], 1)[0]
        assert -60 / slope == pytest.approx(rt60_s, rel=0.15)


def test_the_direct_sound_is_first_and_as_strong_as_asked() -> None:
    direct_db = torch.tensor([-3.0, 0, 12])
    responses = impulse_responses(
        rt60_s=torch.full((3,), 0.3), direct_db=direct_db, longest_s=0.3, rate_hz=RATE_HZ, draws=Draws(torch.arange(3))
    )
    assert (responses[:, 0] == 1).all() and not responses[:, 1:80].any()
    torch.testing.assert_close(-10 * responses[:, 1:].square().sum(1).log10(), direct_db, atol=1e-3, rtol=0)


def test_convolution_is_that_of_numpy() -> None:
    samples, filters = (torch.randn(2, n, generator=torch.Generator().manual_seed(0)) for n in (500, 77))
    for found, *pair in zip(convolve(samples, filters), samples, filters, strict=True):
        wanted = np.convolve(*(each.numpy() for each in pair))[:500]
        np.testing.assert_allclose(found.numpy(), wanted, atol=1e-4)
