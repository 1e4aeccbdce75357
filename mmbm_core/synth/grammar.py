"""One grammar, three languages: phrasing `k` says the same of a scene in English, German and French.

A phrasing is one of the world's captions; a language gives the parts that its pattern names, inflected.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from mmbm_core.synth import english, french, german
from mmbm_core.synth.scene import OPPOSITE, Scene, choose, others
from mmbm_core.synth.world import FACTORS, World

_LANGUAGES = {"en": english.parts, "de": german.parts, "fr": french.parts}


def caption(scene: Scene, *, world: World, language: str, phrasing: int) -> str:
    """Say in one sentence what a scene shows. `language`: one of the world's; `phrasing`: 0 to its captions less 1."""
    return _sentence(getattr(world.captions[phrasing], language), _LANGUAGES[language](scene, world=world))


def paraphrase(scene: Scene, *, world: World, phrasing: int) -> str:
    """The English caption with other words: "big" for "large", "backdrop" for "background"."""
    return _sentence(world.captions[phrasing].en, english.parts(scene, world=world, synonyms=True))


def contradict(scene: Scene, *, world: World, rng: np.random.Generator) -> tuple[Scene, str]:
    """A scene that differs in one stated factor of the main group or the ground, and that factor's name."""
    factor = choose(rng, [each for each in FACTORS if _false_values(scene, each, world)])
    if factor == "place" and scene.other:  # the two groups change sides
        swapped = tuple(replace(group, place=OPPOSITE[group.place]) for group in scene.groups)
        return replace(scene, groups=swapped), factor
    changed: dict[str, Any] = {factor: choose(rng, _false_values(scene, factor, world))}
    if factor in ("background", "texture"):
        return replace(scene, **changed), factor
    return replace(scene, groups=(replace(scene.main, **changed), *scene.groups[1:])), factor


def _false_values(scene: Scene, factor: str, world: World) -> tuple[Any, ...]:
    """Values of a factor that, said of the main group or the ground, are false of the scene and of no other group."""
    if factor in ("background", "texture"):
        return others(world.values(factor), getattr(scene, factor))
    told_of = scene.groups if factor in ("shape", "colour") else scene.groups[:1]
    return others(world.values(factor), *(getattr(group, factor) for group in told_of))


def _sentence(pattern: str, parts: dict[str, str]) -> str:
    sentence = pattern.format_map(parts)
    return sentence[0].upper() + sentence[1:]
