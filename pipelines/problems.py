"""What is wrong with a recipe, a line each, with the key or value that was probably meant."""

import difflib
import reprlib
import types
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

_SAID = ("missing", "extra_forbidden", "value_error", "union_tag_not_found")
"""Errors whose message tells enough without the value."""
_SHORT = reprlib.Repr()
"""Of a value: a few lines of YAML can stand for gigabytes."""
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 100, 100


class _Place(NamedTuple):
    """Where an error is."""

    path: str
    """As one would write it in YAML."""
    keys: tuple[str, ...]
    """Those that are known beside the one that the error is about."""
    branch: tuple[str, str] | None
    """Of alternatives that are told apart by trying: where they are, and which one the error is of."""


def tell_problems(error: ValidationError, settings: type[BaseModel]) -> list[str]:
    """Lines `path = value: what is wrong`, all of an error that validating `settings` has raised."""
    found = [(_locate(settings, each["loc"]), each) for each in error.errors()]
    lines: dict[str, dict[str, None]] = {}
    for place, each in _likeliest(found):
        lines.setdefault(_line(place, each), {}).update(dict.fromkeys(place.keys))
    return [f"{line}{like(line.partition(':')[0].rpartition('.')[2], list(known))}" for line, known in lines.items()]


def _line(place: _Place, error: Any) -> str:
    kind, message = error["type"], error["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return f"{place.path}: unknown key"
    if kind == "union_tag_invalid":
        known = error["ctx"]["expected_tags"].replace("'", "").split(", ")
        return f"{place.path}.kind = {error['ctx']['tag']!r}: unknown kind{like(error['ctx']['tag'], known)}"
    if kind == "union_tag_not_found":
        return f"{place.path}.kind: field required"
    given = "" if kind in _SAID else f" = {_SHORT.repr(error['input'])}"
    return f"{place.path}{given}: {message[0].lower()}{message[1:]}"


def like(name: str, known: Sequence[str]) -> str:
    """The known name that is nearest, or all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}" if known else ""


def _likeliest(found: Sequence[tuple[_Place, Any]]) -> list[tuple[_Place, Any]]:
    """Without the errors of alternatives that were hardly meant: those of another type, or with more errors."""
    counts: dict[str, dict[str, int]] = {}
    for place, error in found:
        if place.branch and not _of_another_type(error):
            where, name = place.branch
            each = counts.setdefault(where, {})
            each[name] = each.get(name, 0) + 1

    def meant(place: _Place) -> bool:
        each = counts.get(place.branch[0], {}) if place.branch else {}
        return not place.branch or not each or each.get(place.branch[1]) == min(each.values())

    return [(place, error) for place, error in found if meant(place)]


def _of_another_type(error: Any) -> bool:
    """Is a mapping given where a text is allowed, or anything else where a mapping is?"""
    mapping = isinstance(error["input"], dict)
    return (error["type"] == "string_type" and mapping) or (error["type"] == "model_type" and not mapping)


def _locate(settings: type[BaseModel], loc: Sequence[str | int]) -> _Place:
    """Follow an error's location through the types; what pydantic puts there to name alternatives is left out."""
    here: Any = settings
    shown: list[str] = []
    keys: tuple[str, ...] = ()
    branch = None
    for part in loc:
        options = _options(here)
        if len(options) > 1:
            fitting = [each for each in options if _names(str(part), each)]
            here = Union[tuple(fitting)] if fitting else Any  # noqa: UP007
            if not any(_kinds(each) for each in options) or str in options:
                branch = (".".join(shown), str(part))
            continue
        here = options[0]
        if part == "[key]":
            continue
        shown.append(str(part))
        keys, here = _step(here, str(part))
    return _Place(".".join(shown), keys, branch)


def _step(here: Any, part: str) -> tuple[tuple[str, ...], Any]:
    """Keys known in `here`, and the type below `part`."""
    if isinstance(here, type) and issubclass(here, BaseModel):
        fields = here.model_fields
        return (() if part in fields else tuple(fields)), fields[part].annotation if part in fields else Any
    inner = [each for each in get_args(here) if each is not ...]
    return (), inner[-1] if inner else Any


def _options(here: Any) -> list[Any]:
    """The alternatives of a type, None left out."""
    while get_origin(here) is Annotated:
        here = get_args(here)[0]
    if get_origin(here) not in (Union, types.UnionType):
        return [here]
    return [option for each in get_args(here) if each is not type(None) for option in _options(each)]


def _kinds(option: Any) -> tuple[str, ...]:
    """Values of `kind` that choose a config class."""
    fields = getattr(option, "model_fields", {})
    return get_args(fields["kind"].annotation) if "kind" in fields else ()


def _names(part: str, option: Any) -> bool:
    """Is `part` pydantic's name for an alternative, or for several?"""
    name = getattr(option, "__name__", str(option))
    return part in _kinds(option) or part == name or f"{name}]" in part or f", {name}" in part


__all__ = ["like", "tell_problems"]
