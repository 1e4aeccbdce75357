"""English words and phrases of a scene. Also what the dialogue speaks."""

import re

from mmbm_core.synth.scene import Group, Scene
from mmbm_core.synth.world import World

NUMBER = {1: "one", 2: "two", 3: "three", 4: "four"}
PLACE = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "centre": "in the middle",
}
_RELATION = {"left": "to the left of", "right": "to the right of", "top": "above", "bottom": "below"}
_SYNONYM = {
    "on the left": "on the left-hand side",
    "on the right": "on the right-hand side",
    "at the top": "in the upper half",
    "at the bottom": "in the lower half",
    "in the middle": "in the centre",
    "above": "over",
    "below": "under",
    "on": "against",
    "background": "backdrop",
}


def with_article(phrase: str) -> str:
    """ "a star", "an orange star", "a uniform background"."""
    return f"{'an' if re.match('(?!uni|us|eu|one)[aeiou]', phrase, re.I) else 'a'} {phrase}"


def be(count: int) -> str:
    """The verb for so many."""
    return "is" if count == 1 else "are"


def phrase(group: Group, *, world: World, synonyms: bool = False) -> str:
    """ "two small red circles", "a large orange star"."""
    size, colour = (said.english(synonyms) for said in (world.sizes[group.size], world.colours[group.colour]))
    things = f"{size} {colour} {world.shapes[group.shape].english(synonyms).of(group.count)}"
    return with_article(things) if group.count == 1 else f"{NUMBER[group.count]} {things}"


def parts(scene: Scene, *, world: World, synonyms: bool = False) -> dict[str, str]:
    """What the patterns of `grammar` name, for a scene."""

    def say(word: str) -> str:
        return _SYNONYM.get(word, word) if synonyms else word

    phrases = [phrase(group, world=world, synonyms=synonyms) for group in scene.groups]
    places = [say(PLACE[group.place]) for group in scene.groups]
    verbs = [be(group.count) for group in scene.groups]
    placed = [" ".join(pair) for pair in zip(phrases, places, strict=True)]
    texture = world.textures[scene.texture].english(synonyms)
    background = world.backgrounds[scene.background].english(synonyms)
    ground = f"{with_article(f'{texture} {background}')} {say('background')}"
    where = f"{say(_RELATION[scene.main.place])} {phrases[1]}" if scene.other else places[0]
    return {
        "be": verbs[0],
        "groups": " and ".join(placed),
        "listed": ", ".join(placed),
        "ground": f"{say('on')} {ground}",
        "ground_np": ground,
        "ground_is": f"{texture} {'' if scene.texture == 'plain' else 'and '}{background}",
        "relation": f"{phrases[0]} {verbs[0]} {where}",
        "inverted": ", ".join(" ".join(part) for part in zip(places, verbs, phrases, strict=True)),
    }
