"""A short English dialogue about a scene: questions, and answers that are true of it."""

from collections.abc import Callable

import numpy as np

from mmbm_core.synth.english import NUMBER, PLACE, be, phrase, with_article
from mmbm_core.synth.scene import Group, Layout, Scene, choose, others
from mmbm_core.synth.world import World

NUM_QUESTIONS = (2, 4)
_LIGHT = {
    "even": "The light is even.",
    "dim": "The light is dim.",
    "bright": "The light is bright.",
    "left": "The light comes from the left.",
    "right": "The light comes from the right.",
}
Exchange = tuple[str, str]


def converse(scene: Scene, *, layout: Layout, world: World, rng: np.random.Generator) -> list[str]:
    """Two to four questions and answers: `[question, answer, question, answer, ...]`.

    Questions about a group come first; the second one may call it "it" or "they". No question is asked twice.
    """
    num_questions = int(rng.integers(NUM_QUESTIONS[0], NUM_QUESTIONS[1] + 1))
    group = choose(rng, scene.groups)
    about_group: list[Callable[[Group, str, World], Exchange]] = [_count, _colour, _place, _size]
    about_scene: list[Callable[[Scene, Layout, World, np.random.Generator], Exchange]]
    about_scene = [_what_is, _exists, _ground_colour, _ground_texture, _hidden, _light]
    if scene.other:
        about_scene.append(_more)
    num_about_group = int(rng.integers(1, min(3, num_questions + 1)))
    exchanges = []
    for position, index in enumerate(rng.permutation(len(about_group))[:num_about_group]):
        pronoun = "it" if group.count == 1 else "they"
        subject = pronoun if position and rng.random() < 0.6 else f"the {_noun(group, group.count, world)}"
        exchanges.append(about_group[index](group, subject, world))
    for index in rng.permutation(len(about_scene))[: num_questions - num_about_group]:
        exchanges.append(about_scene[index](scene, layout, world, rng))
    return [turn for exchange in exchanges for turn in exchange]


def _it(group: Group) -> str:
    return f"{'It' if group.count == 1 else 'They'} {be(group.count)}"


def _noun(group: Group, count: int, world: World) -> str:
    return world.shapes[group.shape].en.of(count)


def _count(group: Group, subject: str, world: World) -> Exchange:
    answer = f"There {be(group.count)} {NUMBER[group.count]}."
    # "how many are it" is no question: a count always names what it counts.
    return f"How many {_noun(group, 2, world)} are there?", answer


def _colour(group: Group, subject: str, world: World) -> Exchange:
    return f"What colour {be(group.count)} {subject}?", f"{_it(group)} {world.colours[group.colour].en}."


def _place(group: Group, subject: str, world: World) -> Exchange:
    return f"Where {be(group.count)} {subject}?", f"{_it(group)} {PLACE[group.place]}."


def _size(group: Group, subject: str, world: World) -> Exchange:
    return f"How big {be(group.count)} {subject}?", f"{_it(group)} {world.sizes[group.size].en}."


def _what_is(scene: Scene, layout: Layout, world: World, rng: np.random.Generator) -> Exchange:
    group = choose(rng, scene.groups)
    answer = phrase(group, world=world)
    return f"What is {PLACE[group.place]}?", f"{answer[0].upper()}{answer[1:]}."


def _exists(scene: Scene, layout: Layout, world: World, rng: np.random.Generator) -> Exchange:
    """Half the time of what is there, else of a shape or a colour that is not, where the world has one."""
    group = choose(rng, scene.groups)
    colour, shape = group.colour, group.shape
    colours = others(world.values("colour"), *(each.colour for each in scene.groups))
    shapes = others(world.values("shape"), *(each.shape for each in scene.groups))
    there = rng.random() < 0.5 or not (colours or shapes)
    if not there and ((rng.random() < 0.5 and shapes) or not colours):
        shape = choose(rng, shapes)
    elif not there:
        colour = choose(rng, colours)
    thing = with_article(f"{world.colours[colour].en} {world.shapes[shape].en.word}")
    return f"Is there {thing}?", "Yes, there is." if there else "No, there is not."


def _more(scene: Scene, layout: Layout, world: World, rng: np.random.Generator) -> Exchange:
    first, second = (scene.groups[index] for index in rng.permutation(2))
    question = f"Are there more {_noun(first, 2, world)} than {_noun(second, 2, world)}?"
    if first.count == second.count:
        return question, "No, there are as many."
    return question, "Yes, there are." if first.count > second.count else "No, there are fewer."


def _ground_colour(scene: Scene, layout: Layout, world: World, rng: np.random.Generator) -> Exchange:
    return "What colour is the background?", f"It is {world.backgrounds[scene.background].en}."


def _ground_texture(scene: Scene, layout: Layout, world: World, rng: np.random.Generator) -> Exchange:
    seen = world.textures[scene.texture].en
    if rng.random() < 0.5:
        return "What does the background look like?", f"It is {seen}."
    false = others(world.values("texture"), scene.texture)
    if rng.random() < 0.5 or not false:
        return f"Is the background {seen}?", "Yes, it is."
    return f"Is the background {world.textures[choose(rng, false)].en}?", f"No, it is {seen}."


def _hidden(scene: Scene, layout: Layout, world: World, rng: np.random.Generator) -> Exchange:
    hidden = any(thing.occluded for thing in layout.things)
    return "Is anything partly hidden?", "Yes, by a brown bar." if hidden else "No, nothing is hidden."


def _light(scene: Scene, layout: Layout, world: World, rng: np.random.Generator) -> Exchange:
    return "How is the light?", _LIGHT[scene.light]
