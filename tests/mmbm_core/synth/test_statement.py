"""Statements: true or false by a fair coin that neither the sentence nor the picture knows."""

from collections import Counter

import numpy as np
import pytest

from mmbm_core.synth import BUILT_IN, make_row
from mmbm_core.synth.scene import OCCLUSIONS, draw_scene
from mmbm_core.synth.statement import SAYINGS, state

NUM_ROWS = 4000


@pytest.fixture(scope="module")
def drawn() -> list[tuple[str, str, bool]]:
    """What is said, what is seen, and whether the one is true of the other."""
    said_by = {sentence: value for value, sentences in SAYINGS.items() for sentence in sentences}
    rows = []
    for index in range(NUM_ROWS):
        scene = draw_scene(np.random.default_rng([9, index]), world=BUILT_IN)
        said = state(scene, rng=np.random.default_rng([8, index]))
        rows.append((said_by[said.text], scene.occlusion, said.truth))
    return rows


def test_each_value_is_said_in_as_many_ways_and_each_way_says_one() -> None:
    assert tuple(SAYINGS) == OCCLUSIONS
    assert len({len(sentences) for sentences in SAYINGS.values()}) == 1
    every = [sentence for sentences in SAYINGS.values() for sentence in sentences]
    assert len(set(every)) == len(every)


def test_truth_is_whether_what_is_said_is_seen(drawn: list[tuple[str, str, bool]]) -> None:
    assert all(truth == (said == seen) for said, seen, truth in drawn)


@pytest.mark.parametrize("known", [(), (0,), (1,)], ids=["nothing", "sentence", "picture"])
def test_truth_is_a_fair_coin_whatever_one_of_the_two_says(
    known: tuple[int, ...], drawn: list[tuple[str, str, bool]]
) -> None:
    for row in {tuple(each[i] for i in known) for each in drawn}:
        truths = [each[2] for each in drawn if tuple(each[i] for i in known) == row]
        assert abs(np.mean(truths) - 0.5) < 4 * 0.5 / len(truths) ** 0.5


def test_sentence_and_picture_are_independent_and_all_sayings_occur(drawn: list[tuple[str, str, bool]]) -> None:
    cells = Counter((said, seen) for said, seen, _ in drawn)
    assert len(cells) == 4
    assert all(abs(count / NUM_ROWS - 1 / 4) < 0.03 for count in cells.values())
    scene = draw_scene(np.random.default_rng(0), world=BUILT_IN)
    spoken = {state(scene, rng=np.random.default_rng(i)).text for i in range(200)}
    assert spoken == {sentence for sentences in SAYINGS.values() for sentence in sentences}


def test_rows_tell_the_truth_of_what_they_show() -> None:
    for index in range(12):
        row = make_row(index, seed=3, speech=False)
        assert row["truth"] == ("true" if row["statement"] in SAYINGS[row["occlusion"]] else "false")
        assert (row["occlusion"] == "partial") == any(thing["occluded"] for thing in row["objects"])
