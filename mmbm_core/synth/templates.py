"""Patterns of captions: sentences with named places for what a language's grammar says of a scene."""

from string import Formatter
from typing import Annotated, Any

from pydantic import AfterValidator, StringConstraints, ValidationInfo, field_validator, model_validator

from mmbm_core.synth.words import Settings

THINGS = {
    "en": ("groups", "listed", "relation", "inverted"),
    "de": ("groups_nom", "groups_acc", "groups_dat", "listed_dat", "relation", "inverted"),
    "fr": ("groups", "listed", "relation", "inverted"),
}
"""By language, the places that name all things and where they are."""
GROUND = {
    "en": ("ground", "ground_np", "ground_is"),
    "de": ("ground", "ground_dat", "ground_is"),
    "fr": ("ground", "ground_np", "ground_is"),
}
"""The places that name the background and its texture."""
VERB = {"en": ("be",), "de": (), "fr": ()}

_LANGUAGE_OF = {"en": "English", "de": "German", "fr": "French"}


def _in_one_line(pattern: str) -> str:
    if not pattern.isprintable():
        raise ValueError("a caption is one line of text")
    return pattern


Pattern = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300), AfterValidator(_in_one_line)
]


class Caption(Settings):
    """One phrasing. English alone may be written as a text."""

    en: Pattern
    de: Pattern | None = None
    fr: Pattern | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        return {"en": given} if isinstance(given, str) else given

    @field_validator("en", "de", "fr")
    @classmethod
    def _check(cls, pattern: str | None, info: ValidationInfo) -> str | None:
        if pattern is not None:
            _check_pattern(pattern, str(info.field_name))
        return pattern

    @property
    def silent_of_ground(self) -> list[str]:
        """Languages in which it says nothing of the background."""
        given = {"en": self.en, "de": self.de, "fr": self.fr}
        return [code for code, pattern in given.items() if pattern and not {*GROUND[code]} & {*_named_in(pattern)}]


def _check_pattern(pattern: str, language: str) -> None:
    """Raises ValueError with all that is wrong with a pattern."""
    known = (*THINGS[language], *GROUND[language], *VERB[language])
    named = _named_in(pattern)
    problems = [f"unknown placeholder {{{name}}}" for name in named if name not in known]
    if problems:
        listed = ", ".join(f"{{{name}}}" for name in known)
        problems[-1] += f"; {_LANGUAGE_OF[language]} has {listed}"
    if not {*THINGS[language]} & {*named}:
        listed = ", ".join(f"{{{name}}}" for name in THINGS[language])
        problems.append(f"it names no things; put in one of {listed}")
    if problems:
        raise ValueError("; ".join(problems))


def _named_in(pattern: str) -> list[str]:
    """Placeholders of a pattern, as they are written: `{a.b}`, `{a!r}` and `{a:9}` are never known ones.

    Raises:
        ValueError: a brace has no partner.
    """
    try:
        parsed = list(Formatter().parse(pattern))
    except ValueError as error:
        raise ValueError(f"{str(error).lower()}; write a placeholder as {{groups}} and a brace as {{{{") from error
    return [
        f"{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}"
        for _, name, spec, conversion in parsed
        if name is not None
    ]
