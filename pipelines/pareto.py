"""The front of quality against measured speed of a compression, as PNG and as a page."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.page import encode_media, render_page
from workers.storage import Storage


@dataclass(frozen=True, kw_only=True)
class Point:
    """One step of a compression."""

    name: str
    folder: str
    """Of its bundle, below the run's own."""
    share: float
    """Of the original's work that it was cut to, about."""
    quality: dict[str, float]
    loss: float
    """Points lost, on the input or the subset of its modalities where most is."""
    speedup: float
    """Rows (or generated tokens) a second, of the original's."""
    size: float
    """Bytes, of the original's."""
    speed: dict[str, float]
    original: dict[str, float]
    """The original's speed, timed in turns with this one."""
    kernels: dict[str, str]
    original_kernels: dict[str, str]


def write_front(points: Sequence[Point], card: Mapping[str, Any], storage: Storage, folder: str) -> str:
    """Write front.png and front.html; gives where the page is."""
    picture = _draw(points)
    storage.makedirs(folder)
    storage.write_bytes(f"{folder}/front.png", picture)
    page = render_page("pareto.html", points=points, card=card, picture=encode_media("image/png", picture))
    storage.write_bytes(f"{folder}/front.html", page)
    return storage.uri(f"{folder}/front.html")


def _draw(points: Sequence[Point]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    speeds, losses = [1.0, *(p.speedup for p in points)], [0.0, *(-p.loss for p in points)]
    axes.plot(speeds, losses, color="#1f77b4", marker="o")
    for point in points:
        axes.annotate(f"{point.share:.0%}", (point.speedup, -point.loss), textcoords="offset points", xytext=(6, 6))
    axes.annotate("original", (1.0, 0.0), textcoords="offset points", xytext=(6, 6))
    axes.set_xlabel("times the original's speed, measured")
    axes.set_ylabel("points of quality gained or lost")
    axes.grid(color="#c3c8d0", linewidth=0.5)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=120)
    return sink.getvalue()
