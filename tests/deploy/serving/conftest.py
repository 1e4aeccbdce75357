"""A real Serve with small models, and what tests ask it with."""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from deploy.serving.settings import ServeSettings
from tests.bundles import FUSIONS, make_model, make_talker, save_bundle
from tests.server import free_port

KEY = "a-secret-key-of-a-test"
OTHER_KEY = "another-key-of-a-test"


@dataclass
class Reply:
    """An answer."""

    status: int
    content: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> tuple[int, str, str]:
        """Status, code and param."""
        detail = self.json["error"]
        return self.status, detail["code"], detail["param"] or ""


@dataclass
class Client:
    """Calls the server with a valid key, unless told otherwise."""

    url: str
    bundle: str
    """Folder of the model called `fused`."""
    text: str
    """Folder of the model called `text`."""
    talker: str
    """Folder of the model called `talker`."""

    def post(self, path: str, body: Any, *, key: str | None = KEY, **headers: str) -> Reply:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._ask("POST", path, data, key, headers)

    def get(self, path: str, *, key: str | None = KEY) -> Reply:
        return self._ask("GET", path, None, key, {})

    def _ask(self, method: str, path: str, data: bytes | None, key: str | None, headers: dict[str, str]) -> Reply:
        sent = {"content-type": "application/json", **headers}
        sent |= {"authorization": f"Bearer {key}"} if key else {}
        reply = requests.request(method, self.url + path, data=data, headers=sent, timeout=60)
        return Reply(reply.status_code, reply.content, {k.lower(): v for k, v in reply.headers.items()})


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="session")
def client(ray_cluster: None, text_model: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """A server with the models `fused` (three modalities, a classifier), `text` (an encoder) and `talker`."""
    from ray import serve

    from deploy.serving.app import assemble

    model = make_model(text_model, fusion=FUSIONS["attention"], tokens={"text": 3, "image": 2, "audio": 2})
    bundle = save_bundle(tmp_path_factory.mktemp("served"), model)
    talker = save_bundle(tmp_path_factory.mktemp("talker") / "b", make_talker(text_model))
    models = {"fused": bundle, "text": text_model, "talker": talker}
    port = free_port()
    settings = ServeSettings(body_bytes=1 << 20, items=64, media_items=8, text_bytes=5000, timeout_s=20)
    digests = tuple(hashlib.sha256(key.encode()).hexdigest() for key in (KEY, OTHER_KEY))
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(assemble(models, settings, digests), name="mmbm", route_prefix="/")
    return Client(f"http://127.0.0.1:{port}", bundle, text_model, talker)


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """The server serves all tests of this folder, and leaves the cluster's CPUs to those of others."""
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        from ray import serve

        serve.shutdown()


__all__ = ["KEY", "OTHER_KEY", "Client", "Reply", "b64"]
