"""Serving on a cluster: another version is deployed under load, a space that changes is refused."""

import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.checkpoints import save_text_model
from tests.deploy.serving.conftest import free_port
from tests.survival.harness import ROOT, cluster, wait_for

pytestmark = pytest.mark.slow


class Deployment:
    """`serve deploy` of a config that changes."""

    def __init__(self, folder: Path, dashboard: int) -> None:
        self.file, self.dashboard, self.port = folder / "serve.yaml", f"http://127.0.0.1:{dashboard}", free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def deploy(self, **args: Any) -> None:
        app = {"name": "mmbm", "route_prefix": "/", "import_path": "deploy.serving.app:build",
               "args": {"allow_anonymous": True, **args}}  # fmt: skip
        http = {"host": "127.0.0.1", "port": self.port}
        self.file.write_text(yaml.safe_dump({"http_options": http, "applications": [app]}))
        self._serve("deploy", str(self.file))

    def status(self) -> tuple[str, str]:
        """Of the application, and why."""
        found = yaml.safe_load(self._serve("status"))["applications"].get("mmbm", {})
        return found.get("status", ""), found.get("message", "")

    def _serve(self, *command: str) -> str:
        serve = [str(Path(sys.executable).with_name("serve")), *command, "--address", self.dashboard]
        done = subprocess.run(serve, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def model(self) -> dict[str, Any]:
        card: dict[str, Any] = requests.get(f"{self.url}/v1/models", timeout=30).json()["data"][0]
        return card


def test_another_version_is_deployed_under_load(tmp_path: Path) -> None:
    first, second = (save_text_model(tmp_path / f"model-{seed}", seed=seed) for seed in (0, 1))
    dashboard = free_port()
    with cluster(2, include_dashboard="true", dashboard_port=dashboard):
        app = Deployment(tmp_path, dashboard)
        app.deploy(models={"m": first})
        wait_for(lambda: app.status()[0] == "RUNNING", every_s=1)
        before = app.model()["fingerprints"]
        answers: Counter[int] = Counter()
        stopping = threading.Event()

        def ask() -> None:
            while not stopping.is_set():
                body = {"model": "m", "input": "a red disc"}
                answers[requests.post(f"{app.url}/v1/embeddings", json=body, timeout=60).status_code] += 1

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            app.deploy(models={"m": second})
            wait_for(lambda: app.status()[0] == "DEPLOY_FAILED", every_s=1)
            assert "another vector space" in app.status()[1]
            assert app.model()["fingerprints"] == before
            app.deploy(models={"m": second}, allow_new_space=True)
            wait_for(lambda: app.model()["fingerprints"] != before, every_s=0.5)
            app.deploy(models={"m": second}, allow_new_space=True, settings={"items": 1})
            two = {"model": "m", "input": ["a", "b"]}
            wait_for(lambda: requests.post(f"{app.url}/v1/embeddings", json=two, timeout=60).status_code == 413)
            time.sleep(1)
        finally:
            stopping.set()
            for thread in threads:
                thread.join()
        assert set(answers) == {200} and answers[200] > 50, answers
