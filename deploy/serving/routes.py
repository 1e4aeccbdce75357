"""HTTP: what each route takes and gives."""

import base64
import uuid
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from deploy.serving import schemas as s
from deploy.serving.errors import ANSWERS, ApiError
from deploy.serving.gateway import Gateway
from deploy.serving.inputs import items_of, rows_of
from mmbm_core.rows import unit
from workers.serving.engine import Classify, Embed, ModelFacts

_REFS = "#/components/schemas/{model}"


def make_routes(gateway: Gateway) -> FastAPI:
    """The application without its guard."""
    app = FastAPI(
        title="MMBM", version=version("mmbm"), responses=ANSWERS, redoc_url=None,
        description="Text, images and sound as vectors and classes. Send the API key as `Authorization: Bearer KEY`.",
    )  # fmt: skip
    app.add_exception_handler(ApiError, _api_error)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _http_error)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _http_error)  # type: ignore[arg-type]
    _add_vectors(app, gateway)
    _add_classes(app, gateway)
    _add_operations(app, gateway)
    document = app.openapi

    def with_bodies() -> dict[str, Any]:
        """The requests' schemas, which the routes read by themselves, among the others."""
        made = document()
        for kind in (s.EmbeddingsRequest, s.CohereRequest, s.RerankRequest, s.ClassifyRequest):
            schema = kind.model_json_schema(ref_template=_REFS)
            made["components"]["schemas"] |= schema.pop("$defs", {}) | {kind.__name__: schema}
        return made

    app.openapi = with_bodies  # type: ignore[method-assign]
    return app


def _post(app: FastAPI, path: str, *, takes: type[BaseModel], gives: type[BaseModel]) -> Callable[..., Any]:
    body = {"content": {"application/json": {"schema": {"$ref": _REFS.format(model=takes.__name__)}}}, "required": True}
    return app.post(
        path, response_class=Response, openapi_extra={"requestBody": body},
        responses={200: {"model": gives, "description": "As asked"}},
    )  # fmt: skip


def _body(kind: type[BaseModel]) -> Any:
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


def _add_vectors(app: FastAPI, gateway: Gateway) -> None:
    settings = gateway.settings

    @_post(app, "/v1/embeddings", takes=s.EmbeddingsRequest, gives=s.EmbeddingsAnswer)
    async def embeddings(asked: Annotated[s.EmbeddingsRequest, _body(s.EmbeddingsRequest)]) -> Response:
        """Vectors of texts, token ids, images and sounds, in the shape of OpenAI's API."""
        model = gateway.resolve(asked.model)
        rows = rows_of(items_of(asked.input), settings, param="input")
        answer = await gateway.ask(model, Embed(), rows, param="input")
        vectors = [_shortened(v, asked.dimensions) for v in answer.results]
        data = [{"object": "embedding", "index": i, "embedding": _written(v, asked.encoding_format)}
                for i, v in enumerate(vectors)]  # fmt: skip
        return _json({"object": "list", "model": model, "data": data, "usage": _usage(answer.tokens)})

    @_post(app, "/v2/embed", takes=s.CohereRequest, gives=s.CohereAnswer)
    async def embed(asked: Annotated[s.CohereRequest, _body(s.CohereRequest)]) -> Response:
        """Vectors, in the shape of Cohere's API."""
        given = {"texts": asked.texts, "images": asked.images, "inputs": asked.inputs}
        named = [name for name, items in given.items() if items]
        if len(named) != 1:
            raise ApiError(400, "give one of texts, images and inputs", code="invalid_request", param="inputs")
        items = [s.ModalItem(image=i) for i in asked.images] if named == ["images"] else given[named[0]]  # type: ignore[union-attr]
        model = gateway.resolve(asked.model)
        rows = rows_of(items, settings, param=named[0])  # type: ignore[arg-type]
        answer = await gateway.ask(model, Embed(), rows, param=named[0])
        vectors = [_shortened(v, asked.output_dimension) for v in answer.results]
        meta = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": answer.tokens}}
        made = {kind: [_written(v, kind) for v in vectors] for kind in dict.fromkeys(asked.embedding_types)}
        return _json({"id": _id("embd"), "embeddings": made, "texts": asked.texts or [], "meta": meta,
                      "response_type": "embeddings_by_type"})  # fmt: skip

    @_post(app, "/v1/rerank", takes=s.RerankRequest, gives=s.RerankAnswer)
    async def rerank(asked: Annotated[s.RerankRequest, _body(s.RerankRequest)]) -> Response:
        """Documents by how near they are to a query, in the shape of Cohere's and Jina's APIs."""
        model = gateway.resolve(asked.model)
        query = rows_of([asked.query], settings, param="query")
        documents = rows_of(asked.documents, settings, param="documents")
        facts = await gateway.facts(model)
        for i, row in enumerate(documents):
            if not facts.shared and set(row) != set(query[0]):
                wrong = f"this model can't compare {' and '.join(query[0])} with {' and '.join(row)}"
                raise ApiError(422, wrong, code="no_shared_space", param=f"documents[{i}]")
        answer = await gateway.ask(model, Embed(), [*query, *documents], param="documents")
        first, *rest = (unit(vector) for vector in answer.results)
        scores = np.array([float(first @ vector) for vector in rest])
        order = np.argsort(-scores, kind="stable")[: asked.top_n]
        results: list[dict[str, Any]] = [{"index": int(i), "relevance_score": float(scores[i])} for i in order]
        if asked.return_documents:
            results = [r | {"document": _document(asked.documents[r["index"]])} for r in results]
        return _json({"id": _id("rerank"), "model": model, "results": results, "usage": _usage(answer.tokens)})


def _add_classes(app: FastAPI, gateway: Gateway) -> None:
    @_post(app, "/v1/classify", takes=s.ClassifyRequest, gives=s.ClassifyAnswer)
    async def classify(asked: Annotated[s.ClassifyRequest, _body(s.ClassifyRequest)]) -> Response:
        """The class of each item: what a picture shows, what a text asks for."""
        model = gateway.resolve(asked.model)
        task, labels = _classifier(await gateway.facts(model), asked.task)
        rows = rows_of(items_of(asked.input), gateway.settings, param="input")
        answer = await gateway.ask(model, Classify(task), rows, param="input")
        data = [_classified(i, p, refused, labels, asked.top_k) for i, (p, refused) in enumerate(answer.results)]
        return _json({"id": _id("classify"), "object": "list", "model": model, "data": data,
                      "usage": _usage(answer.tokens)})  # fmt: skip


def _classifier(facts: ModelFacts, task: str | None) -> tuple[str, tuple[str, ...]]:
    """A task that classifies, and its labels."""
    known = {name: each.labels for name, each in facts.tasks.items() if each.labels}
    if task is not None and task not in known:
        wrong = f"the model has no such classifier; it has: {', '.join(known) or 'none'}"
        raise ApiError(422, wrong, code="task_not_found", param="task")
    if task is None and len(known) != 1:
        wrong = f"name a task; the model classifies by: {', '.join(known)}" if known else "this model does not classify"
        raise ApiError(422, wrong, code="task_missing", param="task")
    name = task or next(iter(known))
    return name, known[name]


def _classified(
    index: int, probabilities: np.ndarray, refused: bool, labels: tuple[str, ...], top_k: int | None
) -> dict[str, Any]:
    best = int(probabilities.argmax())
    found = {
        "index": index, "label": None if refused else labels[best], "probs": probabilities.tolist(),
        "num_classes": len(labels), "out_of_scope": refused,
    }  # fmt: skip
    if top_k is not None:
        order = np.argsort(-probabilities, kind="stable")[:top_k]
        found["top"] = [{"label": labels[i], "prob": float(probabilities[i])} for i in order]
    return found


def _add_operations(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/v1/models", response_model=s.ModelsAnswer)
    async def models() -> Response:
        """What is served: modalities, spaces, tasks with their labels and the metrics of their training."""
        cards = []
        for name in gateway.handles:
            facts = await gateway.facts(name)
            tasks = {n: {"kind": t.kind, "modalities": t.modalities, "labels": t.labels, "metrics": t.metrics}
                     for n, t in facts.tasks.items()}  # fmt: skip
            cards.append({
                "id": name, "object": "model", "created": gateway.created, "owned_by": "mmbm",
                "modalities": list(facts.widths), "dimensions": facts.widths, "shared_space": facts.shared,
                "fingerprints": {model_part(n): f for n, f in facts.spaces.items()}, "tasks": tasks,
            })  # fmt: skip
        return _json({"object": "list", "data": cards})

    @app.get("/health", response_model=s.Alive)
    async def health() -> dict[str, str]:
        """Does the server run?"""
        return {"status": "ok"}

    @app.get("/ready", response_model=s.Alive)
    async def ready() -> dict[str, str]:
        """Does every model answer? Each is asked for something small."""
        await gateway.check()
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus' text format; of this ingress process, and of the replicas as they last told it."""
        return Response(gateway.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def model_part(name: str) -> str:
    """An encoder's name without the folder it lies in: paths are nobody's business."""
    return name.rstrip("/").rsplit("/", 1)[-1]


def _shortened(vector: np.ndarray, dimensions: int | None) -> np.ndarray:
    if dimensions is None:
        return vector
    if dimensions > len(vector):
        wrong = f"dimensions is {dimensions}; the model's vectors have {len(vector)}"
        raise ApiError(400, wrong, code="invalid_request", param="dimensions")
    return unit(vector[:dimensions]).astype(np.float32)


def _written(vector: np.ndarray, encoding: str) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()


def _document(item: s.InputItem) -> dict[str, Any]:
    return {"text": item} if isinstance(item, str) else item.model_dump(exclude_none=True)


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def _id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


def _json(content: Any) -> Response:
    return Response(to_json(content), media_type="application/json")


async def _api_error(request: Request, error: ApiError) -> Response:
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 400)
    message = {404: "no such route", 405: "this route takes another method"}.get(status, "the request is wrong")
    made = ApiError(status, message, code="not_found" if status == 404 else "invalid_request")
    return JSONResponse(made.body, status_code=status, headers=getattr(error, "headers", None) or made.headers)
