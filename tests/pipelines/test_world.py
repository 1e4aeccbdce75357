"""Worlds as files: the one that ships, and what is said of those that are wrong."""

from pathlib import Path

import pytest

from deploy.cli.main import main
from mmbm_core.errors import UsageError
from mmbm_core.synth import BUILT_IN, make_row
from pipelines.world import WORLDS, describe, known_worlds, load_world


@pytest.mark.parametrize("name", known_worlds())
def test_a_world_that_ships_makes_rows(name: str) -> None:
    world = load_world(name)
    row = make_row(1, seed=1, speech=False, world=world)
    assert row["colour"] in world.colours and len(row["captions_en"]) == 3
    assert f"--world {name} " in (WORLDS / f"{name}.yaml").read_text().partition("\n")[0]


def test_signs_are_told_of_in_english_and_german(capsys: pytest.CaptureFixture[str]) -> None:
    signs = load_world("signs")
    assert describe(signs) == (
        "world: 3 colours, 3 shapes, 4 captions, said in en, de; not in fr, which lacks colours.amber"
    )
    assert describe(load_world(None)) == "world: 8 colours, 8 shapes, 7 captions, said in en, de, fr"
    assert make_row(1, seed=1, speech=False, world=signs)["text_de"] == (
        "Voraus gibt es zwei kleine rote Warnschilder unten und ein großes azurblaues Vorfahrtsschild oben "
        "vor einem einfarbigen grauen Hintergrund."
    )
    with pytest.raises(SystemExit):
        main(["synthesize", "--help"])
    assert "signs" in capsys.readouterr().out


WRONG = """
pallete: {}
colours:
  crimson: {en: red}
  lime: {rgb: [0, 300, 0.5]}
  amber:
shapes: {circl: ball, star: {de: Stern}}
sizes: {small: {en: big}, large: big}
counts: []
places: [left, middle]
backgrounds: {sand: {rgb: [1, 1, 1], tone: [1, 1, 1]}}
textures: {plain: ""}
lights: [even, even]
captions: ["{groups} {grund}.", "Hello {ground}.", "{groups} {ground", "{relation} {ground}."]
"""
TOLD = """
  colours.crimson.rgb: field required
  colours.lime.rgb.1 = 300: input should be less than or equal to 255
  colours.lime.rgb.2 = 0.5: input should be a valid integer
  colours.amber.rgb: field required
  shapes.circl: can't be drawn; known: circle, square, triangle, star, heart, cross, diamond, arrow
  shapes.star.de.gender: field required
  shapes.star.de.plural: field required
  sizes: small and large are all 'big' (en)
  counts: empty; give one or more, or leave the key out
  places.1 = 'middle': input should be 'left', 'right', 'top', 'bottom' or 'centre'
  backgrounds.sand: rgb and tone are both [1, 1, 1]; no pattern could be seen
  textures.plain.en = '': string should have at least 1 character
  lights: even is given 2 times
  captions.0.en: unknown placeholder {grund}; English has {groups}, {listed}, {relation}, {inverted}, {ground}, {ground_np}, {ground_is}, {be}
  captions.1.en: it names no things; put in one of {groups}, {listed}, {relation}, {inverted}
  captions.2.en: expected '}' before end of string; write a placeholder as {groups} and a brace as {{
  pallete: unknown key; known: colours, shapes, sizes, counts, places, backgrounds, textures, lights, blurs, captions
"""  # noqa: E501


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(WRONG)
    with pytest.raises(UsageError) as refusal:
        load_world(str(path))
    assert str(refusal.value) == f"world {path}:{TOLD.rstrip()}"


def test_a_world_with_nothing_to_contradict_is_refused_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    parts = {"colours": "red", "shapes": "star", "sizes": "small", "counts": 1, "places": "left"}
    parts |= {"backgrounds": "white", "textures": "plain"}
    path.write_text("".join(f"{part}: [{value}]\n" for part, value in parts.items()))
    assert main(["synthesize", "--output", str(tmp_path / "new"), "--rows", "2", "--world", str(path)]) == 2
    assert "give two values of any of shapes, colours, sizes" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghijkl", "bcdefghijklm", strict=True)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no mapping"),
        ("colours: [red", "is no YAML"),
        ("colours: " + "[" * 20_000, "is no YAML"),
        ("colours: !!python/object/apply:os.getcwd []", "is no YAML"),
        ("colours: [" + "red, " * 60_000 + "]", "bytes; at most"),
        (f"{BOMB}captions: *m", "captions.0"),
    ],
)
def test_files_that_are_no_worlds_are_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=said) as refusal:
        load_world(str(path))
    assert len(str(refusal.value)) < 10_000
    with pytest.raises(UsageError, match=r"no world 'sings': give a YAML file, or one of signs"):
        load_world("sings")


def test_the_built_in_world_as_a_file_is_the_built_in_one() -> None:
    from mmbm_core.synth import world

    assert load_world(str(Path(world.__file__).with_name("built_in.yaml"))).fingerprint == BUILT_IN.fingerprint
