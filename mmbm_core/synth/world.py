"""What can be seen and said: the palette, the values that scenes are drawn from, their words, and how captions go.

`BUILT_IN` is the world that rows are of if none is given. What another world leaves out is the built-in's.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sized
from importlib.resources import files
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, ConfigDict, ValidationInfo, field_validator

from mmbm_core.synth.templates import Caption
from mmbm_core.synth.words import RGB, Colour, Ground, Said, Settings, Shape, Size, Texture, Word

Count = Literal[1, 2, 3, 4]
Place = Literal["left", "right", "top", "bottom", "centre"]
Light = Literal["even", "dim", "bright", "left", "right"]
Blur = Literal["none", "slight", "strong"]

LANGUAGES = ("en", "de", "fr")
FACTORS = ("shape", "colour", "size", "count", "place", "background", "texture")
"""What captions tell, and a contradiction may be wrong about."""
BAR_RGB: RGB = (112, 77, 52)
"""Of the bar that hides things."""

_CONTENT: dict[str, Any] = yaml.safe_load(files(__package__).joinpath("built_in.yaml").read_text("utf-8"))
_SAID = ("colours", "shapes", "sizes", "backgrounds", "textures")
_PAINTED = ("colours", "backgrounds")


def _drawn(part: str) -> AfterValidator:
    """Names of a part to which nothing can be added, since code draws it."""

    def check(name: str) -> str:
        if name not in _CONTENT[part]:
            raise ValueError(f"can't be drawn; known: {', '.join(_CONTENT[part])}")
        return name

    return AfterValidator(check)


class World(Settings):
    """All values and words. Their order counts: another order gives other rows."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    colours: dict[Word, Colour] = _CONTENT["colours"]
    shapes: dict[Annotated[str, _drawn("shapes")], Shape] = _CONTENT["shapes"]
    sizes: dict[Annotated[str, _drawn("sizes")], Size] = _CONTENT["sizes"]
    counts: tuple[Count, ...] = _CONTENT["counts"]
    places: tuple[Place, ...] = _CONTENT["places"]
    backgrounds: dict[Word, Ground] = _CONTENT["backgrounds"]
    textures: dict[Annotated[str, _drawn("textures")], Texture] = _CONTENT["textures"]
    lights: tuple[Light, ...] = _CONTENT["lights"]
    blurs: tuple[Blur, ...] = _CONTENT["blurs"]
    captions: tuple[Caption, ...] = _CONTENT["captions"]

    @field_validator(*_SAID, mode="before")
    @classmethod
    def _fill(cls, given: Any, info: ValidationInfo) -> Any:
        """Names alone stand for built-in values; a text is an English word; a word left out is the name."""
        part = str(info.field_name)
        if isinstance(given, list):
            given = _mapped(given)
        if not isinstance(given, dict):
            return given
        values = {name: _CONTENT[part].get(name, {}) if value is None else value for name, value in given.items()}
        values = {name: {"en": value} if isinstance(value, str) else value for name, value in values.items()}
        return {name: {"en": name, **value} if isinstance(value, dict) else value for name, value in values.items()}

    @field_validator(*_SAID)
    @classmethod
    def _told_apart(cls, values: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        painted = {name: value.rgb for name, value in values.items() if info.field_name in _PAINTED}
        if info.field_name == "colours":
            painted["the bar that hides things"] = BAR_RGB
        if info.field_name == "backgrounds":
            painted |= {f"colours.{name}": colour.rgb for name, colour in info.data.get("colours", {}).items()}
        _refuse([*_empty(values), *_same_words(values), *_same_rgb(painted)])
        return values

    @field_validator("textures")
    @classmethod
    def _can_contradict(cls, textures: dict[str, Texture], info: ValidationInfo) -> dict[str, Texture]:
        parts = {**info.data, "textures": textures}
        if all(f"{factor}s" in parts and len(parts[f"{factor}s"]) < 2 for factor in FACTORS):
            listed = ", ".join(f"{factor}s" for factor in FACTORS)
            raise ValueError(f"no sentence could contradict a picture: give two values of any of {listed}")
        return textures

    @field_validator("counts", "places", "lights", "blurs")
    @classmethod
    def _once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        _refuse(_repeated(values) or _empty(values))
        return values

    @field_validator("captions")
    @classmethod
    def _check_captions(cls, captions: tuple[Caption, ...], info: ValidationInfo) -> tuple[Caption, ...]:
        # Of a single group {groups} and {listed} say the same.
        phrasings = Counter(caption.en.replace("{listed}", "{groups}").casefold() for caption in captions)
        problems = [f"{times} say the same of one group: {said!r}" for said, times in phrasings.items() if times > 1]
        if len(captions) < 2:
            problems.append("give two or more: what is similar to a text is another caption")
        if any(len(info.data.get(part, ())) > 1 for part in ("backgrounds", "textures")):
            problems += [
                f"{position}.{language} says nothing of the background, of which there are several: put in {{ground}}"
                for position, caption in enumerate(captions)
                for language in caption.silent_of_ground
            ]
        _refuse(problems)
        return captions

    def values(self, factor: str) -> tuple[Any, ...]:
        """Names of the values of a factor, such as "shape"."""
        return tuple(getattr(self, f"{factor}s"))

    def wordless(self, language: str) -> list[str]:
        """What a language can't say, such as `colours.lemon`."""
        parts: dict[str, Mapping[Any, Any]] = {part: getattr(self, part) for part in _SAID}
        parts["captions"] = dict(enumerate(self.captions))
        return [
            f"{part}.{name}"
            for part, values in parts.items()
            for name, value in values.items()
            if getattr(value, language) is None
        ]

    @property
    def fingerprint(self) -> str:
        """Worlds with an equal one have equal rows. (`==` looks past the order of values.)"""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    @property
    def languages(self) -> tuple[str, ...]:
        """Those in which all can be said; English comes first."""
        return tuple(language for language in LANGUAGES if not self.wordless(language))


def _mapped(names: list[Any]) -> dict[str, None]:
    """A list of names as a mapping to nothing."""
    if not all(isinstance(name, str) for name in names):
        raise ValueError("a list holds names; to give words or rgb, write NAME: {...} for each")
    _refuse(_repeated(names))
    return dict.fromkeys(names)


def _empty(values: Sized) -> list[str]:
    return [] if values else ["empty; give one or more, or leave the key out"]


def _repeated(values: Iterable[Any]) -> list[str]:
    return [f"{value} is given {times} times" for value, times in Counter(values).items() if times > 1]


def _same_words(values: Mapping[str, Said[Any, Any, Any]]) -> list[str]:
    """Values that a language has one word for."""
    named: dict[tuple[str, str], dict[str, None]] = {}
    for name, value in values.items():
        for language, form in (("en", value.en), ("en", value.similar), ("de", value.de), ("fr", value.fr)):
            if form is not None:
                named.setdefault((language, getattr(form, "word", form).casefold()), {})[name] = None
    return [
        f"{' and '.join(names)} are all {word!r} ({language})"
        for (language, word), names in named.items()
        if len(names) > 1
    ]


def _same_rgb(painted: Mapping[str, RGB]) -> list[str]:
    """Names that look the same."""
    named: dict[RGB, list[str]] = {}
    for name, rgb in painted.items():
        named.setdefault(rgb, []).append(name)
    return [f"{' and '.join(names)} have the same rgb {list(rgb)}" for rgb, names in named.items() if len(names) > 1]


def _refuse(problems: Iterable[str]) -> None:
    if told := "; ".join(problems):
        raise ValueError(told)


BUILT_IN = World()
