"""New samples from pairs of modalities: two pairs as one, and captions that are wrong by one word."""

import random
import re
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmbm_core.augment.draws import sample_seed

SWAPS: dict[str, tuple[tuple[str, ...], ...]] = {
    "colour": (
        ("red", "orange", "yellow", "green", "blue", "purple", "pink", "turquoise", "brown", "black", "white", "grey"),
    ),
    "number": (("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),),  # "one" needs other nouns
    "direction": (
        ("left", "right"),
        ("top", "bottom"),
        ("above", "below"),
        ("over", "under"),
        ("up", "down"),
        ("inside", "outside"),
        ("before", "after"),
    ),
}
"""By class: words of which each may stand in another's place, and the caption then says something else."""

_ARTICLE = re.compile(r"\b(an?)(\s+)$", re.IGNORECASE)


class Captioned(NamedTuple):
    """An image and what is said of it."""

    image: Tensor
    """(3, H, W) uint8 or float in 0..255."""
    text: str


def mix_gen(first: Captioned, second: Captioned) -> Captioned:
    """Both images blended half and half, both texts one after the other (MixGen, 2206.08358, eq. 1).

    Nothing is drawn: the paper's share is 0.5. The second image takes the size of the first; the result is float32.
    """
    size = list(first.image.shape[1:])
    other = nn.functional.interpolate(second.image[None].float(), size, mode="bilinear", antialias=True)[0]
    return Captioned(torch.lerp(first.image.float(), other, 0.5), f"{first.text} {second.text}")


def hard_negatives(caption: str, *, seed: int) -> dict[str, str]:
    """By class of SWAPS that the caption has a word of: the caption with one such word changed for another one.

    The new word does not stand in the caption (of "a red and a blue ball" an exchange would be as true), its case and
    the article before it are those of the place (as REPLACE in SugarCrepe, 2306.14610). Words are taken at face value:
    "left" may be a verb, and what the caption does not say may be true of the image.

    Args:
        seed: of the word and of what it is changed for.
    """
    found = {kind: _swapped(caption, groups, sample_seed(seed, kind)) for kind, groups in SWAPS.items()}
    return {kind: changed for kind, changed in found.items() if changed is not None}


def _swapped(caption: str, groups: tuple[tuple[str, ...], ...], seed: int) -> str | None:
    """None where no word of the groups stands alone in the caption, or all of its group do."""
    present = {word.lower() for word in re.findall(r"\w+", caption)}
    choices = []
    for group in groups:
        others = [word for word in group if word not in present]
        places = re.finditer(rf"\b({'|'.join(group)})\b", caption, re.IGNORECASE)
        choices += [(place, other) for place in places for other in others]
    if not choices:
        return None
    place, word = choices[int(random.Random(seed).random() * len(choices))]
    before, after = caption[: place.start()], caption[place.end() :]
    return _agreeing(before, word) + _in_case_of(place[0], word) + after


def _agreeing(before: str, word: str) -> str:
    """The text before a word, its article as the word needs it."""
    return _ARTICLE.sub(lambda found: found[1][0] + ("n" if word[0] in "aeiou" else "") + found[2], before)


def _in_case_of(old: str, word: str) -> str:
    return word.capitalize() if old[0].isupper() else word
