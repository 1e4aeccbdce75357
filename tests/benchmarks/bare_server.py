"""The ceiling: our encoder and batcher behind plain uvicorn, without Ray, keys, limits or several models.

python tests/benchmarks/bare_server.py PORT [NAME=]MODEL...
"""

import sys
from base64 import b64decode
from typing import Any

import uvicorn
from pydantic_core import from_json, to_json

from deploy.serving.settings import named_models
from mmbm_core.media import DEFAULT_LIMITS
from workers.serving.batcher import Batcher
from workers.serving.engine import Embed, Engine, Prepared


class Model:
    """A model and its batches."""

    def __init__(self, model: str) -> None:
        engine = Engine(model, device="cpu", threads=1, precision="exact", limits=DEFAULT_LIMITS)
        self.engine = engine
        self.batcher = Batcher(lambda work, items: engine.run(work, [i.row for i in items]), 1.0, 1e9)

    async def vectors(self, asked: Any) -> list[Any]:
        """Of texts, or of pictures in base64."""
        items = [asked] if isinstance(asked, str) else asked
        values: list[Any] = [{"text": i} if isinstance(i, str) else {"image": b64decode(i["image"])} for i in items]
        rows = [row for row in self.engine.prepare(values) if isinstance(row, Prepared)]
        return await self.batcher.do(Embed(), rows, [row.cost for row in rows])


class Bare:
    """An ASGI application with the one route `/v1/embeddings`."""

    def __init__(self, models: dict[str, str]) -> None:
        self.models = {name: Model(model) for name, model in models.items()}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        content: dict[str, Any] = {"data": []}
        if body:
            asked = from_json(body)
            found = await self.models[asked["model"]].vectors(asked["input"])
            content = {"data": [{"index": i, "embedding": v.tolist()} for i, v in enumerate(found)]}
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": to_json(content)})


if __name__ == "__main__":
    port, *given = sys.argv[1:]
    uvicorn.run(Bare(named_models(given)), host="127.0.0.1", port=int(port), log_level="warning", lifespan="off")
