"""A short English dialogue about a scene: questions, and answers that are true of it."""

from collections.abc import Callable

import numpy as np

from mmbm_core.synth.english import NUMBER, PLACE, SIZE, be, noun, phrase, with_article
from mmbm_core.synth.world import COLOURS, SHAPES, TEXTURES, Group, Layout, Scene, choose, others

NUM_QUESTIONS = (2, 4)
_LIGHT = {
    "even": "The light is even.",
    "dim": "The light is dim.",
    "bright": "The light is bright.",
    "left": "The light comes from the left.",
    "right": "The light comes from the right.",
}
Exchange = tuple[str, str]


def converse(scene: Scene, *, layout: Layout, rng: np.random.Generator) -> list[str]:
    """Two to four questions and answers: `[question, answer, question, answer, ...]`.

    Questions about a group come first; the second one may call it "it" or "they". No question is asked twice.
    """
    num_questions = int(rng.integers(NUM_QUESTIONS[0], NUM_QUESTIONS[1] + 1))
    group = choose(rng, scene.groups)
    about_group: list[Callable[[Group, str], Exchange]] = [_count, _colour, _place, _size]
    about_scene: list[Callable[[Scene, Layout, np.random.Generator], Exchange]]
    about_scene = [_what_is, _exists, _ground_colour, _ground_texture, _hidden, _light]
    if scene.other:
        about_scene.append(_more)
    num_about_group = int(rng.integers(1, min(3, num_questions + 1)))
    exchanges = []
    for position, index in enumerate(rng.permutation(len(about_group))[:num_about_group]):
        pronoun = "it" if group.count == 1 else "they"
        subject = pronoun if position and rng.random() < 0.6 else f"the {noun(group.shape, group.count)}"
        exchanges.append(about_group[index](group, subject))
    for index in rng.permutation(len(about_scene))[: num_questions - num_about_group]:
        exchanges.append(about_scene[index](scene, layout, rng))
    return [turn for exchange in exchanges for turn in exchange]


def _it(group: Group) -> str:
    return f"{'It' if group.count == 1 else 'They'} {be(group.count)}"


def _count(group: Group, subject: str) -> Exchange:
    answer = f"There {be(group.count)} {NUMBER[group.count]}."
    # "how many are it" is no question: a count always names what it counts.
    return f"How many {noun(group.shape, 2)} are there?", answer


def _colour(group: Group, subject: str) -> Exchange:
    return f"What colour {be(group.count)} {subject}?", f"{_it(group)} {group.colour}."


def _place(group: Group, subject: str) -> Exchange:
    return f"Where {be(group.count)} {subject}?", f"{_it(group)} {PLACE[group.place]}."


def _size(group: Group, subject: str) -> Exchange:
    return f"How big {be(group.count)} {subject}?", f"{_it(group)} {SIZE[group.size]}."


def _what_is(scene: Scene, layout: Layout, rng: np.random.Generator) -> Exchange:
    group = choose(rng, scene.groups)
    answer = phrase(group)
    return f"What is {PLACE[group.place]}?", f"{answer[0].upper()}{answer[1:]}."


def _exists(scene: Scene, layout: Layout, rng: np.random.Generator) -> Exchange:
    """Half the time of what is there, else of a shape or a colour that is not."""
    group = choose(rng, scene.groups)
    if rng.random() < 0.5:
        return f"Is there {with_article(f'{group.colour} {group.shape}')}?", "Yes, there is."
    if rng.random() < 0.5:
        colour, shape = group.colour, choose(rng, others(SHAPES, *(group.shape for group in scene.groups)))
    else:
        colour, shape = choose(rng, others(COLOURS, *(group.colour for group in scene.groups))), group.shape
    return f"Is there {with_article(f'{colour} {shape}')}?", "No, there is not."


def _more(scene: Scene, layout: Layout, rng: np.random.Generator) -> Exchange:
    first, second = (scene.groups[index] for index in rng.permutation(2))
    question = f"Are there more {noun(first.shape, 2)} than {noun(second.shape, 2)}?"
    if first.count == second.count:
        return question, "No, there are as many."
    return question, "Yes, there are." if first.count > second.count else "No, there are fewer."


def _ground_colour(scene: Scene, layout: Layout, rng: np.random.Generator) -> Exchange:
    return "What colour is the background?", f"It is {scene.background}."


def _ground_texture(scene: Scene, layout: Layout, rng: np.random.Generator) -> Exchange:
    if rng.random() < 0.5:
        return "What does the background look like?", f"It is {scene.texture}."
    asked = scene.texture if rng.random() < 0.5 else choose(rng, others(TEXTURES, scene.texture))
    if asked == scene.texture:
        return f"Is the background {asked}?", "Yes, it is."
    return f"Is the background {asked}?", f"No, it is {scene.texture}."


def _hidden(scene: Scene, layout: Layout, rng: np.random.Generator) -> Exchange:
    hidden = any(thing.occluded for thing in layout.things)
    return "Is anything partly hidden?", "Yes, by a brown bar." if hidden else "No, nothing is hidden."


def _light(scene: Scene, layout: Layout, rng: np.random.Generator) -> Exchange:
    return "How is the light?", _LIGHT[scene.light]
