"""Captions are right in three languages, true of their scene, and the contradiction is false of it."""

import re
from typing import Any

import pytest

from mmbm_core.synth import BUILT_IN, make_row
from mmbm_core.synth.grammar import caption, paraphrase
from mmbm_core.synth.scene import Group, Scene

COLOURS = {
    "red": ("rot", "rouge"),
    "orange": ("orangefarben", "orange"),
    "yellow": ("gelb", "jaune"),
    "green": ("grün", "vert"),
    "blue": ("blau", "bleu"),
    "purple": ("violett", "violet"),
    "pink": ("rosa", "rose"),
    "turquoise": ("türkisfarben", "turquoise"),
}
SHAPES = {
    "circle": ("Kreis", "cercle"),
    "square": ("Quadrat", "carré"),
    "triangle": ("Dreieck", "triangle"),
    "star": ("Stern", "étoile"),
    "heart": ("Herz", "cœur"),
    "cross": ("Kreuz", "croix"),
    "diamond": ("Raute", "losange"),
    "arrow": ("Pfeil", "flèche"),
}
NUMBERS = {1: ("ein", "une?"), 2: ("zwei", "deux"), 3: ("drei", "trois"), 4: ("vier", "quatre")}
SYNONYMS = {"little": "small", "mid-sized": "medium", "medium-sized": "medium", "big": "large"}
SYNONYMS |= {"uniform": "plain", "spotted": "dotted", "chequered": "checked"}
GROUP = re.compile(rf"\b(an?|two|three|four) (small|medium|large) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", re.I)
PLACES = {
    "left": "on the left|to the left of",
    "right": "on the right|to the right of",
    "top": "at the top|in the upper half|above|over",
    "bottom": "at the bottom|in the lower half|below|under",
    "centre": "in the middle|in the centre",
}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [make_row(index, seed=31, speech=False) for index in range(200)]


def facts_in(sentence: str) -> dict[str, Any]:
    """Read an English caption back: an independent check on the grammar that wrote it."""
    for word, plain in SYNONYMS.items():
        sentence = sentence.replace(word, plain)
    facts: dict[str, Any] = {}
    for prefix, (number, size, colour, shape) in zip(("", "other_"), GROUP.findall(sentence), strict=False):
        count = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4}[number.lower()]
        facts |= {f"{prefix}count": count, f"{prefix}size": size, f"{prefix}colour": colour, f"{prefix}shape": shape}
    found = {place: re.search(rf"\b({words})\b", sentence, re.I) for place, words in PLACES.items()}
    facts["place"] = min((match.start(), place) for place, match in found.items() if match)[1]
    facts["background"] = re.search("white|grey|black|beige", sentence)[0]
    facts["texture"] = re.search("plain|striped|dotted|checked", sentence)[0]
    return facts


def test_captions_and_paraphrase_say_what_the_labels_say(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        for sentence in (*row["captions_en"], row["similar"]):
            for name, value in facts_in(sentence).items():
                assert row[name] == value, (sentence, name)
        assert [row["text"], row["text_de"], row["text_fr"]] == [
            row[f"captions_{code}"][0] for code in ("en", "de", "fr")
        ]
        assert len(set(row["captions_en"])) == 3 and row["similar"] != row["text"]


def test_contradiction_differs_from_the_truth_in_the_factor_it_names(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        claimed = facts_in(row["contradiction"])
        assert {name for name, value in claimed.items() if row[name] != value} == {row["contradicted"]}
    assert len({row["contradicted"] for row in rows}) == 7


def test_german_and_french_name_the_same_things(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        for prefix in ("", "other_")[: 1 + bool(row["other_count"])]:
            colour, shape, number = (
                COLOURS[row[f"{prefix}colour"]],
                SHAPES[row[f"{prefix}shape"]],
                NUMBERS[row[f"{prefix}count"]],
            )
            for sentence in row["captions_de"]:
                assert re.search(
                    rf"\b{number[0]}(e|en|em|er)? (klein|mittelgroß|groß)\w+ {colour[0]}\w* {shape[0]}", sentence, re.I
                )
            for sentence in row["captions_fr"]:
                sized = rf"\b{number[1]} (petite?s? |grande?s? )?{shape[1]}s? {colour[1]}(te|e)?s?\b"
                assert re.search(sized, sentence, re.I), sentence


def scene_of(*groups: tuple[str, str, str, int, str], background: str = "grey", texture: str = "striped") -> Scene:
    made = [
        Group(size=size, colour=colour, shape=shape, count=count, place=place)
        for size, colour, shape, count, place in groups
    ]
    other = {"light": "even", "blur": "none", "occlusion": "none"}
    return Scene(groups=tuple(made), background=background, texture=texture, **other)


# Written by hand: every gender, case and number; invariable colours; elision; "an"; a plural in -x and one in -es.
GOLDEN = [
    (
        scene_of(("small", "red", "circle", 1, "left"), ("large", "pink", "arrow", 2, "right")),
        2,
        "The picture shows a small red circle on the left and two large pink arrows on the right on a striped grey "
        "background.",
        "Das Bild zeigt einen kleinen roten Kreis links und zwei große rosa Pfeile rechts vor einem gestreiften grauen "
        "Hintergrund.",
        "L'image montre un petit cercle rouge à gauche et deux grandes flèches roses à droite sur un fond gris à "
        "rayures.",
    ),
    (
        scene_of(("large", "green", "star", 3, "top"), ("small", "purple", "diamond", 1, "bottom"), texture="plain"),
        5,
        "Three large green stars are above a small purple diamond on a plain grey background.",
        "Drei große grüne Sterne sind über einer kleinen violetten Raute vor einem einfarbigen grauen Hintergrund.",
        "Trois grandes étoiles vertes se trouvent au-dessus d'un petit losange violet sur un fond gris uni.",
    ),
    (
        scene_of(("large", "orange", "heart", 1, "right"), ("medium", "blue", "cross", 2, "left"), background="white"),
        4,
        "An image with a large orange heart on the right, two medium-sized blue crosses on the left, and a striped "
        "white background.",
        "Ein Bild mit einem großen orangefarbenen Herzen rechts, zwei mittelgroßen blauen Kreuzen links und einem "
        "gestreiften weißen Hintergrund.",
        "Une image avec un grand cœur orange à droite, deux croix bleues de taille moyenne à gauche et un fond blanc à "
        "rayures.",
    ),
    (
        scene_of(("medium", "turquoise", "square", 4, "centre"), background="black", texture="dotted"),
        6,
        "The background is dotted and black; in the middle are four medium-sized turquoise squares.",
        "Der Hintergrund ist gepunktet und schwarz; in der Mitte sind vier mittelgroße türkisfarbene Quadrate.",
        "Le fond de l'image est noir à pois ; au milieu se trouvent quatre carrés turquoise de taille moyenne.",
    ),
    (
        scene_of(("small", "yellow", "triangle", 1, "bottom"), background="beige", texture="checked"),
        1,
        "There is a small yellow triangle at the bottom on a checked beige background.",
        "Es gibt ein kleines gelbes Dreieck unten vor einem karierten beigefarbenen Hintergrund.",
        "Il y a un petit triangle jaune en bas sur un fond beige à carreaux.",
    ),
]


@pytest.mark.parametrize(("scene", "phrasing", "en", "de", "fr"), GOLDEN)
def test_grammar_against_sentences_written_by_hand(scene: Scene, phrasing: int, en: str, de: str, fr: str) -> None:
    languages = ("en", "de", "fr")
    said = {each: caption(scene, world=BUILT_IN, language=each, phrasing=phrasing) for each in languages}
    assert said == {"en": en, "de": de, "fr": fr}


def test_every_phrasing_is_a_sentence_of_its_own() -> None:
    scene = GOLDEN[0][0]
    for language in ("en", "de", "fr"):
        phrasings = range(len(BUILT_IN.captions))
        said = {caption(scene, world=BUILT_IN, language=language, phrasing=phrasing) for phrasing in phrasings}
        assert len(said) == len(phrasings)
        assert all(sentence[0].isupper() and sentence.endswith(".") and "  " not in sentence for sentence in said)
    assert paraphrase(scene, world=BUILT_IN, phrasing=5).startswith(
        "A little red circle is to the left of two big pink arrows against a"
    )
