"""`mmbm quickstart`: make scenes, embed them, train a model on them, and score it on scenes that it has never seen."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmbm_core.errors import UsageError
from pipelines.embed import EmbedRequest, embed
from pipelines.evaluate import EvaluateRequest, evaluate
from pipelines.neighbours import FACTORS, neighbours_across, neighbours_within, write_sheet
from pipelines.progress import Progress, say
from pipelines.recipe import load_recipe
from pipelines.synthesize import synthesize
from pipelines.train import TrainRequest, train

ROWS = 600
_MIN_ROWS = 80
"""Fewer leave too little to train on, to choose by and to score."""
_UNSEEN_SHARE = 3
"""One unseen scene to so many that are trained on."""
_RECIPE = "synth-multitask"
_FINDS = {"text>image": "words find pictures", "audio>text": "sounds find words", "audio>image": "sounds find pictures"}
_TASKS = {
    "shape": "the shape, from caption, picture and speech",
    "count": "how many, from caption, picture and speech",
    "truth": "whether a statement is true of its picture, which neither tells alone",
}


def quickstart(output: str, *, rows: int = ROWS, seed: int = 0) -> dict[str, Any]:
    """The whole tour on the embedded default data, in a local folder; Ray must be initialised.

    Args:
        rows: scenes to train on; a third as many of the next seed are made to score the model on.

    Raises:
        UsageError: too few rows, or the folder holds something else.
    """
    if rows < _MIN_ROWS:
        raise UsageError(f"--rows {rows}: training needs {_MIN_ROWS} or more")
    started = time.monotonic()
    folder = Path(output)
    data, unseen, vectors, sheet = (str(folder / n) for n in ("data", "unseen", "vectors", "neighbours.png"))
    say(f"1/5 making {rows} scenes with captions and speech, and {rows // _UNSEEN_SHARE} that no model will learn from")
    made = _make(data, rows, seed)
    _make(unseen, rows // _UNSEEN_SHARE, seed + 1)
    say("2/5 embedding text, image and audio, each with an encoder of its own")
    embedded = embed(EmbedRequest(inputs=[data], output=vectors))
    bands, agreement = neighbours_within(data, vectors)
    for modality, (found, chance) in agreement.items():
        say(f"  {modality}: nearest rows share the {FACTORS[modality]} in {found:.0%} of cases, {chance:.0%} by chance")
    trained, evaluated = _learn(folder, data, unseen, seed)
    say("5/5 looking for what lies near what")
    shared = str(folder / "shared")
    embed(EmbedRequest(inputs=[unseen], output=shared, model=trained["bundle"], overwrite=True))
    write_sheet(Path(sheet), neighbours_across(unseen, shared) | bands)
    _explain(evaluated)
    say(_next_steps(folder, sheet))
    return {
        **{k: embedded[k] for k in ("rows_in", "rows_out", "rows_quarantined", "rows_reused", "rows_per_s")},
        "neighbours_share": {m: round(found, 3) for m, (found, _) in agreement.items()},
        "by_chance": {m: round(chance, 3) for m, (_, chance) in agreement.items()},
        **evaluated,
        "seconds": round(time.monotonic() - started, 1),
        "synthesize_rows_per_s": made["rows_per_s"],
        "train_seconds": trained["seconds"],
        "sheet": sheet,
        "bundle": trained["bundle"],
        "output": vectors,
    }


def _make(folder: str, rows: int, seed: int) -> dict[str, Any]:
    progress = Progress("synthesize")
    told = lambda done, total: progress.update(rows=done, fraction=done / total)  # noqa: E731
    made = synthesize(output=folder, rows=rows, seed=seed, progress=told)
    progress.close()
    return made


def _learn(folder: Path, data: str, unseen: str, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What training said, and the scores on unseen scenes beside chance."""
    cache, report = str(folder / "cache"), folder / "report"
    say(f"3/5 training one model for four tasks by the recipe {_RECIPE}")
    recipe = load_recipe(_RECIPE, settings=[f"training.seed={seed}"])
    bundle = str(folder / "bundle")
    trained = train(
        TrainRequest(recipe=recipe, inputs=[data], val=None, output=bundle, overwrite=True, cache=cache)
    )  # fmt: skip
    say("4/5 scoring it on the scenes it has not seen")
    evaluate(EvaluateRequest(bundle=bundle, inputs=[unseen], cache=cache, report=str(report)))
    told = json.loads((report / "report.json").read_text())["tasks"]
    return trained, _beside_chance(told)


def _beside_chance(told: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`retrieval` by direction and `tasks` by name, each score with what chance would give."""
    metrics, chance = (told["align"][key] for key in ("metrics", "by_chance"))
    retrieval = {
        way: {"gallery": round(metrics[f"gallery/{way}"])}
        | {f"r@{k}": round(metrics[f"r@{k}/{way}"], 3) for k in (1, 10)}
        | {f"r@{k}_by_chance": round(chance[f"r@{k}/{way}"], 3) for k in (1, 10)}
        for way in _FINDS
    }
    tasks = {
        name: {
            "accuracy": round(told[name]["metrics"]["accuracy"], 3),
            "by_chance": round(told[name]["by_chance"]["accuracy"], 3),
        }
        for name in _TASKS
    }
    return {"retrieval": retrieval, "tasks": tasks}


def _explain(evaluated: Mapping[str, Any]) -> None:
    for way, words in _FINDS.items():
        found = evaluated["retrieval"][way]
        best, ten = (f"{found[f'r@{k}']:.1%} ({found[f'r@{k}_by_chance']:.1%} by chance)" for k in (1, 10))
        say(f"  {words}: of {found['gallery']} the right one is first in {best}, among ten in {ten}")
    for name, words in _TASKS.items():
        found = evaluated["tasks"][name]
        say(f"  {words}: {found['accuracy']:.1%} right, {found['by_chance']:.1%} by chance")


def _next_steps(folder: Path, sheet: str) -> str:
    return f"""look at {sheet} and {folder}/report/report.html, then try
  mmbm inspect {folder}/bundle
  mmbm embed YOUR_FOLDER --output vectors --dry-run
  mmbm embed YOUR_FOLDER --output vectors
  mmbm train synth-xor {folder}/data --output {folder}/xor
  python -c "import pandas; print(pandas.read_parquet('{folder}/vectors').head())\""""
