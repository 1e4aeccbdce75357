"""German words and phrases of a scene: gender, case, number, and the adjective endings that follow from them.

After "ein" adjectives take mixed endings, after a bare numeral strong ones (Duden, Grammatik, "Adjektivflexion").
"""

from mmbm_core.synth.scene import Group, Scene
from mmbm_core.synth.world import World

NUMBER = {2: "zwei", 3: "drei", 4: "vier"}
PLACE = {"left": "links", "right": "rechts", "top": "oben", "bottom": "unten", "centre": "in der Mitte"}
_RELATION = {"left": "links von", "right": "rechts von", "top": "über", "bottom": "unter"}

_ARTICLE = {
    "nom": {"m": "ein", "f": "eine", "n": "ein"},
    "acc": {"m": "einen", "f": "eine", "n": "ein"},
    "dat": {"m": "einem", "f": "einer", "n": "einem"},
}
_ENDING = {
    "nom": {"m": "er", "f": "e", "n": "es", "plural": "e"},
    "acc": {"m": "en", "f": "e", "n": "es", "plural": "e"},
    "dat": {"m": "en", "f": "en", "n": "en", "plural": "en"},
}


def phrase(group: Group, *, case: str, world: World) -> str:
    """ "zwei kleine rote Kreise", "einem großen Herzen". `case`: nom, acc or dat."""
    noun, colour, size = world.shapes[group.shape].de, world.colours[group.colour].de, world.sizes[group.size].de
    assert noun and colour and size, "a language without words isn't spoken"
    if group.count == 1:
        lead, ending = _ARTICLE[case][noun.gender], _ENDING[case][noun.gender]
        name = noun.dative or noun.word if case == "dat" else noun.word
    else:
        lead, ending = NUMBER[group.count], _ENDING[case]["plural"]
        name = noun.plural + "n" if case == "dat" and noun.plural[-1] not in "ns" else noun.plural
    return f"{lead} {size.with_ending(ending)} {colour.with_ending(ending)} {name}"


def parts(scene: Scene, *, world: World) -> dict[str, str]:
    """What the patterns of `grammar` name, for a scene."""
    places = [PLACE[group.place] for group in scene.groups]
    placed = {
        case: [
            f"{phrase(group, case=case, world=world)} {place}"
            for group, place in zip(scene.groups, places, strict=True)
        ]
        for case in _ARTICLE
    }
    verbs = ["ist" if group.count == 1 else "sind" for group in scene.groups]
    subjects = [phrase(group, case="nom", world=world) for group in scene.groups]
    texture, background = world.textures[scene.texture].de, world.backgrounds[scene.background].de
    assert texture and background, "a language without words isn't spoken"
    ground_dat = f"einem {texture.with_ending('en')} {background.with_ending('en')} Hintergrund"
    where = places[0]
    if scene.other:
        where = f"{_RELATION[scene.main.place]} {phrase(scene.other, case='dat', world=world)}"
    return {
        **{f"groups_{case}": " und ".join(placed[case]) for case in placed},
        "listed_dat": ", ".join(placed["dat"]),
        "ground": f"vor {ground_dat}",
        "ground_dat": ground_dat,
        "ground_is": f"{texture.word} {'' if scene.texture == 'plain' else 'und '}{background.word}",
        "relation": f"{subjects[0]} {verbs[0]} {where}",
        "inverted": ", ".join(" ".join(part) for part in zip(places, verbs, subjects, strict=True)),
    }
