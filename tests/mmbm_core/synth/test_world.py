"""Worlds of one's own: what rows show and say of them, what is left out, and the least that there can be."""

import io
import re
from string import Formatter
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import ValidationError

from mmbm_core.synth import BUILT_IN, SCHEMA, World, english, french, german, make_row, schema_of, templates
from mmbm_core.synth.grammar import caption, contradict
from mmbm_core.synth.scene import draw_scene

LEAVES = World.model_validate(
    yaml.safe_load("""
colours:
  ultramarine: {rgb: [18, 10, 200]}
  rust: {rgb: [183, 65, 14], similar: red-brown}
shapes: {heart: {en: {word: leaf, plural: leaves}, similar: petal}, circle: berry, star: box}
sizes: {small: tiny, large: {en: huge, similar: vast}}
counts: [1, 2]
places: [left, right]
backgrounds: [white]
textures: [plain]
captions: ["Found: {groups}.", "{relation}!"]
""")
)


def told(world: World, num_rows: int = 150) -> list[dict[str, Any]]:
    return [make_row(index, seed=5, speech=False, world=world) for index in range(num_rows)]


def test_rows_say_and_show_a_world() -> None:
    rows = told(LEAVES, 60)
    noun = "(leaf|leaves|berry|berries|box|boxes|petal|petals)"
    group = re.compile(rf"\b(an?|two) (tiny|huge|vast) (ultramarine|rust|red-brown) {noun}\b", re.I)
    names = {"leaf": "heart", "petal": "heart", "berry": "circle", "box": "star"}
    plurals = {"leaves": "leaf", "berries": "berry", "boxes": "box", "petals": "petal"}
    sizes = {"tiny": "small", "huge": "large", "vast": "large"}
    for row in rows:
        for sentence in (*row["captions_en"], row["similar"]):
            for prefix, found in zip(("", "other_"), group.findall(sentence), strict=False):
                number, size, colour, thing = (word.lower() for word in found)
                assert row[f"{prefix}count"] == (2 if number == "two" else 1) == (2 if thing in plurals else 1)
                assert row[f"{prefix}size"] == sizes[size]
                assert row[f"{prefix}colour"] == colour.replace("red-brown", "rust")
                assert row[f"{prefix}shape"] == names[plurals.get(thing, thing)]
        assert len(row["captions_en"]) == 2 and row["similar"] != row["text"]
        pixels = np.asarray(Image.open(io.BytesIO(row["image"])), float)
        for thing in row["objects"]:
            red, _, blue = pixels[round(thing["y_px"]), round(thing["x_px"])]
            assert thing["occluded"] or (red < blue) == (thing["colour"] == "ultramarine")
    asked = " ".join(turn for row in rows for turn in row["turns"])
    assert re.search("Is there an ultramarine (leaf|berry|box)", asked) and "What colour are the leaves?" in asked
    assert not re.search("heart|circle|star|small|large|medium", asked)
    assert "petal" in " ".join(row["similar"] for row in rows)


def test_columns_of_languages_without_words_are_left_out() -> None:
    silent = {"text_de", "text_fr", "captions_de", "captions_fr"}
    assert schema_of(LEAVES).names == [name for name in SCHEMA.names if name not in silent]
    assert list(make_row(0, seed=0, speech=False, world=LEAVES)) == schema_of(LEAVES).names
    assert LEAVES.wordless("de")[:2] == ["colours.ultramarine", "colours.rust"]


def test_words_in_other_languages_are_inflected() -> None:
    world = World.model_validate(
        yaml.safe_load("""
colours: {old: {rgb: [9, 9, 9], de: alt, fr: {word: vieux, feminine: vieille}}}
shapes:
  circle: {en: mouse, de: {gender: f, word: Maus, plural: Mäuse}, fr: {gender: f, word: souris}}
  square: {en: boat, de: {gender: n, word: Boot, plural: Boots}, fr: {gender: m, word: bateau, plural: bateaux}}
counts: [2]
""")
    )
    assert world.languages == ("en", "de", "fr") and schema_of(world) == SCHEMA
    said = " ".join(text for row in told(world, 40) for text in (*row["captions_de"], *row["captions_fr"]))
    assert all(words in said for words in ("alten Mäusen", "alte Mäuse", "alten Boots ", "alte Boots"))
    assert re.search("souris vieilles", said) and re.search("bateaux vieux", said)


def test_what_is_left_out_is_the_built_in() -> None:
    assert World().fingerprint == BUILT_IN.fingerprint
    chosen = World.model_validate({"colours": {"red": None, "blue": None}, "lights": ["even"]})
    assert chosen.colours == {name: BUILT_IN.colours[name] for name in ("red", "blue")}
    assert chosen == World.model_validate({"colours": ["red", "blue"], "lights": ["even"]})
    assert (chosen.shapes, chosen.captions) == (BUILT_IN.shapes, BUILT_IN.captions)
    assert World.model_validate(chosen.model_dump(mode="json", exclude_none=True)).fingerprint == chosen.fingerprint
    swapped = World.model_validate({"colours": ["blue", "red"], "lights": ["even"]})
    assert swapped == chosen and swapped.fingerprint != chosen.fingerprint


def test_contradictions_are_false_of_their_scene_where_there_is_little_to_be_wrong_about() -> None:
    one_each = {"sizes": ["small"], "counts": [1], "backgrounds": ["white"], "textures": ["plain"]}
    for parts, factors in (
        ({"colours": ["red"], "shapes": ["star"], "places": ["left", "centre"]}, {"place"}),
        ({"colours": ["red", "blue"], "shapes": ["star"], "places": ["left"]}, {"colour"}),
        # With two groups, both colours and both shapes are there: only changing sides is wrong.
        ({"colours": ["red", "blue"], "shapes": ["star", "heart"], "places": ["left", "right"]},
         {"colour", "shape", "place"}),
    ):  # fmt: skip
        world = World.model_validate(one_each | parts)
        seen = set()
        for index in range(80):
            scene = draw_scene(np.random.default_rng(index), world=world)
            false, factor = contradict(scene, world=world, rng=np.random.default_rng([1, index]))
            assert {*false.groups} != {*scene.groups}
            assert caption(false, world=world, language="en", phrasing=0) != caption(
                scene, world=world, language="en", phrasing=0
            )
            seen.add(factor)
        assert seen == factors
        assert told(world, 20)


def test_placeholders_are_what_the_grammars_give() -> None:
    scene = draw_scene(np.random.default_rng(0), world=BUILT_IN)
    for language, module in (("en", english), ("de", german), ("fr", french)):
        known = (*templates.THINGS[language], *templates.GROUND[language], *templates.VERB[language])
        assert set(module.parts(scene, world=BUILT_IN)) == set(known)
        used = {name for each in BUILT_IN.captions for _, name, _, _ in Formatter().parse(getattr(each, language))}
        assert used - {None} <= set(known)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"colours": {"a": {"rgb": [1, 2, 3]}, "b": {"rgb": [1, 2, 3]}}}, "a and b have the same rgb"),
        ({"colours": {"a": {"rgb": [1, 2, 3]}, "b": {"rgb": [3, 2, 1], "similar": "A"}}}, "a and b are all 'a'"),
        ({"colours": {"snow": {"rgb": [226, 226, 224]}}}, "white and colours.snow have the same rgb"),
        ({"colours": {"mud": {"rgb": [112, 77, 52]}}}, "the same rgb"),
        ({"backgrounds": {"a": {"rgb": [1, 2, 3], "tone": [1, 2, 3]}}}, "no pattern could be seen"),
        ({"sizes": []}, "empty"),
        ({"captions": ["{groups} {ground}.", "{listed} {ground}."]}, "2 say the same of one group"),
        ({"captions": ["{groups}.", "{relation} {ground}."]}, "0.en says nothing of the background"),
        ({"captions": ["{groups.__class__} {ground}.", "{groups!r:9} {ground}."]}, "placeholder {groups!r:9}"),
        ({"captions": ["{groups} {ground}."]}, "two or more"),
    ],
)
def test_what_could_not_be_told_apart_is_refused(content: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        World.model_validate(content)
