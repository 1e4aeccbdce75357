"""Reads YAML that users write: recipes, and worlds to make rows of. Loads no models' code."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from mmbm_core.errors import UsageError
from pipelines.problems import tell_problems

FOLDER = Path(__file__).parent / "recipes"
MAX_BYTES = 256 << 10
"""Of a recipe; a larger file is something else."""

_Kind = TypeVar("_Kind", bound=BaseModel)


def read_recipe(
    name: str, kind: type[_Kind], folder: Path, *, settings: Iterable[str] = (), called: str = "recipe"
) -> _Kind:
    """A file, or one that ships in `folder` by its name.

    Args:
        settings: `part.key=value` pairs that replace what the file says, such as `training.epochs=3`.
        called: what messages name it.

    Raises:
        UsageError: no such recipe, or all that is wrong with it.
    """
    content = _read(name, folder, called)
    for pair in settings:
        path, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: write part.key=value, such as training.epochs=3")
        _put(content, path.split("."), yaml.safe_load(value), pair)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problems = "".join(f"\n  {line}" for line in tell_problems(error, kind))
        raise UsageError(f"{called} {name}:{problems}") from error


def known_recipes(folder: Path = FOLDER) -> list[str]:
    """Names of the recipes that ship."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _read(name: str, folder: Path, called: str) -> dict[str, Any]:
    path = Path(name)
    if not path.suffix and name in known_recipes(folder):
        path = folder / f"{name}.yaml"
    if not path.is_file():
        raise UsageError(f"no {called} {name!r}: give a YAML file, or one of {', '.join(known_recipes(folder))}")
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"{called} {name} has {path.stat().st_size} bytes; at most {MAX_BYTES} are read")
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # no UTF-8, no such date, lists in lists in lists
        raise UsageError(f"{called} {name} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{called} {name} holds no mapping of keys to values")
    return content


def _put(content: dict[str, Any], path: list[str], value: Any, pair: str) -> None:
    for key in path[:-1]:
        content = content.setdefault(key, {})
        if not isinstance(content, dict):
            raise UsageError(f"--set {pair}: {key} is a value and has no parts")
    content[path[-1]] = value
