"""Requests under way are bounded: one more is refused before its body is read."""

import asyncio
from typing import Any

from deploy.serving.guard import Guard
from deploy.serving.metrics import Metrics
from deploy.serving.settings import ServeSettings


def test_a_request_too_many_is_refused_at_once_and_health_is_not() -> None:
    async def test() -> None:
        go_on = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["method"] == "POST":
                await receive()
                await go_on.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        guard = Guard(app, ServeSettings(requests=2), (), metrics=Metrics())

        async def ask(method: str, path: str) -> tuple[int, dict[bytes, bytes], int]:
            """Status, headers, and how much of the body was read."""
            sent: list[Any] = []
            read = 0

            async def receive() -> Any:
                nonlocal read
                read += 1
                return {"type": "http.request", "body": b"{}", "more_body": False}

            async def send(message: Any) -> None:
                sent.append(message)

            await guard({"type": "http", "method": method, "path": path, "headers": []}, receive, send)
            return sent[0]["status"], dict(sent[0]["headers"]), read

        first = [asyncio.create_task(ask("POST", "/v1/embeddings")) for _ in range(2)]
        await asyncio.sleep(0)
        status, headers, read = await ask("POST", "/v1/embeddings")
        assert (status, headers[b"retry-after"], read) == (429, b"1", 0)
        for path in ("/health", "/ready", "/metrics"):
            assert (await ask("GET", path))[0] == 200
        go_on.set()
        assert [(await task)[0] for task in first] == [200, 200]
        assert (await ask("POST", "/v1/embeddings"))[0] == 200

    asyncio.run(test())
