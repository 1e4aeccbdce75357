"""Worlds to make rows of, as YAML: `recipes/worlds/` holds those that ship, `mmbm_core/synth/built_in.yaml` is a whole
one."""

from mmbm_core.synth.world import BUILT_IN, LANGUAGES, World
from pipelines.recipe_file import FOLDER, known_recipes, read_recipe

WORLDS = FOLDER / "worlds"


def load_world(name: str | None) -> World:
    """A world's file, or one that ships by its name; None is the built-in one.

    Raises:
        UsageError: no such world, or all that is wrong with it.
    """
    return BUILT_IN if name is None else read_recipe(name, World, WORLDS, called="world")


def known_worlds() -> list[str]:
    """Names of the worlds that ship."""
    return known_recipes(WORLDS)


def describe(world: World) -> str:
    """What there is and in which languages it is said, in a line."""
    parts = ", ".join(f"{len(getattr(world, part))} {part}" for part in ("colours", "shapes", "captions"))
    lacking = {language: world.wordless(language) for language in LANGUAGES}
    silent = [f"; not in {language}, which lacks {lacking[language][0]}" for language in lacking if lacking[language]]
    return f"world: {parts}, said in {', '.join(world.languages)}{''.join(silent)}"
