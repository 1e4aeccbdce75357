"""`EncodeWorker` in a user's own pipeline, and the library call that it makes."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mmbm_core.bundle import load_bundle
from mmbm_core.errors import UsageError
from tests.checkpoints import save_text_model
from tests.samples import audio_file
from workers.encode import EncodeWorker


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"{save_text_model(tmp_path_factory.mktemp('model'))},mfcc"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    sound = audio_file()
    return [{"key": n, "text": f"text number {n}", "audio": sound if n % 2 else None} for n in range(20)]


def test_a_users_own_map_batches(ray_cluster: None, model: str, rows: list[dict[str, Any]]) -> None:
    import ray.data

    dataset = ray.data.from_arrow(pa.Table.from_pylist(rows)).map_batches(
        EncodeWorker, fn_constructor_kwargs={"model": model}, batch_format="pyarrow", batch_size=7, concurrency=1
    )
    made = sorted(dataset.take_all(), key=lambda row: row["key"])
    expected = load_bundle(model).embed(rows).to_pylist()
    for row, other in zip(made, expected, strict=True):
        np.testing.assert_allclose(row["text_embedding"], other["text_embedding"], atol=1e-4)
        assert row["error"] == "" and list(row["modalities"]) == other["modalities"]


@pytest.mark.parametrize("kind", ["numpy", "pandas"])
def test_any_batch_format(model: str, rows: list[dict[str, Any]], kind: str) -> None:
    table = pa.Table.from_pylist(rows)
    frame = table.to_pandas()
    batch = frame if kind == "pandas" else {name: frame[name].to_numpy() for name in frame}
    made = EncodeWorker(model)(batch)
    assert made.select(["text_embedding", "audio_embedding", "error"]).equals(
        load_bundle(model).embed(table).select(["text_embedding", "audio_embedding", "error"])
    )


def test_bad_rows_keep_their_place(model: str) -> None:
    table = pa.table({"text": ["a star", None, None, "words"], "audio": [b"bad", None, audio_file(), None]})
    made = EncodeWorker(model)(table).to_pylist()
    assert [bool(row["error"]) for row in made] == [True, True, False, False]
    assert made[0]["error"].startswith("audio: ") and made[0]["modalities"] == ["text"]
    assert made[1]["error"] == "no text or audio in this row" and made[1]["text_embedding"] is None


def test_empty_batches_and_clashes(model: str) -> None:
    empty = pa.table({"text": pa.array([], pa.string())})
    assert EncodeWorker(model)(empty).column_names == ["text", "modalities", "text_embedding", "error"]
    with pytest.raises(UsageError, match="columns named error already"):
        EncodeWorker(model)(pa.table({"text": ["a"], "error": [""]}))
    with pytest.raises(UsageError, match=r"no column to embed among \['n'\]"):
        EncodeWorker(model)(pa.table({"n": [1]}))
