"""Serving on a cluster: another version is deployed under load, a space that changes is refused, a model is damaged."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.bundles import make_model, save_bundle
from tests.checkpoints import save_text_model
from tests.server import Load, free_port
from tests.survival.harness import ROOT, cluster, wait_for

pytestmark = pytest.mark.slow


class Deployment:
    """`serve deploy` of a config that changes."""

    def __init__(self, folder: Path, dashboard: int) -> None:
        self.file, self.dashboard, self.port = folder / "serve.yaml", f"http://127.0.0.1:{dashboard}", free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def deploy(self, versions: Mapping[str, dict[str, Any]] | None = None, **args: Any) -> None:
        """Models by `args`, and what running ones are told."""
        overrides = [{"name": f"model-{name}", "user_config": version} for name, version in (versions or {}).items()]
        app = {"name": "mmbm", "route_prefix": "/", "import_path": "deploy.serving.app:build",
               "args": {"allow_anonymous": True, **args}, "deployments": overrides}  # fmt: skip
        http = {"host": "127.0.0.1", "port": self.port}
        self.file.write_text(yaml.safe_dump({"http_options": http, "applications": [app]}))
        self._serve("deploy", str(self.file))

    def status(self) -> tuple[str, str]:
        """Of the application, and why."""
        found = self.told()
        return found.get("status", ""), found.get("message", "")

    def told(self) -> dict[str, Any]:
        """What `serve status` says of the application."""
        found: dict[str, Any] = yaml.safe_load(self._serve("status"))["applications"].get("mmbm", {})
        return found

    def _serve(self, *command: str) -> str:
        serve = [str(Path(sys.executable).with_name("serve")), *command, "--address", self.dashboard]
        done = subprocess.run(serve, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def embed(self, model: str) -> requests.Response:
        return requests.post(f"{self.url}/v1/embeddings", json={"model": model, "input": "a red disc"}, timeout=60)

    def ready(self) -> int:
        return requests.get(f"{self.url}/ready", timeout=60).status_code

    def model(self) -> dict[str, Any]:
        cards: list[dict[str, Any]] = requests.get(f"{self.url}/v1/models", timeout=60).json()["data"]
        return cards[0] if cards else {}


@contextmanager
def deployed(folder: Path, model: str) -> Iterator[Deployment]:
    """A cluster that serves one model, `m`."""
    dashboard = free_port()
    with cluster(2, include_dashboard="true", dashboard_port=dashboard):
        app = Deployment(folder, dashboard)
        app.deploy(models={"m": model})
        wait_for(lambda: app.status()[0] == "RUNNING", every_s=1)
        yield app


@contextmanager
def loaded(app: Deployment) -> Iterator[Load]:
    """Four clients without a pause, all of whom are answered."""
    with Load(lambda: app.embed("m").status_code) as load:
        yield load
        time.sleep(1)
    print(f"{load.answers}, the slowest after {load.slowest_s:.2f} s")
    assert set(load.answers) == {200} and load.answers[200] > 50


def test_another_version_takes_over_under_load(tmp_path: Path) -> None:
    first, second = (save_text_model(tmp_path / f"model-{seed}", seed=seed) for seed in (0, 1))
    damaged = tmp_path / "damaged"
    shutil.copytree(first, damaged)
    (damaged / "model.safetensors").write_bytes(b"damaged")
    with deployed(tmp_path, first) as app:
        before = app.model()["fingerprints"]
        with loaded(app) as load:
            for wrong in (second, str(damaged)):
                app.deploy({"m": {"model": wrong}}, models={"m": first})
                wait_for(lambda: "deployed last can't be used" in app.model()["update_error"], every_s=0.5)
                assert app.model()["fingerprints"] == before and app.status()[0] == "RUNNING"
                app.deploy(models={"m": first})
                wait_for(lambda: not app.model()["update_error"], every_s=0.5)
            app.deploy({"m": {"model": second, "allow_new_space": True}}, models={"m": first})
            wait_for(lambda: app.model().get("fingerprints", before) != before, every_s=0.5)
        assert load.slowest_s < 10


def test_other_arguments_replace_the_replicas_without_a_failure(tmp_path: Path) -> None:
    first, second = (save_text_model(tmp_path / f"model-{seed}", seed=seed) for seed in (0, 1))
    with deployed(tmp_path, first) as app:
        before = app.model()["fingerprints"]
        with loaded(app):
            app.deploy(models={"m": second})
            wait_for(lambda: app.status()[0] == "DEPLOY_FAILED", every_s=1)
            assert "another vector space" in app.status()[1]
            assert app.model()["fingerprints"] == before
            app.deploy(models={"m": second}, allow_new_space=True)
            wait_for(lambda: app.model().get("fingerprints", before) != before, every_s=0.5)
            app.deploy(models={"m": second}, allow_new_space=True, settings={"items": 1})
            two = {"model": "m", "input": ["a", "b"]}
            wait_for(lambda: requests.post(f"{app.url}/v1/embeddings", json=two, timeout=60).status_code == 413)


def test_a_damaged_model_leaves_the_others_answering(tmp_path: Path, text_model: str) -> None:
    bundle = Path(save_bundle(tmp_path / "bad", make_model(text_model, modalities=("text",))))
    weights = (bundle / "model.safetensors").read_bytes()
    (bundle / "model.safetensors").write_bytes(weights[:1000])
    models = {"good": text_model, "bad": str(bundle)}
    dashboard = free_port()

    def check() -> None:
        """What clients see, and how soon."""
        assert app.embed("good").status_code == 200
        began = time.monotonic()
        refused = app.embed("bad")
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "model_unavailable"
        assert "retry-after" in refused.headers and app.ready() == 503
        assert time.monotonic() - began < 25
        assert app.model()["id"] == "good"

    with cluster(2, include_dashboard="true", dashboard_port=dashboard):
        app = Deployment(tmp_path, dashboard)
        app.deploy(models=models, settings={"timeout_s": 10})  # requests wait so long for a model that loads
        wait_for(lambda: requests.get(f"{app.url}/health", timeout=60).status_code == 200, every_s=0.5)
        wait_for(lambda: app.embed("good").status_code == 200, every_s=0.5)
        assert app.status()[0] == "DEPLOYING"
        check()
        wait_for(lambda: app.status()[0] == "DEPLOY_FAILED", every_s=1)
        check()
        assert "model.safetensors is damaged: copy the bundle again" in str(app.told()["deployments"]["model-bad"])
        mended = bundle.rename(tmp_path / "mended")  # Serve does not try again what it has been told already
        (mended / "model.safetensors").write_bytes(weights)
        app.deploy(models={**models, "bad": str(mended)}, settings={"timeout_s": 10})
        wait_for(lambda: app.ready() == 200, every_s=1)
        assert app.embed("bad").status_code == 200
