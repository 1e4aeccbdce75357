"""Chat and translation over HTTP: OpenAI's client, streams, what the core says, and errors."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import requests

from mmbm_core.bundle import load_bundle
from mmbm_core.predict import Predictor
from tests.deploy.serving.conftest import KEY, Client
from tests.samples import image_file

PICTURE = base64.b64encode(image_file(seed=3)).decode()
USER = [{"role": "user", "content": "the red star"}]


@pytest.fixture(scope="module")
def sdk(client: Client) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{client.url}/v1", api_key=KEY, max_retries=0)


@pytest.fixture(scope="module")
def core(client: Client) -> Any:
    """Asks the model itself: a task for a row of values."""
    bundle = load_bundle(client.talker)
    assert bundle.model is not None
    predictor = Predictor(bundle.model)

    def ask(task: str, beams: int | None = 1, **values: Any) -> str:
        row: Any = {m: bundle.prepare_values(m, [value])[0] for m, value in values.items()}  # type: ignore[arg-type]
        return predictor.search(task, [row], beams=beams)[0]

    return ask


def chat(client: Client, **fields: Any) -> Any:
    return client.post("/v1/chat/completions", {"model": "talker", "task": "answer", "messages": USER, **fields})


def events(client: Client, **fields: Any) -> Iterator[Any]:
    """What comes as server-sent events; the last is None for [DONE]."""
    body = {"model": "talker", "task": "answer", "messages": USER, "stream": True, **fields}
    headers = {"authorization": f"Bearer {KEY}"}
    with requests.post(f"{client.url}/v1/chat/completions", json=body, headers=headers, stream=True, timeout=30) as got:
        assert got.status_code == 200 and got.headers["content-type"].startswith("text/event-stream")
        for line in got.iter_lines():
            if line:
                assert line.startswith(b"data: ")
                yield None if line == b"data: [DONE]" else json.loads(line[6:])


# --- chat


def test_an_answer_is_what_the_model_says(client: Client, core: Any, sdk: openai.OpenAI) -> None:
    done = sdk.chat.completions.create(model="talker", messages=USER, extra_body={"task": "answer"})  # type: ignore[arg-type]
    choice = done.choices[0]
    assert choice.message.content == core("answer", text="the red star")
    assert choice.message.role == "assistant" and choice.finish_reason in ("stop", "length")
    assert done.usage is not None and done.usage.prompt_tokens > 0 and 0 < done.usage.completion_tokens <= 24
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens


def test_the_last_turns_and_the_last_picture_are_the_input(client: Client, core: Any) -> None:
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}
    messages = [
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "the red disc"},
        {"role": "assistant", "content": "one yellow star"},
        {"role": "user", "content": [picture, {"type": "text", "text": "no"}]},
    ]  # fmt: skip
    said = chat(client, messages=messages).json["choices"][0]["message"]["content"]
    assert said == core("answer", text="one yellow star\nno", image=base64.b64decode(PICTURE))
    assert said != core("answer", text="one yellow star\nno")
    alone = chat(client, messages=[{"role": "user", "content": [picture]}]).json["choices"][0]["message"]["content"]
    assert alone == core("answer", image=base64.b64decode(PICTURE))


def test_a_stream_has_the_shape_that_clients_read(client: Client, core: Any) -> None:
    found = list(events(client, stream_options={"include_usage": True}))
    assert found.pop() is None
    usage = found.pop()
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] > 0
    assert len({event["id"] for event in found}) == 1
    assert all(event["object"] == "chat.completion.chunk" for event in found)
    deltas = [event["choices"][0]["delta"] for event in found]
    assert deltas[0] == {"role": "assistant", "content": ""} and deltas[-1] == {}
    assert "".join(delta.get("content", "") for delta in deltas) == core("answer", text="the red star")
    reasons = [event["choices"][0]["finish_reason"] for event in found]
    assert reasons[:-1] == [None] * (len(found) - 1) and reasons[-1] in ("stop", "length")


def test_openai_python_reads_the_stream(core: Any, sdk: openai.OpenAI) -> None:
    stream = sdk.chat.completions.create(model="talker", messages=USER, stream=True, extra_body={"task": "answer"})  # type: ignore[call-overload]
    said = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert said == core("answer", text="the red star")


def test_settings_of_a_text(client: Client, core: Any) -> None:
    whole = core("answer", text="the red star")
    short = chat(client, max_tokens=3).json
    assert short["usage"]["completion_tokens"] == 3 and short["choices"][0]["finish_reason"] == "length"
    assert chat(client, max_tokens=100_000).json["choices"][0]["message"]["content"] == whole
    stopped = chat(client, stop=whole[4:6]).json["choices"][0]
    assert stopped["message"]["content"] == whole[: whole.index(whole[4:6])] and stopped["finish_reason"] == "stop"
    seeded = [chat(client, temperature=1.0, seed=seed).json["choices"][0]["message"]["content"] for seed in (5, 5, 6)]
    assert seeded[0] == seeded[1] != seeded[2]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"messages": []}, (400, "invalid_request", "messages")),
        ({"messages": [{"role": "user", "content": ""}]}, (400, "empty_input", "messages")),
        ({"messages": [{"role": "cat", "content": "miau"}]}, (400, "invalid_request", "messages[0].role")),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, (400, "invalid_request", "messages[0]")),
        ({"temperature": 3}, (400, "invalid_request", "temperature")),
        ({"max_tokens": 0}, (400, "invalid_request", "max_tokens")),
        ({"n": 2}, (400, "invalid_request", "n")),
        ({"tools": [{"type": "function"}]}, (400, "invalid_request", "tools")),
        ({"task": "seen"}, (422, "task_not_found", "task")),
        ({"task": None}, (422, "task_missing", "task")),
        ({"model": "text", "task": None}, (422, "task_missing", "task")),
        ({"model": "nobody"}, (404, "model_not_found", "model")),
        ({"messages": [{"role": "user", "content": "x" * 6000}]}, (400, "invalid_input", "messages")),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "aGk="}}]}]},
         (400, "invalid_input", "messages")),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://h/x"}}]}]},
         (400, "url_not_allowed", "messages[0].content[0].image_url.url")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_said_before_a_stream_begins(
    client: Client, fields: dict[str, Any], expected: tuple[int, str, str], stream: bool
) -> None:
    status, code, param = chat(client, stream=stream, **fields).error
    assert (status, code) == expected[:2] and param.startswith(expected[2])


def test_many_streams_at_once(client: Client, core: Any) -> None:
    found: dict[int, str] = {}

    def ask(n: int) -> None:
        texts = (event["choices"][0]["delta"].get("content", "") for event in events(client, messages=[
            {"role": "user", "content": f"number {n}"}]) if event is not None)  # fmt: skip
        found[n] = "".join(texts)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: core("answer", text=f"number {n}") for n in range(24)}


def test_a_client_that_goes_away_ends_its_generation(client: Client) -> None:
    """Streams that are closed at once: the tokens that the replica counts soon stand still."""
    for n in range(20):
        stream = events(client, messages=[{"role": "user", "content": f"gone {n}"}])
        next(stream)
        stream.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 20
    while (waiting := _waiting(client)) and time.monotonic() < deadline:
        time.sleep(0.3)
    assert waiting == 0, "texts still wait for readers that are gone"


def _waiting(client: Client) -> float:
    chat(client, max_tokens=1)
    lines = [line for line in client.get("/metrics").content.decode().splitlines() if "waiting_texts{" in line]
    return max(float(line.rsplit(" ", 1)[1]) for line in lines if 'model="talker"' in line)


# --- translation


def test_translations_are_the_beams_of_the_model(client: Client, core: Any) -> None:
    texts = ["the red disc", "no", "a blue square"]
    reply = client.post("/v1/translate", {"model": "talker", "task": "german", "input": texts}).json
    assert [each["text"] for each in reply["data"]] == [core("german", None, text=text) for text in texts]
    assert [each["index"] for each in reply["data"]] == [0, 1, 2] and reply["usage"]["prompt_tokens"] > 0
    greedy = client.post("/v1/translate", {"model": "talker", "task": "german", "input": texts[0], "beams": 1}).json
    assert [each["text"] for each in greedy["data"]] == [core("german", 1, text=texts[0])]


def test_a_chat_translates_the_last_message_alone(client: Client, core: Any) -> None:
    messages = [{"role": "user", "content": "two black discs"}, *USER]
    said = chat(client, task="german", messages=messages).json["choices"][0]["message"]["content"]
    assert said == core("german", text="the red star")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"input": []}, (400, "invalid_request")),
        ({"input": [""]}, (400, "empty_input")),
        ({"input": "a", "beams": 17}, (400, "invalid_request")),
        ({"input": ["a"] * 65}, (413, "too_many_items")),
        ({"input": "a", "model": "fused"}, (422, "task_missing")),
    ],
)
def test_translations_that_are_refused(client: Client, body: dict[str, Any], expected: tuple[int, str]) -> None:
    reply = client.post("/v1/translate", {"model": "talker", "task": "german" if "model" not in body else None, **body})
    assert reply.error[:2] == expected


def test_the_model_is_described(client: Client) -> None:
    card = next(each for each in client.get("/v1/models").json["data"] if each["id"] == "talker")
    assert card["tasks"]["answer"]["kind"] == "dialogue" and card["tasks"]["answer"]["max_tokens"] == 24
    paths = client.get("/openapi.json").json["paths"]
    assert {"/v1/chat/completions", "/v1/translate"} <= set(paths)
