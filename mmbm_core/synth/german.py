"""German words and phrases of a scene: gender, case, number, and the adjective endings that follow from them.

After "ein" adjectives take mixed endings, after a bare numeral strong ones (Duden, Grammatik, "Adjektivflexion").
"""

from mmbm_core.synth.world import Group, Scene

# Gender, nominative singular, dative singular, nominative plural. The dative plural adds -n where there is none.
_NOUN = {
    "circle": ("m", "Kreis", "Kreis", "Kreise"),
    "square": ("n", "Quadrat", "Quadrat", "Quadrate"),
    "triangle": ("n", "Dreieck", "Dreieck", "Dreiecke"),
    "star": ("m", "Stern", "Stern", "Sterne"),
    "heart": ("n", "Herz", "Herzen", "Herzen"),
    "cross": ("n", "Kreuz", "Kreuz", "Kreuze"),
    "diamond": ("f", "Raute", "Raute", "Rauten"),
    "arrow": ("m", "Pfeil", "Pfeil", "Pfeile"),
}
COLOUR = {
    "red": "rot",
    "orange": "orangefarben",
    "yellow": "gelb",
    "green": "grün",
    "blue": "blau",
    "purple": "violett",
    "pink": "rosa",
    "turquoise": "türkisfarben",
}
BACKGROUND = {"white": "weiß", "grey": "grau", "black": "schwarz", "beige": "beigefarben"}
TEXTURE = {"plain": "einfarbig", "striped": "gestreift", "dotted": "gepunktet", "checked": "kariert"}
SIZE = {"small": "klein", "medium": "mittelgroß", "large": "groß"}
NUMBER = {2: "zwei", 3: "drei", 4: "vier"}
PLACE = {"left": "links", "right": "rechts", "top": "oben", "bottom": "unten", "centre": "in der Mitte"}
_RELATION = {"left": "links von", "right": "rechts von", "top": "über", "bottom": "unter"}
_INVARIABLE = {"rosa"}

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


def phrase(group: Group, *, case: str) -> str:
    """ "zwei kleine rote Kreise", "einem großen Herzen". `case`: nom, acc or dat."""
    gender, singular, singular_dat, plural = _NOUN[group.shape]
    if group.count == 1:
        lead, ending = _ARTICLE[case][gender], _ENDING[case][gender]
        noun = singular_dat if case == "dat" else singular
    else:
        lead, ending = NUMBER[group.count], _ENDING[case]["plural"]
        noun = plural + "n" if case == "dat" and not plural.endswith("n") else plural
    return f"{lead} {_inflect(SIZE[group.size], ending)} {_inflect(COLOUR[group.colour], ending)} {noun}"


def parts(scene: Scene) -> dict[str, str]:
    """What the patterns of `grammar` name, for a scene."""
    places = [PLACE[group.place] for group in scene.groups]
    placed = {
        case: [f"{phrase(group, case=case)} {place}" for group, place in zip(scene.groups, places, strict=True)]
        for case in _ARTICLE
    }
    verbs = ["ist" if group.count == 1 else "sind" for group in scene.groups]
    subjects = [phrase(group, case="nom") for group in scene.groups]
    texture, background = TEXTURE[scene.texture], BACKGROUND[scene.background]
    ground_dat = f"einem {texture}en {background}en Hintergrund"
    where = f"{_RELATION[scene.main.place]} {phrase(scene.other, case='dat')}" if scene.other else places[0]
    return {
        **{f"groups_{case}": " und ".join(placed[case]) for case in placed},
        "listed_dat": ", ".join(placed["dat"]),
        "ground": f"vor {ground_dat}",
        "ground_dat": ground_dat,
        "ground_is": f"{texture} {background}" if scene.texture == "plain" else f"{texture} und {background}",
        "relation": f"{subjects[0]} {verbs[0]} {where}",
        "inverted": ", ".join(" ".join(part) for part in zip(places, verbs, subjects, strict=True)),
    }


def _inflect(adjective: str, ending: str) -> str:
    return adjective if adjective in _INVARIABLE else adjective + ending
