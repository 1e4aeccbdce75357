"""Drawings of the report as SVG that can stand inside an HTML page; matplotlib is imported where it is needed.

Labels are data: they are shown as they are, without mathtext, and nothing of them becomes markup.
"""

import io
import math
import re
import unicodedata
import warnings
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

_MAX_CLASSES = 30
_MAX_NUMBERED = 15
_MAX_COLOURS = 10
_LABEL_CHARS = 20
_COLOURS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#1b2a49"
)  # fmt: skip
_GREY, _FAINT = "#c3c8d0", "#8a929e"
_MARKERS = {"text": "o", "image": "s", "audio": "^"}
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "mmbm", "svg.fonttype": "none", "text.parse_math": False, "text.usetex": False,
    "font.family": "sans-serif", "font.size": 10, "axes.titlesize": 10, "axes.edgecolor": _FAINT,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
}  # fmt: skip


class Figure(NamedTuple):
    """A drawing with its words."""

    svg: str
    """Markup: an `<svg>` that loads nothing."""
    caption: str


def draw_curves(history: Sequence[Mapping[str, Any]], metrics: Mapping[str, str]) -> Figure:
    """The loss, and of each task the metric that sums it up, over the steps of the training.

    Args:
        metrics: the metric by task, where the history has it.
    """
    steps = [entry["step"] for entry in history]
    panels = {"training loss": _floats(entry.get("loss") for entry in history)}
    panels |= {
        f"{task}: {metric}": _floats(entry["scores"].get(f"{task}/{metric}") for entry in history)
        for task, metric in metrics.items()
    }
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with _canvas(3.4 * columns, 2.6 * rows) as figure:
        for number, (title, values) in enumerate(panels.items(), 1):
            axes = figure.add_subplot(rows, columns, number)
            axes.plot(steps, values, color=_COLOURS[0], marker="o", markersize=3)
            axes.set_title(_plain(title, 40), loc="left")
            axes.set_xlabel("step")
            axes.grid(axis="y", color=_GREY, linewidth=0.5)
        svg = _svg(figure, "curves", f"Learning curves over {len(steps)} evaluations: {', '.join(panels)}")
    return Figure(svg, "Learning curves: the loss on training rows, and scores on validation rows, over steps.")


def draw_confusion(details: Mapping[str, Any], name: str) -> Figure:
    """Heat map of the counts; of many classes, those that are confused most."""
    from matplotlib.colors import PowerNorm

    counts, labels = np.array(details["confusion"]), details["labels"]
    mistakes = counts - np.diag(np.diag(counts))
    pairs = mistakes + mistakes.T
    kept = np.sort(np.lexsort((-pairs.sum(1), -pairs.max(1)))[:_MAX_CLASSES])  # so that the worst pair is among them
    total, names = len(labels), [_plain(labels[i]) for i in kept]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    counts, shares = counts[np.ix_(kept, kept)], shares[np.ix_(kept, kept)]
    numbered = len(kept) <= _MAX_NUMBERED
    side = 1.2 + len(kept) * (0.38 if numbered else 0.25) + 0.07 * max(map(len, names))
    with _canvas(side if numbered else side + 0.9, side) as figure:
        axes = figure.add_subplot()
        rare = PowerNorm(0.5, 0, 1)  # makes a few mistakes visible
        picture = axes.pcolormesh(shares[::-1], cmap="Blues", norm=rare, edgecolors="white", linewidth=0.5)
        at = np.arange(len(kept)) + 0.5
        axes.set_xticks(at, names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(at, names[::-1])
        axes.tick_params(length=0)
        axes.set(xlabel="predicted", ylabel="label", aspect="equal")
        axes.spines[:].set_visible(False)
        if not numbered:
            figure.colorbar(picture, shrink=0.6, label="share of the label's rows")
        else:
            for (row, column), count in np.ndenumerate(counts):
                ink = "white" if shares[row, column] > 0.4 else "black" if count else _GREY
                axes.text(column + 0.5, len(kept) - row - 0.5, count, ha="center", va="center", color=ink, fontsize=8)
        svg = _svg(figure, name, f"Confusion matrix of {len(kept)} classes. {_worst_confusion(details)}")
    few = f" {total} classes: shown are the {len(kept)} that are confused most." if total > len(kept) else ""
    return Figure(
        svg, f"Confusion: a row for each label, a column for each prediction.{few} {_worst_confusion(details)}"
    )


def _worst_confusion(details: Mapping[str, Any]) -> str:
    counts, labels = np.array(details["confusion"]), details["labels"]
    np.fill_diagonal(counts, 0)
    if not counts.any():
        return "Nothing is confused."
    row, column = np.unravel_index(counts.argmax(), counts.shape)
    return f"Most often, {counts[row, column]} times, {_plain(labels[row])} is taken for {_plain(labels[column])}."


def draw_reliability(details: Mapping[str, Any], name: str) -> Figure:
    """Accuracy over confidence, above the number of rows of each bin."""
    diagram = details["reliability"]
    confidence, accuracy = _floats(diagram["confidence"]), _floats(diagram["accuracy"])
    counts = np.array(diagram["counts"])
    width = 1 / len(counts)
    middles = (np.arange(len(counts)) + 0.5) * width
    with _canvas(4.2, 4.6) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.bar(middles, accuracy, width=0.92 * width, color="#9ec5e8")
        above.plot([0, 1], [0, 1], color=_FAINT, linestyle="--", linewidth=1, label="confidence = accuracy")
        above.plot(confidence, accuracy, "o", color=_COLOURS[0], markersize=4, label="mean of a bin")
        above.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
        above.legend(loc="upper left", fontsize=9)
        below.bar(middles, counts, width=0.92 * width, color=_GREY)
        below.set(xlabel="confidence", ylabel="rows")
        for x, count in zip(middles, counts, strict=True):
            if count:
                below.annotate(f"{count}", (x, count), (0, 1), textcoords="offset points", ha="center", fontsize=6.5)
        below.margins(y=0.25)
        told = [f"{a:.2f} at {c:.2f}" for c, a in zip(confidence, accuracy, strict=True) if math.isfinite(c + a)]
        svg = _svg(
            figure, name, f"Reliability diagram of {counts.sum()} rows. Accuracy at confidence: {', '.join(told)}"
        )
    words = "below the dashed line the model is too sure of itself, above it too modest. Grey: rows in each bin."
    return Figure(svg, f"Reliability: {words}")


def draw_map(details: Mapping[str, Any], name: str) -> Figure:
    """Vectors in the plane, coloured by label and marked by modality."""
    x, y, modalities, labels = (details["map"][key] for key in ("x", "y", "modality", "label"))
    common = [label for label, _ in Counter(label for label in labels if label is not None).most_common()]
    colour_of = dict(zip(sorted(common[:_MAX_COLOURS]), _COLOURS, strict=False))
    groups: dict[tuple[str, str], list[int]] = {}
    for i, (label, modality) in enumerate(zip(labels, modalities, strict=True)):
        groups.setdefault((colour_of.get(label, _GREY if common else _COLOURS[0]), modality), []).append(i)
    with _canvas(6.6, 4.6) as figure:
        axes = figure.add_subplot()
        for (colour, modality), rows in sorted(groups.items(), key=lambda group: group[0][0] != _GREY):
            points = [x[i] for i in rows], [y[i] for i in rows]
            axes.scatter(*points, s=14, color=colour, marker=_MARKERS.get(modality, "D"), alpha=0.7, linewidths=0)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        keys = [axes.scatter([], [], color=_FAINT, marker=_MARKERS.get(m, "D")) for m in sorted(set(modalities))]
        keys += [axes.scatter([], [], color=colour) for colour in colour_of.values()]
        words = [_plain(word) for word in (*sorted(set(modalities)), *colour_of)]
        axes.legend(keys, words, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
        svg = _svg(figure, name, f"Map of {len(x)} vectors of {', '.join(sorted(set(modalities)))}")
    rest = len(common) - _MAX_COLOURS
    few = f" The {_MAX_COLOURS} most frequent labels have colours; the other {rest} are grey." if rest > 0 else ""
    by = "colours are labels, shapes are modalities" if common else "shapes are modalities"
    return Figure(svg, f"Map of the embedding space: {by}; what is near is alike.{few}")


@contextmanager
def _canvas(width_in: float, height_in: float) -> Iterator[Any]:
    """A matplotlib figure in the report's style: no pyplot, and nothing of it is left afterwards."""
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has more fonts
        yield Drawing(figsize=(width_in, height_in), layout="constrained", facecolor="white")


def _svg(figure: Any, name: str, words: str) -> str:
    """The drawing as markup for a page: ids are its own, namespaces and metadata are gone."""
    sink = io.BytesIO()
    figure.savefig(sink, format="svg", metadata={"Date": None})
    root = ET.fromstring(sink.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        values = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update({key: _own(key, value, name) for key, value in values.items()})
    root.attrib.pop("height")  # the page scales it
    root.attrib |= {"role": "img", "aria-label": words}
    return ET.tostring(root, encoding="unicode")


def _own(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    return re.sub(r"^#" if key == "href" else r"(?<=url\()#", f"#{name}-", value)


def _plain(text: str, most: int = _LABEL_CHARS) -> str:
    """One short line that SVG can hold: no control characters, no lone surrogates."""
    line = " ".join(str(text).split())
    line = "".join("\ufffd" if unicodedata.category(char) in ("Cc", "Cs", "Cn") else char for char in line)
    return line if len(line) <= most else line[: most - 1] + "…"


def _floats(values: Any) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]
