"""English words and phrases of a scene. Also what the dialogue speaks."""

from mmbm_core.synth.world import Group, Scene

NUMBER = {1: "one", 2: "two", 3: "three", 4: "four"}
SIZE = {"small": "small", "medium": "medium-sized", "large": "large"}
PLACE = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "centre": "in the middle",
}
_RELATION = {"left": "to the left of", "right": "to the right of", "top": "above", "bottom": "below"}
_SYNONYM = {
    "small": "little",
    "medium-sized": "mid-sized",
    "large": "big",
    "plain": "uniform",
    "checked": "chequered",
    "dotted": "spotted",
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


def noun(shape: str, count: int) -> str:
    """The name of a shape, singular or plural."""
    return shape if count == 1 else f"{shape}es" if shape.endswith("s") else f"{shape}s"


def with_article(phrase: str) -> str:
    """ "a star", "an orange star"."""
    return f"{'an' if phrase[0] in 'aeio' else 'a'} {phrase}"  # u is left out: "a uniform background"


def be(count: int) -> str:
    """The verb for so many."""
    return "is" if count == 1 else "are"


def phrase(group: Group, *, synonyms: bool = False) -> str:
    """ "two small red circles", "a large orange star"."""
    size = SIZE[group.size]
    things = f"{_SYNONYM[size] if synonyms else size} {group.colour} {noun(group.shape, group.count)}"
    return with_article(things) if group.count == 1 else f"{NUMBER[group.count]} {things}"


def parts(scene: Scene, *, synonyms: bool = False) -> dict[str, str]:
    """What the patterns of `grammar` name, for a scene."""

    def say(word: str) -> str:
        return _SYNONYM.get(word, word) if synonyms else word

    phrases = [phrase(group, synonyms=synonyms) for group in scene.groups]
    places = [say(PLACE[group.place]) for group in scene.groups]
    verbs = [be(group.count) for group in scene.groups]
    placed = [" ".join(pair) for pair in zip(phrases, places, strict=True)]
    ground = f"{with_article(f'{say(scene.texture)} {scene.background}')} {say('background')}"
    where = f"{say(_RELATION[scene.main.place])} {phrases[1]}" if scene.other else places[0]
    return {
        "be": verbs[0],
        "groups": " and ".join(placed),
        "listed": ", ".join(placed),
        "ground": f"{say('on')} {ground}",
        "ground_np": ground,
        "ground_is": f"{say(scene.texture)} {'' if scene.texture == 'plain' else 'and '}{scene.background}",
        "relation": f"{phrases[0]} {verbs[0]} {where}",
        "inverted": ", ".join(" ".join(part) for part in zip(places, verbs, phrases, strict=True)),
    }
