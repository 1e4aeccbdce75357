"""A room around a clean voice, and noise over it, at a known signal-to-noise ratio."""

import io
import math

import numpy as np
import soundfile

SAMPLE_RATE_HZ = 16_000

ROOMS = ("dry", "small", "hall")
NOISES = ("white", "pink", "hum")
SNR_DB = (5.0, 30.0)
# Time in which the reverberation falls by 60 dB, and its energy beside the direct sound's.
_RT60_S = {"small": 0.25, "hall": 0.8}
_REVERB_ENERGY = {"small": 0.25, "hall": 0.5}
LEAD_S = 0.25
_PEAK = 0.7


def stage(
    voice: np.ndarray, *, voice_rate_hz: int, room: str, noise: str, snr_db: float, rng: np.random.Generator
) -> np.ndarray:
    """Set a clean voice in a room, under noise, with `LEAD_S` seconds of noise alone before and after it.

    Args:
        voice: `(samples,)` int16 or float at `voice_rate_hz`; a multiple of 50 Hz.
        snr_db: power of the reverberant voice over that of the noise, both over the length of the voice.

    Returns:
        `(samples,)` float32 at `SAMPLE_RATE_HZ`, peak 0.7.
    """
    # Filtering and resampling are one product of spectra: pad to a length that both rates divide, cut the spectrum.
    step = math.gcd(voice_rate_hz, SAMPLE_RATE_HZ)
    lead, tail = int(LEAD_S * voice_rate_hz), int((LEAD_S + _RT60_S.get(room, 0) / 2) * voice_rate_hz)
    num_in = lead + len(voice) + tail
    blocks = _fast_length(math.ceil(num_in * step / voice_rate_hz))
    size_in, size_out = blocks * (voice_rate_hz // step), blocks * (SAMPLE_RATE_HZ // step)
    padded = np.zeros(size_in, np.float32)
    padded[lead : lead + len(voice)] = voice
    spectrum = np.fft.rfft(padded)
    if room != "dry":
        spectrum *= np.fft.rfft(impulse_response(room, rate_hz=voice_rate_hz, rng=rng), size_in)
    speech = np.fft.irfft(spectrum[: size_out // 2 + 1], size_out)
    num_out, start, stop = (at * SAMPLE_RATE_HZ // voice_rate_hz for at in (num_in, lead, lead + len(voice)))
    spoken = slice(start, stop)
    disturbance = _noise(noise, size_out, rng)
    ratio = np.sqrt(np.mean(speech[spoken] ** 2) / np.mean(disturbance[spoken] ** 2)) * 10 ** (-snr_db / 20)
    mixed: np.ndarray = (speech + ratio * disturbance)[:num_out].astype(np.float32)
    return mixed * np.float32(_PEAK / np.abs(mixed).max())


def impulse_response(room: str, *, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """A room as `(samples,)`: the direct sound, then noise that decays exponentially (Polack's model, 1988)."""
    if room == "dry":
        return np.ones(1, np.float32)
    time_s = np.arange(int(_RT60_S[room] * rate_hz), dtype=np.float32) / rate_hz
    response = rng.standard_normal(len(time_s), np.float32) * 10 ** (-3 * time_s / _RT60_S[room])
    response[: int(0.005 * rate_hz)] = 0  # the first wall is more than a metre away
    response *= np.sqrt(_REVERB_ENERGY[room] / np.sum(response**2))
    response[0] = 1
    return response


def encode_flac(waveform: np.ndarray) -> bytes:
    """Mono 16-bit FLAC at `SAMPLE_RATE_HZ`."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _noise(kind: str, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """White noise, pink noise (power falls as 1 / f) or mains hum with a little white noise, `(num_samples,)`."""
    white = rng.standard_normal(num_samples, np.float32)
    if kind == "white":
        return white
    if kind == "hum":
        mains_hz = 50 if rng.random() < 0.5 else 60
        phase = 2 * math.pi * mains_hz / SAMPLE_RATE_HZ * np.arange(SAMPLE_RATE_HZ)  # one second, then again
        hum = sum(np.sin(harmonic * phase) / harmonic for harmonic in (1, 2, 3, 5))
        return 0.1 * white + np.resize(np.float32(hum), num_samples)
    spectrum = np.fft.rfft(white)
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum), dtype=np.float32), 1))
    return np.fft.irfft(spectrum, num_samples)


def _fast_length(at_least: int) -> int:
    """The next even number with no prime factor above 5, for which the FFT is fast."""
    size = at_least + at_least % 2
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 2
