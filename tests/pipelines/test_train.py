"""Training on a real Ray: what a recipe's settings do, that a run goes on where it stopped, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from mmbm_core.encoders.scratch import build_scratch
from mmbm_core.errors import RunError, UsageError
from mmbm_core.saved import load_model, read_bundle
from pipelines.recipe import Recipe, load_recipe
from tests.samples import image_file
from tests.training import AUDIO, IMAGE, LABEL, TEXT, color_recipe, color_rows, recipe, write_rows
from workers.training import loop as loop_module

Train = Callable[..., dict[str, Any]]
TEXT_LABEL = {"kind": "understanding", "inputs": {"text": "text"}, "label": "label"}


def content_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "bundle.json").read_bytes())
    return found


def curve(folder: Path) -> list[float]:
    return [entry["loss"] for entry in content_of(folder)["history"]]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    files = {path.parent.relative_to(folder).name: load_file(path) for path in folder.rglob("model.safetensors")}
    return {f"{part}/{name}": tensor for part, each in files.items() for name, tensor in each.items()}


def same_weights(one: Path, other: Path) -> bool:
    first, second = weights_of(one), weights_of(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def text_recipe(**training: Any) -> Recipe:
    return recipe({"text": TEXT}, {"label": TEXT_LABEL}, **training)


def test_the_bundle_is_whole_and_repeats(train: Train, colors: Path, tmp_path: Path) -> None:
    result = train(color_recipe(), colors)
    assert result["metrics"]["color/accuracy"] == 1.0
    assert {k: result[k] for k in ("rows_train", "rows_val", "rows_bad", "bad_values", "values_cut")} == {
        "rows_train": 48, "rows_val": 24, "rows_bad": 0, "bad_values": 0, "values_cut": 0,
    }  # fmt: skip
    told = content_of(tmp_path / "out")
    assert told["metrics"] == result["metrics"] and [e["step"] for e in told["history"]] == [8, 16]
    assert curve(tmp_path / "out")[1] < curve(tmp_path / "out")[0]
    (events,) = (tmp_path / "out" / "tensorboard").iterdir()
    assert _scalars(events)["loss"] == pytest.approx(curve(tmp_path / "out"), abs=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]

    train(color_recipe(), colors, output="again")
    assert curve(tmp_path / "again") == curve(tmp_path / "out")
    assert same_weights(tmp_path / "again", tmp_path / "out")


def _scalars(events: Path) -> dict[str, list[float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(events))
    read.Reload()
    return {tag: [event.value for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


RANDOM: dict[str, dict[str, Any]] = {
    "plain": {},
    "mean of weights": {"average": 0.9, "accumulate": 2},
    "early stop": {"patience": 1, "lr": 1e-8, "evaluations": 4},
    "texts and mixed images": {"accumulate": 2},
}


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.slow) if name in ("early stop", "mean of weights") else name for name in RANDOM
])  # fmt: skip
def test_a_broken_run_goes_on_as_if_unbroken(
    train: Train, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Stopped after each of its first checkpoints, in the middle of epochs and between evaluations."""
    settings = {"checkpoint_s": 1e-9, "epochs": 2, "lr": 1e-3} | RANDOM[name]
    if "patience" in settings:  # without running statistics nothing changes at such a learning rate
        given = text_recipe(**settings)
    elif name == "texts and mixed images":
        text = TEXT | {"augment": {"drop": 0.2, "swap": 0.2, "typos": 0.2}}
        mixed = LABEL | {"inputs": {"image": "image"}, "mix": {"mixup": 0.2, "cutmix": 1.0}}
        image = IMAGE | {"augment": {"policy": "trivial"}}
        given = recipe({"text": text, "image": image}, {"label": TEXT_LABEL, "color": mixed}, **settings)
    else:
        given = recipe(
            {"image": IMAGE | {"augment": {"flip": True, "crop_px": 1}}, "audio": AUDIO},
            {"color": LABEL | {"dropout": 0.2}},
            model={"fusion": {"kind": "gated"}, "modality_dropout": 0.3},
            **settings,
        )
    whole = train(given, colors, output="whole")
    saved: list[int] = []
    save = loop_module.save_checkpoint

    def stop(storage: Any, path: str, parts: Any, facts: Any) -> None:
        save(storage, path, parts, facts)
        saved.append(facts["step"])
        if len(saved) in (1, 4):
            raise KeyboardInterrupt

    monkeypatch.setattr(loop_module, "save_checkpoint", stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(given, colors)
        assert not (tmp_path / "out").exists()
    resumed = train(given, colors)
    assert saved == list(range(1, 5 if name == "early stop" else 9)), "no step is done twice"
    assert content_of(tmp_path / "out")["history"] == content_of(tmp_path / "whole")["history"]
    assert resumed["metrics"] == whole["metrics"]
    assert same_weights(tmp_path / "out", tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_a_checkpoint_serves_no_other_training(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_rows(tmp_path / "in" / "t.jsonl", color_rows(40, media=False))
    save = loop_module.save_checkpoint

    def stop(*args: Any) -> None:
        save(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            train(text_recipe(epochs=1), data)
    before = (tmp_path / "out.training" / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="another recipe or of other rows: .*begin again with --overwrite"):
        train(text_recipe(epochs=1, lr=2e-2), data)
    with pytest.raises(UsageError, match="checkpoint of another recipe"):
        train(recipe({"text": TEXT}, {"label": TEXT_LABEL}, epochs=1, data={"val_fraction": 0.11}), data)
    write_rows(data, color_rows(41, media=False))
    with pytest.raises(UsageError, match="or of other rows"):
        train(text_recipe(epochs=1), data)
    assert (tmp_path / "out.training" / "model.safetensors").read_bytes() == before
    (tmp_path / "out.training" / "model.safetensors").write_bytes(before[:-5])
    with pytest.raises(RunError, match="model.safetensors is damaged .*; begin again with --overwrite"):
        train(text_recipe(epochs=1), data)
    assert not (tmp_path / "out").exists()
    train(text_recipe(epochs=1), data, overwrite=True)
    assert (tmp_path / "out" / "bundle.json").exists() and not (tmp_path / "out.training").exists()


def test_a_damaged_checkpoint_of_the_same_training_can_be_overwritten(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_rows(tmp_path / "in" / "t.jsonl", color_rows(40, media=False))
    save = loop_module.save_checkpoint

    def stop(*args: Any) -> None:
        save(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            train(text_recipe(epochs=1), data)
    file = tmp_path / "out.training" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(RunError, match="model.safetensors is damaged .*; begin again with --overwrite"):
        train(text_recipe(epochs=1), data)
    train(text_recipe(epochs=1), data, overwrite=True)
    assert (tmp_path / "out" / "bundle.json").exists()


def test_weak_first_trains_one_modality_alone(train: Train, colors: Path, tmp_path: Path) -> None:
    first = {"weak_first": {"modality": "image", "epochs": 1}, "evaluations": 1}
    train(color_recipe(epochs=1, **first), colors)
    train(color_recipe(epochs=2, **first), colors, output="longer")
    start = color_recipe(epochs=1)
    torch.manual_seed(start.training.seed)
    fresh = {m: build_scratch(config.model).state_dict() for m, config in start.model.encoders.items()}
    for folder, audio_moves in (("out", False), ("longer", True)):
        weights = weights_of(tmp_path / folder)
        moved = {
            m: any(not torch.equal(t, weights[f"{m}/{n}"]) for n, t in state.items() if n.endswith("weight"))
            for m, state in fresh.items()
        }
        assert moved == {"image": True, "audio": audio_moves}


def test_ogm_ge_slows_one_modality_down(train: Train, colors: Path, tmp_path: Path) -> None:
    own = {"color": LABEL | {"unimodal_logits": True}}
    for output, alpha in (("off", None), ("on", 0.5)):
        train(recipe({"image": IMAGE, "audio": AUDIO}, own, epochs=2, ogm_ge=alpha), colors, output=output)
    assert len(curve(tmp_path / "on")) == 2 and np.isfinite(curve(tmp_path / "on")).all()
    assert curve(tmp_path / "on") != curve(tmp_path / "off")


def test_two_tasks_under_every_balancer(train: Train, tmp_path: Path) -> None:
    rows = [row | {"seventh": n % 7} for n, row in enumerate(color_rows(60, media=False))]
    data = write_rows(tmp_path / "in" / "t.jsonl", rows)
    tasks = {"label": TEXT_LABEL, "seventh": TEXT_LABEL | {"label": "seventh"}}
    curves = {}
    for kind in ("static", "uncertainty", "pcgrad", "grad_norm"):
        found = train(recipe({"text": TEXT}, tasks, epochs=6, balancer={"kind": kind}), data, output=kind)
        curves[kind] = curve(tmp_path / kind)
        assert curves[kind][-1] < curves[kind][0]
        assert found["metrics"]["label/accuracy"] > 0.6 and "seventh/accuracy" in found["metrics"]
    assert len({tuple(each) for each in curves.values()}) == 4


def test_sets_are_mixed_by_weight(train: Train, evaluate: Any, tmp_path: Path) -> None:
    one = write_rows(tmp_path / "in" / "a.jsonl", color_rows(40, media=False))
    two = write_rows(tmp_path / "in" / "b.jsonl", [{"say": f"n{n % 2} x{n}", "odd": n % 2} for n in range(40)])
    tasks = {"label": TEXT_LABEL, "odd": {"kind": "understanding", "inputs": {"text": "say"}, "label": "odd"}}
    sets = {"a": {"tasks": ["label"], "weight": 3}, "b": {"tasks": ["odd"], "weight": 1}}
    mixed = recipe({"text": TEXT}, tasks, sets=sets, epochs=10, batch_size=9)
    with pytest.raises(UsageError, match="no INPUT is given for b: write NAME=PATH"):
        train(mixed, f"a={one}")
    found = train(mixed, f"b={two}", f"a={one}")
    assert found["metrics"]["label/accuracy"] == found["metrics"]["odd/accuracy"] == 1.0
    scores = evaluate(f"a={one}", f"b={two}")
    assert scores["metrics"]["label/accuracy"] == 1.0 and scores["rows_in"] == 80
    alone = evaluate(two, task="odd")
    assert alone["metrics"]["accuracy"] == 1.0 and alone["rows_in"] == 40


@pytest.mark.parametrize("how", ["lora", "full"])
def test_a_checkpoint_is_tuned(train: Train, text_model: str, tmp_path: Path, how: str) -> None:
    data = write_rows(tmp_path / "in" / "t.jsonl", color_rows(40, media=False))
    encoder = {"model": text_model, "training": how, "lora": {"rank": 2}}
    train(recipe({"text": encoder}, {"label": TEXT_LABEL}, epochs=2, encoder_lr=1e-2), data)
    before, after = (AutoModel.from_pretrained(f).state_dict() for f in (text_model, tmp_path / "out/encoders/text"))
    assert before.keys() == after.keys()
    ranks = {n: int(torch.linalg.matrix_rank(after[n] - t, rtol=1e-3)) for n, t in before.items() if t.ndim == 2}
    assert max(ranks.values()) == 2 if how == "lora" else max(ranks.values()) > 2
    assert load_model(tmp_path / "out")[0].spec.encoders["text"].training == "frozen"


def test_frozen_features_are_computed_once(
    train: Train, text_model: str, tmp_path: Path, cache: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = color_rows(40, media=False)
    rows[3]["text"] = "word " * 500
    data = write_rows(tmp_path / "in" / "t.jsonl", rows)
    given = recipe({"text": {"model": text_model}}, {"label": TEXT_LABEL}, epochs=1)
    first = train(given, data)
    assert "stored already" not in capsys.readouterr().err
    second = train(given, data, output="second")
    assert "the tokens of 40 of 40 rows are stored already" in capsys.readouterr().err
    assert first["metrics"] == second["metrics"]
    assert first["values_cut"] == second["values_cut"] == 1


def test_values_are_counted_once(train: Train, colors: Path, tmp_path: Path) -> None:
    """However many epochs meet them: what can't be read, and texts over the model's limit."""
    rows = color_rows(48)
    rows[0]["image"] = b"no picture"
    rows[1]["image"] = image_file("PNG")[:60]
    rows[2]["text"] = "long " * 100
    rows[3]["image"] = None  # missing is not bad
    write_rows(tmp_path / "in" / "train.parquet", rows)
    val = color_rows(24, seed=1000)
    val[5]["image"] = b""
    write_rows(tmp_path / "in" / "val.parquet", val)
    task = LABEL | {"inputs": {"image": "image", "text": "text"}}
    found = train(recipe({"image": IMAGE, "text": TEXT}, {"color": task}, epochs=3, batch_size=8), tmp_path / "in")
    assert (found["bad_values"], found["values_cut"], found["rows_bad"]) == (3, 1, 0)
    assert (found["rows_train"], found["rows_val"]) == (48, 24)


def test_unreadable_rows_and_files_are_left_out(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    write_rows(folder / "a.jsonl", color_rows(40, media=False))
    lines = (folder / "a.jsonl").read_text().splitlines()
    lines[7] = "{broken"
    lines[9] = lines[8]  # the id of another
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "b.jsonl").write_bytes(b"\xff\xfe\x00 no json at all")
    found = train(text_recipe(epochs=1), folder)
    assert found["rows_bad"] >= 3
    assert found["rows_train"] + found["rows_val"] == 38
    assert "WARNING: rows that can't be used are left out and counted; the first: " in capsys.readouterr().err


def refused(
    train: Train, given: Recipe, *inputs: object, match: str, kind: type[Exception] = UsageError, **more: Any
) -> None:
    with pytest.raises(kind, match=match):
        train(given, *inputs, **more)


def test_rows_that_do_not_fit_are_refused(train: Train, tmp_path: Path) -> None:
    def data(name: str, **columns: Any) -> Path:
        rows = [row | {k: v(n) if callable(v) else v for k, v in columns.items()}
                for n, row in enumerate(color_rows(30, media=False))]  # fmt: skip
        return write_rows(tmp_path / "in" / f"{name}.jsonl", rows)

    plain = data("plain")
    wrong = recipe({"text": TEXT}, {"label": TEXT_LABEL | {"inputs": {"text": "txet"}, "label": "lable"}})
    refused(train, wrong, plain, match="the recipe reads lable, txet; the columns are id, text, label")
    refused(train, text_recipe(), data("one", label="same"), match="column 'label' has 1 classes in the training rows")
    refused(train, text_recipe(), data("none", label=None), match="column 'label' has 0 classes")
    scoped = recipe({"text": TEXT}, {"label": TEXT_LABEL | {"out_of_scope": "oos"}})
    refused(train, scoped, plain, match="no training row has label = 'oos'")
    classes = recipe({"text": TEXT}, {"label": TEXT_LABEL | {"labels": ["red", "green", "blue", "grey"]}})
    refused(train, classes, plain, match="no training row has grey")
    blank = data("blank", text=lambda n: "" if n % 2 else None)
    refused(train, text_recipe(), blank, match="no training row has a value in the column 'text', .* reads as text")
    few = write_rows(tmp_path / "in" / "few.jsonl", color_rows(1, media=False))
    refused(train, text_recipe(), few, match="rows to train on and .* to validate on")
    (tmp_path / "in" / "empty").mkdir()
    refused(train, text_recipe(), tmp_path / "in" / "empty", match="no |holds|empty")
    refused(train, text_recipe(), tmp_path / "in" / "nowhere", match="no such path")
    refused(train, text_recipe(metric="label/f1"), plain, match="label/f1 was not measured; there are label/accuracy")
    lists = recipe({"text": TEXT}, {"t": {"kind": "translation", "inputs": {"text": "text"}, "target": "many"}})
    refused(train, lists, data("lists", many=["a b", "c d"]), match="holds lists|--explode")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_shapes_that_do_not_fit_are_told_before_training(train: Train, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "in" / "t.jsonl", color_rows(30, media=False))
    low = {"kind": "translation", "inputs": {"text": "text"}, "target": "label", "decoder": {"heads": 5}}
    refused(train, recipe({"text": TEXT}, {"t": low}), data, match="heads|width")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_loss_that_explodes_ends_the_run(train: Train, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "in" / "t.jsonl", color_rows(40, media=False))
    given = text_recipe(lr=1e30, clip=1e30, warmup=0.0, epochs=30)
    refused(train, given, data, kind=RunError, match="the loss is .* at step .*: lower training.lr or training.clip")
    assert not (tmp_path / "out").exists()


def test_output_is_no_place_for_it(train: Train, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "in" / "t.jsonl", color_rows(30, media=False))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    refused(train, text_recipe(), data, output="full", match="is not empty and no bundle; give another folder")
    (tmp_path / "file").write_text("a file")
    refused(train, text_recipe(), data, output="file", match="no such folder")
    refused(train, text_recipe(), data, output="file/below", match="can't write beside OUTPUT", kind=RunError)
    (tmp_path / "empty").mkdir()
    train(text_recipe(epochs=1), data, output="empty")
    whole = (tmp_path / "empty" / "bundle.json").read_bytes()
    refused(
        train, text_recipe(epochs=1), data, output="empty", match="holds a bundle already; give another, or --overwr"
    )
    assert (tmp_path / "empty" / "bundle.json").read_bytes() == whole
    train(text_recipe(epochs=2), data, output="empty", overwrite=True)
    assert (tmp_path / "empty" / "bundle.json").read_bytes() != whole
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_recipes_are_checked_whole(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no recipe 'nothing': give a YAML file, or one of .*digits-fusion"):
        load_recipe("nothing")
    bad = tmp_path / "r.yaml"
    bad.write_text(
        "model:\n  encoders: {text: {model: minilm, trainig: full}}\n"
        "  tasks: {a: {kind: recognition, inputs: {text: t}}}\n"
        "training: {epochs: 0, lr: fast}\n"
    )
    with pytest.raises(UsageError, match=r"(?s)trainig.*label.*epochs.*lr") as error:
        load_recipe(str(bad))
    assert str(error.value).count("\n") >= 4
    with pytest.raises(UsageError, match="--set training: write part.key=value"):
        load_recipe("clinc-understanding", settings=["training"])
    changed = load_recipe("clinc-understanding", settings=["training.epochs=3", "model.tasks.intent.label=topic"])
    assert changed.training.epochs == 3 and changed.model.tasks["intent"].label == "topic"  # type: ignore[union-attr]


@pytest.mark.parametrize(("val", "listed"), [
    ("val.parquet", "[01].parquet"), ("*l.parquet", "[01].parquet"), ("folder", "[01].parquet"),
    ("folder", "*.parquet"), *(pytest.param(val, "*.parquet", marks=pytest.mark.slow) for val in
                               ("val.parquet", "*l.parquet")),
])  # fmt: skip
def test_val_names_the_rows_to_validate_on(train: Train, tmp_path: Path, val: str, listed: str) -> None:
    for part in (0, 1):
        write_rows(tmp_path / "in" / f"{part}.parquet", color_rows(12, seed=part))
    write_rows(tmp_path / "in" / ("folder/0.parquet" if val == "folder" else "val.parquet"), color_rows(12, seed=2))
    found = train(text_recipe(epochs=1), tmp_path / "in" / listed, val=str(tmp_path / "in" / val))
    assert (found["rows_train"], found["rows_val"]) == (24, 12)


def test_modality_dropout_keeps_the_weights_that_are_best_on_all_subsets(
    train: Train, evaluate: Any, colors: Path, tmp_path: Path
) -> None:
    made = recipe(
        {"image": IMAGE, "audio": AUDIO}, {"color": LABEL}, epochs=6, evaluations=6,
        model={"fusion": {"kind": "gated"}, "modality_dropout": 0.4},
    )  # fmt: skip
    done = train(made, colors)
    history = read_bundle(tmp_path / "out")["history"]
    names = ("color/accuracy", "color/accuracy[audio]", "color/accuracy[image]")
    means = [sum(entry["scores"][name] for name in names) / 3 for entry in history]
    kept = history[max(range(len(means)), key=lambda i: (round(means[i], 9), -i))]["scores"]
    scored = evaluate(colors)["metrics"]
    assert {n: round(scored[n.removeprefix("color/")], 4) for n in names} == {n: round(kept[n], 4) for n in names}
    assert done["metrics"]["color/accuracy"] == scored["accuracy"] and "color/accuracy[image]" not in done["metrics"]
