"""`EncodeWorker` in a user's own pipeline, and the library call that it makes."""

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from mmbm_core.bundle import load_bundle
from mmbm_core.errors import UsageError
from mmbm_core.saved import read_bundle
from tests.bundles import FUSIONS, make_model, pooled_alone, save_bundle, subset_rows
from tests.checkpoints import save_text_model
from tests.samples import audio_file
from workers.bundles import model_parts
from workers.encode import EncodeWorker, load_worker_fusion
from workers.probe import needed_models


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


@pytest.fixture(scope="module")
def url(text_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trained bundle with a fusion, behind a URL."""
    folder = Path(save_bundle(tmp_path_factory.mktemp("trained") / "bundle", _trained(text_model)))
    system = fsspec.filesystem("memory")
    system.put(str(folder), "/models/fused", recursive=True)
    system.pipe("/models/fused/siblings/seed-1/bundle.json", b"{}")
    return "memory://models/fused"


def _trained(text_model: str) -> Any:
    return make_model(text_model, fusion=FUSIONS["attention"], tokens={"text": 2})


def test_a_trained_bundle_behind_a_url(text_model: str, url: str) -> None:
    model, rows = _trained(text_model), subset_rows()
    worker = EncodeWorker(url)
    table = pa.Table.from_pylist(rows)
    made = worker(table).to_pylist()
    for row, source in zip(made, rows, strict=True):
        np.testing.assert_allclose(row["embedding"], pooled_alone(model, source), atol=1e-4)
    assert list(worker.bundle.spaces) == [url] and worker.bundle.model is not None
    part = EncodeWorker(f"{url}#text")(table.select(["text"]).slice(0, 1)).to_pylist()[0]
    np.testing.assert_allclose(part["embedding"], made[0]["embedding"], atol=1e-5)
    with pytest.raises(UsageError, match="is no bundle: it has no bundle.json"):
        EncodeWorker("memory://models/nothing")


def test_what_a_run_needs_of_a_bundle(url: str, text_model: str) -> None:
    assert model_parts(url) == {f"{url}#{m}": (m,) for m in ("text", "image", "audio")}
    assert model_parts(f"{url}#image") == {f"{url}#image": ("image",)}
    assert needed_models(url, ["text", "image", "audio"]) == url
    assert needed_models(f"{url},{text_model}", ["image", "audio"]) == f"{url}#image,{url}#audio"


def test_the_fusion_alone(url: str, text_model: str, tmp_path: Path) -> None:
    fuse, space = load_worker_fusion(url, device="cpu", threads=1)
    bundle = EncodeWorker(url).bundle
    assert space == bundle.spaces[url] and not fuse.model.encoders
    values = {"text": bundle.encode_values("text", ["a red disc"]).values}
    assert bundle.fuse is not None
    np.testing.assert_array_equal(
        fuse(values, {"text": np.ones(1, bool)}), bundle.fuse(values, {"text": np.ones(1, bool)})
    )
    plain = save_bundle(tmp_path / "plain", make_model(text_model, modalities=["text"]))
    for name in (plain, text_model):
        with pytest.raises(UsageError, match="is no trained bundle with a fusion"):
            load_worker_fusion(name, device="cpu", threads=1)
    assert read_bundle(Path(plain))["space"] == EncodeWorker(plain).bundle.spaces[plain]
