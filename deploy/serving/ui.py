"""The page at /ui; its files lie in `page`."""

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import FastAPI, Response

_TYPES = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self'; img-src 'self' data: blob:; media-src blob: data:; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-cache",
}  # fmt: skip


def add_page(app: FastAPI) -> None:
    """Each file has a route; they are read once."""
    for name, kind in _TYPES.items():
        content = files("deploy.serving").joinpath("page", name).read_bytes()
        path = "/ui" if name == "index.html" else f"/ui/{name}"
        app.add_api_route(path, _serve(content, kind), methods=["GET"], include_in_schema=False)


def _serve(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def file() -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8", headers=_HEADERS)

    return file
