"""Random changes of texts that leave most of what they say recognisable."""

import random
import re
from collections.abc import Callable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, lt=1)]
Draw = Callable[[], float]
"""Gives the next number in [0, 1)."""

_WORD = re.compile(r"""[^\s.,;:!?()\[\]{}"“”„«»…\u3001\u3002\uff01\uff0c\uff1f]+""")
"""With its hyphens and apostrophes; punctuation and spaces stand between words."""
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


class TextAugment(BaseModel):
    """Each text draws its own changes, in the order of the fields (Wei and Zou, 1901.11196); all are off unless set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    drop: Share = 0.0
    """Share of the words that are left out; one always stays."""
    swap: Share = 0.0
    """Share of the words that change places with the next one."""
    typos: Share = 0.0
    """Share of the words with a slip of the fingers: a letter left out, doubled, changed for the one beside it on the
    keyboard, or for its neighbour in the word."""


def augment_text(text: str, config: TextAugment, seed: int) -> str:
    """A changed copy of a text; what stands between words stays where it is.

    Args:
        seed: what is drawn is a function of it and of the text alone.
    """
    draw = random.Random(seed).random
    words = _WORD.findall(text)
    gaps = _WORD.split(text)
    if config.drop and words:
        words, gaps = _drop(words, gaps, config.drop, draw)
    if config.swap:
        words = _swap(words, config.swap, draw)
    if config.typos:
        words = [_mistype(word, draw) if draw() < config.typos else word for word in words]
    return gaps[0] + "".join(word + gap for word, gap in zip(words, gaps[1:], strict=True))


def _drop(words: list[str], gaps: list[str], share: float, draw: Draw) -> tuple[list[str], list[str]]:
    """Words that stay, and the gaps around them: of two that meet, the space of the first is left out."""
    stay = [draw() >= share for _ in words]
    if not any(stay):
        stay[_below(len(words), draw)] = True
    around = [gaps[0]]
    for kept, gap in zip(stay, gaps[1:], strict=True):
        if kept:
            around.append(gap)
        elif around[-1] or len(around) > 1:
            around[-1] = around[-1].rstrip() + gap
        else:
            around[-1] = gap.lstrip()  # nothing has come before
    return [word for word, kept in zip(words, stay, strict=True) if kept], around


def _swap(words: list[str], share: float, draw: Draw) -> list[str]:
    words, at = list(words), 0
    while at < len(words) - 1:
        if draw() < share:
            words[at], words[at + 1] = words[at + 1], words[at]
            at += 1
        at += 1
    return words


def _mistype(word: str, draw: Draw) -> str:
    """One slip; a word of one letter stays."""
    if len(word) < 2:
        return word
    at, kind = _below(len(word), draw), _below(4, draw)
    before, letter, after = word[:at], word[at], word[at + 1 :]
    if kind == 0:
        return before + after
    if kind == 1:
        return before + letter + letter + after
    beside = _beside(letter, draw)
    if kind == 2 and beside:
        return before + beside + after
    at = min(at, len(word) - 2)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _beside(letter: str, draw: Draw) -> str:
    """The key left or right of a letter's, in its case; "" where the keyboard has none."""
    row = next((keys for keys in _KEYS if letter.lower() in keys), "")
    if not row:
        return ""
    at = row.index(letter.lower())
    key = row[max(0, at - 1) : at] + row[at + 1 : at + 2]
    found = key[_below(len(key), draw)]
    return found.upper() if letter.isupper() else found


def _below(count: int, draw: Draw) -> int:
    return int(draw() * count)
