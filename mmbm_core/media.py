"""Encoded bytes -> pixels or waveform, under limits. `MediaError` says what is wrong with a value.

Shapes: `H` rows, `W` columns, `S` samples. Content decides the format, never a file name.
"""

import io
import math
import warnings
from dataclasses import dataclass

import numpy as np
import soundfile
from PIL import Image, ImageOps

from mmbm_core.containers import check_audio_complete, check_image_complete
from mmbm_core.errors import MediaError

IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF")
"""Only formats whose decoders run no external program and no embedded script."""

_AUDIO_MAGIC = (b"RIFF", b"RIFX", b"RF64", b"riff", b"FORM", b"fLaC", b"OggS", b".snd", b"caff")
_UNKNOWN_FRAMES = 1 << 62
_BLOCK_SAMPLES = 1 << 14, 1 << 19
"""Of the first read of a sound, and of later ones at most: libsndfile clears all of a block that a sound ends in."""
_MARGIN_S = 0.25
_JPEG_MAGIC = b"\xff\xd8\xff"
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Largest value that is decoded; anything over a limit is a `MediaError`, found before decoding."""

    text_bytes: int = 1 << 20
    media_bytes: int = 256 << 20
    image_px: int = 64_000_000
    audio_s: float = 3600.0


DEFAULT_LIMITS = Limits()


def check_text(text: str, *, limits: Limits = DEFAULT_LIMITS) -> None:
    """Raise `MediaError` where `text` is over the byte limit or no valid Unicode (lone surrogates)."""
    try:
        size_bytes = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise MediaError("text is not valid Unicode (lone surrogate)") from error
    if size_bytes > limits.text_bytes:
        raise MediaError(f"text of {size_bytes} bytes is over the limit of {limits.text_bytes}")


def text_error(text: str, *, limits: Limits = DEFAULT_LIMITS) -> MediaError | None:
    """What `check_text` raises, as a value."""
    try:
        check_text(text, limits=limits)
    except MediaError as error:
        return error
    return None


def decode_image(
    data: bytes, *, limits: Limits = DEFAULT_LIMITS, min_size_px: tuple[int, int] | None = None
) -> np.ndarray:
    """Decode to RGB uint8 (H, W, 3), upright by its EXIF orientation; first frame of an animation.

    Transparency is composited onto white and 16-bit samples keep their high byte.

    Args:
        data: the encoded file.
        min_size_px: (height, width) that the caller will resize to. A JPEG may then be decoded at 1/2, 1/4 or 1/8
            scale, never below it. None decodes every pixel.

    Raises:
        MediaError: empty, over a limit, truncated, or none of `IMAGE_FORMATS`.
    """
    _check_bytes(data, limits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of sizes that `limits` judges, and of damaged EXIF data
        if data.startswith(_JPEG_MAGIC):
            pixels = _decode_plain_jpeg(data, limits, min_size_px)
            if pixels is not None:
                return pixels
        return _decode_with_pillow(data, limits)


def _decode_with_pillow(data: bytes, limits: Limits) -> np.ndarray:
    try:
        with _open(data) as image:
            _check_pixels(image.height, image.width, limits)
            check_image_complete(data)
            image.load()
            return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except MediaError:
        raise
    except Exception as error:  # every decoder behind Pillow has exceptions of its own
        raise MediaError(f"not a readable image ({_reason(error)})") from error


def decode_audio(data: bytes, *, rate_hz: int, limits: Limits = DEFAULT_LIMITS, keep_s: float = math.inf) -> np.ndarray:
    """Decode to a mono float32 waveform (S,) in -1..1 at `rate_hz`: channels averaged, then resampled.

    Any container and codec of libsndfile (WAV, FLAC, OGG, Opus, MP3, AIFF, ...).

    Args:
        keep_s: what the caller needs of the beginning. A longer sound is decoded whole, to see that it is, but only
            this and _MARGIN_S more are kept, so that a cut at `keep_s` gives what a cut of the whole would.

    Raises:
        MediaError: empty, over a limit, truncated, without samples, or not a sound.
    """
    _check_bytes(data, limits)
    if not data.startswith(_AUDIO_MAGIC) and not _is_mp3(data):
        raise MediaError("not a sound: no known beginning")
    check_audio_complete(data)
    try:
        with _Forward(io.BytesIO(data)) as sound:
            source_hz, declared = sound.samplerate, sound.frames
            if limits.audio_s * source_hz < declared < _UNKNOWN_FRAMES and not _is_mp3(data):  # MP3 headers may err
                raise MediaError(f"audio of {declared / source_hz:.0f} s is over the limit of {limits.audio_s:g} s")
            waveform, frames = _read_mono(sound, limits.audio_s, (keep_s + _MARGIN_S) * source_hz)
    except MediaError:
        raise
    except Exception as error:  # libsndfile's own errors, and overflow on absurd headers
        raise MediaError(f"not a readable sound ({_reason(error)})") from error
    if data.startswith(b"fLaC") and frames < declared < _UNKNOWN_FRAMES:
        raise MediaError(f"truncated FLAC: {frames} of {declared} frames")
    if not frames:
        raise MediaError("audio has no samples")
    if not np.isfinite(waveform).all():
        raise MediaError("audio has samples that are not finite numbers")
    return resample(waveform, source_hz=source_hz, rate_hz=rate_hz)


def audio_rate(data: bytes) -> int:
    """Samples a second that a sound was recorded at.

    Raises:
        MediaError: not a sound.
    """
    try:
        with _Forward(io.BytesIO(data)) as sound:
            return int(sound.samplerate)
    except Exception as error:
        raise MediaError(f"not a readable sound ({_reason(error)})") from error


class _Forward(soundfile.SoundFile):
    """Reads on and on: soundfile else seeks after every block, which is slow and fails where the length is unknown."""

    def seekable(self) -> bool:
        return False


def _read_mono(sound: soundfile.SoundFile, most_s: float, keep_frames: float) -> tuple[np.ndarray, int]:
    """Mean over channels of the first `keep_frames` or a little more, and the number of frames there are."""
    kept, frames = [], 0
    samples, most = _BLOCK_SAMPLES
    while len(block := sound.read(max(1, samples // sound.channels), dtype="float32", always_2d=True)):
        samples = min(2 * samples, most)
        if frames < keep_frames:
            kept.append(block.mean(axis=1) if sound.channels > 1 else block[:, 0])
        frames += len(block)
        if frames > most_s * sound.samplerate:
            raise MediaError(f"audio is over the limit of {most_s:g} s")
    return np.concatenate(kept) if kept else np.empty(0, np.float32), frames


def _is_mp3(data: bytes) -> bool:
    return data.startswith(b"ID3") or (len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0)


def resample(waveform: np.ndarray, *, source_hz: int, rate_hz: int) -> np.ndarray:
    """Resample (S,) by torchaudio's windowed sinc filter; the same rate returns the same array."""
    if source_hz == rate_hz:
        return np.ascontiguousarray(waveform)
    if not 1_000 <= source_hz <= 768_000:
        raise MediaError(f"audio sample rate of {source_hz} Hz is outside 1000..768000")
    import torch
    import torchaudio.functional as F  # heavy: only where a rate differs

    source, target = _reduced_rates(source_hz, rate_hz)
    return F.resample(torch.from_numpy(np.ascontiguousarray(waveform)), source, target).numpy()


def _reduced_rates(source_hz: int, rate_hz: int) -> tuple[int, int]:
    """Nearest ratio of small integers: odd rates such as 44,099 Hz would need a filter bank of gigabytes."""
    from fractions import Fraction

    ratio = Fraction(source_hz, rate_hz).limit_denominator(max(1, 1000 * rate_hz // max(source_hz, rate_hz)))
    return ratio.numerator, ratio.denominator


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)


def _check_bytes(data: bytes, limits: Limits) -> None:
    if not data:
        raise MediaError("zero bytes")
    if len(data) > limits.media_bytes:
        raise MediaError(f"{len(data)} bytes are over the limit of {limits.media_bytes}")


def _check_pixels(height: int, width: int, limits: Limits) -> None:
    if height * width > limits.image_px:
        raise MediaError(f"image of {width}x{height} pixels is over the limit of {limits.image_px} pixels")


def _decode_plain_jpeg(data: bytes, limits: Limits, min_size_px: tuple[int, int] | None) -> np.ndarray | None:
    """Decode a plain upright JPEG at the smallest DCT scale that holds `min_size_px`; None where Pillow must do it.

    The pixels of a whole decode are Pillow's, in a fifth of the time where images are small.
    """
    import simplejpeg

    try:
        if b"Exif\x00\x00" in data[:65536] and _open(data).getexif().get(_ORIENTATION_TAG, 1) != 1:
            return None
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("YCbCr", "Gray"):
            return None
        _check_pixels(height, width, limits)
        scale = next((k for k in (8, 4, 2) if min_size_px and _shrinks(height, width, k, min_size_px)), 1)
        return simplejpeg.decode_jpeg(data, "RGB", min_height=height // scale, min_width=width // scale, strict=True)
    except MediaError:
        raise
    except Exception:  # whatever is wrong, Pillow judges it, so that exact and fast refuse the same files
        return None


def _shrinks(height: int, width: int, scale: int, least: tuple[int, int]) -> bool:
    """Where `scale` does not divide a side, the decoder rounds up, which shifts the picture by part of a pixel."""
    return height % scale == width % scale == 0 and height >= scale * least[0] and width >= scale * least[1]


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I;16", "I", "F")):
        return Image.fromarray(_to_eight_bits(np.asarray(image))).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(samples: np.ndarray) -> np.ndarray:
    """16-bit integers keep their high byte; float images in 0..1 are scaled; both clip."""
    if np.issubdtype(samples.dtype, np.floating):
        scaled = np.nan_to_num(samples) * (255.0 if np.nanmax(samples, initial=0.0) <= 1.0 else 1.0)
    else:
        scaled = samples.astype(np.int64) >> 8
    return np.clip(scaled, 0, 255).astype(np.uint8)


def _reason(error: Exception) -> str:
    """The decoder's words without the object address that Pillow puts into them."""
    return str(error).split(" <")[0].strip()[:200] or type(error).__name__
