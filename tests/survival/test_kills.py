"""Whatever is killed, and whenever: the same command again ends with every row once, and repeats next to nothing."""

import random
from pathlib import Path

import numpy as np
import pytest

from tests.survival.harness import Cli, check_tidy, kill, parts, table, wait_for

WORKERS = 2
VICTIMS = {"actor": "ray::MapWorker", "raylet": "/raylet", "driver": "deploy.cli.main", "parent": ""}


def survive(
    kills: list[str], texts: Path, model: str, output: Path, vectors: dict[str, list[float]], *, seed: int
) -> list[int]:
    """Kill one after the other, restarting as needed; gives how many committed units were done again after each."""
    draw = random.Random(seed)
    command = ["embed", texts, "--output", output, "--model", model, "--precision", "exact", "--set", "unit_rows=25"]
    repeated: list[int] = []
    run = Cli(*command)
    before: dict[str, tuple[int, int]] = {}
    for victim in kills:
        aim = len(parts(output)) + draw.randint(1, 12)
        wait_for(lambda aim=aim, run=run: len(parts(output)) >= aim or run.process.poll() is not None, every_s=0.002)
        assert run.process.poll() is None, run.stderr
        kill(run.member(VICTIMS[victim]) if VICTIMS[victim] else run.pid)
        if victim != "actor":
            assert run.wait(60) == (-9 if victim == "parent" else 1)
            assert victim == "parent" or "to resume" in run.stderr
            assert "Traceback" not in run.stderr
            run = Cli(*command)
        repeated.append(sum(before[name] != now for name, now in parts(output).items() if name in before))
        before = parts(output)
    figures = run.result()
    repeated.append(sum(before[name] != now for name, now in parts(output).items() if name in before))
    check_tidy(output, figures)
    written = table(output)
    assert written["id"].to_pylist() == sorted(vectors)
    expected = np.array([vectors[id] for id in sorted(vectors)])
    np.testing.assert_allclose(np.array(written["text_embedding"].to_pylist()), expected, atol=1e-4)
    assert (figures["rows_in"], figures["rows_quarantined"]) == (4000, 1)
    return repeated


def test_three_kills(texts: Path, text_model: str, vectors: dict[str, list[float]], tmp_path: Path) -> None:
    repeated = survive(["actor", "driver", "raylet"], texts, text_model, tmp_path / "out", vectors, seed=1)
    assert max(repeated) <= WORKERS


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_ten_kills(texts: Path, text_model: str, vectors: dict[str, list[float]], tmp_path: Path, seed: int) -> None:
    kills = random.Random(seed).choices(list(VICTIMS), k=10)
    repeated = survive(kills, texts, text_model, tmp_path / "out", vectors, seed=seed)
    print(f"killed {kills}, units repeated {repeated}")
    assert max(repeated) <= WORKERS
