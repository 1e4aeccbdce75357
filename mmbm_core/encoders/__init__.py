"""Encoders by name: a preset, a local checkpoint folder, a Hugging Face id, or `torchvision:ARCH@FILE`.

To add one: a file beside this one, a line in `ENCODERS` (and in `checkpoint.kind_of` where a checkpoint must be
recognised), a mirrored test.
"""

from collections.abc import Callable
from typing import Any

from mmbm_core.encoders import checkpoint
from mmbm_core.encoders.base import Encoder, check_options
from mmbm_core.encoders.presets import PRESET_MODALITIES, PRESETS
from mmbm_core.errors import UsageError
from mmbm_core.sample import Modality


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


ENCODERS: dict[str, Callable[..., Encoder]] = {
    "text": _text,
    "vision": _vision,
    "speech": _speech,
    "clip": _clip,
    "clap": _clap,
}
"""Builders of checkpoint encoders by kind, as `checkpoint.kind_of` recognises them."""


_MODALITIES: dict[str, tuple[Modality, ...]] = {
    "text": ("text",),
    "vision": ("image",),
    "speech": ("audio",),
    "clip": ("text", "image"),
    "clap": ("text", "audio"),
}


def modalities_of(name: str) -> tuple[Modality, ...]:
    """What the encoder called `name` encodes, seen without loading its weights.

    Raises:
        UsageError: no preset, folder or reachable Hugging Face id has this name.
    """
    if name in PRESETS:
        return PRESET_MODALITIES[name]
    if name.startswith("torchvision:"):
        return ("image",)
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

        check_options(options)
        arch, _, weights_path = name.removeprefix("torchvision:").partition("@")
        encoder = build_torchvision(arch, weights_path=weights_path or None)
    else:
        folder = checkpoint.locate(name, presets=tuple(PRESETS))
        encoder = ENCODERS[checkpoint.kind_of(folder)](folder, **options)
    return encoder.eval().requires_grad_(False)


__all__ = ["ENCODERS", "PRESETS", "Encoder", "UsageError", "build_encoder", "modalities_of"]
