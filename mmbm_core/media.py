"""Encoded bytes -> pixels or waveform, under limits. `MediaError` says what is wrong with a value.

Shapes: `H` rows, `W` columns, `S` samples. Content decides the format, never a file name.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
import soundfile
import torch
from PIL import Image, ImageOps

from mmbm_core.containers import check_audio_complete
from mmbm_core.errors import MediaError

IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF")
"""Only formats whose decoders run no external program and no embedded script."""

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
    if min_size_px is not None and data.startswith(_JPEG_MAGIC):
        pixels = _decode_jpeg_scaled(data, limits, min_size_px)
        if pixels is not None:
            return pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of sizes that `limits` judges
            with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
                _check_pixels(image.height, image.width, limits)
                image.load()
                return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except MediaError:
        raise
    except Exception as error:  # every decoder behind Pillow has exceptions of its own
        raise MediaError(f"not a readable image ({_reason(error)})") from error


def decode_audio(data: bytes, *, rate_hz: int, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """Decode to a mono float32 waveform (S,) in -1..1 at `rate_hz`: channels averaged, then resampled.

    Any container and codec of libsndfile (WAV, FLAC, OGG, Opus, MP3, AIFF, ...).

    Raises:
        MediaError: empty, over a limit, truncated, without samples, or not a sound.
    """
    _check_bytes(data, limits)
    check_audio_complete(data)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            source_hz = sound.samplerate
            max_frames = int(limits.audio_s * source_hz)
            if sound.frames > max_frames and not data.startswith((b"ID3", b"\xff")):  # MP3 headers may overstate
                raise MediaError(f"audio of {sound.frames / source_hz:.0f} s is over the limit of {limits.audio_s:g} s")
            declared = sound.frames
            frames = sound.read(frames=min(declared, max_frames + 1), dtype="float32", always_2d=True)
    except MediaError:
        raise
    except Exception as error:  # libsndfile's own errors, and overflow on absurd headers
        raise MediaError(f"not a readable sound ({_reason(error)})") from error
    if len(frames) > max_frames:
        raise MediaError(f"audio is over the limit of {limits.audio_s:g} s")
    if data.startswith(b"fLaC") and len(frames) < declared:
        raise MediaError(f"truncated FLAC: {len(frames)} of {declared} frames")
    if not len(frames):
        raise MediaError("audio has no samples")
    waveform = frames.mean(axis=1) if frames.shape[1] > 1 else frames[:, 0]
    if not np.isfinite(waveform).all():
        raise MediaError("audio has samples that are not finite numbers")
    return resample(waveform, source_hz=source_hz, rate_hz=rate_hz)


def resample(waveform: np.ndarray, *, source_hz: int, rate_hz: int) -> np.ndarray:
    """Resample (S,) by torchaudio's windowed sinc filter; the same rate returns the same array."""
    if source_hz == rate_hz:
        return np.ascontiguousarray(waveform)
    if not 1_000 <= source_hz <= 768_000:
        raise MediaError(f"audio sample rate of {source_hz} Hz is outside 1000..768000")
    import torchaudio.functional as F  # heavy: only where a rate differs

    source, target = _reduced_rates(source_hz, rate_hz)
    return F.resample(torch.from_numpy(np.ascontiguousarray(waveform)), source, target).numpy()


def _reduced_rates(source_hz: int, rate_hz: int) -> tuple[int, int]:
    """Nearest ratio of small integers: odd rates such as 44,099 Hz would need a filter bank of gigabytes."""
    from fractions import Fraction

    ratio = Fraction(source_hz, rate_hz).limit_denominator(1000)
    return ratio.numerator, ratio.denominator


def _check_bytes(data: bytes, limits: Limits) -> None:
    if not data:
        raise MediaError("zero bytes")
    if len(data) > limits.media_bytes:
        raise MediaError(f"{len(data)} bytes are over the limit of {limits.media_bytes}")


def _check_pixels(height: int, width: int, limits: Limits) -> None:
    if height * width > limits.image_px:
        raise MediaError(f"image of {width}x{height} pixels is over the limit of {limits.image_px} pixels")


def _decode_jpeg_scaled(data: bytes, limits: Limits, min_size_px: tuple[int, int]) -> np.ndarray | None:
    """Decode a plain upright JPEG at the smallest DCT scale that holds `min_size_px`; None where Pillow must do it."""
    import simplejpeg

    if b"Exif\x00\x00" in data[:65536] and Image.open(io.BytesIO(data)).getexif().get(_ORIENTATION_TAG, 1) != 1:
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("YCbCr", "Gray"):
            return None
        _check_pixels(height, width, limits)
        scale = next((k for k in (8, 4, 2) if _shrinks(height, width, k, min_size_px)), 1)
        return simplejpeg.decode_jpeg(data, "RGB", min_height=height // scale, min_width=width // scale, strict=True)
    except ValueError as error:
        raise error if isinstance(error, MediaError) else MediaError(f"not a readable JPEG ({_reason(error)})")


def _shrinks(height: int, width: int, scale: int, least: tuple[int, int]) -> bool:
    """Where `scale` does not divide a side, the decoder rounds up, which shifts the picture by part of a pixel."""
    return height % scale == width % scale == 0 and height >= scale * least[0] and width >= scale * least[1]


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
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
