"""What goes wrong, as clients see it: OpenAI's error body, and never data, paths or secrets."""

from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None = None
    """Where in the request, such as `input[3]`."""
    code: str | None = None


class ErrorBody(BaseModel):
    """Body of every answer that is not 2xx."""

    error: ErrorDetail


class ApiError(Exception):
    """An answer other than 200."""

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """As JSON."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        detail = ErrorDetail(message=self.message, type=kind, param=self.param, code=self.code)
        return ErrorBody(error=detail).model_dump()

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After, in whole seconds."""
        if self.retry_after_s is None:
            return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        return {"Retry-After": str(max(1, round(self.retry_after_s)))}


async def send_error(error: ApiError, send: Any) -> None:
    """Answer with it, where there is no route to raise it: `send` is ASGI's."""
    headers = {"content-type": "application/json", **error.headers}
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": to_json(error.body)})


ANSWERS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": what}
    for status, what in {
        400: "The request is wrong; `param` says where.",
        401: "No valid API key.",
        404: "No model of this name.",
        408: "The body did not come in time.",
        413: "Larger than the server takes.",
        422: "The model can't do this.",
        429: "The queue is full; try again after Retry-After.",
        500: "The server failed.",
        503: "The model does not answer.",
        504: "It took too long.",
    }.items()
}
"""For the OpenAPI document."""
