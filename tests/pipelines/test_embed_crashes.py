"""Rows that kill their worker, and placements that spread a unit over several actors."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from mmbm_core.errors import RunError
from mmbm_core.rows import Vectors
from pipelines import stream
from tests.samples import audio_file, tone
from workers import placement
from workers.crashes import CrashLog, WorkerLost
from workers.embedding import EmbeddingWorker
from workers.output import Output
from workers.placement import EncoderActor
from workers.spec import RunSpec
from workers.storage import open_location

DEADLY = "kills"


def die_of(values: list[Any]) -> None:
    if DEADLY in values:
        os.kill(os.getpid(), signal.SIGKILL)


class MortalWorker(EmbeddingWorker):
    """A unit worker whose encoder dies of some values, as a decoder in native code may."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__(spec)
        encode = self.encode

        def mortal(requests: list[tuple[Any, list[Any]]]) -> list[Vectors]:
            for _, values in requests:
                die_of(values)
            return encode(requests)

        self.encode = mortal


@ray.remote(max_restarts=-1)
class MortalEncoder(EncoderActor.__ray_metadata__.modified_class):  # type: ignore[misc, name-defined]
    """The same, as an actor of its own."""

    def encode_values(self, modality: Any, values: list[Any]) -> Vectors:
        die_of(values)
        return super().encode_values(modality, values)  # type: ignore[no-any-return]


class BrokenWorker(EmbeddingWorker):
    """A worker that can't start."""

    def __init__(self, spec: RunSpec) -> None:
        raise RunError("this model does not load here")


def texts(count: int) -> list[dict[str, Any]]:
    return [{"id": f"r{n}", "text": f"text number {n}"} for n in range(count)]


@pytest.mark.parametrize("where", ["together", pytest.param("per_modality", marks=pytest.mark.slow)])
def test_a_row_that_kills_its_worker_is_quarantined(
    embed: Callable[..., Any], write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(stream, "EmbeddingWorker", MortalWorker if where == "together" else EmbeddingWorker)
    monkeypatch.setattr(placement, "EncoderActor", MortalEncoder)
    rows = texts(60)
    rows[37]["text"] = DEADLY
    done = embed(write("a.jsonl", rows), real=True, unit_rows=20, workers=1, placement=where)
    assert done.quarantine["r37"]["error"] == "killed its worker twice"
    assert set(done.rows) == {row["id"] for row in rows} - {"r37"}
    assert len(done.quarantine) == 1
    assert not (done.output / "_staging").exists()


def test_a_worker_that_can_not_start_ends_the_run(
    embed: Callable[..., Any], write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "EmbeddingWorker", BrokenWorker)
    with pytest.raises(RunError, match=r"^this model does not load here$"):
        embed(write("a.jsonl", texts(40)), real=True)


@pytest.mark.parametrize("where", ["per_modality", pytest.param("decode_apart", marks=pytest.mark.slow)])
def test_placements_give_the_same_output(
    embed: Callable[..., Any], write: Callable[..., Path], text_model: str, where: str
) -> None:
    rows: list[dict[str, Any]] = [
        {"id": f"r{n}", "text": f"a red disc {n}", "audio": audio_file(wave=tone(seconds=0.2, pitch_hz=200.0 + n))}
        for n in range(150)
    ]
    rows[3] |= {"audio": b"RIFF....WAVE", "text": "text"}
    rows[4]["audio"] = None
    rows[5] |= {"audio": None, "text": ""}
    rows[6]["text"] = rows[7]["text"]
    rows[8]["text"] = "number " * 200
    path = write("a.parquet", rows)
    given: dict[str, Any] = {"model": f"{text_model},mfcc", "unit_rows": 100}
    expected = embed(path, output="together", **given)
    done = embed(path, output=where, real=True, placement=where, **given)
    assert [p.name for p in done.parts] == [p.name for p in expected.parts]
    assert done.table.drop_columns(["text_embedding", "audio_embedding"]).equals(
        expected.table.drop_columns(["text_embedding", "audio_embedding"])
    )
    for name in ("text_embedding", "audio_embedding"):
        pairs = zip(done.table[name].to_pylist(), expected.table[name].to_pylist(), strict=True)
        for one, other in pairs:
            assert (one is None) == (other is None)
            np.testing.assert_allclose(one or 0, other or 0, rtol=1e-5, atol=1e-6)
    assert done.quarantine == expected.quarantine and set(done.quarantine) == {"r3", "r5"}
    for name in ("rows_in", "rows_out", "duplicates", "values_cut", "modalities_dropped"):
        assert done.figures[name] == expected.figures[name]
    assert done.figures["values_cut"] == 1


class TestCrashLog:
    """The marks, one attempt after the other."""

    @pytest.fixture
    def attempt(self, tmp_path: Path) -> Callable[[], CrashLog]:
        storage, folder = open_location(str(tmp_path))
        output = Output(storage=storage, folder=folder, token="t")
        output.begin()
        return lambda: CrashLog(output, "unit").__enter__()

    def test_two_deaths_of_a_row_are_enough(self, attempt: Callable[[], CrashLog]) -> None:
        assert not attempt().careful
        assert not attempt().careful
        for _ in range(2):
            third = attempt()
            assert third.careful
            assert not third.deadly(7) and not third.deadly(6)
            for row in (6, 7):
                third.note(None)
                third.note(row)
        assert attempt().deadly(7) and not attempt().deadly(6)

    def test_deaths_between_rows_are_the_readers(self, attempt: Callable[[], CrashLog]) -> None:
        for _ in range(4):
            log = attempt()
            assert not log.unreadable
            log.note(1)
            log.note(None)
        last = attempt()
        assert last.unreadable and not last.deadly(1)

    def test_only_deaths_leave_marks(self, attempt: Callable[[], CrashLog]) -> None:
        for kind in (None, ValueError):
            for _ in range(5):
                log = attempt()
                assert not log.careful
                log.__exit__(kind, None, None)
        for _ in range(2):
            attempt().__exit__(WorkerLost, None, None)
        assert attempt().careful
