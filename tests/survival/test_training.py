"""Trainings in processes of their own, killed at any moment: the same command again ends as an unbroken one would."""

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mmbm_core.saved import read_bundle
from tests.survival.harness import Cli, cluster, kill, wait_for
from tests.training import color_dataset, color_recipe
from workers.training.checkpoint import load_checkpoint

VICTIMS = {"worker": "ray::RayTrainWorker", "raylet": "/raylet", "driver": "deploy.cli.main"}
STEPS = 60


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return color_dataset(tmp_path_factory.mktemp("colors"))


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after nearly every step."""
    given = color_recipe(epochs=STEPS // 4, checkpoint_s=0.01, evaluations=6, lr=1e-3)
    path = tmp_path_factory.mktemp("recipe") / "colors.yaml"
    path.write_text(yaml.safe_dump(given.model_dump(mode="json")))
    return path


def train(recipe: Path, data: Path, output: Path, *settings: str, **options: Any) -> Cli:
    flags = [part for setting in settings for part in ("--set", setting)]
    return Cli("train", recipe, data, "--output", output, "--cache", output.parent / "cache", *flags, **options)


def step_of(output: Path) -> int:
    """Of the last checkpoint; 0 before the first."""
    from workers.storage import open_location

    storage, folder = open_location(f"{output}.training")
    saved = load_checkpoint(storage, f"{folder}/model.safetensors")
    return saved.facts["step"] if saved else 0


def history(output: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_bundle(output)["history"]
    return found


@pytest.fixture(scope="module")
def unbroken(recipe_file: Path, colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("unbroken") / "out"
    result = train(recipe_file, colors, output).result(400)
    assert result["bundle"] == str(output) and result["metrics"] == read_bundle(output)["metrics"]
    return output


def survive(kills: list[str], recipe: Path, data: Path, output: Path, *, seed: int) -> dict[str, Any]:
    """Kill one after the other, and start again what does not start itself."""
    draw = random.Random(seed)
    run = train(recipe, data, output)
    for number, victim in enumerate(kills):
        aim = step_of(output) + draw.randint(1, (STEPS - 10) // len(kills))
        title = VICTIMS[victim]

        def ripe(run: Cli = run, aim: int = aim, title: str = title) -> bool:
            """Also where a late worker of the run before still writes checkpoints."""
            return run.process.poll() is not None or (step_of(output) >= aim and run.member(title) is not None)

        wait_for(ripe, timeout_s=400)
        assert run.process.poll() is None, (number, run.stderr)
        before = step_of(output)
        kill(run.member(title))
        assert not output.exists()
        if victim != "worker":
            assert run.wait(120) == 1
            assert "to resume" in run.stderr and "Traceback" not in run.stderr
            run = train(recipe, data, output)
        assert step_of(output) >= before
    return run.result(400)


@pytest.mark.slow
def test_a_killed_worker_is_taken_up_again(recipe_file: Path, colors: Path, unbroken: Path, tmp_path: Path) -> None:
    result = survive(["worker"], recipe_file, colors, tmp_path / "out", seed=1)
    assert history(tmp_path / "out") == history(unbroken)
    assert result["metrics"] == read_bundle(unbroken)["metrics"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["out"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_drivers_and_clusters_are_killed(
    recipe_file: Path, colors: Path, unbroken: Path, tmp_path: Path, seed: int
) -> None:
    kills = random.Random(seed).sample(["worker", "driver", "raylet", "driver"], k=4)
    result = survive(kills, recipe_file, colors, tmp_path / "out", seed=seed)
    assert history(tmp_path / "out") == history(unbroken)
    assert result["metrics"] == read_bundle(unbroken)["metrics"]


@pytest.mark.slow
def test_two_workers_learn_what_one_does(colors: Path, tmp_path: Path) -> None:
    """Rank r takes rows r::2. A text encoder: neither batch norm nor dropout."""
    from tests.training import TEXT, recipe

    task = {"kind": "understanding", "inputs": {"text": "text"}, "label": "label"}
    given = recipe({"text": TEXT}, {"label": task}, epochs=3, batch_size=12, lr=2e-3, evaluations=12)
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(given.model_dump(mode="json")))
    with cluster(4) as address:
        curves = {}
        for workers in (1, 2):
            output = tmp_path / f"w{workers}"
            train(file, colors, output, f"training.workers={workers}", address=address).result(400)
            curves[workers] = [entry["loss"] for entry in history(output)]
    assert len(curves[1]) == 12 and curves[1][-1] < 0.9 * curves[1][0]
    np.testing.assert_allclose(curves[2], curves[1], atol=1e-4)


@pytest.mark.slow
def test_trainings_beside_each_other(recipe_file: Path, colors: Path, tmp_path: Path) -> None:
    """Two on one cluster of two CPUs end; a third into the OUTPUT of one of them is refused."""
    with cluster(2) as address:
        runs = [train(recipe_file, colors, tmp_path / name, address=address) for name in "ab"]
        wait_for(lambda: (tmp_path / "a.training" / "_lock").exists(), timeout_s=200)
        third = train(recipe_file, colors, tmp_path / "a", address=address)
        assert third.wait(200) == 1
        assert "this OUTPUT is being written by process" in third.stderr
        for run in runs:
            run.result(600)
    assert history(tmp_path / "a") == history(tmp_path / "b")


@pytest.mark.slow
def test_ctrl_c_ends_a_training_cleanly(recipe_file: Path, colors: Path, unbroken: Path, tmp_path: Path) -> None:
    import signal

    for number in (signal.SIGINT, signal.SIGTERM):
        run = train(recipe_file, colors, tmp_path / "out")
        aim = step_of(tmp_path / "out") + 5
        wait_for(lambda aim=aim: step_of(tmp_path / "out") >= aim, timeout_s=400)
        kill(run.pid, number)
        assert run.wait(60) == 1
        assert run.stderr.rstrip().endswith("mmbm: stopped; run the same command again to resume")
    train(recipe_file, colors, tmp_path / "out").result(400)
    assert history(tmp_path / "out") == history(unbroken)


@pytest.mark.slow
def test_one_cpu_is_too_few_to_train_and_enough_to_evaluate(
    recipe_file: Path, colors: Path, unbroken: Path, tmp_path: Path
) -> None:
    with cluster(1) as address:
        run = train(recipe_file, colors, tmp_path / "out", address=address)
        assert run.wait(200) == 2
        assert "training with 1 worker needs 2 CPUs, one of them for reading; the cluster has 1" in run.stderr
        scored = Cli("evaluate", unbroken, colors, "--cache", tmp_path / "cache", address=address).result(400)
    plain = {f"color/{n}": v for n, v in scored["metrics"].items() if "[" not in n}
    assert plain == read_bundle(unbroken)["metrics"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 60 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("may not mount")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_a_full_disk(recipe_file: Path, colors: Path, small_disk: Path, unbroken: Path) -> None:
    cache = {"MMBM_CACHE": str(small_disk.parent / "cache")}
    command = ["train", recipe_file, colors, "--output", small_disk / "o"]
    run = Cli(*command, **cache)
    assert run.wait(400) == 1
    assert "No space left on device" in run.stderr and "Traceback" not in run.stderr
    assert not (small_disk / "o").exists()
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    Cli(*command, **cache).result(400)
    assert history(small_disk / "o") == history(unbroken)
    assert [path.name for path in small_disk.iterdir()] == ["o"]


@pytest.mark.slow
def test_words_are_refused_before_anything_starts(colors: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("model: {encoders: {txt: {model: minilm}}, tasks: {}}\ntraining: {epochs: -1, batchsize: 3}\n")
    for run, messages in (
        (train(file, colors, tmp_path / "out"), ("txt", "tasks", "epochs", "batchsize")),
        (train(Path("unheard-of"), colors, tmp_path / "out"), ("no recipe 'unheard-of'", "digits-fusion")),
    ):
        assert run.wait(100) == 2
        for message in messages:
            assert message in run.stderr
        assert "Traceback" not in run.stderr
    assert not (tmp_path / "out").exists()
