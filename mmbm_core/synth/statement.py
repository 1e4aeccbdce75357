"""A sentence that is true of its picture, or false, by a fair coin: XOR of a sentence and a picture.

It names one of the two values of one factor, whether anything is partly hidden. That is drawn by a fair coin too, so
neither the sentence nor the picture alone tells anything of the truth, and nothing of the other.
"""

from typing import NamedTuple

import numpy as np

from mmbm_core.synth.scene import OCCLUSIONS, Scene, choose, others

SAYINGS: dict[str, tuple[str, ...]] = {
    "none": (
        "Nothing is hidden.",
        "No bar covers any of the shapes.",
        "All of the shapes are in full view.",
        "Every shape can be seen whole.",
        "Nothing lies in front of the shapes.",
    ),
    "partial": (
        "Something is partly hidden.",
        "A bar covers one of the shapes.",
        "Not all of the shapes are in full view.",
        "One of the shapes can't be seen whole.",
        "A bar lies in front of the shapes.",
    ),
}
"""By what they say of `Scene.occlusion`."""


class Statement(NamedTuple):
    """A sentence and whether it holds."""

    text: str
    truth: bool


def state(scene: Scene, *, rng: np.random.Generator) -> Statement:
    """Say of a scene whether anything is hidden: the truth half of the time."""
    truth = rng.random() < 0.5
    said = scene.occlusion if truth else choose(rng, others(OCCLUSIONS, scene.occlusion))
    return Statement(choose(rng, SAYINGS[said]), truth)
