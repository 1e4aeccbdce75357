"""Embed runs on tiny models. All is as in a real run, but units are done in this process, without actors to start."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import embed as embed_module
from pipelines.embed import EmbedRequest, EmbedSettings
from pipelines.plan import PlanSource
from pipelines.stream import checked
from workers.probe import Probe
from workers.readers.discover import InputSet
from workers.spec import RunSpec
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


@pytest.fixture
def embed(ray_cluster: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text_model: str) -> Callable[..., Run]:
    """`embed(INPUT..., key=value)`: fields of the request or its settings; every run's books must balance."""

    class Here:
        """A `Stream` in this process."""

        def __init__(
            self, inputs: InputSet, probe: Probe, resources: Any, *, placement: str, stall_s: float, **facts: Any
        ):
            self.inputs, self.probe, self.facts = inputs, probe.run, facts

        def __enter__(self) -> "Here":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def entries(self, spec: RunSpec, books: Any) -> Iterator[dict[str, Any]]:
            worker = UnitWorker(spec)
            for block in PlanSource(self.inputs, spec, **self.facts).get_read_tasks(1)[0]():
                yield from map(checked, map(json.loads, worker(block)["entry"].to_pylist()))

    def run(*inputs: Path, output: str = "out", real: bool = False, **given: Any) -> Run:
        if not real:
            monkeypatch.setattr(embed_module, "Stream", Here)
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
