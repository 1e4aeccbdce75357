"""What the labels say is what the pixels show."""

import io
import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmbm_core.synth import make_row
from mmbm_core.synth.scene import IMAGE_SIZE_PX

# Hue in degrees that a person calls by the name; from the colour wheel, not from the palette that draws.
HUE_DEG = {
    "red": (-15, 12),
    "orange": (15, 38),
    "yellow": (42, 65),
    "green": (90, 160),
    "turquoise": (165, 195),
    "blue": (205, 245),
    "purple": (255, 300),
    "pink": (305, 345),
}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [make_row(index, seed=21, speech=False) for index in range(150)]


def pixels_of(row: dict[str, Any]) -> np.ndarray:
    image = Image.open(io.BytesIO(row["image"]))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (IMAGE_SIZE_PX, IMAGE_SIZE_PX))
    return np.asarray(image, np.float64)


def has_hue(rgb: np.ndarray, colour: str, tolerance_deg: float = 0) -> np.ndarray:
    """Where `rgb`, `(..., 3)`, is of that colour and not nearly grey; hue by the hexagon-free atan2 formula."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    hue = np.degrees(np.arctan2(math.sqrt(3) * (green - blue), 2 * red - green - blue))
    low, high = HUE_DEG[colour]
    chroma = (rgb.max(-1) - rgb.min(-1)) / np.maximum(rgb.max(-1), 1)
    middle, half = (low + high) / 2, (high - low) / 2 + tolerance_deg
    return (np.abs((hue - middle + 180) % 360 - 180) <= half) & (chroma > 0.3)


def test_each_thing_has_its_colour_where_it_is(rows: list[dict[str, Any]]) -> None:
    checked = 0
    for row in rows:
        pixels = pixels_of(row)
        for thing in row["objects"]:
            if thing["occluded"]:
                continue
            x, y = round(thing["x_px"]), round(thing["y_px"])
            seen = pixels[y - 1 : y + 2, x - 1 : x + 2].mean((0, 1))
            assert has_hue(seen, thing["colour"]), (row["id"], thing, seen)
            checked += 1
    assert checked > 250


def test_as_many_separate_blobs_as_counted(rows: list[dict[str, Any]]) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    clear = [row for row in rows if row["occlusion"] == "none"]
    assert len(clear) > 50
    for row in clear:
        pixels = pixels_of(row)
        for prefix in ("", "other_"):
            if not row[prefix + "count"]:
                continue
            # Beige is a pale orange, and JPEG rings around dark ground: only well coloured, bright spots count.
            solid = has_hue(pixels, row[prefix + "colour"]) & (pixels.max(-1) > 50)
            chroma = (pixels.max(-1) - pixels.min(-1)) / np.maximum(pixels.max(-1), 1)
            blobs, num_blobs = ndimage.label(ndimage.binary_opening(solid & (chroma > 0.38)))
            areas = ndimage.sum_labels(np.ones_like(blobs), blobs, range(1, num_blobs + 1))
            assert sum(areas > 25) == row[prefix + "count"], (row["id"], prefix, areas)


def test_things_lie_apart_inside_the_picture_and_where_the_label_says(rows: list[dict[str, Any]]) -> None:
    half = IMAGE_SIZE_PX / 2
    for row in rows:
        assert len(row["objects"]) == row["count"] + row["other_count"]
        places = [row["place"]] * row["count"] + [row["other_place"]] * row["other_count"]
        for thing, place in zip(row["objects"], places, strict=True):
            x, y, radius = thing["x_px"] - half, thing["y_px"] - half, thing["radius_px"]
            assert max(abs(x), abs(y)) + radius <= half
            if place == "centre":
                assert max(abs(x), abs(y)) < half / 2
            else:
                assert {"left": -x, "right": x, "top": -y, "bottom": y}[place] > radius
        for index, a in enumerate(row["objects"]):
            for b in row["objects"][:index]:
                assert math.dist((a["x_px"], a["y_px"]), (b["x_px"], b["y_px"])) > a["radius_px"] + b["radius_px"] - 1


def test_size_light_and_ground_show(rows: list[dict[str, Any]]) -> None:
    radii = {
        size: [t["radius_px"] for r in rows for t in r["objects"] if t["size"] == size]
        for size in ("small", "medium", "large")
    }
    assert max(radii["small"]) < min(radii["medium"]) and max(radii["medium"]) < min(radii["large"])
    corners = {(row["background"], row["light"]): [] for row in rows}
    for row in rows:
        edge = pixels_of(row).mean(-1)
        corners[row["background"], row["light"]].append((edge[:, :8].mean(), edge[:, -8:].mean()))
    mean = {key: np.mean(values, 0) for key, values in corners.items()}
    for ground in ("white", "grey", "beige"):
        assert mean[ground, "left"][0] > 1.4 * mean[ground, "left"][1]
        assert mean[ground, "right"][1] > 1.4 * mean[ground, "right"][0]
        assert mean[ground, "dim"].mean() < mean[ground, "even"].mean() < mean[ground, "bright"].mean()
    for light in ("even", "dim", "bright"):
        assert mean["white", light].mean() > mean["beige", light].mean() > mean["grey", light].mean()
        assert mean["grey", light].mean() > 1.5 * mean["black", light].mean()


def test_blur_takes_detail_away(rows: list[dict[str, Any]]) -> None:
    steepest = {blur: [] for blur in ("none", "slight", "strong")}
    for row in rows:
        if row["light"] in ("even", "bright") and row["background"] == "white":
            steepest[row["blur"]].append(np.percentile(np.abs(np.diff(pixels_of(row).mean(-1))), 99.9))
    assert np.median(steepest["none"]) > np.median(steepest["slight"]) > np.median(steepest["strong"])


def test_a_bar_hides_part_of_something_and_nothing_wholly(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        hidden = [thing["occluded"] for thing in row["objects"]]
        assert any(hidden) == (row["occlusion"] == "partial")
        pixels = pixels_of(row)
        for thing in row["objects"]:
            x, y, reach = round(thing["x_px"]), round(thing["y_px"]), round(thing["radius_px"])
            patch = pixels[max(y - reach, 0) : y + reach, max(x - reach, 0) : x + reach]
            assert has_hue(patch, thing["colour"], 8).mean() > 0.12, (row["id"], thing)
