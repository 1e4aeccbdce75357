"""English speech from espeak-ng, the same samples for the same arguments whatever was said before.

espeak-ng carries state from one utterance to the next (the phase of the voice's flutter, for one) that no call resets;
only a freshly loaded library starts equal. So each utterance loads the library, speaks and unloads it, which costs
about a millisecond. The noise of breathy voices is seeded from the clock unless we seed it.
"""

import atexit
import ctypes
import os
import shutil
import sys
import tempfile
import threading
from functools import cache

import numpy as np

from mmbm_core.errors import UsageError

VOICE_RATE_HZ = 22_050

ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc")
SPEAKERS = (
    *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5", "Alex", "Alicia", "Andrea", "Andy"),
    *("Annie", "Denis", "Diogo", "Gene", "Jacky", "Michael", "Mike", "adam", "anika", "belinda", "benjamin", "boris"),
    *("david", "edward", "ian", "linda", "marcelo", "max", "pablo", "quincy", "rob", "steph", "victor"),
)
VOICES = tuple(f"{accent}+{speaker}" for accent in ACCENTS for speaker in SPEAKERS)
SPEED_WPM = (130, 210)
PITCH = (25, 75)

_INITIALIZE_SYNCHRONOUS, _INITIALIZE_DONT_EXIT, _CHARS_UTF8 = 2, 0x8000, 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
_LOCK = threading.Lock()


class SpeechUnavailable(UsageError):
    """espeak-ng isn't installed, can't be loaded, or lacks a voice."""


def speak(text: str, *, voice: str, speed_wpm: int, pitch: int) -> np.ndarray:
    """Say `text`.

    Args:
        voice: `ACCENT+SPEAKER`, see `VOICES`.
        speed_wpm: speaking rate in words a minute, 80 to 450.
        pitch: espeak's pitch scale, 0 to 99; 50 is the speaker's own.

    Returns:
        `(samples,)` int16 at `VOICE_RATE_HZ`.

    Raises:
        SpeechUnavailable: espeak-ng isn't installed, or doesn't know the voice.
    """
    library_path, data_path = _locate()
    with _LOCK:
        # What somebody else holds (phonemizer, say) would never unload: then speak with a copy of our own.
        library = ctypes.CDLL(_own_copy() if _is_loaded(library_path) else library_path)
        try:
            return _say(library, data_path, text, voice, {_RATE: speed_wpm, _VOLUME: 100, _PITCH: pitch, _RANGE: 50})
        finally:
            library.espeak_Terminate()
            _unload(library)


def _say(library: ctypes.CDLL, data_path: str, text: str, voice: str, settings: dict[int, int]) -> np.ndarray:
    chunks: list[bytes] = []

    def collect(samples: int | None, num_samples: int, _events: int | None) -> int:
        if samples and num_samples > 0:
            chunks.append(ctypes.string_at(samples, 2 * num_samples))
        return 0

    callback = _CALLBACK(collect)  # held until espeak is done: ctypes keeps no reference
    options = _INITIALIZE_DONT_EXIT
    if library.espeak_Initialize(_INITIALIZE_SYNCHRONOUS, 0, data_path.encode(), options) != VOICE_RATE_HZ:
        raise SpeechUnavailable("espeak-ng can't read its voice data; reinstall it with: pip install 'mmbm[offline]'")
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # must follow Initialize, which seeds from the clock
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise SpeechUnavailable(f"espeak-ng has no voice {voice!r}; name one of mmbm_core.synth.speech.VOICES")
    for parameter, value in settings.items():
        library.espeak_SetParameter(parameter, value, 0)
    utterance = text.encode()
    library.espeak_Synth(utterance, ctypes.c_size_t(len(utterance) + 1), 0, 1, 0, _CHARS_UTF8, None, None)
    library.espeak_Synchronize()
    return np.frombuffer(b"".join(chunks), np.int16)


@cache
def _locate() -> tuple[str, str]:
    """Paths of the library and its data, found once a process."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise SpeechUnavailable(
            "speech needs espeak-ng, which isn't installed: pip install 'mmbm[offline]', or make rows with speech=False"
        ) from error
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


@cache
def _own_copy() -> str:
    folder = tempfile.mkdtemp(prefix="mmbm-espeak-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return shutil.copy(_locate()[0], folder)


def _is_loaded(library_path: str) -> bool:
    if not hasattr(os, "RTLD_NOLOAD"):
        return False
    try:
        _unload(ctypes.CDLL(library_path, mode=os.RTLD_NOLOAD | os.RTLD_NOW))
    except OSError:
        return False
    return True


def _unload(library: ctypes.CDLL) -> None:
    import _ctypes  # CPython's own handle on dlclose; ctypes has no public one

    unload = "FreeLibrary" if sys.platform == "win32" else "dlclose"
    getattr(_ctypes, unload)(library._handle)
