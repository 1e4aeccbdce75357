"""The routes: vectors, classes, and what an operator asks; those that write texts are in `texts`."""

import base64
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Response

from deploy.serving import schemas as s
from deploy.serving.errors import ANSWERS, ApiError
from deploy.serving.gateway import Gateway
from deploy.serving.http import REFS, add_error_handlers, answer_json, choose_task, json_body, new_id, post, usage
from deploy.serving.inputs import Row, items_of, places, rows_of
from deploy.serving.replica import Answer
from deploy.serving.texts import add_texts
from deploy.serving.ui import add_page
from mmbm_core.rows import unit
from workers.serving.engine import Classified, Classify, Embed, ModelFacts

REQUESTS = (
    s.EmbeddingsRequest, s.CohereRequest, s.RerankRequest, s.ClassifyRequest, s.ChatRequest, s.TranslateRequest,
)  # fmt: skip


def make_routes(gateway: Gateway) -> FastAPI:
    """The application without its guard."""
    app = FastAPI(
        title="MMBM", version=version("mmbm"), responses=ANSWERS, redoc_url=None, redirect_slashes=False,
        description="Text, images and sound as vectors and classes. Send the API key as `Authorization: Bearer KEY`.",
    )  # fmt: skip
    add_error_handlers(app)
    _add_vectors(app, gateway)
    _add_classes(app, gateway)
    add_texts(app, gateway)
    _add_operations(app, gateway)
    add_page(app)
    document = app.openapi

    def with_bodies() -> dict[str, Any]:
        """The requests' schemas, which the routes read by themselves, among the others."""
        made = document()
        for kind in REQUESTS:
            schema = kind.model_json_schema(ref_template=REFS)
            made["components"]["schemas"] |= schema.pop("$defs", {}) | {kind.__name__: schema}
        return made

    app.openapi = with_bodies  # type: ignore[method-assign]
    return app


def _add_vectors(app: FastAPI, gateway: Gateway) -> None:

    @post(app, "/v1/embeddings", takes=s.EmbeddingsRequest, gives=s.EmbeddingsAnswer)
    async def embeddings(asked: Annotated[s.EmbeddingsRequest, json_body(s.EmbeddingsRequest)]) -> Response:
        """Vectors of texts, token ids, images and sounds, in the shape of OpenAI's API."""
        model = gateway.resolve(asked.model)
        rows = await rows_of(items_of(asked.input), gateway.settings, param="input")
        answer = await gateway.ask(model, Embed(), rows, params=places("input", rows))
        vectors = [_shortened(v, asked.dimensions) for v in answer.results]
        data = [{"object": "embedding", "index": i, "embedding": _written(v, asked.encoding_format)}
                for i, v in enumerate(vectors)]  # fmt: skip
        return answer_json({"object": "list", "model": model, "data": data, "usage": usage(answer.tokens)})

    @post(app, "/v2/embed", takes=s.CohereRequest, gives=s.CohereAnswer)
    async def embed(asked: Annotated[s.CohereRequest, json_body(s.CohereRequest)]) -> Response:
        """Vectors, in the shape of Cohere's API."""
        given = {"texts": asked.texts, "images": asked.images, "inputs": asked.inputs}
        named = [name for name, items in given.items() if items]
        if len(named) != 1:
            raise ApiError(400, "give one of texts, images and inputs", code="invalid_request", param="inputs")
        items = [s.ModalItem(image=i) for i in asked.images] if named == ["images"] else given[named[0]]  # type: ignore[union-attr]
        model = gateway.resolve(asked.model)
        rows = await rows_of(items, gateway.settings, param=named[0])  # type: ignore[arg-type]
        answer = await gateway.ask(model, Embed(), rows, params=places(named[0], rows))
        vectors = [_shortened(v, asked.output_dimension) for v in answer.results]
        meta = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": answer.tokens}}
        made = {kind: [_written(v, kind) for v in vectors] for kind in dict.fromkeys(asked.embedding_types)}
        return answer_json({"id": new_id("embd"), "embeddings": made, "texts": asked.texts or [], "meta": meta,
                      "response_type": "embeddings_by_type"})  # fmt: skip

    @post(app, "/v1/rerank", takes=s.RerankRequest, gives=s.RerankAnswer)
    async def rerank(asked: Annotated[s.RerankRequest, json_body(s.RerankRequest)]) -> Response:
        """Documents by how near they are to a query, in the shape of Cohere's and Jina's APIs."""
        model = gateway.resolve(asked.model)
        query = await rows_of([asked.query], gateway.settings, param="query")
        documents = await rows_of(asked.documents, gateway.settings, param="documents")
        facts = await gateway.facts(model)
        for i, row in enumerate(documents):
            if not facts.shared and set(row) != set(query[0]):
                wrong = f"this model can't compare {' and '.join(query[0])} with {' and '.join(row)}"
                raise ApiError(422, wrong, code="no_shared_space", param=f"documents[{i}]")
        params = ["query", *places("documents", documents)]
        answer = await gateway.ask(model, Embed(), [*query, *documents], params=params)
        first, *rest = (unit(vector) for vector in answer.results)
        scores = np.array([float(first @ vector) for vector in rest])
        order = np.argsort(-scores, kind="stable")[: asked.top_n]
        results: list[dict[str, Any]] = [{"index": int(i), "relevance_score": float(scores[i])} for i in order]
        if asked.return_documents:
            results = [r | {"document": _document(asked.documents[r["index"]])} for r in results]
        return answer_json({"id": new_id("rerank"), "model": model, "results": results, "usage": usage(answer.tokens)})


def _add_classes(app: FastAPI, gateway: Gateway) -> None:
    @post(app, "/v1/classify", takes=s.ClassifyRequest, gives=s.ClassifyAnswer)
    async def classify(asked: Annotated[s.ClassifyRequest, json_body(s.ClassifyRequest)]) -> Response:
        """The class of each item: what a picture shows, what a text asks for."""
        model = gateway.resolve(asked.model)
        facts = await gateway.facts(model)
        rows = await rows_of(items_of(asked.input), gateway.settings, param="input")
        if asked.labels:
            answer = await _ask_near(
                gateway, model, facts, rows, await rows_of(asked.labels, gateway.settings, param="labels")
            )
            classes = _nearest(answer.results, asked.labels, scale=facts.scale)
        else:
            work = Classify(_classifier(facts, asked.task))
            answer = await gateway.ask(model, work, rows, params=places("input", rows))
            classes = answer.results
        data = [_classified(i, found, asked.top_k) for i, found in enumerate(classes)]
        return answer_json({"id": new_id("classify"), "object": "list", "model": model, "data": data,
                      "usage": usage(answer.tokens)})  # fmt: skip


async def _ask_near(gateway: Gateway, model: str, facts: ModelFacts, rows: list[Row], labels: list[Row]) -> Answer:
    """Vectors of rows and of texts that they are compared with."""
    for i, row in enumerate(rows):
        if "text" not in facts.widths or not (facts.shared or set(row) == {"text"}):
            wrong = f"this model can't compare {' and '.join(row)} with the texts of labels"
            raise ApiError(422, wrong, code="no_shared_space", param=f"input[{i}]")
    return await gateway.ask(
        model, Embed(), [*rows, *labels], params=[*places("input", rows), *places("labels", labels)]
    )


def _nearest(vectors: Sequence[np.ndarray], labels: Sequence[str], *, scale: float) -> list[Classified]:
    """Softmax over the scaled cosines of each row to the labels, whose vectors come last (CLIP, arXiv 2103.00020)."""
    units = np.stack([unit(vector) for vector in vectors])
    rows, texts = units[: -len(labels)], units[-len(labels) :]
    logits = scale * rows @ texts.T
    likely = np.exp(logits - logits.max(axis=1, keepdims=True))
    return [Classified(tuple(labels), each / each.sum(), False) for each in likely]


def _classifier(facts: ModelFacts, task: str | None) -> str:
    known = [name for name, each in facts.tasks.items() if each.labels]
    return choose_task(known, task, kind="classifier", does="classifies", lacks="does not classify")


def _classified(index: int, found: Classified, top_k: int | None) -> dict[str, Any]:
    labels, probabilities = found.labels, found.probabilities
    made = {
        "index": index, "label": None if found.refused else labels[int(probabilities.argmax())],
        "probs": probabilities.tolist(), "num_classes": len(labels), "out_of_scope": found.refused,
    }  # fmt: skip
    if top_k is not None:
        order = np.argsort(-probabilities, kind="stable")[:top_k]
        made["top"] = [{"label": labels[i], "prob": float(probabilities[i])} for i in order]
    return made


def _add_operations(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/v1/models", response_model=s.ModelsAnswer)
    async def models() -> Response:
        """What answers now: modalities, spaces, tasks with their labels and the metrics of their training."""
        cards = []
        for name, facts in (await gateway.each_facts()).items():
            tasks = {task: asdict(each) for task, each in facts.tasks.items()}
            cards.append({
                "id": name, "object": "model", "created": gateway.created, "owned_by": "mmbm",
                "modalities": list(facts.widths), "dimensions": facts.widths, "shared_space": facts.shared,
                "fingerprints": {model_part(n): f for n, f in facts.spaces.items()}, "tasks": tasks,
                "update_error": facts.update_error,
            })  # fmt: skip
        return answer_json({"object": "list", "data": cards})

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
