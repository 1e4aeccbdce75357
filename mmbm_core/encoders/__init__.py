"""Encoders by name: a preset, a local checkpoint folder, a Hugging Face id, `torchvision:ARCH@FILE`, or a file of word
vectors.

To add one: a file beside this one, a line in `ENCODERS` (and in `checkpoint.kind_of` where a checkpoint must be
recognised), a mirrored test.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbm_core.compress.layout import LAYOUT_FILE
from mmbm_core.compress.stored import is_packed
from mmbm_core.encoders import checkpoint
from mmbm_core.encoders.base import ENCODER_FILE, Encoder, check_options
from mmbm_core.encoders.presets import PRESET_MODALITIES, PRESETS
from mmbm_core.errors import UsageError
from mmbm_core.sample import Modality

if TYPE_CHECKING:
    from mmbm_core.saved import Part


def _text(path: str, **options: Any) -> Encoder:
    from mmbm_core.encoders.text import build_text

    check_options(options, "pooling", "prompt")
    return build_text(path, **options)


def _vision(path: str, **options: Any) -> Encoder:
    from mmbm_core.encoders.vision import build_vision

    check_options(options, "pooling")
    return build_vision(path, **options)


def _speech(path: str, **options: Any) -> Encoder:
    from mmbm_core.encoders.speech import build_speech

    check_options(options)
    return build_speech(path)


def _clip(path: str, **options: Any) -> Encoder:
    from mmbm_core.encoders.clip import build_clip

    check_options(options)
    return build_clip(path)


def _clap(path: str, **options: Any) -> Encoder:
    from mmbm_core.encoders.clap import build_clap

    check_options(options)
    return build_clap(path)


def _word2vec(path: str, **options: Any) -> Encoder:
    from mmbm_core.encoders.word2vec import build_word2vec

    check_options(options)
    return build_word2vec(path)


ENCODERS: dict[str, Callable[..., Encoder]] = {
    "text": _text,
    "vision": _vision,
    "speech": _speech,
    "clip": _clip,
    "clap": _clap,
    "word2vec": _word2vec,
}
"""Builders of checkpoint encoders by kind, as `checkpoint.kind_of` recognises them."""


def _cnn(folder: Path, **config: Any) -> Encoder:
    from mmbm_core.encoders.cnn import build_saved

    check_options(config, "architecture", "size_px")
    return build_saved(folder, **config)


def _mfcc(folder: Path, **config: Any) -> Encoder:
    return PRESETS["mfcc"](**config)


def _image_cnn(folder: Path, **config: Any) -> Encoder:
    from mmbm_core.encoders.image_cnn import load_image_cnn

    return load_image_cnn(folder, **config)


def _log_mel(folder: Path, **config: Any) -> Encoder:
    from mmbm_core.encoders.log_mel import load_log_mel

    return load_log_mel(folder, **config)


SAVED: dict[str, tuple[Modality, Callable[..., Encoder]]] = {
    "cnn": ("image", _cnn),
    "mfcc": ("audio", _mfcc),
    "image_cnn": ("image", _image_cnn),
    "log_mel": ("audio", _log_mel),
}
"""Modality and builder of encoders that MMBM saved itself, by the kind in their ENCODER_FILE."""


_MODALITIES: dict[str, tuple[Modality, ...]] = {
    "text": ("text",),
    "vision": ("image",),
    "speech": ("audio",),
    "clip": ("text", "image"),
    "clap": ("text", "audio"),
    "word2vec": ("text",),
}


def modalities_of(name: str) -> tuple[Modality, ...]:
    """What the encoder, or the trained bundle, called `name` encodes, seen without loading its weights.

    Raises:
        UsageError: no preset, folder or reachable Hugging Face id has this name.
    """
    if name in PRESETS:
        return PRESET_MODALITIES[name]
    if name.startswith("torchvision:"):
        return ("image",)
    if part := _find_part(name):
        return part.modalities
    if saved := _read_saved(name):
        return (SAVED[saved["kind"]][0],)
    return _MODALITIES[checkpoint.kind_of(checkpoint.locate(name, presets=tuple(PRESETS)))]


def build_encoder(name: str, **options: Any) -> Encoder:
    """Build the encoder called `name`, in float32, on the CPU, ready for inference.

    Raises:
        UsageError: no preset, folder or reachable Hugging Face id has this name, or an option is unknown.
    """
    if name in PRESETS:
        encoder = PRESETS[name](**options)
    elif name.startswith("torchvision:"):
        from mmbm_core.encoders.cnn import build_torchvision

        check_options(options, "size_px")
        arch, _, weights_path = name.removeprefix("torchvision:").partition("@")
        encoder = build_torchvision(arch, weights_path=weights_path or None, **options)
    elif saved := _read_saved(name):
        encoder = SAVED[saved.pop("kind")][1](Path(name), **{**saved, **options})
    else:
        located = checkpoint.locate(name, presets=tuple(PRESETS))
        encoder = ENCODERS[checkpoint.kind_of(located)](located, **options)
    folder = Path(name).expanduser()
    encoder.cut, encoder.int8 = (folder / LAYOUT_FILE).is_file(), is_packed(folder)
    return encoder.eval().requires_grad_(False)


def _find_part(name: str) -> "Part | None":
    from mmbm_core.saved import find_part  # which builds encoders

    return find_part(name)


def _read_saved(name: str) -> dict[str, Any]:
    """What the ENCODER_FILE of a folder says; {} where there is none."""
    file = Path(name).expanduser() / ENCODER_FILE
    return json.loads(file.read_text()) if file.is_file() else {}


__all__ = ["ENCODERS", "PRESETS", "Encoder", "UsageError", "build_encoder", "modalities_of"]
