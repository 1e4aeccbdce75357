"""The API on a real server: the vectors of the core, in the shapes that clients expect; what is wrong is said."""

import base64
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from mmbm_core.bundle import load_bundle
from mmbm_core.saved import load_model
from tests.bundles import pooled_alone, subset_rows
from tests.deploy.serving.conftest import KEY, OTHER_KEY, Client, b64
from tests.samples import audio_file, image_file

TEXT = {"text": "a red disc"}


def item(row: dict[str, Any]) -> dict[str, Any]:
    """A row as the API takes it."""
    return {m: b64(v) if isinstance(v, bytes) else v for m, v in row.items() if m != "id" and v is not None}


def content(row: dict[str, Any]) -> dict[str, Any]:
    """The same as parts of a content."""
    parts: list[dict[str, Any]] = []
    if row.get("text"):
        parts.append({"type": "text", "text": row["text"]})
    if row.get("image"):
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64(row['image'])}"}})
    if row.get("audio"):
        parts.append({"type": "input_audio", "input_audio": {"data": b64(row["audio"]), "format": "wav"}})
    return {"content": parts}


@pytest.mark.parametrize("shape", [item, content])
def test_served_vectors_are_those_of_the_core_for_every_subset(client: Client, shape: Any) -> None:
    rows = subset_rows()
    found = client.post("/v1/embeddings", {"model": "fused", "input": [shape(row) for row in rows[:7]]})
    assert found.status == 200
    model, _ = load_model(Path(client.bundle))
    for row, each in zip(rows, found.json["data"], strict=True):
        np.testing.assert_allclose(each["embedding"], pooled_alone(model, row), atol=1e-4)
    assert [each["index"] for each in found.json["data"]] == list(range(7))


def test_the_openai_client(client: Client) -> None:
    texts = ["a red disc", "two blue squares beside a ring", "no"]
    expected = np.array(load_bundle(client.text).embed([{"text": t} for t in texts])["text_embedding"].to_pylist())
    with openai.OpenAI(base_url=f"{client.url}/v1", api_key=KEY, max_retries=0) as api:
        found = api.embeddings.create(model="text", input=texts)  # asks for base64
        np.testing.assert_allclose([e.embedding for e in found.data], expected, atol=1e-4)
        assert found.usage.prompt_tokens > 0 and found.model == "text"
        plain = api.embeddings.create(model="text", input=texts[0], encoding_format="float", dimensions=8)
        short = expected[0, :8] / np.linalg.norm(expected[0, :8])
        np.testing.assert_allclose(plain.data[0].embedding, short, atol=1e-4)
        by_ids = api.embeddings.create(model="text", input=[[5, 6, 7], [8]])
        assert len(by_ids.data) == 2
        assert {each.id for each in api.models.list().data} == {"fused", "text", "talker"}
        with pytest.raises(openai.NotFoundError, match="there is no such model"):
            api.embeddings.create(model="gpt", input="x")
    with openai.OpenAI(base_url=f"{client.url}/v1", api_key="wrong", max_retries=0) as api, pytest.raises(
        openai.AuthenticationError
    ):  # fmt: skip
        api.embeddings.create(model="text", input="x")


def test_cohere_shapes(client: Client) -> None:
    picture = f"data:image/png;base64,{b64(image_file())}"
    by_text = client.post("/v2/embed", {"model": "fused", "texts": ["a red disc"], "input_type": "search_query",
                                        "embedding_types": ["float", "base64"]}).json  # fmt: skip
    numbers = by_text["embeddings"]["float"][0]
    decoded = np.frombuffer(base64.b64decode(by_text["embeddings"]["base64"][0]), "<f4")
    np.testing.assert_allclose(decoded, numbers, rtol=1e-6)
    assert by_text["response_type"] == "embeddings_by_type" and by_text["texts"] == ["a red disc"]
    image = client.post("/v2/embed", {"model": "fused", "images": [picture]}).json["embeddings"]["float"][0]
    parts = [{"type": "image_url", "image_url": {"url": picture}}]
    inputs = client.post("/v2/embed", {"model": "fused", "inputs": [{"content": parts}], "output_dimension": 5}).json
    short = np.array(image[:5]) / np.linalg.norm(image[:5])
    np.testing.assert_allclose(inputs["embeddings"]["float"][0], short, atol=1e-5)
    assert client.post("/v2/embed", {"model": "fused"}).error == (400, "invalid_request", "inputs")


def test_ranking_over_modalities(client: Client) -> None:
    documents = ["two rings", {"image": b64(image_file())}, {"audio": b64(audio_file())}, TEXT]
    found = client.post("/v1/rerank", {"model": "fused", "query": "a red disc", "documents": documents,
                                       "return_documents": True}).json["results"]  # fmt: skip
    assert found[0]["index"] == 3 and found[0]["relevance_score"] == pytest.approx(1, abs=1e-4)
    assert found[0]["document"] == TEXT and len(found) == 4
    scores = [each["relevance_score"] for each in found]
    assert scores == sorted(scores, reverse=True)
    top = client.post("/v1/rerank", {"model": "text", "query": "a", "documents": ["b", "c"], "top_n": 1}).json
    assert len(top["results"]) == 1


def test_classes_and_where_there_are_none(client: Client) -> None:
    rows = subset_rows()
    found = client.post("/v1/classify", {"model": "fused", "input": [item(row) for row in rows], "top_k": 1}).json
    for each in found["data"]:
        assert each["label"] == ("no", "yes")[int(np.argmax(each["probs"]))] and sum(each["probs"]) == pytest.approx(1)
        assert each["top"] == [{"label": each["label"], "prob": max(each["probs"])}] and not each["out_of_scope"]
    alone = client.post("/v1/classify", {"model": "fused", "input": rows[0]["text"]}).json["data"]
    assert alone[0]["probs"] == pytest.approx(found["data"][0]["probs"], abs=1e-4)
    assert client.post("/v1/classify", {"model": "text", "input": "a"}).error == (422, "task_missing", "task")
    wrong = client.post("/v1/classify", {"model": "fused", "input": "a", "task": "x"})
    assert wrong.error == (422, "task_not_found", "task")


def test_models_tell_what_they_can(client: Client) -> None:
    cards = {card["id"]: card for card in client.get("/v1/models").json["data"]}
    assert cards["fused"]["modalities"] == ["text", "image", "audio"] and cards["fused"]["shared_space"]
    assert cards["fused"]["tasks"]["seen"]["labels"] == ["no", "yes"]
    assert cards["fused"]["tasks"]["seen"]["metrics"] == {"accuracy": 0.5}
    assert cards["text"]["dimensions"] == {"text": 32} and cards["text"]["tasks"] == {}
    assert "/tmp" not in str(cards) and client.bundle not in str(cards)


def test_other_routes_and_methods(client: Client) -> None:
    assert client.post("/nothing", {}).error == (404, "not_found", "")
    assert client.post("/v1/embeddings/", {}).error == (404, "not_found", "")
    assert client.get("/v1/embeddings").error == (405, "invalid_request", "")


@pytest.mark.parametrize("path", ["/v1/models", "/ready", "/metrics", "/v1/embeddings", "/nothing", "/v1/rerank"])
@pytest.mark.parametrize("key", [None, "", "wrong", KEY[:-1], KEY + "x"])
def test_without_a_valid_key_nothing_is_told(client: Client, path: str, key: str | None) -> None:
    found = client.get(path, key=key)
    assert found.error == (401, "invalid_api_key", "") and found.headers["www-authenticate"] == "Bearer"
    assert not key or key not in found.content.decode()


def test_any_of_the_keys_opens_and_some_paths_are_open(client: Client) -> None:
    assert client.get("/v1/models", key=OTHER_KEY).status == 200
    assert client.get("/health", key=None).json == {"status": "ok"}
    assert client.get("/docs", key=None).status == 200
    routes = client.get("/openapi.json", key=None).json
    assert {"/v1/embeddings", "/v1/classify", "/v1/rerank", "/v2/embed"} <= set(routes["paths"])
    assert "EmbeddingsRequest" in routes["components"]["schemas"]
    assert client.get("/ready").json == {"status": "ok"}


def test_labels_of_the_moment(client: Client) -> None:
    labels = ["a red disc", "two blue squares", "no"]
    rows = subset_rows()
    model, _ = load_model(Path(client.bundle))
    vectors = np.stack([pooled_alone(model, row) for row in rows])
    texts = np.stack([pooled_alone(model, {"text": label}) for label in labels])
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors, texts)]
    likely = np.exp(20 * unit[0] @ unit[1].T)
    body = {"model": "fused", "input": [item(row) for row in rows], "labels": labels, "top_k": 1}
    found = client.post("/v1/classify", body).json["data"]
    np.testing.assert_allclose([each["probs"] for each in found], likely / likely.sum(1, keepdims=True), atol=1e-3)
    assert [each["label"] for each in found] == [labels[i] for i in likely.argmax(1)]
    assert found[0]["top"][0]["label"] == found[0]["label"]
    same = client.post("/v1/classify", {"model": "text", "input": "no", "labels": labels}).json["data"][0]
    assert same["label"] == "no"
    assert client.post("/v1/classify", {**body, "labels": ["one"]}).error[:2] == (400, "invalid_request")


def test_a_request_has_an_id(client: Client) -> None:
    asked = client.post("/v1/embeddings", {"model": "text", "input": "a"}, **{"x-request-id": "mine-1"})
    assert asked.headers["x-request-id"] == "mine-1"
    assert len(client.get("/health").headers["x-request-id"]) > 16


def test_metrics_count_what_was_done(client: Client) -> None:
    def counted() -> dict[str, float]:
        lines = [line for line in client.get("/metrics").content.decode().splitlines() if not line.startswith("#")]
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}

    before = counted()
    client.post("/v1/embeddings", {"model": "text", "input": ["a", "b c"]})
    client.post("/v1/embeddings", {"model": "text", "input": ""})
    after = counted()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown('mmbm_items_total{model="text",work="embed"}') == 2
    assert grown('mmbm_tokens_total{model="text"}') >= 3
    assert grown('mmbm_requests_total{route="/v1/embeddings",status="200"}') == 1
    assert grown('mmbm_requests_total{route="/v1/embeddings",status="400"}') == 1
    assert any(name.startswith('mmbm_batch_seconds{model="text"') for name in after)


def test_many_at_once_each_get_their_own(client: Client) -> None:
    texts = [f"{n} red discs and {n % 7} rings" for n in range(48)]
    expected = np.array(load_bundle(client.text).embed([{"text": t} for t in texts])["text_embedding"].to_pylist())

    def ask(text: str) -> Any:
        return client.post("/v1/embeddings", {"model": "text", "input": text}).json["data"][0]["embedding"]

    began = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        found = np.array(list(pool.map(ask, texts)))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert time.monotonic() - began < 30
