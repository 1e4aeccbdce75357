"""The ceiling: our encoder and batcher behind plain uvicorn, without Ray, keys, limits or several models.

python tests/benchmarks/bare_server.py MODEL PORT
"""

import sys
from typing import Any

import uvicorn
from pydantic_core import from_json, to_json

from mmbm_core.media import DEFAULT_LIMITS
from workers.serving.batcher import Batcher
from workers.serving.engine import Embed, Engine, Prepared


class Bare:
    """An ASGI application with the one route `/v1/embeddings`."""

    def __init__(self, model: str) -> None:
        engine = Engine(model, device="cpu", threads=1, precision="exact", limits=DEFAULT_LIMITS)
        self.engine = engine
        self.batcher = Batcher(lambda work, items: engine.run(work, [i.row for i in items]), 1.0, 1e9)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        status, content = 200, {"data": []}
        if body:
            asked = from_json(body)["input"]
            texts = [asked] if isinstance(asked, str) else asked
            rows = [row for row in self.engine.prepare([{"text": t} for t in texts]) if isinstance(row, Prepared)]
            found = await self.batcher.do(Embed(), rows, [row.cost for row in rows])
            content = {"data": [{"index": i, "embedding": v.tolist()} for i, v in enumerate(found)]}
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": to_json(content)})


if __name__ == "__main__":
    uvicorn.run(Bare(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", lifespan="off")
