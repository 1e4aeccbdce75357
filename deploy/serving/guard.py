"""Around every request: its id, who asks, how large its body is and how slowly it comes, and what is counted of it."""

import asyncio
import hashlib
import hmac
import re
import time
import traceback
from collections.abc import Sequence
from typing import Any

from deploy.serving.errors import ApiError, send_error
from deploy.serving.metrics import Metrics
from deploy.serving.settings import ServeSettings

_OPEN = re.compile(r"/health|/docs|/openapi\.json|/ui(/.*)?")
"""Paths that need no key: they tell nothing and do nothing."""
_DRAINED = 8
"""Times the largest body that are read and dropped, for a client that looks for the answer once it has sent all."""


class Guard:
    """ASGI middleware.

    Args:
        digests: SHA-256 of each key; () lets everybody in.
    """

    def __init__(self, app: Any, settings: ServeSettings, digests: Sequence[str], *, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics
        self.digests = [digest.encode() for digest in digests]
        self.body_bytes, self.body_s = settings.body_bytes, settings.timeout_s
        self.max_running = settings.requests
        self.draining = False
        """True refuses every new request."""
        self.running = 0
        """Requests that have no answer yet."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        request_id = headers.get(b"x-request-id", b"").decode("latin-1")  # Serve sets it, and answers with it
        began, status = time.monotonic(), 0

        async def answer(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.running += 1
        try:
            if self.draining:
                raise ApiError(503, "the server is stopping", code="stopping", retry_after_s=1.0)
            if not _OPEN.fullmatch(scope["path"]):
                self._check_key(headers.get(b"authorization", b""))
                if self.running > self.max_running and scope["method"] == "POST":
                    self.metrics.refused(model="", code="overloaded")
                    raise ApiError(429, "the server is busy; try again later", code="overloaded", retry_after_s=1.0)
            await self.app(scope, await self._body(receive), answer)
        except ApiError as error:
            await send_error(error, answer)
        except asyncio.CancelledError:
            status = 499  # the client is gone
            raise
        except Exception:
            traceback.print_exc()
            if not status:
                await send_error(ApiError(500, f"the server failed; request {request_id}", code="internal"), answer)
        finally:
            self.running -= 1
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.request(route=route, status=status, seconds=time.monotonic() - began)

    def _check_key(self, authorization: bytes) -> None:
        scheme, _, key = authorization.partition(b" ")
        given = hashlib.sha256(key.strip()).hexdigest().encode()
        known = [hmac.compare_digest(given, digest) for digest in self.digests]  # all of them, whatever the first says
        if self.digests and not (scheme.lower() == b"bearer" and any(known)):
            raise ApiError(401, "send a valid API key as `Authorization: Bearer KEY`", code="invalid_api_key")

    async def _body(self, receive: Any) -> Any:
        """The whole body, within its limits, as a `receive` that gives it at once and then waits for the client."""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise asyncio.CancelledError
                    size += len(message.get("body", b""))
                    if size <= self.body_bytes:
                        parts.append(message.get("body", b""))
                    elif size > _DRAINED * self.body_bytes:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {self.body_s:g} s", code="body_timeout") from None
        if size > self.body_bytes:
            raise self._too_large()
        whole: list[Any] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

        async def given() -> Any:
            return whole.pop() if whole else await receive()

        return given

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self.body_bytes} bytes", code="body_too_large")
