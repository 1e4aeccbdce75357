"""Bundles made smaller: what is written, what is kept, what is refused."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mmbm_core.bundle import load_bundle
from mmbm_core.errors import RunError, UsageError
from mmbm_core.saved import load_model, read_bundle
from pipelines import compress as compress_module
from pipelines.compress import CompressRequest, CompressSettings
from tests.training import LABEL, TEXT, color_recipe, color_rows, fit_here, recipe, write_rows
from workers import speed as speed_module
from workers.speed import SpeedActor, summary
from workers.training import worker

Do = Callable[..., Any]

IMAGE = {
    "model": {"kind": "image_cnn", "size_px": 16, "widths": [16, 32, 16], "depths": [1, 1, 0]}, "training": "full",
}  # fmt: skip
AUDIO = {
    "model": {"kind": "log_mel", "rate_hz": 8000, "num_mels": 16, "widths": [16, 16], "width": 16}, "training": "full",
}  # fmt: skip
QUICK = {"sizes": (0.5,), "epochs": 2, "onnx": False}


@pytest.fixture
def compress(here: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Do:
    """`compress(INPUT..., field=value)` of `tmp_path / "out"` into `tmp_path / "small"`."""
    monkeypatch.setattr(compress_module, "fit", fit_here)
    monkeypatch.setattr(speed_module, "BATCHES", {1: 2, 32: 1})

    def run(*inputs: object, **given: Any) -> dict[str, Any]:
        settings = CompressSettings(**(QUICK | given.pop("settings", {})))
        given = {"max_loss": 100.0} | given
        paths = {"bundle": str(tmp_path / "out"), "output": str(tmp_path / "small")}
        request = CompressRequest(inputs=[str(i) for i in inputs], settings=settings, **paths, **given)
        return compress_module.compress(request)

    return run


@pytest.fixture(autouse=True)
def _speed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timed in this process; models this small are no faster when they are smaller, so the figures are set."""

    def race(original: str, location: str, rows: Any) -> Any:
        speeds, kernels = [], []
        for bundle, per_s in ((original, 1.0), (location, 2.0)):
            timed = SpeedActor.__ray_metadata__.modified_class(bundle, rows[:4], threads=1)  # type: ignore[attr-defined]
            told = summary([timed.time_round()], timed.peak_mib())
            assert all(value > 0 for value in told.values())
            speeds.append(told | {"per_s": per_s})
            kernels.append(timed.kernels())
        return speeds, kernels

    monkeypatch.setattr(compress_module, "race", race)


def _fused() -> Any:
    return recipe(
        {"image": IMAGE, "audio": AUDIO}, {"color": LABEL}, model={"fusion": {"kind": "attention", "layers": 1}}
    )


def test_the_small_bundle_is_an_ordinary_one(
    train: Do, compress: Do, evaluate: Do, colors: Path, tmp_path: Path
) -> None:
    train(_fused(), colors)
    done = compress(colors)
    original, small = read_bundle(tmp_path / "out"), read_bundle(tmp_path / "small")
    assert small["space"] != original["space"]
    assert done["size"] < 0.7 and done["speedup"] == 2.0
    model, _ = load_model(tmp_path / "small")
    units = [[g.units for g in each.groups()] for each in (model, load_model(tmp_path / "out")[0])]
    assert all(a <= b for a, b in zip(*units, strict=True)) and sum(units[0]) < 0.9 * sum(units[1])
    card = small["compression"]
    names = {"color/accuracy", "color/accuracy[audio]", "color/accuracy[image]"}
    assert set(card["before"]["quality"]) == set(card["after"]["quality"]) >= names
    assert {"p50_ms_1", "p95_ms_1", "p50_ms_32", "p95_ms_32", "per_s", "peak_mib"} <= set(card["after"])
    assert card["machine"]["processor"] and card["metrics"] == ["color/accuracy"]
    scored = evaluate(colors, bundle="small")["metrics"]
    assert {n: scored[n.removeprefix("color/")] for n in card["after"]["quality"]} == card["after"]["quality"]
    rows = [{k: row[k] for k in ("image", "audio")} for row in color_rows(6, seed=5)]
    once, again = (load_bundle(str(tmp_path / "small")).embed(rows)["embedding"].to_pylist() for _ in range(2))
    assert np.array_equal(once, again) and np.isfinite(once).all()
    page = (tmp_path / "small.report" / "front.html").read_text()
    assert "accuracy[image]" in page and (tmp_path / "small.report" / "front.png").stat().st_size > 5000
    assert not (tmp_path / "small.compressing").exists()


def test_encoders_are_written_as_onnx_too(train: Do, compress: Do, colors: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    train(recipe({"image": IMAGE}, {"color": {**LABEL, "inputs": {"image": "image"}}}), colors)
    done = compress(colors, settings={"onnx": True})
    assert done["kernels"]["after"]["image"].startswith("onnx") and done["kernels"]["before"]["image"] != "onnx"
    name = str(tmp_path / "small")
    rows = [{"image": row["image"]} for row in color_rows(9, seed=5)]
    exact, onnx = (
        np.array(load_bundle(name, kernels=kernels).embed(rows)["embedding"].to_pylist())
        for kernels in (None, {f"{name}#image": "onnx"})
    )
    np.testing.assert_allclose(onnx, exact, atol=1e-4)


@pytest.mark.slow
def test_a_small_bundle_is_compressed_and_trained_further(
    train: Do, compress: Do, colors: Path, tmp_path: Path
) -> None:
    train(_fused(), colors)
    compress(colors)
    (tmp_path / "small").rename(tmp_path / "middle")
    (tmp_path / "out").rename(tmp_path / "first")
    (tmp_path / "middle").rename(tmp_path / "out")
    compress(colors)
    sizes = [sum(p.numel() for p in load_model(tmp_path / n)[0].parameters()) for n in ("first", "out", "small")]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3
    encoders = {m: {"model": str(tmp_path / "small" / "encoders" / m), "training": "full"} for m in ("image", "audio")}
    done = train(recipe(encoders, {"color": LABEL}, model={"fusion": {"kind": "gated"}}), colors, output="further")
    assert done["metrics"]["color/accuracy"] > 0.3
    small, further = (load_model(tmp_path / name)[0].encoders["image"] for name in ("small", "further"))
    assert [p.shape for p in small.parameters()] == [p.shape for p in further.parameters()]


def test_texts_lose_layers(train: Do, compress: Do, colors: Path, tmp_path: Path) -> None:
    text = {**TEXT, "model": {**TEXT["model"], "layers": 2}}
    task = {"kind": "understanding", "inputs": {"text": "text"}, "label": "label"}
    train(recipe({"text": text}, {"color": task}), colors)
    compress(colors, settings={"sizes": (0.6, 0.3)})
    model: Any = load_model(tmp_path / "small")[0].encoders["text"].model
    assert len(model.layers) == 1
    vector = load_bundle(str(tmp_path / "small")).embed([{"text": "a red thing 3"}])["embedding"][0].as_py()
    assert np.isfinite(vector).all()


def test_a_decoder_is_cut_too(train: Do, compress: Do, tmp_path: Path) -> None:
    rows = [{"id": str(n), "en": f"{n % 7} red discs", "de": f"{n % 7} rote Scheiben"} for n in range(60)]
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    task = {
        "kind": "translation", "inputs": {"text": "en"}, "target": "de",
        "decoder": {"layers": 2, "heads": 2, "feed_forward": 2, "vocab_size": 300, "max_tokens": 12},
    }  # fmt: skip
    train(recipe({"text": {**TEXT, "tokens": "all"}}, {"german": task}, data={"val_fraction": 0.3}), data)
    done = compress(data, settings={"sizes": (0.4,)})
    assert "german/bleu" in done["before"]["quality"]
    assert read_bundle(tmp_path / "small")["compression"]["metrics"] == ["german/bleu"]
    model, _ = load_model(tmp_path / "small")
    layers: Any = model.tasks["german"].decoder.model.get_decoder().layers  # type: ignore[union-attr, operator]
    assert len(layers) == 1 and layers[0].fc1.out_features < 64


def test_what_loses_too_much_is_not_written(
    train: Do,
    compress: Do,
    colors: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train(color_recipe(), colors)
    monkeypatch.setattr(compress_module, "_loss", lambda *_: 7.5)
    with pytest.raises(RunError, match=r"within 1 points and is 3 times as fast.*7\.50 points lost"):
        compress(colors, max_loss=1.0, target_speedup=3.0)
    assert not (tmp_path / "small").exists()


def test_the_original_is_no_place_for_it(train: Do, compress: Do, colors: Path, tmp_path: Path) -> None:
    train(color_recipe(), colors)
    (tmp_path / "small").symlink_to(tmp_path / "out")
    with pytest.raises(UsageError, match="the bundle itself"):
        compress(colors, overwrite=True)
    assert read_bundle(tmp_path / "out")


def test_a_run_goes_on_where_it_was(
    train: Do,
    compress: Do,
    colors: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train(_fused(), colors)
    fits: list[str] = []

    def fit(plan: Any, settings: Any) -> Any:
        fits.append(plan.jobs[0].name)
        if len(fits) == 2:
            raise RunError("the machine went away")
        return fit_here(plan, settings)

    monkeypatch.setattr(compress_module, "fit", fit)
    with pytest.raises(RunError, match="went away"):
        compress(colors, settings={"sizes": (0.7, 0.4)})
    assert not (tmp_path / "small").exists()
    done = compress(colors, settings={"sizes": (0.7, 0.4)})
    assert [name.rpartition("-")[0] for name in fits] == ["size-0.7", "size-0.4", "size-0.4"] and done["steps"] == 2
    assert [s["share"] for s in read_bundle(tmp_path / "small")["compression"]["steps"]] == [0.7, 0.4]


@contextmanager
def _dying_in_training(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The run ends once the model is cut."""

    def die(*_: Any, **__: Any) -> None:
        raise RunError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(worker, "_train_model", die)
        with pytest.raises(RunError, match="killed"):
            yield


def test_a_pruned_model_survives_the_death_of_its_training(
    train: Do,
    compress: Do,
    colors: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The units that stay are chosen once."""
    train(_fused(), colors)
    chosen: list[Any] = []
    real = worker.cut_model

    def counted(*args: Any) -> None:
        real(*args)
        chosen.append(args)

    monkeypatch.setattr(worker, "cut_model", counted)
    with _dying_in_training(monkeypatch):
        compress(colors)
    compress(colors)
    assert len(chosen) == 1


def test_what_another_run_left_is_not_taken(
    train: Do, compress: Do, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of another bundle that was killed has the same OUTPUT."""
    train(_fused(), colors)

    with _dying_in_training(monkeypatch):
        compress(colors)
    train(recipe({"image": IMAGE}, {"color": {**LABEL, "inputs": {"image": "image"}}}), colors, overwrite=True)
    compress(colors)
    assert set(load_model(tmp_path / "small")[0].encoders) == {"image"}


@pytest.mark.parametrize("damage", ["not a bundle", "no recipe", "no groups", "output taken", "wrong column"])
def test_what_can_not_be_compressed_is_told(
    damage: str, train: Do, compress: Do, colors: Path, tmp_path: Path, text_model: str
) -> None:
    from tests.bundles import make_model, save_bundle

    if damage in ("output taken", "wrong column"):
        train(color_recipe(), colors)
    if damage == "no recipe":
        save_bundle(tmp_path / "out", make_model(text_model))
    if damage == "no groups":
        audio = {"model": "mfcc", "options": {"rate_hz": 8000}}
        task = {"kind": "recognition", "inputs": {"audio": "audio"}, "label": "label"}
        train(recipe({"audio": audio}, {"color": task}), colors)
    if damage == "output taken":
        write_rows(tmp_path / "small" / "mine.jsonl", [{"text": "precious"}])
    data: Path = colors
    if damage == "wrong column":
        data = write_rows(tmp_path / "other.jsonl", [{"words": "no such columns"}])
    expected = {
        "not a bundle": "is no bundle", "no recipe": "no recipe", "no groups": "can be pruned",
        "output taken": "not empty", "wrong column": "the columns are",
    }  # fmt: skip
    with pytest.raises(UsageError, match=expected[damage]):
        compress(data)
    assert not (tmp_path / "small.compressing").exists()
    assert not (tmp_path / "small" / "bundle.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("file", ["encoders/image/layout.json", "encoders/image/model.safetensors"])
def test_a_damaged_small_bundle_is_refused(file: str, train: Do, compress: Do, colors: Path, tmp_path: Path) -> None:
    train(_fused(), colors)
    compress(colors)
    path = tmp_path / "small" / file
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UsageError, match="damaged"):
        load_model(tmp_path / "small")


def test_a_layout_that_does_not_fit_is_told(train: Do, compress: Do, colors: Path, tmp_path: Path) -> None:
    from mmbm_core.encoders import build_encoder

    train(_fused(), colors)
    compress(colors)
    file = tmp_path / "small" / "encoders" / "image" / "layout.json"
    layout = json.loads(file.read_text())
    name = next(iter(layout["shapes"]))
    for shape in ([9999, 3, 3, 3], [8], [0, 3, 3, 3]):
        file.write_text(json.dumps(layout | {"shapes": layout["shapes"] | {name: shape}}))
        with pytest.raises(UsageError, match="does not fit the model"):
            build_encoder(str(file.parent))
    file.write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        build_encoder(str(file.parent))
    torch.manual_seed(0)


@pytest.mark.slow
def test_the_command_times_both_bundles_on_a_cluster_of_its_own(colors: Path, tmp_path: Path) -> None:
    """Ray Train, and an actor for each bundle; what is written embeds."""
    made = tmp_path / "recipe.yaml"
    made.write_text(yaml.safe_dump(_fused().model_dump(mode="json")))

    def mmbm(*args: object) -> Any:
        command = [sys.executable, "-m", "deploy.cli.main", *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    mmbm("train", made, colors, "--output", tmp_path / "out")
    settings = ("--set", "sizes=0.6", "--set", "epochs=1", "--set", "onnx=false", "--max-loss", 100)
    wanted = subprocess.run(
        [sys.executable, "-m", "deploy.cli.main", "compress", str(tmp_path / "out"), str(colors), "--output",
         str(tmp_path / "small"), *map(str, settings)], capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    told = wanted.stdout + wanted.stderr
    if wanted.returncode:  # a model this small may be no faster
        assert "no size keeps the quality" in told and not (tmp_path / "small").exists()
        return
    card = read_bundle(tmp_path / "small")["compression"]
    assert card["speedup"] == pytest.approx(card["after"]["per_s"] / card["before"]["per_s"], rel=1e-2)
    assert mmbm("embed", colors, "--model", tmp_path / "small", "--output", tmp_path / "vectors")["rows_out"] == 72
