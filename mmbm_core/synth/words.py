"""How a value of the world is called: its words in three languages, with the forms that their grammars need.

A form that is no more than a word may be written as one: `de: rot` is `de: {word: rot}`.
"""

import re
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator


def _in_one_line(word: str) -> str:
    if not word.isprintable():
        raise ValueError("a word has letters, spaces and signs, all in one line")
    return word


Word = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=60), AfterValidator(_in_one_line)
]
Level = Annotated[int, Field(ge=0, le=255, strict=True)]
RGB = tuple[Level, Level, Level]


class Settings(BaseModel):
    """What all parts of a world have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Form(Settings):
    """A word and its other forms."""

    word: Word

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, given: Any) -> Any:
        return {"word": given} if isinstance(given, str) else given


class EnglishNoun(Form):
    """ "star"; the plural is needed where it is not by the rule."""

    plural: Word | None = None

    def of(self, count: int) -> str:
        """The form for so many."""
        if count == 1:
            return self.word
        if self.plural is not None:
            return self.plural
        if re.search("(s|x|z|ch|sh)$", self.word):
            return f"{self.word}es"
        return re.sub("(?<=[^aeiou])y$", "ie", self.word) + "s"


class GermanAdjective(Form):
    """ "rot", which takes endings, or "rosa", which is invariable."""

    invariable: bool = False

    def with_ending(self, ending: str) -> str:
        """ "rot" and "er" are "roter"."""
        return self.word if self.invariable else self.word + ending


class GermanNoun(Form):
    """Nominative singular and plural; the dative singular where it is another."""

    gender: Literal["m", "f", "n"]
    plural: Word
    dative: Word | None = None


class FrenchAdjective(Form):
    """The masculine; the feminine where it is not by the rule."""

    feminine: Word | None = None
    invariable: bool = False

    def of(self, gender: str, *, count: int) -> str:
        """The form that agrees with a noun. Colours named after things ("orange") have only one."""
        if self.invariable:
            return self.word
        by_rule = self.word if self.word.endswith("e") else f"{self.word}e"
        return _french_plural(self.word if gender == "m" else self.feminine or by_rule, count)


class FrenchSize(FrenchAdjective):
    """A size goes before the noun, or `after` all: "de taille moyenne"."""

    after: bool = False


class FrenchNoun(Form):
    """The singular; the plural where it is not by the rule."""

    gender: Literal["m", "f"]
    plural: Word | None = None

    def of(self, count: int) -> str:
        """The form for so many."""
        return self.plural if self.plural is not None and count > 1 else _french_plural(self.word, count)


def _french_plural(word: str, count: int) -> str:
    return word if count == 1 or word[-1] in "sxz" else f"{word}s"


_English = TypeVar("_English")
_German = TypeVar("_German")
_French = TypeVar("_French")


class Said(Settings, Generic[_English, _German, _French]):
    """Words of one value. A language without a word can't say it."""

    en: _English
    similar: _English | None = None
    """What paraphrases say instead."""
    de: _German | None = None
    fr: _French | None = None

    def english(self, synonyms: bool) -> _English:
        """The word, or its synonym if there is one."""
        return self.similar if synonyms and self.similar is not None else self.en


class Colour(Said[Word, GermanAdjective, FrenchAdjective]):
    """A colour of things."""

    rgb: RGB


class Shape(Said[EnglishNoun, GermanNoun, FrenchNoun]):
    """One of the outlines that can be drawn."""


class Size(Said[Word, GermanAdjective, FrenchSize]):
    """One of the sizes that can be drawn."""


class Texture(Said[Word, GermanAdjective, Word]):
    """One of the patterns that can be drawn. German and French say it of the background, a masculine."""


class Ground(Texture):
    """The background's colour and that of its pattern."""

    rgb: RGB
    tone: RGB

    @model_validator(mode="after")
    def _check(self) -> "Ground":
        if self.rgb == self.tone:
            raise ValueError(f"rgb and tone are both {list(self.rgb)}; no pattern could be seen")
        return self
