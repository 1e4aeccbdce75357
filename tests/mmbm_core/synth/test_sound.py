"""Speech and rooms: as long as the words take, as loud over the noise as labelled, the same whenever it is said."""

import ctypes
import io
import time
from typing import Any

import numpy as np
import pytest
import soundfile

from mmbm_core.synth import SpeechUnavailable, acoustics, make_row

pytest.importorskip("espeakng_loader")
from mmbm_core.synth import speech

TEXT = "Two small red circles are to the left of a large blue square on a striped white background."


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [make_row(index, seed=51) for index in range(24)]


def say(text: str = TEXT, voice: str = "en-us+f2", speed_wpm: int = 170, pitch: int = 50) -> np.ndarray:
    return speech.speak(text, voice=voice, speed_wpm=speed_wpm, pitch=pitch)


def pitch_hz(samples: np.ndarray) -> float:
    """Median pitch of the loud 50 ms windows, by autocorrelation between 60 and 400 Hz."""
    size, found = speech.VOICE_RATE_HZ // 20, []
    windows = samples[: len(samples) // size * size].reshape(-1, size).astype(np.float64)
    loudness = windows.std(1)
    for window in windows[loudness > np.percentile(loudness, 70)]:
        spectrum = np.abs(np.fft.rfft(window - window.mean(), 2 * size)) ** 2
        correlation = np.fft.irfft(spectrum)[: speech.VOICE_RATE_HZ // 60]
        shortest = speech.VOICE_RATE_HZ // 400
        found.append(speech.VOICE_RATE_HZ / (shortest + np.argmax(correlation[shortest:])))
    return float(np.median(found))


def test_speech_lasts_as_long_as_its_words_take(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        sound, rate_hz = soundfile.read(io.BytesIO(row["audio"]))
        info = soundfile.info(io.BytesIO(row["audio"]))
        assert (info.format, info.subtype, info.channels, rate_hz) == ("FLAC", "PCM_16", 1, acoustics.SAMPLE_RATE_HZ)
        expected_s = 60 * len(row["text"].split()) / row["speed_wpm"]
        assert 0.6 * expected_s < len(sound) / rate_hz - 2 * acoustics.LEAD_S < 1.8 * expected_s + 0.4
        assert sound.std() > 0.02 and 0.4 < np.abs(sound).max() < 0.75


def test_noise_is_as_loud_as_labelled(rows: list[dict[str, Any]]) -> None:
    checked = 0
    for row in rows:
        sound, rate_hz = soundfile.read(io.BytesIO(row["audio"]))
        lead = int(acoustics.LEAD_S * rate_hz)
        noise, mixed = np.mean(sound[: lead - 100] ** 2), np.mean(sound[lead:-lead] ** 2)
        if row["room"] == "dry" and row["noise"] != "pink":  # reverberation and slow noise blur this simple estimate
            assert abs(10 * np.log10(mixed / noise - 1) - row["snr_db"]) < 1.5, row["id"]
            checked += 1
    assert checked >= 3


def test_a_hall_rings_for_its_reverberation_time() -> None:
    """Schroeder's backward integral of the response falls by 60 dB in the labelled time."""
    response = acoustics.impulse_response("hall", rate_hz=16_000, rng=np.random.default_rng(0))[100:]
    decay_db = 10 * np.log10(np.cumsum(response[::-1] ** 2)[::-1] / np.sum(response**2))
    at_5, at_25 = (np.argmax(decay_db < level) / 16_000 for level in (-5, -25))
    assert 3 * (at_25 - at_5) == pytest.approx(0.8, rel=0.15)


def test_resampling_keeps_a_tone() -> None:
    """A 1 kHz tone at 22,050 Hz is a 1 kHz tone at 16 kHz, and a 9 kHz one, above the new limit, is gone."""
    time_s = np.arange(22_050) / 22_050
    tones = np.sin(2 * np.pi * 1000 * time_s) + np.sin(2 * np.pi * 9000 * time_s)
    sound = acoustics.stage(
        tones, voice_rate_hz=22_050, room="dry", noise="white", snr_db=60, rng=np.random.default_rng(0)
    )
    middle = sound[4000 : 4000 + 16_000]
    spectrum = np.abs(np.fft.rfft(middle))
    assert np.argmax(spectrum) == 1000
    assert np.sum(spectrum[990:1011] ** 2) > 0.999 * np.sum(spectrum**2)


def test_state_does_not_leak_from_one_utterance_to_the_next() -> None:
    voices = ("en-us+f2", "en-gb-scotland+m7", "en-029+Alicia", "en+f5", "en-us-nyc+victor")
    first = {voice: say(voice=voice) for voice in voices}
    time.sleep(1.1)  # espeak-ng would seed breathy voices from the clock's second
    for voice in reversed(voices):
        say("Something else.", voice="en-us+m1", speed_wpm=210, pitch=20)
        assert np.array_equal(say(voice=voice), first[voice])


def test_somebody_elses_espeak_in_the_process_changes_nothing() -> None:
    before = say()
    held = ctypes.CDLL(speech._locate()[0])
    try:
        say("Something else.")
        assert np.array_equal(say(), before)
    finally:
        speech._unload(held)


def test_speed_pitch_and_voice_are_heard() -> None:
    slow, fast = len(say(speed_wpm=130)), len(say(speed_wpm=210))
    assert 1.3 < slow / fast < 1.9
    assert pitch_hz(say(voice="en-us+m3", pitch=75)) > 1.2 * pitch_hz(say(voice="en-us+m3", pitch=25))
    assert pitch_hz(say(voice="en-us+f2")) > 1.2 * pitch_hz(say(voice="en-us+m3"))
    assert len({say("A star.", voice=voice).tobytes() for voice in speech.VOICES[::7]}) == len(speech.VOICES[::7])


def test_an_unknown_voice_is_refused() -> None:
    with pytest.raises(SpeechUnavailable, match=r"no voice 'xx'.*VOICES"):
        say(voice="xx")
