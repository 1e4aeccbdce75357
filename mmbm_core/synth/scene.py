"""What a scene is: the factors, drawn independently, and where each thing lies in the picture.

A scene holds one group of equal things and, unless the group is in the centre, sometimes a second group of another
shape and colour in the opposite half. So "the circles" names one group, and what captions and answers say is decidable.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mmbm_core.synth.world import World

T = TypeVar("T")

IMAGE_SIZE_PX = 224

OCCLUSIONS = ("none", "partial")

OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
RADIUS_PX = {"small": (8.0, 10.0), "medium": (13.0, 16.0), "large": (20.0, 24.0)}
# x0, y0, x1, y1 as fractions of the picture; the long sides stop short of the corners, where left would also be top.
_BOX = {
    "left": (0.02, 0.18, 0.46, 0.82),
    "right": (0.54, 0.18, 0.98, 0.82),
    "top": (0.18, 0.02, 0.82, 0.46),
    "bottom": (0.18, 0.54, 0.82, 0.98),
    "centre": (0.26, 0.26, 0.74, 0.74),
}


@dataclass(frozen=True, kw_only=True)
class Group:
    """`count` things of one shape, colour and size, in one part of the picture."""

    shape: str
    colour: str
    size: str
    count: int
    place: str


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One drawn thing: centre and radius of its outer circle in pixels, tilt in degrees, origin at the top left."""

    shape: str
    colour: str
    size: str
    x_px: float
    y_px: float
    radius_px: float
    tilt_deg: float
    occluded: bool = False


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A straight brown bar across the whole picture, through a point, at an angle from the x axis."""

    x_px: float
    y_px: float
    angle_rad: float
    width_px: float

    def touches(self, thing: Thing) -> bool:
        """Whether the bar covers any part of the thing's outer circle."""
        across = (thing.x_px - self.x_px) * math.sin(self.angle_rad)
        across -= (thing.y_px - self.y_px) * math.cos(self.angle_rad)
        return abs(across) < thing.radius_px + self.width_px / 2


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that is true of one picture. `groups` holds the main group and perhaps a second one."""

    groups: tuple[Group, ...]
    background: str
    texture: str
    light: str
    blur: str
    occlusion: str

    @property
    def main(self) -> Group:
        return self.groups[0]

    @property
    def other(self) -> Group | None:
        return self.groups[1] if len(self.groups) > 1 else None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a scene's things lie, and the bar in front of them, if any."""

    things: tuple[Thing, ...]
    bar: Bar | None


def choose(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of `options`, as the Python object it is (`rng.choice` would return a NumPy scalar)."""
    return options[int(rng.integers(len(options)))]


def others(options: tuple[T, ...], *taken: T) -> tuple[T, ...]:
    """`options` without those taken."""
    return tuple(option for option in options if option not in taken)


def draw_scene(rng: np.random.Generator, *, world: World) -> Scene:
    """Draw every factor uniformly and independently; 6 in 10 scenes off the centre get a second group, where the world
    has the opposite place and another shape and colour."""
    factors = ("shape", "colour", "size", "count", "place")
    main = Group(**{factor: choose(rng, world.values(factor)) for factor in factors})
    groups = [main]
    pairs = len(world.shapes) > 1 and len(world.colours) > 1 and OPPOSITE.get(main.place) in world.places
    if pairs and rng.random() < 0.6:
        groups.append(
            Group(
                shape=choose(rng, others(world.values("shape"), main.shape)),
                colour=choose(rng, others(world.values("colour"), main.colour)),
                size=choose(rng, world.values("size")),
                count=choose(rng, world.counts),
                place=OPPOSITE[main.place],
            )
        )
    return Scene(
        groups=tuple(groups),
        background=choose(rng, world.values("background")),
        texture=choose(rng, world.values("texture")),
        light=choose(rng, world.lights),
        blur=choose(rng, world.blurs),
        occlusion=choose(rng, OCCLUSIONS),
    )


def lay_out(scene: Scene, *, rng: np.random.Generator) -> Layout:
    """Place each thing inside its group's box, apart from its neighbours, and the bar where the scene has one."""
    things = [thing for group in scene.groups for thing in _place_group(group, rng)]
    if scene.occlusion == "none":
        return Layout(things=tuple(things), bar=None)
    bar = _place_bar(things, rng)
    marked = tuple(Thing(**{**vars(thing), "occluded": bar.touches(thing)}) for thing in things)
    return Layout(things=marked, bar=bar)


def _place_group(group: Group, rng: np.random.Generator) -> list[Thing]:
    """One thing in each cell of a grid over the group's box: no overlap without trial and error."""
    x0, y0, x1, y1 = (edge * IMAGE_SIZE_PX for edge in _BOX[group.place])
    rows = 1 if group.count == 1 or (group.count == 2 and x1 - x0 > y1 - y0) else 2
    columns = math.ceil(group.count / rows)
    width, height = (x1 - x0) / columns, (y1 - y0) / rows
    cells = rng.permutation(rows * columns)[: group.count]
    things = []
    for cell in cells:
        radius = rng.uniform(*RADIUS_PX[group.size])
        slack_x, slack_y = max(width / 2 - radius - 1, 0), max(height / 2 - radius - 1, 0)
        things.append(
            Thing(
                shape=group.shape,
                colour=group.colour,
                size=group.size,
                x_px=round(x0 + (cell % columns + 0.5) * width + rng.uniform(-slack_x, slack_x), 1),
                y_px=round(y0 + (cell // columns + 0.5) * height + rng.uniform(-slack_y, slack_y), 1),
                radius_px=round(radius, 1),
                tilt_deg=round(rng.uniform(-14, 14), 1),
            )
        )
    return things


def _place_bar(things: list[Thing], rng: np.random.Generator) -> Bar:
    """A bar over the side of one thing. It is narrower than the smallest thing's radius, so it hides none of them."""
    target = choose(rng, things)
    width = 0.7 * min(thing.radius_px for thing in things)
    angle = rng.uniform(0, math.pi)
    offset = 0.6 * target.radius_px * choose(rng, (-1, 1))
    return Bar(
        x_px=target.x_px - offset * math.sin(angle),
        y_px=target.y_px + offset * math.cos(angle),
        angle_rad=angle,
        width_px=width,
    )
