"""The cluster that a command starts for itself: closed to others, and without a trace in the home folder."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

STARTED = """
from deploy.cli.cluster import connect
connect()
import ray
from ray._private.authentication.authentication_utils import is_token_auth_enabled
print("cpus", ray.cluster_resources()["CPU"], "token", is_token_auth_enabled())
"""


def start(home: Path, **env: str) -> str:
    """What a process says that started a cluster with `home` as its home folder."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k == "RAY_TMPDIR"}
    command = [sys.executable, "-c", STARTED]
    env = {**kept, "HOME": str(home), **env}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=True).stdout


def test_a_cluster_of_our_own_has_a_token_that_nobody_keeps(tmp_path: Path) -> None:
    assert "token True" in start(tmp_path)
    assert not (tmp_path / ".ray").exists()


def test_what_the_user_says_of_tokens_holds(tmp_path: Path) -> None:
    assert "token False" in start(tmp_path, RAY_AUTH_MODE="disabled")
