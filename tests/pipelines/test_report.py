"""The report page, rendered for real: whole, harmless, the same every time."""

import base64
import io
import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmbm_core.errors import UsageError
from pipelines.report import write_report
from workers.storage import open_location

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

_VOID = {"meta", "img", "br", "link", "input", "hr"}
_HOSTILE = (
    "<script>alert(1)</script>",
    '"><img onerror=alert(1) src=x>',
    "</title></style></svg><script>alert(1)</script>",
    r"$\frac{1}{",
    "$x^2$",
    "\ud800 \x00\x1b \u202e \ufffe 数字 🙂",
    "{{ 7 * 7 }}{% raw %}",
    "_hidden",
)


class Page(HTMLParser):
    """Elements in order, with a check that each is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, f"<{tag}/> closes itself in SVG only"
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def png(seed: int = 0) -> dict[str, str]:
    sink = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (28, 28, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((112, 112), Image.Resampling.NEAREST).save(sink, "PNG")
    return {"mime": "image/png", "data": base64.b64encode(sink.getvalue()).decode()}


def wav() -> dict[str, str]:
    sink = io.BytesIO()
    soundfile.write(sink, np.sin(np.arange(800) / 5).astype(np.float32), 8000, format="WAV")
    return {"mime": "audio/wav", "data": base64.b64encode(sink.getvalue()).decode()}


def minimal(**tasks: Any) -> dict[str, Any]:
    """What every evaluation has."""
    return {
        "bundle": "runs/digits", "inputs": ["digits/val"], "created": "2026-11-25T12:00:00+00:00",
        "rows": {"rows_in": 3, "rows_out": 3, "rows_quarantined": 0},
        "tasks": tasks or {"similar": {
            "kind": "similarity", "metrics": {"spearman": 0.5}, "by_chance": {}, "details": {}
        }},
        "siblings": {}, "seeds": {},
    }  # fmt: skip


def classes(labels: list[str], *, num_points: int = 240) -> dict[str, Any]:
    """Details of a recognition task."""
    rng = np.random.default_rng(0)
    num = len(labels)
    counts = rng.poisson(0.4, (num, num)) + np.diag(rng.integers(80, 100, num))
    if num > 8:
        counts[3, 8] = 9
    edges = [None if i < 4 else (i + 0.5) / 15 for i in range(15)]
    where = rng.integers(0, num, num_points)
    x = np.cos(where * 2.4) + 0.15 * rng.normal(size=num_points)
    y = np.sin(where * 2.4) + 0.15 * rng.normal(size=num_points)
    return {
        "labels": labels, "confusion": counts.tolist(), "temperature": 1.31, "threshold": 0.5,
        "reliability": {
            "confidence": edges, "accuracy": [None if e is None else min(1.0, 0.9 * e + 0.08) for e in edges],
            "counts": [0] * 4 + [1, 2, 3, 3, 5, 8, 13, 20, 44, 99, 800],
        },
        "mistakes": [
            {"id": f"row-{i}", "label": labels[i % num], "predicted": labels[(i + 1) % num],
             "confidence": 0.99 - i / 50,
             "values": {"text": "a digit, heard in a kitchen", "image": png(i), "audio": wav()}}
            for i in range(6)
        ],
        "map": {
            "x": x.tolist(), "y": y.tolist(), "modality": [("image", "audio")[i % 2] for i in range(num_points)],
            "label": [None if i % 40 == 0 else labels[where[i]] for i in range(num_points)],
        },
    }  # fmt: skip


def rich() -> dict[str, Any]:
    """Three tasks with all that a report can show."""
    scores = {"accuracy": 0.9942, "macro_f1": 0.9939, "ece": 0.00731, "nll": 0.0214, "oos_recall": 0.7}
    scores |= {"accuracy[image]": 0.9813, "macro_f1[image]": 0.981, "ece[image]": 0.0121, "nll[image]": 0.061}
    scores |= {"accuracy[audio]": 0.9021, "macro_f1[audio]": 0.9, "ece[audio]": 0.041, "nll[audio]": 0.33}
    found = {"r@1": 0.412, "r@5": 0.742, "r@10": 0.853, "median_rank": 2.0, "gallery": 1000.0}
    ways = {f"{name}/{way}": value for way in ("text>image", "image>text") for name, value in found.items()}
    wrote = {"bleu": 31.257, "bleu_greedy": 29.8, "chrf2": 55.31, "perplexity": math.inf}
    evaluation = minimal(
        digit={
            "kind": "recognition", "metrics": scores, "by_chance": {"accuracy": 0.1},
            "details": classes([str(i) for i in range(10)]),
        },
        align={
            "kind": "align", "metrics": {"mean_r@10": 0.8723} | ways, "details": {},
            "by_chance": {"mean_r@10": 0.01, "r@1/text>image": 0.001, "r@1/image>text": 0.001},
        },
        caption={"kind": "captioning", "metrics": wrote, "by_chance": {}, "details": {
            "signatures": {"bleu": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"},
            "samples": [{"id": f"photo-{i}", "input": {"image": png(i)}, "reference": "a dog runs over the grass",
                         "generated": "a dog is running on grass"} for i in range(3)],
        }},
    )  # fmt: skip

    def sibling(accuracy: float, **more: float) -> dict[str, Any]:
        return {"metrics": {"digit": {"accuracy": accuracy, "macro_f1": accuracy, "nll": 1 - accuracy} | more}}

    return evaluation | {
        "rows": {"rows_in": 1000, "rows_out": 998, "rows_quarantined": 2},
        "siblings": {
            "seed-1": sibling(0.993), "only-image": sibling(0.985), "only-audio": sibling(0.93),
            "concat": sibling(0.9921, **{"accuracy[image]": 0.96, "accuracy[audio]": 0.81}),
        },
        "seeds": {"digit": {
            "accuracy": {"mean": 0.9936, "half_width": 0.0021, "count": 3},
            "accuracy[image]": {"mean": 0.98, "half_width": 0.004, "count": 3},
        }},
        "history": [
            {"step": 100 * i, "loss": 2.3 / i, "scores": {
                "digit/accuracy": 1 - 0.5 / i, "digit/nll": 0.9 / i, "align/mean_r@10": 0.9 - 0.6 / i,
                "caption/perplexity": 90 / i,
            }} for i in range(1, 12)
        ],
        "training": {"seed": 0, "settings": {"epochs": 6, "lr": 0.002}},
        "versions": {"mmbm": "0.1.0", "torch": "2.14.1"},
        "recipe": {"model": {"width": 128, "fusion": {"kind": "attention", "layers": 1}}},
    }  # fmt: skip


def report(evaluation: dict[str, Any], folder: Path) -> tuple[str, Any]:
    write_report(evaluation, open_location(str(folder))[0], str(folder))
    return (folder / "report.html").read_text(encoding="utf-8"), json.loads((folder / "report.json").read_bytes())


def figures_of(page: Page) -> list[str]:
    """First words of the label of each drawing."""
    return [str(svg["aria-label"]).split(" of ")[0].split(" over ")[0] for svg in page.all("svg")]


def check_loads_nothing(page: Page) -> None:
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), attributes
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "foreignobject")
        for name in ("src", "href", "xlink:href", "data"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:image/", "data:audio/")) or value == "report.json", value
        assert "url(" not in (attributes.get("style") or "").replace("url(#", "")


def test_a_rich_evaluation_shows_all_it_holds(tmp_path: Path) -> None:
    html, facts = report(rich(), tmp_path)
    page = Page(html)
    check_loads_nothing(page)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a} <= set(ids)
    assert {str(a["href"])[1:] for a in page.all("a") + page.all("use")} <= {*ids, "eport.json"}
    assert figures_of(page) == ["Confusion matrix", "Reliability diagram", "Map", "Learning curves"]
    assert len(page.all("figcaption")) == 4 and len(page.all("caption")) == len(page.all("table")) == 4
    assert all(th["scope"] in ("col", "row", "rowgroup") for th in page.all("th"))
    assert len(page.all("audio")) == 6 and len(page.all("img")) == 9 and all(img["alt"] for img in page.all("img"))
    assert [tag for tag, _ in page.elements if tag in ("h1", "h2", "h3")][:3] == ["h1", "h2", "h3"]
    for words in (
        "998 of 1,000 rows scored, 2 unusable",
        "0.9942 accuracy digit (recognition): 0.1000 would be chance. Over 3 seeds it is 0.9936 ± 0.00210 (95 %",
        "Trained alone, image does best with 0.9850: fusion gains 0.00920 .",
        "only-audio 0.9300 (\u22120.0642)", "concat, image alone 0.9600", "image alone 0.9800 ± 0.00400",
        "Most often, 9 times, 3 is taken for 8.", "gallery/text>image 1,000", "median_rank/text>image 2 lower",
        "perplexity ∞ lower", "tok:13a", "temperature: 1.310", "a dog is running on grass", "kind: attention",
    ):  # fmt: skip
        assert words in page.text, words
    expected = rich()
    expected["tasks"]["caption"]["metrics"]["perplexity"] = None
    assert facts == expected


def test_the_same_evaluation_gives_the_same_bytes_and_leaves_matplotlib_alone(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    report(rich(), tmp_path / "a")
    report(rich(), tmp_path / "b")
    for name in ("report.html", "report.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert dict(matplotlib.rcParams) == before


def test_a_minimal_evaluation_is_a_whole_page(tmp_path: Path) -> None:
    html, facts = report(minimal(), tmp_path)
    page = Page(html)
    check_loads_nothing(page)
    assert facts == minimal()
    assert not figures_of(page) and not page.all("figure")
    assert "0.5000 spearman similar (similarity)." in page.text
    for words in ("Worst mistakes", "Generated texts", "Modalities together", "by chance", "Training"):
        assert words not in page.text


@pytest.mark.parametrize(
    ("key", "drawn"),
    [("confusion", "Confusion matrix"), ("reliability", "Reliability diagram"), ("map", "Map")],
)
def test_a_figure_is_there_exactly_where_its_data_is(key: str, drawn: str, tmp_path: Path) -> None:
    details = classes(["cat", "dog"], num_points=8)
    task = {"kind": "recognition", "metrics": {"accuracy": 0.5}, "by_chance": {}}
    only = {"labels": details["labels"], key: details[key]}
    assert figures_of(Page(report(minimal(pets=task | {"details": only}), tmp_path)[0])) == [drawn]


def test_hostile_words_come_out_inert(tmp_path: Path) -> None:
    labels = list(_HOSTILE)
    evaluation = rich() | {"bundle": _HOSTILE[0], "inputs": list(_HOSTILE), "recipe": {w: w for w in _HOSTILE}}
    evaluation["versions"] = {"torch": _HOSTILE[1]}
    details = classes(labels)
    for word, mistake in zip(_HOSTILE, details["mistakes"], strict=False):
        mistake |= {"id": word, "values": {word: word, "image": png()}}
    details["map"]["modality"] = [labels[i % 3] for i in range(240)]
    details["samples"] = [{"id": w, "input": {w: w}, "reference": w, "generated": w} for w in _HOSTILE]
    details["signatures"] = {w: w for w in _HOSTILE}
    scores = {"accuracy": 0.5, **{f"accuracy[{w}]": 0.4 for w in _HOSTILE}, **dict.fromkeys(_HOSTILE, 0.1)}
    task = {"kind": _HOSTILE[0], "metrics": scores, "by_chance": {}, "details": details}
    evaluation["tasks"] = {_HOSTILE[1]: task}
    evaluation["siblings"] = {w: {"metrics": {_HOSTILE[1]: {"accuracy": 0.3}}} for w in _HOSTILE}
    evaluation["history"] = [{"step": 1, "loss": 1.0, "scores": {f"{_HOSTILE[1]}/accuracy": 0.5}}]
    html, _ = report(evaluation, tmp_path)
    page = Page(html)
    check_loads_nothing(page)
    assert "<script" not in html and "onerror" not in {name for _, a in page.elements for name in a}
    words = " ".join(re.findall(r"<text[^>]*>(.*?)</text>", html))
    for label in (r"$\frac{1}{", "$x^2$", "_hidden", "{{ 7 * 7 }}{% raw %}", "&lt;script&gt;alert(1)", "数字 🙂"):
        assert label in words, label
    assert not set("\x00\x1b\ufffe\ud800") & set(words)
    assert "{{ 7 * 7 }}{% raw %} instead of" in page.text


@pytest.mark.parametrize(
    "value",
    [
        {"mime": "image/svg+xml", "data": "PHN2Zy8+"},
        {"mime": "text/html", "data": "PHN2Zy8+"},
        {"mime": 'image/png" onerror="alert(1)', "data": "PHN2Zy8+"},
        {"mime": "image/png", "data": '"><script>alert(1)</script>'},
        {"mime": "image/png", "data": "PHN2Zy8"},
        {"mime": "audio/wav", "data": "数字"},
    ],
)
def test_media_of_other_kinds_are_not_shown(value: dict[str, str], tmp_path: Path) -> None:
    sample = {"id": "a", "input": {"image": value}, "reference": "r", "generated": "g"}
    task = {"kind": "captioning", "metrics": {"bleu": 3.0}, "by_chance": {}, "details": {"samples": [sample]}}
    page = Page(report(minimal(caption=task), tmp_path)[0])
    check_loads_nothing(page)
    assert not page.all("img") and not page.all("audio")
    assert "image can't be shown here" in page.text


def test_values_that_are_no_numbers_are_null_in_json_and_dashes_on_the_page(tmp_path: Path) -> None:
    evaluation = rich()
    evaluation["tasks"]["digit"]["details"] = {}
    metrics = evaluation["tasks"]["digit"]["metrics"]
    metrics |= {"accuracy": math.nan, "accuracy[image]": math.nan, "nll": -math.inf}
    evaluation["history"][0]["loss"] = math.nan
    evaluation["seeds"]["digit"]["accuracy"]["half_width"] = None
    html, facts = report(evaluation, tmp_path)
    found = facts["tasks"]["digit"]["metrics"]
    assert found["accuracy"] is found["nll"] is facts["history"][0]["loss"] is None
    assert "\u2013 accuracy digit" in Page(html).text and "NaN" not in (tmp_path / "report.json").read_text()
    report(facts, tmp_path)  # what was read back is reported as well


def test_many_classes_are_cut_to_the_most_confused_and_the_most_frequent(tmp_path: Path) -> None:
    details = classes([f"class-{i:02}" for i in range(40)])
    details["confusion"] = (np.eye(40, dtype=int) * 5).tolist()
    details["confusion"][39][38] = 4
    task = {"kind": "understanding", "metrics": {"accuracy": 0.5}, "by_chance": {}, "details": details}
    html, _ = report(minimal(intent=task), tmp_path)
    assert "40 classes: shown are the 30 that are confused most. Most often, 4 times, class-39 is taken" in html
    assert ">class-38</text>" in html[: html.index("</svg>")] and ">class-30</text>" not in html[: html.index("</svg>")]
    assert "The 10 most frequent labels have colours; the other 30 are grey." in html


def test_smaller_is_better_where_it_is(tmp_path: Path) -> None:
    task = {"kind": "dialogue", "metrics": {"perplexity": 9.0, "perplexity[text]": 12.5, "perplexity[image]": 800.0},
            "by_chance": {}, "details": {}}  # fmt: skip
    evaluation = minimal(talk=task) | {"seeds": {"talk": {"perplexity": {"mean": 9.5, "half_width": 4.0, "count": 2}}}}
    text = Page(report(evaluation, tmp_path)[0]).text
    assert (
        "Of the modalities alone, text does best with 12.50: fusion gains 3.500 , which is no more than seeds" in text
    )
    assert "text alone 12.50 (+3.500)" in text


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"needs matplotlib and jinja2: run pip install 'mmbm\[train\]'"):
        report(minimal(), tmp_path)
