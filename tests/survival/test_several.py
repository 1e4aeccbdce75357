"""Runs beside each other, on clusters large and small, and their ends by signal."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.survival.harness import (
    ROOT,
    WATCHDOG_S,
    Cli,
    check_tidy,
    cluster,
    family,
    kill,
    parts,
    processes,
    second_node,
    table,
    wait_for,
)

pytestmark = pytest.mark.slow


def embed(texts: Path, model: str, output: Path, *settings: str, **options: Any) -> Cli:
    flags = [part for setting in ("unit_rows=50", *settings) for part in ("--set", setting)]
    return Cli("embed", texts, "--output", output, "--model", model, "--precision", "exact", *flags, **options)


def test_two_runs_side_by_side_and_a_third_into_the_output_of_one(
    texts: Path, text_model: str, two_cpus: str, tmp_path: Path
) -> None:
    runs = [embed(texts, text_model, tmp_path / name, address=two_cpus) for name in "ab"]
    wait_for(lambda: (tmp_path / "a" / "_staging").exists() and list((tmp_path / "a" / "_staging").iterdir()))
    third = embed(texts, text_model, tmp_path / "a", "drop_columns=text", address=two_cpus)
    assert third.wait() == 1
    assert "this OUTPUT is being written by process" in third.stderr
    for run, name in zip(runs, "ab", strict=True):
        check_tidy(tmp_path / name, run.result())
    assert table(tmp_path / "a").equals(table(tmp_path / "b"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_cleanly(texts: Path, text_model: str, tmp_path: Path, number: signal.Signals) -> None:
    run = embed(texts, text_model, tmp_path / "out")
    wait_for(lambda: len(parts(tmp_path / "out")) > 3)
    members = family(run.pid)
    kill(run.pid, number)
    assert run.process.wait(20) == 1
    assert run.stderr.rstrip().endswith("mmbm: stopped; run the same command again to resume")
    assert "Traceback" not in run.stderr
    wait_for(lambda: not set(members) & set(processes()), timeout_s=20)
    done = len(parts(tmp_path / "out"))
    assert 0 < done < 81
    run.close()


@pytest.mark.parametrize("seconds", [0.6, 1.5, 3.0, 6.0])
def test_a_signal_while_starting(texts: Path, text_model: str, tmp_path: Path, seconds: float) -> None:
    import time

    run = embed(texts, text_model, tmp_path / "out")
    time.sleep(seconds)
    members = family(run.pid)
    kill(run.pid, signal.SIGTERM)
    assert run.process.wait(30) in (1, -signal.SIGTERM)
    assert "Traceback" not in run.stderr
    wait_for(lambda: not set(members) & set(processes()), timeout_s=20)
    run.close()


def test_one_cpu_holds_every_placement(texts: Path, text_model: str, tmp_path: Path) -> None:
    with cluster(1) as address:
        for placement in ("decode_apart", "together"):
            run = embed(texts, text_model, tmp_path / placement, f"placement={placement}", address=address)
            check_tidy(tmp_path / placement, run.result())
    ids = table(tmp_path / "together")["id"]
    assert ids.equals(table(tmp_path / "decode_apart")["id"])


def test_gpus_that_are_not_there(texts: Path, text_model: str, tmp_path: Path) -> None:
    with cluster(2, num_gpus=2) as address:
        shared = embed(
            texts, text_model, tmp_path / "a", "gpus_per_worker=0.5", "device=cpu", "unit_rows=500", address=address
        )
        check_tidy(tmp_path / "a", shared.result())
        assert "4 workers with 0.4 CPU and 0.5 GPU each on cpu" in shared.stderr
        blind = embed(texts, text_model, tmp_path / "b", address=address)
        assert blind.wait() == 1
        assert "torch sees none here; use --set device=cpu" in blind.stderr


def test_as_a_ray_job(texts: Path, text_model: str, tmp_path: Path) -> None:
    port, agent_port = _free_port(), _free_port()
    with cluster(2, include_dashboard="true", dashboard_port=port, dashboard_agent_listen_port=agent_port):
        submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", f"http://127.0.0.1:{port}"]
        command = ["mmbm", "embed", str(texts), "--output", str(tmp_path / "out"), "--model", text_model]
        submit += ["--working-dir", ".", "--", *command]
        env = {**os.environ, "RAY_AUTH_MODE": "disabled"}

        def submitted() -> subprocess.CompletedProcess[str] | None:
            """None while Ray, which says `started` before it takes jobs, has no agent for them."""
            done = subprocess.run(submit, cwd=ROOT, env=env, capture_output=True, text=True, timeout=WATCHDOG_S)
            return None if "No available agent" in done.stderr else done

        done = wait_for(submitted)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"rows_in"'))
    check_tidy(tmp_path / "out", figures)
    assert table(tmp_path / "out").num_rows == 3999


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_two_nodes_with_one_disk(texts: Path, text_model: str, tmp_path: Path) -> None:
    with cluster(1) as address, second_node(address):
        run = embed(texts, text_model, tmp_path / "out", "workers=2", address=address)
        check_tidy(tmp_path / "out", run.result())
    assert "2 workers" in run.stderr
    assert table(tmp_path / "out").num_rows == 3999


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a process a disk of its own")
def test_a_local_output_that_a_node_does_not_see(texts: Path, text_model: str, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    with cluster(1) as address, second_node(address, hidden=tmp_path / "disk"):
        run = embed(texts, text_model, tmp_path / "disk" / "out", address=address)
        assert run.wait() == 2
    assert "is a local folder that not all 2 nodes of the cluster share" in run.stderr
    assert not parts(tmp_path / "disk" / "out")
