"""HTML pages that need nothing beside them.

Ids, labels and texts are other people's: templates escape them, and of media only known types in valid base64 get in.
"""

import base64
import binascii
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import soundfile
from PIL import Image

from mmbm_core.errors import MediaError, UsageError
from mmbm_core.media import DEFAULT_LIMITS, decode_audio, decode_image
from mmbm_core.sample import Modality

_FOLDER = Path(__file__).parent
_THUMBNAIL_PX = 192
_CLIP_HZ = 16_000
_MOST_CHARS = 2000
_MEDIA = frozenset(
    f"image/{kind}" for kind in ("png", "jpeg", "webp", "gif")
) | frozenset(f"audio/{kind}" for kind in ("wav", "mpeg", "flac", "ogg"))  # fmt: skip

Media = dict[str, str]
"""`mime` and `data`, in base64."""


def render_page(template: str, *, filters: Mapping[str, Callable[..., Any]] | None = None, **facts: Any) -> bytes:
    """A page by one of the templates beside this file; lone surrogates become question marks.

    Raises:
        UsageError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise UsageError("pages need jinja2: run pip install 'mmbm[train]'") from error
    loader = jinja2.FileSystemLoader(_FOLDER)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=loader)
    environment.filters |= {"media": _media, **(filters or {})}
    return environment.get_template(template).render(**facts).lstrip().encode("utf-8", "replace")


def encode_media(mime: str, data: bytes) -> Media:
    """A file as pages take it."""
    return {"mime": mime, "data": base64.b64encode(data).decode()}


def thumbnail(data: bytes) -> Media:
    """An encoded image, small enough for a page.

    Raises:
        MediaError: it can't be decoded.
    """
    image = Image.fromarray(decode_image(data))
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return encode_media("image/png", sink.getvalue())


def clip(data: bytes, *, keep_s: float) -> Media:
    """The beginning of an encoded sound, mono.

    Raises:
        MediaError: it can't be decoded.
    """
    waveform = decode_audio(data, rate_hz=_CLIP_HZ, limits=DEFAULT_LIMITS, keep_s=keep_s)
    sink = io.BytesIO()
    soundfile.write(sink, waveform[: int(keep_s * _CLIP_HZ)], _CLIP_HZ, format="WAV", subtype="PCM_16")
    return encode_media("audio/wav", sink.getvalue())


def show_value(modality: Modality, value: Any, *, keep_s: float = 10.0) -> str | Media | None:
    """A text or an encoded picture or sound, small enough for a page; None for what can't be decoded.

    Args:
        keep_s: of a sound.
    """
    try:
        if modality == "text":
            return str(value)[:_MOST_CHARS]
        return thumbnail(value) if modality == "image" else clip(value, keep_s=keep_s)
    except MediaError:
        return None


def _media(value: Any) -> dict[str, str] | None:
    """The tag (`img` or `audio`) and URI of a picture or sound; None for what may not stand in a page."""
    if not isinstance(value, Mapping) or value.get("mime") not in _MEDIA:
        return None
    try:
        data = base64.b64encode(base64.b64decode(value["data"], validate=True)).decode()
    except (binascii.Error, ValueError):
        return None
    return {"kind": value["mime"].partition("/")[0], "uri": f"data:{value['mime']};base64,{data}"}
