"""One grammar, three languages: phrasing `k` says the same of a scene in English, German and French.

A phrasing is one row of patterns; a language gives the parts that its pattern names, inflected.
"""

from dataclasses import replace

import numpy as np

from mmbm_core.synth import english, french, german
from mmbm_core.synth.world import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    OPPOSITE,
    PLACES,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    choose,
    others,
)

# {groups}: the groups with their places, joined by "and"; {listed}: the same, by a comma; {ground}: "on a ...
# background"; {ground_np}: "a ... background"; {ground_is}: what the background is; {relation}: where the first group
# is, seen from the second; {inverted}: "on the left are ..., on the right is ...". German cases are nom, acc, dat.
PATTERNS: tuple[dict[str, str], ...] = (
    {"en": "{groups} {ground}.", "de": "{groups_nom} {ground}.", "fr": "{groups} {ground}."},
    {"en": "There {be} {groups} {ground}.", "de": "Es gibt {groups_acc} {ground}.", "fr": "Il y a {groups} {ground}."},
    {
        "en": "The picture shows {groups} {ground}.",
        "de": "Das Bild zeigt {groups_acc} {ground}.",
        "fr": "L'image montre {groups} {ground}.",
    },
    {
        "en": "{ground}, you can see {groups}.",
        "de": "{ground} sieht man {groups_acc}.",
        "fr": "{ground}, on voit {groups}.",
    },
    {
        "en": "An image with {listed}, and {ground_np}.",
        "de": "Ein Bild mit {listed_dat} und {ground_dat}.",
        "fr": "Une image avec {listed} et {ground_np}.",
    },
    {"en": "{relation} {ground}.", "de": "{relation} {ground}.", "fr": "{relation} {ground}."},
    {
        "en": "The background is {ground_is}; {inverted}.",
        "de": "Der Hintergrund ist {ground_is}; {inverted}.",
        "fr": "Le fond de l'image est {ground_is} ; {inverted}.",
    },
)
NUM_PHRASINGS = len(PATTERNS)
_LANGUAGES = {"en": english.parts, "de": german.parts, "fr": french.parts}


def caption(scene: Scene, *, language: str, phrasing: int) -> str:
    """Say in one sentence what a scene shows. `language`: en, de or fr; `phrasing`: 0 to `NUM_PHRASINGS - 1`."""
    return _sentence(PATTERNS[phrasing][language], _LANGUAGES[language](scene))


def paraphrase(scene: Scene, *, phrasing: int) -> str:
    """The English caption with other words: "big" for "large", "backdrop" for "background"."""
    return _sentence(PATTERNS[phrasing]["en"], english.parts(scene, synonyms=True))


def contradict(scene: Scene, *, rng: np.random.Generator) -> tuple[Scene, str]:
    """A scene that differs in one stated factor of the main group or the ground, and that factor's name."""
    main = scene.main
    factor = choose(rng, ("shape", "colour", "size", "count", "place", "background", "texture"))
    if factor == "background":
        return replace(scene, background=choose(rng, others(BACKGROUNDS, scene.background))), factor
    if factor == "texture":
        return replace(scene, texture=choose(rng, others(TEXTURES, scene.texture))), factor
    if factor == "place" and scene.other:  # the two groups change sides
        swapped = tuple(replace(group, place=OPPOSITE[group.place]) for group in scene.groups)
        return replace(scene, groups=swapped), factor
    options = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "count": COUNTS, "place": PLACES}[factor]
    taken = (
        {getattr(group, factor) for group in scene.groups} if factor in ("shape", "colour") else {getattr(main, factor)}
    )
    changed = replace(main, **{factor: choose(rng, others(options, *taken))})
    return replace(scene, groups=(changed, *scene.groups[1:])), factor


def _sentence(pattern: str, parts: dict[str, str]) -> str:
    sentence = pattern.format_map(parts)
    return sentence[0].upper() + sentence[1:]
