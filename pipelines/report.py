"""The report of `mmbm evaluate`: one HTML page that needs nothing beside it, and the same facts as JSON.

Ids, labels and texts are other people's: figures show them as they are (no mathtext), `page` escapes them.
"""

import importlib.util
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from mmbm_core.errors import UsageError
from mmbm_core.tasks.base import Task
from pipelines.figures import Figure, draw_confusion, draw_curves, draw_map, draw_reliability
from pipelines.page import render_page
from workers.storage import Storage

_HEADLINES = ("accuracy", "mean_r@10", "spearman", "response_r@1", "bleu", "chrf2", "perplexity")
"""The metric that sums a task up: the first of these that it has."""
_MEANINGS = {
    "accuracy": "share of rows that are classified rightly",
    "macro_f1": "mean F1 of the classes",
    "ece": "how far confidence is from accuracy",
    "nll": "nats by which the right class surprises",
    "oos_recall": "share of out-of-scope rows that are refused",
    "oos_precision": "share of refused rows that are out of scope",
    "r@": "share of queries that find a right row among the nearest k",
    "mean_r@": "mean of the recalls of all directions",
    "median_rank": "rank of the nearest right row",
    "gallery": "rows to choose from",
    "spearman": "rank correlation with the gold scores",
    "pearson": "linear correlation with the gold scores",
    "response_r@": "share of contexts closest to their own response among ten",
    "perplexity": "per token; comparable within one tokeniser",
    "bleu": "0 to 100, beam search",
    "bleu_greedy": "0 to 100, greedy search",
    "chrf2": "0 to 100, beam search",
    "chrf2_greedy": "0 to 100, greedy search",
    "distinct_": "different n-grams per generated word",
}
_NEUTRAL = frozenset({"gallery", "modality_gap", "distinct_1", "distinct_2"})
_SEED = "seed-"
_ALONE = "only-"
_NOTHING, _MINUS = "\u2013", "\u2212"


def write_report(evaluation: dict[str, Any], storage: Storage, folder: str) -> None:
    """Write `report.html` and `report.json` (NaN and infinity as null) to `folder`; equal facts give equal bytes.

    Raises:
        UsageError: matplotlib or jinja2 is not installed.
    """
    if not all(importlib.util.find_spec(package) for package in ("matplotlib", "jinja2")):
        raise UsageError("the report needs matplotlib and jinja2: run pip install 'mmbm[train]'")
    sections = [_section(number, name, evaluation) for number, name in enumerate(evaluation["tasks"], 1)]
    page = render_page("report.html", filters={"figure": _format, "yaml": _yaml}, evaluation=evaluation,
                       sections=sections, curves=_curves(evaluation))  # fmt: skip
    facts = json.dumps(_strict(evaluation), indent=1, ensure_ascii=False, allow_nan=False)
    for name, data in {"report.json": facts.encode("utf-8", "replace"), "report.html": page}.items():
        storage.write_bytes(f"{folder}/{name}", data)


def _section(number: int, name: str, evaluation: dict[str, Any]) -> dict[str, Any]:
    """All that the page shows of a task."""
    task = evaluation["tasks"][name]
    details = task["details"]
    drawn = {"confusion": draw_confusion, "reliability": draw_reliability, "map": draw_map}
    return {
        "name": name,
        "anchor": f"task-{number}",
        "kind": task["kind"],
        "headline": _headline(task["metrics"]),
        "verdict": _verdict(name, evaluation),
        "metrics": _metric_rows(task, evaluation["seeds"].get(name, {})),
        "comparison": _comparison(name, evaluation),
        "figures": {key: draw(details, f"{key}-{number}") for key, draw in drawn.items() if details.get(key)},
        "details": details,
    }


def _curves(evaluation: dict[str, Any]) -> Figure | None:
    history = evaluation.get("history")
    if not history:
        return None
    metrics: dict[str, str] = {}
    for task in evaluation["tasks"]:
        names = dict.fromkeys(name for entry in history for name in entry["scores"])
        found = _headline({name.removeprefix(f"{task}/"): 0 for name in names if name.startswith(f"{task}/")})
        metrics |= {task: found} if found else {}
    return draw_curves(history, metrics)


def _headline(scores: Mapping[str, Any]) -> str | None:
    return next((name for name in (*_HEADLINES, *scores) if name in scores), None)


def _beside(name: str, evaluation: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Metrics of a task in the bundles that are no mere repetition, by bundle and subset of modalities."""
    found = {n: s["metrics"][name] for n, s in evaluation["siblings"].items() if name in s["metrics"]}
    return {n: _by_subset(scores) for n, scores in found.items() if not n.startswith(_SEED)}


def _by_subset(scores: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`accuracy[image]` -> {"image": {"accuracy": ...}}; under "" what holds for all modalities."""
    subsets: dict[str, dict[str, Any]] = {"": {}}
    for name, value in scores.items():
        base, _, subset = name.removesuffix("]").partition("[")
        subsets.setdefault(subset, {})[base] = value
    return subsets


def _verdict(name: str, evaluation: dict[str, Any]) -> dict[str, Any]:
    """The headline of a task beside chance, seeds and the best modality alone."""
    task = evaluation["tasks"][name]
    metric = _headline(task["metrics"])
    if metric is None:
        return {}
    value, seeds = task["metrics"][metric], evaluation["seeds"].get(name, {}).get(metric)
    beside = _beside(name, evaluation)
    alone = {n.removeprefix(_ALONE): s[""].get(metric) for n, s in beside.items() if n.startswith(_ALONE)}
    trained = bool(alone)
    alone = alone or {n: s.get(metric) for n, s in _by_subset(task["metrics"]).items() if n and "+" not in n}
    known: dict[str, Any] = {n: v for n, v in alone.items() if _is_number(v)}
    verdict = {"metric": metric, "value": value, "chance": task["by_chance"].get(metric), "seeds": seeds}
    if not known or not _is_number(value):
        return verdict
    sign = -1 if _smaller_is_better(metric) else 1
    best = max(known, key=lambda n: sign * known[n])
    gain = sign * (value - known[best])
    unsure = bool(seeds) and _is_number(seeds["half_width"]) and abs(gain) <= seeds["half_width"]
    return verdict | {"best": best, "alone": known[best], "trained": trained, "gain": gain, "unsure": unsure}


def _metric_rows(task: dict[str, Any], seeds: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Metrics with all modalities; those of subsets are the comparison's."""
    chance = task["by_chance"]
    return [
        {
            "name": name, "value": value, "chance": chance.get(name), "seeds": seeds.get(name),
            "better": "" if _base(name) in _NEUTRAL else "lower" if _smaller_is_better(name) else "higher",
            "meaning": _MEANINGS.get(_base(name)) or _MEANINGS.get(re.sub(r"\d+$", "", _base(name)), ""),
        }
        for name, value in task["metrics"].items() if "[" not in name
    ]  # fmt: skip


def _comparison(name: str, evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """All subsets of the modalities, with the bundles beside and the mean over seeds; None: there is nothing beside."""
    task = evaluation["tasks"][name]
    here, beside = _by_subset(task["metrics"]), _beside(name, evaluation)
    seeds = _by_subset(evaluation["seeds"].get(name, {}))
    others = [s for n, s in here.items() if n] + [s for subsets in beside.values() for s in subsets.values()]
    metric = _headline(here[""])
    columns = [c for c in here[""] if any(c in scores for scores in others)]
    if metric not in columns:
        return None
    columns.sort(key=lambda c: c != metric)
    whole = here[""][metric]
    blocks = {"This bundle": [_row(_label(subset), s, columns, whole) for subset, s in here.items()]}
    if beside:
        blocks["Trained for comparison"] = [
            _row(f"{bundle}, {_label(subset)}" if subset else bundle, scores, columns, whole)
            for bundle, subsets in beside.items() for subset, scores in subsets.items()
        ]  # fmt: skip
    if mean := seeds[""].get(metric):
        rows = [_row(_label(subset), scores, columns, mean["mean"]) for subset, scores in seeds.items()]
        blocks[f"Mean of {mean['count']} seeds, with 95 % interval"] = rows
    _add_shares([row for rows in blocks.values() for row in rows])
    return {"columns": columns, "metric": metric, "blocks": blocks}


def _label(subset: str) -> str:
    return subset.replace("+", " + ") + (" alone" if "+" not in subset else "") if subset else "all modalities"


def _row(label: str, scores: Mapping[str, Any], columns: Sequence[str], whole: Any) -> dict[str, Any]:
    """Cells of a line: a number, or mean and half-width; how far the first is from what all modalities have."""
    cells = [scores.get(column) for column in columns]
    first = cells[0]["mean"] if isinstance(cells[0], Mapping) else cells[0]
    change = first - whole if _is_number(first) and _is_number(whole) and first != whole else None
    worse = change is not None and (change > 0) == _smaller_is_better(columns[0])
    return {"label": label, "cells": cells, "first": first, "change": change, "worse": worse}


def _add_shares(rows: Sequence[dict[str, Any]]) -> None:
    """Lengths of the bars, in percent of the longest."""
    values = [row["first"] if _is_number(row["first"]) else 0 for row in rows]
    for row, value in zip(rows, values, strict=True):
        row["share"] = round(100 * max(value, 0) / max(*values, 1e-12), 1)


def _base(metric: str) -> str:
    return re.split(r"[/\[]", metric)[0]


def _smaller_is_better(metric: str) -> bool:
    return _base(metric) in Task.smaller_is_better


def _is_number(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _format(value: float | None, name: str = "") -> str:
    """Three or four digits; counts and ranks as they are."""
    if value is None or math.isnan(value):
        return _NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else f"{_MINUS}∞"
    if _base(name) in ("gallery", "median_rank"):
        text = f"{value:,.1f}".removesuffix(".0")
    elif abs(value) >= 1000 or value == 0:
        text = f"{value:,.0f}"
    elif abs(value) >= 1:
        text = f"{value:.{3 - math.floor(math.log10(abs(value)))}f}"
    else:
        text = f"{value:.4f}" if abs(value) >= 0.01 else f"{value:#.3g}"
    return f"{_MINUS}{text[1:]}" if text.startswith("-") else text


def _yaml(value: Any) -> str:
    return yaml.safe_dump(_strict(value), sort_keys=False, allow_unicode=True, width=100)


def _strict(value: Any) -> Any:
    """What JSON can say: NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(key): _strict(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
