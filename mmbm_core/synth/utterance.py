"""A text said aloud: by a voice, in a room, under a noise that a generator draws."""

from typing import Any, NamedTuple

import numpy as np

from mmbm_core.synth import acoustics, speech
from mmbm_core.synth.scene import choose


class Utterance(NamedTuple):
    """What was said, and how."""

    audio: bytes
    """FLAC."""
    facts: dict[str, Any]
    """voice, speed_wpm, pitch, room, noise, snr_db."""


def utter(text: str, *, voices: np.random.Generator, sounds: np.random.Generator) -> Utterance:
    """Say `text`.

    Args:
        voices: draws who says it.
        sounds: draws the room and the noise.

    Raises:
        SpeechUnavailable: espeak-ng isn't installed.
    """
    voice: dict[str, Any] = {
        "voice": choose(voices, speech.VOICES),
        "speed_wpm": int(voices.integers(*speech.SPEED_WPM, endpoint=True)),
        "pitch": int(voices.integers(*speech.PITCH, endpoint=True)),
    }
    setting: dict[str, Any] = {
        "room": choose(sounds, acoustics.ROOMS),
        "noise": choose(sounds, acoustics.NOISES),
        "snr_db": float(round(sounds.uniform(*acoustics.SNR_DB), 1)),
    }
    spoken = speech.speak(text, **voice)
    heard = acoustics.stage(spoken, voice_rate_hz=speech.VOICE_RATE_HZ, rng=sounds, **setting)
    return Utterance(acoustics.encode_flac(heard), {**voice, **setting})
