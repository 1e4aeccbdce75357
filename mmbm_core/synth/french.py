"""French words and phrases of a scene: gender and number agreement, size before the noun, colour after it."""

from mmbm_core.synth.world import Group, Scene

# Gender, singular, plural.
_NOUN = {
    "circle": ("m", "cercle", "cercles"),
    "square": ("m", "carré", "carrés"),
    "triangle": ("m", "triangle", "triangles"),
    "star": ("f", "étoile", "étoiles"),
    "heart": ("m", "cœur", "cœurs"),
    "cross": ("f", "croix", "croix"),
    "diamond": ("m", "losange", "losanges"),
    "arrow": ("f", "flèche", "flèches"),
}
# Masculine, feminine. Colours named after things ("orange", "turquoise") don't agree; "rose" by exception does.
COLOUR = {
    "red": ("rouge", "rouge"),
    "orange": ("orange", "orange"),
    "yellow": ("jaune", "jaune"),
    "green": ("vert", "verte"),
    "blue": ("bleu", "bleue"),
    "purple": ("violet", "violette"),
    "pink": ("rose", "rose"),
    "turquoise": ("turquoise", "turquoise"),
}
_INVARIABLE = {"orange", "turquoise"}
SIZE = {"small": ("petit", "petite"), "large": ("grand", "grande")}
MEDIUM = "de taille moyenne"
BACKGROUND = {"white": "blanc", "grey": "gris", "black": "noir", "beige": "beige"}
TEXTURE = {"plain": "uni", "striped": "à rayures", "dotted": "à pois", "checked": "à carreaux"}
NUMBER = {2: "deux", 3: "trois", 4: "quatre"}
PLACE = {"left": "à gauche", "right": "à droite", "top": "en haut", "bottom": "en bas", "centre": "au milieu"}
_RELATION = {"left": "à gauche", "right": "à droite", "top": "au-dessus", "bottom": "au-dessous"}


def phrase(group: Group) -> str:
    """ "deux petits cercles rouges", "une grande étoile verte", "une croix bleue de taille moyenne"."""
    gender, singular, plural = _NOUN[group.shape]
    lead = NUMBER.get(group.count) or {"m": "un", "f": "une"}[gender]
    noun = singular if group.count == 1 else plural
    colour = _agree(COLOUR[group.colour], gender, group.count)
    if group.size == "medium":
        return f"{lead} {noun} {colour} {MEDIUM}"
    return f"{lead} {_agree(SIZE[group.size], gender, group.count)} {noun} {colour}"


def parts(scene: Scene) -> dict[str, str]:
    """What the patterns of `grammar` name, for a scene."""
    phrases = [phrase(group) for group in scene.groups]
    places = [PLACE[group.place] for group in scene.groups]
    placed = [" ".join(pair) for pair in zip(phrases, places, strict=True)]
    verbs = ["se trouve" if group.count == 1 else "se trouvent" for group in scene.groups]
    ground_is = f"{BACKGROUND[scene.background]} {TEXTURE[scene.texture]}"
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


def _agree(forms: tuple[str, str], gender: str, count: int) -> str:
    word = forms[gender == "f"]
    return word if count == 1 or word in _INVARIABLE or word[-1] in "sx" else f"{word}s"


def _of(noun_phrase: str) -> str:
    """ "d'un carré", "de deux carrés": "de" drops its vowel before another."""
    return f"d'{noun_phrase}" if noun_phrase.startswith("un") else f"de {noun_phrase}"
