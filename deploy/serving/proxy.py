"""What Serve's proxy is told before it listens: the heads of requests are other people's, and it would trust them."""

from typing import Any

from starlette.middleware import Middleware
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.h11_impl import H11Protocol

from deploy.serving.errors import ApiError, send_error


def prepare() -> list[Middleware]:
    """Bound the head of a request, and keep from Serve what it can't read.

    Serve calls this in each process that listens: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it.
    """
    auto.AutoHTTPProtocol = H11Protocol  # httptools takes heads of any size, in time quadratic in it: all others wait
    return [Middleware(_Front)]


class _Front:
    """Drops headers that are no UTF-8, on which Serve fails, and answers where Serve has lost a request."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        began = scope["type"] != "http"

        async def answer(message: Any) -> None:
            nonlocal began
            began = True
            await send(message)

        if not began:
            scope["headers"] = [(name, value) for name, value in scope["headers"] if _readable(value)]
        await self.app(scope, receive, answer)
        if not began:
            lost = "the server lost the request: it was being replaced; send it again"
            await send_error(ApiError(503, lost, code="lost", retry_after_s=5.0), send)


def _readable(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
