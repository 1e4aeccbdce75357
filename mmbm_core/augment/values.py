"""Encoded values and their changed copies, a function of each value and its seed alone.

Shapes: `N` values, `H` rows, `W` columns, `S` samples.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image

from mmbm_core.augment.audio import AudioAugment, augment_waveforms
from mmbm_core.augment.draws import Draws
from mmbm_core.augment.image import ImageAugment, augment_images
from mmbm_core.augment.text import TextAugment, augment_text
from mmbm_core.errors import MediaError
from mmbm_core.media import Limits, audio_rate, decode_audio, decode_image, text_error
from mmbm_core.synth.utterance import utter

_WINDOW_BYTES = 64 << 20
"""Pixels or samples that are decoded at once."""
_JPEG_MAGIC, _JPEG_QUALITY = b"\xff\xd8\xff", 95

Copies = list[Any | MediaError]
"""The copies of each value, or what is wrong with it."""


def copy_images(values: Sequence[bytes], config: ImageAugment, *, seeds: np.ndarray, limits: Limits) -> Copies:
    """Changed copies of encoded images: JPEG stays JPEG, all else becomes PNG.

    Args:
        seeds: (N, K) int64, one for each of K copies of each value.

    Returns:
        For each value K encoded images, or the MediaError that it can't be decoded for.
    """
    copies: Copies = [None] * len(values)
    window: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    held_bytes = 0
    for i, value in enumerate(values):
        try:
            pixels = decode_image(value, limits=limits)
        except MediaError as error:
            copies[i] = error
            continue
        window.setdefault(pixels.shape, []).append((i, pixels))
        held_bytes += pixels.nbytes * max(1, seeds.shape[1])
        if held_bytes > _WINDOW_BYTES:
            _copy_window(window, values, config, seeds, copies)
            window, held_bytes = {}, 0
    _copy_window(window, values, config, seeds, copies)
    return copies


def _copy_window(
    window: dict[tuple[int, ...], list[tuple[int, np.ndarray]]], values: Sequence[bytes], config: ImageAugment,
    seeds: np.ndarray, copies: Copies,
) -> None:  # fmt: skip
    """Images of one size are changed together, which changes none of them."""
    count = seeds.shape[1]
    for members in window.values():
        rows = [i for i, _ in members]
        pixels = torch.from_numpy(np.stack([p for _, p in members])).permute(0, 3, 1, 2)
        draws = Draws(torch.from_numpy(seeds[rows].reshape(-1)))
        changed = augment_images(pixels.repeat_interleave(count, 0), config, draws=draws)
        made = changed.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        for at, i in enumerate(rows):
            jpeg = values[i].startswith(_JPEG_MAGIC)
            copies[i] = [_encode_image(each, jpeg=jpeg) for each in made[at * count : (at + 1) * count]]


def _encode_image(pixels: np.ndarray, *, jpeg: bool) -> bytes:
    if jpeg:
        import simplejpeg

        return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), _JPEG_QUALITY, "RGB", "444")  # type: ignore[no-any-return]
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def copy_sounds(values: Sequence[bytes], config: AudioAugment, *, seeds: np.ndarray, limits: Limits) -> Copies:
    """Changed copies of encoded sounds: mono 16-bit FLAC at their own rate.

    Args:
        seeds: (N, K) int64, one for each of K copies of each value.

    Returns:
        As `copy_images`.
    """
    copies: Copies = []
    for value, own in zip(values, seeds, strict=True):
        try:
            rate_hz = audio_rate(value)
            samples = torch.from_numpy(decode_audio(value, rate_hz=rate_hz, limits=limits))
        except MediaError as error:
            copies.append(error)
            continue
        if not len(own):
            copies.append([])
            continue
        draws = Draws(torch.from_numpy(own))
        alike = samples.expand(len(own), -1)
        lengths = torch.full((len(own),), len(samples))
        changed = augment_waveforms(alike, lengths=lengths, rate_hz=rate_hz, config=config, draws=draws)
        both = zip(changed.samples, changed.lengths.tolist(), strict=True)
        copies.append([_encode_sound(each[:length].numpy(), rate_hz) for each, length in both])
    return copies


def _encode_sound(samples: np.ndarray, rate_hz: int) -> bytes:
    """What is over full scale makes the whole quieter, rather than clip."""
    out = io.BytesIO()
    loudest = float(np.abs(samples).max(initial=0.0))
    soundfile.write(out, samples / max(loudest, 1.0), rate_hz, format="FLAC", subtype="PCM_16")
    return out.getvalue()


def copy_texts(
    values: Sequence[str], said: Sequence[Sequence[str] | MediaError], config: TextAugment, *, seeds: np.ndarray,
    limits: Limits,
) -> Copies:  # fmt: skip
    """Changed copies of texts.

    Args:
        said: what each copy of each value is before it is changed: the value itself, or the same in other words.
        seeds: and the result, as of `copy_images`.
    """
    copies: Copies = []
    for text, versions, own in zip(values, said, seeds, strict=True):
        error = text_error(text, limits=limits) or (versions if isinstance(versions, MediaError) else None)
        copies.append(error or [augment_text(v, config, seed=int(s)) for v, s in zip(versions, own, strict=True)])  # type: ignore[arg-type]
    return copies


def speak_texts(values: Sequence[str], *, seeds: np.ndarray, limits: Limits) -> Copies:
    """Texts said by a voice and in a room of each copy's own; `seeds` and the result as of `copy_images`.

    Raises:
        SpeechUnavailable: espeak-ng isn't installed.
    """
    return [
        text_error(text, limits=limits) or [_utterance(text, int(seed)) for seed in own]
        for text, own in zip(values, seeds, strict=True)
    ]


def _utterance(text: str, seed: int) -> bytes:
    return utter(text, voices=np.random.default_rng([seed, 0]), sounds=np.random.default_rng([seed, 1])).audio
