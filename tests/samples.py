"""Small valid media files of every kind the decoders know, made here so that no file lies in the repository."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile
from PIL import Image

IMAGE_KINDS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
AUDIO_KINDS = ("WAV", "FLAC", "OGG", "MP3")


def picture(seed: int = 0, *, width: int = 96, height: int = 64) -> Image.Image:
    """Smooth colours with some noise: compresses like a photograph."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(2 * np.pi * (random.uniform(0.5, 3) * x + random.uniform(0.5, 3) * y)) for _ in range(3)]
    pixels = 127 + 90 * np.stack(waves, -1) + random.normal(0, 8, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def image_file(kind: str = "PNG", seed: int = 0, *, width: int = 96, height: int = 64, **options: Any) -> bytes:
    """An encoded picture."""
    return encoded(picture(seed, width=width, height=height), kind, **options)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The file of an image."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tone(*, seconds: float = 0.5, rate_hz: int = 16_000, pitch_hz: float = 440.0) -> np.ndarray:
    """A sine (S,) float32."""
    return (0.5 * np.sin(2 * np.pi * pitch_hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def audio_file(kind: str = "WAV", wave: np.ndarray | None = None, *, rate_hz: int = 16_000, **options: Any) -> bytes:
    """An encoded sound; `wave` is (S,) or (S, channels)."""
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(rate_hz=rate_hz) if wave is None else wave, rate_hz, format=kind, **options)
    return buffer.getvalue()


def all_files() -> dict[str, bytes]:
    """One valid file of each kind."""
    files = {kind: image_file(kind) for kind in IMAGE_KINDS}
    files["JPEG/progressive"] = image_file("JPEG", progressive=True, exif=exif(6))
    files["GIF/animated"] = encoded(picture(1), "GIF", save_all=True, append_images=[picture(2)])
    files["TIFF/lzw"] = image_file("TIFF", compression="tiff_lzw")
    files["TIFF/jpeg"] = image_file("TIFF", compression="jpeg")
    return files | {kind: audio_file(kind) for kind in AUDIO_KINDS}


def exif(orientation: int) -> bytes:
    """EXIF data that holds an orientation."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def fuzzed(files: list[bytes], count: int, *, seed: int) -> Iterator[bytes]:
    """Files with flipped bits, cut short, or spliced with another; the same ones for the same seed."""
    random = np.random.default_rng(seed)
    for n in range(count):
        data = bytearray(files[n % len(files)])
        how = random.integers(4)
        if how == 0:  # a few bits anywhere
            for at in random.integers(len(data), size=random.integers(1, 20)):
                data[at] ^= 1 << int(random.integers(8))
        elif how == 1:  # bytes of the header, where sizes stand
            for at in random.integers(min(len(data), 64), size=random.integers(1, 6)):
                data[at] = int(random.integers(256))
        elif how == 2:
            data = data[: int(random.integers(len(data)))]
        else:
            other = files[int(random.integers(len(files)))]
            data = data[: int(random.integers(len(data)))] + other[int(random.integers(len(other))) :]
        yield bytes(data)
