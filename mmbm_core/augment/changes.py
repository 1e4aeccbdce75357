"""Which augmentations change what a sample says, so that a label of it may no longer hold."""

from typing import Literal, get_args

from pydantic import BaseModel

Aspect = Literal["orientation", "colour", "words", "word order", "tempo", "pitch"]
ASPECTS: tuple[Aspect, ...] = get_args(Aspect)

CHANGES: dict[str, tuple[Aspect, ...]] = {
    "flip": ("orientation",),
    "policy": ("orientation", "colour"),
    "saturation": ("colour",),
    "hue": ("colour",),
    "grayscale": ("colour",),
    "speed": ("tempo", "pitch"),
    "pitch_semitones": ("pitch",),
    "drop": ("words",),
    "swap": ("word order",),
}
"""By field of an augmentation's config; what the other fields do, a label survives."""


def changes_of(augment: BaseModel) -> dict[str, tuple[Aspect, ...]]:
    """What those fields of a config change that are on."""
    return {field: aspects for field, aspects in CHANGES.items() if getattr(augment, field, None)}
