"""French words and phrases of a scene: gender and number agreement, size before the noun, colour after it."""

from mmbm_core.synth.scene import Group, Scene
from mmbm_core.synth.world import World

NUMBER = {2: "deux", 3: "trois", 4: "quatre"}
PLACE = {"left": "à gauche", "right": "à droite", "top": "en haut", "bottom": "en bas", "centre": "au milieu"}
_RELATION = {"left": "à gauche", "right": "à droite", "top": "au-dessus", "bottom": "au-dessous"}


def phrase(group: Group, *, world: World) -> str:
    """ "deux petits cercles rouges", "une grande étoile verte", "une croix bleue de taille moyenne"."""
    noun, colour, size = world.shapes[group.shape].fr, world.colours[group.colour].fr, world.sizes[group.size].fr
    assert noun and colour and size, "a language without words isn't spoken"
    lead = NUMBER.get(group.count) or {"m": "un", "f": "une"}[noun.gender]
    words = [noun.of(group.count), colour.of(noun.gender, count=group.count)]
    words.insert(2 if size.after else 0, size.of(noun.gender, count=group.count))
    return " ".join([lead, *words])


def parts(scene: Scene, *, world: World) -> dict[str, str]:
    """What the patterns of `grammar` name, for a scene."""
    phrases = [phrase(group, world=world) for group in scene.groups]
    places = [PLACE[group.place] for group in scene.groups]
    placed = [" ".join(pair) for pair in zip(phrases, places, strict=True)]
    verbs = ["se trouve" if group.count == 1 else "se trouvent" for group in scene.groups]
    ground_is = f"{world.backgrounds[scene.background].fr} {world.textures[scene.texture].fr}"
    where = f"{_RELATION[scene.main.place]} {_of(phrases[1])}" if scene.other else places[0]
    return {
        "groups": " et ".join(placed),
        "listed": ", ".join(placed),
        "ground": f"sur un fond {ground_is}",
        "ground_np": f"un fond {ground_is}",
        "ground_is": ground_is,
        "relation": f"{phrases[0]} {verbs[0]} {where}",
        "inverted": ", ".join(" ".join(part) for part in zip(places, verbs, phrases, strict=True)),
    }


def _of(noun_phrase: str) -> str:
    """ "d'un carré", "de deux carrés": "de" drops its vowel before another."""
    return f"d'{noun_phrase}" if noun_phrase.startswith("un") else f"de {noun_phrase}"
