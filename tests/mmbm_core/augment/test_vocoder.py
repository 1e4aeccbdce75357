"""The vocoder against torchaudio's, and on tones of known pitch."""

import math

import pytest
import torch
import torchaudio

from mmbm_core.augment.vocoder import _stretch, read_at, shift_pitch

RATE_HZ = 16_000


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.4])
def test_stretching_is_that_of_torchaudio(factor: float) -> None:
    samples = torch.randn(3, 8000, generator=torch.Generator().manual_seed(0)).double()
    spectrum = torch.stft(samples, 512, 128, window=torch.hann_window(512).double(), return_complex=True)
    advance = 2 * math.pi * 128 / 512 * torch.arange(257).double()
    found = _stretch(spectrum, torch.full((3,), factor).double(), advance=advance)
    wanted = torchaudio.functional.phase_vocoder(spectrum, 1 / factor, advance[:, None])
    frames = min(found.shape[2], wanted.shape[2]) - 2  # beyond the last frame torchaudio fades out
    assert frames > spectrum.shape[2] * factor - 4
    torch.testing.assert_close(found[..., :frames], wanted[..., :frames], atol=1e-4, rtol=1e-4)


def test_a_chord_is_transposed() -> None:
    at = torch.arange(RATE_HZ) / RATE_HZ
    chord = sum(torch.sin(2 * math.pi * hertz * at) for hertz in (220, 331, 440))
    semitones = torch.tensor([-12.0, -5, 0, 3, 12])
    changed = shift_pitch(chord.expand(5, -1), semitones, rate_hz=RATE_HZ)  # type: ignore[union-attr]
    assert changed.shape == (5, RATE_HZ)
    power = torch.fft.rfft(changed * torch.hann_window(RATE_HZ)).abs()  # a bin is 1 Hz
    for row, moved in zip(power, semitones.tolist(), strict=True):
        for hertz in (220, 331, 440):
            wanted = hertz * 2 ** (moved / 12)
            near = row[int(wanted * 0.9) : int(wanted * 1.1)]
            assert int(near.argmax()) + int(wanted * 0.9) == pytest.approx(wanted, rel=0.02)
            assert near.max() > 0.3 * row.max()


def test_no_pitch_beyond_the_highest_is_mirrored() -> None:
    tone = torch.sin(2 * math.pi * 6000 * torch.arange(RATE_HZ) / RATE_HZ)[None]
    assert shift_pitch(tone, torch.tensor([12.0]), rate_hz=RATE_HZ).square().mean() < 1e-3 * tone.square().mean()


def test_values_between_samples() -> None:
    samples = torch.tensor([[0.0, 10, 20, 99], [5.0, 5, 5, 5]])
    place = torch.tensor([[-0.5, 0, 0.5, 1.75, 2, 2.5, 3]]).repeat(2, 1)
    found = read_at(samples, place, torch.tensor([3, 4]))
    assert found.tolist() == [[0, 0, 5, 17.5, 20, 20, 0], [0, 5, 5, 5, 5, 5, 5]]
