"""Runs on tiny models. All is as in a real run, but work is done in this process, without actors to start."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import embed as embed_module
from pipelines import evaluate as evaluate_module
from pipelines import features as features_module
from pipelines import train as train_module
from pipelines.embed import EmbedRequest, EmbedSettings
from pipelines.evaluate import EvaluateRequest
from pipelines.plan import PlanSource
from pipelines.recipe import Recipe
from pipelines.stream import checked
from pipelines.train import TrainRequest
from tests.training import CrewHere, color_dataset, fit_here
from workers.embedding import EmbeddingWorker
from workers.probe import Probe
from workers.readers.discover import InputSet
from workers.spec import RunSpec, UnitSpec
from workers.unit import UnitWorker


class Run:
    """A finished embed run: its figures, and what it left in OUTPUT."""

    def __init__(self, output: Path, figures: dict[str, Any]) -> None:
        self.output, self.figures = output, figures
        self.parts = sorted(output.glob("part-*.parquet"))
        self.table = pa.concat_tables([pq.ParquetFile(part).read() for part in self.parts])
        listed = self.table.to_pylist()
        self.rows: dict[str, dict[str, Any]] = {row["id"]: row for row in listed}
        assert len(self.rows) == len(listed)
        self.quarantine, self.dropped = self._side("_quarantine"), self._side("_dropped")

    def _side(self, folder: str) -> dict[str, dict[str, Any]]:
        parts = sorted((self.output / folder).glob("*.parquet"))
        return {row["id"]: row for part in parts for row in pq.ParquetFile(part).read().to_pylist()}


class EmbeddingHere:
    """An `EmbeddingStream` in this process."""

    def __init__(self, inputs: InputSet, probe: Probe, resources: Any, *, placement: str, stall_s: float, **facts: Any):
        self.inputs, self.probe, self.facts = inputs, probe.run, facts

    def __enter__(self) -> "EmbeddingHere":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def entries(self, spec: RunSpec, books: Any) -> Iterator[dict[str, Any]]:
        worker = EmbeddingWorker(spec)
        for block in PlanSource(self.inputs, spec, **self.facts).get_read_tasks(1)[0]():
            yield from map(checked, map(json.loads, worker(block)["entry"].to_pylist()))


class Here:
    """A `Stream` in this process."""

    def __init__(self, inputs: Any, run: Any, worker: type[UnitWorker], pool: Any, *, stall_s: float, **facts: Any):
        self.plan, self.worker = PlanSource(inputs, run, **facts), worker

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def entries(self, spec: UnitSpec, books: Any) -> Iterator[dict[str, Any]]:
        worker = self.worker(spec)  # type: ignore[call-arg]
        for block in self.plan.get_read_tasks(1)[0]():
            yield from map(checked, map(json.loads, worker(block)["entry"].to_pylist()))


@pytest.fixture
def embed(ray_cluster: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text_model: str) -> Callable[..., Run]:
    """`embed(INPUT..., key=value)`: fields of the request or its settings; every run's books must balance."""

    def run(*inputs: Path, output: str = "out", real: bool = False, **given: Any) -> Run:
        if not real:
            monkeypatch.setattr(embed_module, "EmbeddingStream", EmbeddingHere)
        settings = {k: given.pop(k) for k in list(given) if k in EmbedSettings.model_fields}
        given = {"model": text_model, "precision": "exact"} | given
        request = EmbedRequest(
            inputs=[str(path) for path in inputs], output=str(tmp_path / output), settings=EmbedSettings(**settings),
            **given,
        )  # fmt: skip
        done = Run(tmp_path / output, embed_module.embed(request))
        f = done.figures
        assert f["rows_in"] == f["rows_out"] + f["rows_quarantined"]
        assert f["rows_written"] == done.table.num_rows
        assert len({str(pq.ParquetFile(part).schema_arrow.remove_metadata()) for part in done.parts}) == 1
        return done

    return run


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write("name.parquet", rows)`: Parquet or JSONL."""

    def make(name: str, rows: list[dict[str, Any]] | pa.Table) -> Path:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), path)
        return path

    return make


@pytest.fixture
def here(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and scoring in this process."""
    monkeypatch.setattr(train_module, "fit", fit_here)
    for module in (evaluate_module, features_module):
        monkeypatch.setattr(module, "Crew", CrewHere)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def train(here: None, tmp_path: Path, cache: str) -> Callable[..., dict[str, Any]]:
    """`train(recipe, INPUT..., field=value)` into `tmp_path / "out"`."""

    def run(recipe: Recipe, *inputs: object, output: str = "out", **given: Any) -> dict[str, Any]:
        given = {"val": None, "cache": cache} | given
        output = str(tmp_path / output)
        return train_module.train(TrainRequest(recipe=recipe, inputs=[str(i) for i in inputs], output=output, **given))

    return run


@pytest.fixture
def evaluate(here: None, tmp_path: Path, cache: str) -> Callable[..., dict[str, Any]]:
    """`evaluate(INPUT..., field=value)` of `tmp_path / "out"`."""

    def run(*inputs: object, bundle: str = "out", **given: Any) -> dict[str, Any]:
        given = {"bundle": str(tmp_path / bundle), "cache": cache} | given
        return evaluate_module.evaluate(EvaluateRequest(inputs=[str(i) for i in inputs], **given))

    return run


@pytest.fixture(scope="session")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 rows to train on and 24 to validate on, whose image, sound and text each tell their label."""
    return color_dataset(tmp_path_factory.mktemp("colors"))
