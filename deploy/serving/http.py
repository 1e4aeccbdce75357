"""How routes read requests and write answers and errors."""

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from deploy.serving.errors import ApiError

REFS = "#/components/schemas/{model}"
"""Where the schema of a model stands in the OpenAPI document."""


def add_error_handlers(app: FastAPI) -> None:
    """Every error has the one body."""
    app.add_exception_handler(ApiError, _api_error)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _http_error)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _http_error)  # type: ignore[arg-type]


def post(app: FastAPI, path: str, *, takes: type[BaseModel], gives: type[BaseModel]) -> Callable[..., Any]:
    """Decorates a route that reads its JSON by `json_body` and answers by `answer_json`."""
    body = {"content": {"application/json": {"schema": {"$ref": REFS.format(model=takes.__name__)}}}, "required": True}
    return app.post(
        path, response_class=Response, openapi_extra={"requestBody": body},
        responses={200: {"model": gives, "description": "As asked"}},
    )  # fmt: skip


def json_body(kind: type[BaseModel]) -> Any:
    """The request's JSON, by pydantic's own parser: no depth, number or name in it can hurt."""

    async def parse(request: Request) -> BaseModel:
        try:
            return kind.model_validate_json(await request.body())
        except ValidationError as error:
            raise _invalid(error) from None

    return Depends(parse)


def _invalid(error: ValidationError) -> ApiError:
    first = min(
        error.errors(include_input=False, include_url=False, include_context=False), key=lambda e: -len(e["loc"])
    )
    param = ""
    for part in first["loc"]:
        if isinstance(part, int):
            param += f"[{part}]"
        elif part.isidentifier() and part.islower() and part not in ("str", "constrained"):
            param += f".{part}" if param else part
    return ApiError(400, first["msg"], code="invalid_request", param=param or None)


def new_id(kind: str) -> str:
    """Of an answer."""
    return f"{kind}-{uuid.uuid4().hex}"


def answer_json(content: Any) -> Response:
    """200."""
    return Response(to_json(content), media_type="application/json")


def usage(read: int) -> dict[str, int]:
    """Tokens of the texts of a request."""
    return {"prompt_tokens": read, "total_tokens": read}


def choose_task(known: Sequence[str], task: str | None, *, kind: str, does: str, lacks: str) -> str:
    """The task that a request names, or the only one there is.

    Args:
        known: those of the model that can be asked.
        kind: what they are.
        does: what the model does by them.
        lacks: what is said of a model that has none.

    Raises:
        ApiError: no such task, or none named where there are several.
    """
    if task is not None and task not in known:
        wrong = f"the model has no such {kind}; it has: {', '.join(known) or 'none'}"
        raise ApiError(422, wrong, code="task_not_found", param="task")
    if task is None and len(known) != 1:
        wrong = f"name a task; the model {does} by: {', '.join(known)}" if known else f"this model {lacks}"
        raise ApiError(422, wrong, code="task_missing", param="task")
    return task or known[0]


async def _api_error(request: Request, error: ApiError) -> Response:
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 400)
    message = {404: "no such route", 405: "this route takes another method"}.get(status, "the request is wrong")
    made = ApiError(status, message, code="not_found" if status == 404 else "invalid_request")
    return JSONResponse(made.body, status_code=status, headers=getattr(error, "headers", None) or made.headers)
