"""Trouble that no restart mends: one clear message, the right exit status, no traceback, and soon."""

import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.survival.harness import Cli, check_tidy


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fails(run: Cli, status: int, *messages: str) -> None:
    """The run ends with this status and all of these messages, in words for a user."""
    assert run.wait(90) == status, run.stderr
    for message in messages:
        assert message in run.stderr
    assert "Traceback" not in run.stderr and "[E" not in run.stderr and "Error:" not in run.stderr


def test_bad_words_are_refused_together_before_anything_starts(texts: Path, tmp_path: Path) -> None:
    run = Cli("embed", texts, "--output", tmp_path / "o", "--set", "workers=0", "--set", "speed=11", "--set", "fast")
    fails(run, 2, "--set speed: unknown; allowed: workers, ", "--set workers='0': ", "--set fast: write key=value")
    fails(Cli("embed", texts), 2, "required: --output")
    fails(Cli("embd", texts), 2, "invalid choice: 'embd'")
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_what_only_the_cluster_can_tell(texts: Path, text_model: str, two_cpus: str, tmp_path: Path) -> None:
    def run(*args: object, output: str = "") -> Cli:
        env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
        folder = tmp_path / (output or f"o{next(number)}")  # they run at the same time
        return Cli("embed", *args, "--output", folder, address=two_cpus, **env)

    number = itertools.count()

    (tmp_path / "file").write_text("not a folder")
    several = [
        (run(tmp_path / "none"), 2, "no such path"),
        (run(texts, "--model", text_model, "--text-column", "txet"), 2, "txet"),
        (run(texts, "--model", "someone/unheard-of"), 2, "unknown model 'someone/unheard-of'"),
        (run(texts, "--model", text_model, "--set", "gpus_per_worker=1"), 2, "need 1 GPU, the cluster has 0"),
        (run(texts, "--model", text_model, output="file"), 1, "can't write OUTPUT"),
        (run(texts, "--model", text_model, output="file/below"), 1, "can't write OUTPUT"),
    ]
    for each in several:
        fails(*each)


def test_no_cluster_where_one_is_named(texts: Path, text_model: str, tmp_path: Path) -> None:
    run = Cli("embed", texts, "--output", tmp_path / "o", "--model", text_model, address="127.0.0.1:9")
    fails(run, 1, "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:9: Connection refused")


@pytest.mark.slow
def test_a_full_disk(texts: Path, text_model: str, two_cpus: str, small_disk: Path) -> None:
    command = ["embed", texts, "--output", small_disk / "o", "--model", text_model, "--set", "unit_rows=200"]
    fails(Cli(*command, address=two_cpus), 1, "No space left on device", "to resume")
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    figures = Cli(*command, address=two_cpus).result()
    assert figures["rows_reused"] > 0
    check_tidy(small_disk / "o", figures)
    assert os.listdir(small_disk) == ["o"]
