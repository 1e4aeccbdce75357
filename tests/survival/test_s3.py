"""A run from S3 to S3 (moto's server on the loopback address): killed, taken up again, and fenced off from others."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.survival.harness import Cli, check_tidy, kill, table, wait_for
from workers.storage import open_location

pytestmark = pytest.mark.slow


def test_a_run_from_and_to_s3_survives_its_driver(
    s3: str, texts: Path, text_model: str, vectors: dict[str, list[float]], tmp_path: Path
) -> None:
    uri = f"{s3}/{tmp_path.name}"
    storage, folder = open_location(uri)
    storage.write_bytes(f"{folder}/in/t.jsonl", texts.read_bytes())
    command = ["embed", f"{uri}/in", "--output", f"{uri}/out", "--model", text_model, "--precision", "exact"]
    command += ["--set", "unit_rows=12"]  # many units: the run has to outlast the one beside it

    def parts() -> list[str]:
        return [e.name for e in storage.list(folder) if e.name.startswith("part-") and e.path.count("/_") == 0]

    first = Cli(*command)
    wait_for(lambda: len(parts()) > 3 or first.process.poll() is not None)
    beside = Cli(*command)
    assert beside.wait() == 1, beside.stderr
    assert "is being written" in beside.stderr
    kill(first.member("deploy.cli.main"))
    assert first.wait(60) == 1
    done = len(parts())
    second = Cli(*command)
    figures = second.result(timeout_s=400)
    found = re.search(r"(\d+) finished units found", second.stderr)
    assert found and done <= int(found[1]) < figures["units"]  # a worker may outlive the driver by a unit
    for entry in storage.list(f"{folder}/out"):
        path = tmp_path / "out" / entry.path[len(folder) + 5 :]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(storage.read_bytes(entry.path))
    check_tidy(tmp_path / "out", figures)
    written = table(tmp_path / "out")
    assert written["id"].to_pylist() == sorted(vectors)
    expected = np.array([vectors[id] for id in sorted(vectors)])
    np.testing.assert_allclose(np.array(written["text_embedding"].to_pylist()), expected, atol=1e-4)
