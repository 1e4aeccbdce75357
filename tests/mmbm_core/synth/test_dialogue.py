"""Every answer of a dialogue is true: each question is understood here anew, and answered from the labels."""

import re
from collections import Counter
from typing import Any

import numpy as np

from mmbm_core.synth import BUILT_IN, make_row
from mmbm_core.synth.dialogue import converse
from mmbm_core.synth.scene import draw_scene, lay_out

SIZES = {"small": "small", "medium": "medium-sized", "large": "large"}
PLACES = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "centre": "in the middle",
}
NUMBERS = ("no", "one", "two", "three", "four")
LIGHTS = {"left": "The light comes from the left.", "right": "The light comes from the right."}


def singular(noun: str) -> str:
    return {"crosses": "cross"}.get(noun, noun if noun == "cross" else noun.removesuffix("s"))


def groups_of(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    names = ("shape", "colour", "size", "count", "place")
    groups = [{name: row[prefix + name] for name in names} for prefix in ("", "other_") if row[prefix + "count"]]
    return {group["shape"]: group for group in groups}


def answer_of(question: str, row: dict[str, Any], spoken_of: str) -> tuple[str, str]:
    """The true answer, and the shape that "it" and "they" mean from here on."""
    groups = groups_of(row)
    if match := re.fullmatch(r"How many (\w+) are there\?", question):
        shape = singular(match[1])
        return f"There {'is' if groups[shape]['count'] == 1 else 'are'} {NUMBERS[groups[shape]['count']]}.", shape
    if match := re.fullmatch(r"(What colour|Where|How big) (?:is|are) (?:the (\w+)|it|they)\?", question):
        if match[2] != "background":
            shape = singular(match[2]) if match[2] else spoken_of
            group = groups[shape]
            said = {"What colour": group["colour"], "Where": PLACES[group["place"]], "How big": SIZES[group["size"]]}
            return f"{'It is' if group['count'] == 1 else 'They are'} {said[match[1]]}.", shape
        return f"It is {row['background']}.", ""
    if match := re.fullmatch(r"What is (.*)\?", question):
        (group,) = (group for group in groups.values() if PLACES[group["place"]] == match[1])
        number = "a" if group["count"] == 1 else NUMBERS[group["count"]]
        plural = "" if group["count"] == 1 else "es" if group["shape"] == "cross" else "s"
        return f"{number.capitalize()} {SIZES[group['size']]} {group['colour']} {group['shape']}{plural}.", ""
    if match := re.fullmatch(r"Is there (an?) (\w+) (\w+)\?", question):
        assert (match[1] == "an") == (match[2][0] in "aeiou")
        there = match[3] in groups and groups[match[3]]["colour"] == match[2]
        return "Yes, there is." if there else "No, there is not.", ""
    if match := re.fullmatch(r"Are there more (\w+) than (\w+)\?", question):
        more = groups[singular(match[1])]["count"] - groups[singular(match[2])]["count"]
        return "Yes, there are." if more > 0 else "No, there are as many." if more == 0 else "No, there are fewer.", ""
    if match := re.fullmatch(r"Is the background (\w+)\?", question):
        return "Yes, it is." if match[1] == row["texture"] else f"No, it is {row['texture']}.", ""
    if question == "What does the background look like?":
        return f"It is {row['texture']}.", ""
    if question == "Is anything partly hidden?":
        return "Yes, by a brown bar." if row["occlusion"] == "partial" else "No, nothing is hidden.", ""
    assert question == "How is the light?", question
    return LIGHTS.get(row["light"], f"The light is {row['light']}."), ""


def test_every_answer_is_true() -> None:
    kinds: Counter[str] = Counter()
    for index in range(250):
        row = make_row(index, seed=41, speech=False)
        turns, spoken_of = row["turns"], ""
        assert len(turns) in (4, 6, 8) and len(set(turns[::2])) == len(turns) // 2
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            true_answer, spoken_of = answer_of(question, row, spoken_of)
            assert answer == true_answer, (row["id"], question)
            kinds[question.split()[0]] += 1
    assert set(kinds) == {"How", "What", "Where", "Is", "Are"}


def test_yes_is_about_as_common_as_no() -> None:
    answers: Counter[str] = Counter()
    for index in range(1500):
        rng = np.random.default_rng(index)
        scene = draw_scene(rng, world=BUILT_IN)
        turns = converse(scene, layout=lay_out(scene, rng=rng), world=BUILT_IN, rng=rng)
        answers.update(answer.split(",")[0] for answer in turns[1::2] if answer.startswith(("Yes", "No")))
    assert 0.4 < answers["Yes"] / answers.total() < 0.6
