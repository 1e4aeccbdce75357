"""A scene as pixels: patterned ground, shaded things, a bar, light, blur, grain; then JPEG bytes."""

import io
import math
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mmbm_core.synth.scene import IMAGE_SIZE_PX, Bar, Layout, Scene, Thing
from mmbm_core.synth.words import RGB
from mmbm_core.synth.world import BAR_RGB, World

BLUR_PX = {"none": 0.0, "slight": 0.8, "strong": 1.7}
# Brightness at the left and the right edge.
LIGHT_GAIN = {"even": (0.88, 0.88), "dim": (0.6, 0.6), "bright": (1.1, 1.1), "left": (1.1, 0.6), "right": (0.6, 1.1)}

_GRAIN_SD = 3.0
_JPEG_QUALITY = 90


def render(scene: Scene, *, layout: Layout, world: World, rng: np.random.Generator) -> Image.Image:
    """Paint a scene, `(IMAGE_SIZE_PX, IMAGE_SIZE_PX)` RGB. `rng` gives the pattern's phase and the grain."""
    image = Image.fromarray(_ground(scene, world, rng))
    for thing in layout.things:
        _paint(image, thing, world.colours[thing.colour].rgb)
    if layout.bar:
        _paint_bar(image, layout.bar)
    left, right = LIGHT_GAIN[scene.light]
    if BLUR_PX[scene.blur]:
        image = image.filter(ImageFilter.GaussianBlur(BLUR_PX[scene.blur]))
    pixels = np.asarray(image, np.float32)
    pixels = pixels * np.linspace(left, right, IMAGE_SIZE_PX, dtype=np.float32)[:, None]
    pixels += _GRAIN_SD * rng.standard_normal((IMAGE_SIZE_PX, IMAGE_SIZE_PX, 1), np.float32)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode_jpeg(image: Image.Image) -> bytes:
    """JPEG at full colour resolution: the smallest things are 16 px wide, and halved chroma would smear them."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _ground(scene: Scene, world: World, rng: np.random.Generator) -> np.ndarray:
    """The background and its pattern, `(H, W, 3)` uint8."""
    ground = world.backgrounds[scene.background]
    base, tone = (np.array(rgb, np.float32) for rgb in (ground.rgb, ground.tone))
    share = (_pattern(scene.texture, rng) * 255).astype(np.uint8)
    shades = base + np.linspace(0, 1, 256)[:, None] * (tone - base)
    return shades.astype(np.uint8)[share]


def _pattern(texture: str, rng: np.random.Generator) -> np.ndarray:
    """How much of the pattern's tone each pixel has, `(H, W)` in [0, 1]; edges are one pixel soft."""
    period, angle = rng.uniform(18, 28), rng.uniform(0, math.pi)
    phase_x, phase_y = rng.uniform(0, period, 2)
    x = np.arange(IMAGE_SIZE_PX, dtype=np.float32)
    y = x[:, None]
    share = np.zeros((IMAGE_SIZE_PX, IMAGE_SIZE_PX), np.float32)
    if texture == "striped":
        wave = np.sin((x * math.cos(angle) + y * math.sin(angle) + phase_x) * (2 * math.pi / period))
        share += np.clip(wave * period / (2 * math.pi) + 0.5, 0, 1)
    elif texture == "dotted":
        dx, dy = ((axis + phase) % period - period / 2 for axis, phase in ((x, phase_x), (y, phase_y)))
        share += np.clip(0.2 * period - np.hypot(dx, dy) + 0.5, 0, 1)
    elif texture == "checked":
        share += ((x + phase_x) // period + (y + phase_y) // period) % 2
    return share


@cache
def _outline(shape: str) -> np.ndarray:
    """Corners of a shape inside the unit circle, y down, `(corners, 2)`. Its centre is always inside it."""
    if shape == "heart":
        t = np.linspace(0, 2 * math.pi, 60, endpoint=False)
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return np.stack([16 * np.sin(t) ** 3, -y - 2.5], 1) / 17
    if shape == "cross":
        a, b = 0.94, 0.33
        arm = np.array([(-b, -b), (-b, -a), (b, -a)])  # and the same after each quarter turn
        return np.concatenate([arm, arm[:, ::-1] * (-1, 1), -arm, arm[:, ::-1] * (1, -1)])
    if shape == "arrow":
        return np.array([(1, 0), (0.1, -0.85), (0.1, -0.34), (-0.94, -0.34), (-0.94, 0.34), (0.1, 0.34), (0.1, 0.85)])
    if shape == "diamond":
        return np.array([(0, -1), (0.66, 0), (0, 1), (-0.66, 0)])
    num_corners, start, inner = {
        "circle": (72, 0.0, 1.0),
        "square": (4, math.pi / 4, 1.0),
        "triangle": (3, -math.pi / 2, 1.0),
        "star": (10, -math.pi / 2, 0.45),
    }[shape]
    angles = start + np.arange(num_corners) * (2 * math.pi / num_corners)
    radii = np.where(np.arange(num_corners) % 2, inner, 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)


def _paint(image: Image.Image, thing: Thing, colour: RGB) -> None:
    """Paint one thing: soft shadow, dark rim, lit body."""
    tilt = math.radians(thing.tilt_deg)
    turn = np.array([[math.cos(tilt), math.sin(tilt)], [-math.sin(tilt), math.cos(tilt)]])
    corners = _outline(thing.shape) @ turn * thing.radius_px
    x0, y0 = int(thing.x_px - thing.radius_px) - 2, int(thing.y_px - thing.radius_px) - 2
    side = int(2 * thing.radius_px) + 6
    centre = np.array([thing.x_px - x0, thing.y_px - y0])
    whole, body = (_mask(centre + corners * scale, side) for scale in (1.0, 0.86))
    shadow = whole.point([level // 3 for level in range(256)])
    image.paste((0, 0, 0), (x0 + 2, y0 + 3), shadow)
    image.paste(tuple(int(0.72 * level) for level in colour), (x0, y0), whole)
    image.paste(colour, (x0, y0), body)


def _mask(corners: np.ndarray, side_px: int, supersample: int = 4) -> Image.Image:
    """An antialiased filled polygon, `(side_px, side_px)` 8-bit."""
    mask = Image.new("L", (side_px * supersample,) * 2)
    ImageDraw.Draw(mask).polygon([tuple(corner) for corner in (corners * supersample).tolist()], fill=255)
    return mask.reduce(supersample)


def _paint_bar(image: Image.Image, bar: Bar) -> None:
    along = np.array([math.cos(bar.angle_rad), math.sin(bar.angle_rad)]) * 2 * IMAGE_SIZE_PX
    across = np.array([-math.sin(bar.angle_rad), math.cos(bar.angle_rad)]) * bar.width_px / 2
    corners = np.array([along + across, along - across, -along - across, -along + across]) + (bar.x_px, bar.y_px)
    image.paste(BAR_RGB, (0, 0), _mask(corners, IMAGE_SIZE_PX, supersample=2))
