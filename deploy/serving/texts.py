"""The routes that write texts: chat in OpenAI's shape, and translation."""

import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse
from pydantic_core import to_json

from deploy.serving import schemas as s
from deploy.serving.errors import ApiError
from deploy.serving.gateway import Gateway
from deploy.serving.http import answer_json, choose_task, json_body, new_id, post, usage
from deploy.serving.inputs import conversation_row, places, rows_of
from deploy.serving.replica import Answer
from mmbm_core.tasks.generation import Sampling
from workers.serving.engine import ModelFacts, Search, TaskFacts
from workers.serving.writer import Piece, Write


def add_texts(app: FastAPI, gateway: Gateway) -> None:
    """Chat completions and translations."""

    @post(app, "/v1/chat/completions", takes=s.ChatRequest, gives=s.ChatAnswer)
    async def chat(asked: Annotated[s.ChatRequest, json_body(s.ChatRequest)]) -> Response:
        """An answer to a conversation, a translation of its last message, or a caption of its picture and sound."""
        model = gateway.resolve(asked.model)
        name, task = _writer(await gateway.facts(model), asked.task)
        turns = task.turns if task.kind == "dialogue" else 1
        row = await conversation_row(asked.messages, turns=turns, settings=gateway.settings)
        pieces = gateway.write(model, Write(name, _sampling(asked, task), _stop(asked)), row, whole=not asked.stream)
        first = await anext(pieces)  # what is wrong with the request shows here
        head = {"id": new_id("chatcmpl"), "created": int(time.time()), "model": model}
        if asked.stream:
            tell_usage = asked.stream_options is not None and asked.stream_options.include_usage
            events = _events(head, first, pieces, tell_usage=tell_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
        piece: Piece = first.results[0]
        message = {"role": "assistant", "content": piece.text}
        choice = {"index": 0, "message": message, "finish_reason": piece.end}
        return answer_json(head | {"object": "chat.completion", "choices": [choice],
                                   "usage": _usage(first.tokens, piece.tokens)})  # fmt: skip

    @post(app, "/v1/translate", takes=s.TranslateRequest, gives=s.TranslateAnswer)
    async def translate(asked: Annotated[s.TranslateRequest, json_body(s.TranslateRequest)]) -> Response:
        """The likeliest translation of each text, by beam search."""
        model = gateway.resolve(asked.model)
        name, task = _writer(await gateway.facts(model), asked.task)
        rows = await rows_of(
            [asked.input] if isinstance(asked.input, str) else asked.input, gateway.settings, param="input"
        )
        work = Search(name, asked.beams, _at_most(asked.max_tokens, task))
        answer = await gateway.ask(model, work, rows, params=places("input", rows))
        data = [{"index": i, "text": text} for i, text in enumerate(answer.results)]
        return answer_json({"id": new_id("translate"), "object": "list", "model": model, "data": data,
                            "usage": usage(answer.tokens)})  # fmt: skip


def _writer(facts: ModelFacts, task: str | None) -> tuple[str, TaskFacts]:
    """A task that writes texts."""
    known = [name for name, each in facts.tasks.items() if each.max_tokens is not None]
    name = choose_task(known, task, kind="task that writes texts", does="writes", lacks="writes no texts")
    return name, facts.tasks[name]


def _sampling(asked: s.ChatRequest, task: TaskFacts) -> Sampling:
    return Sampling(
        temperature=asked.temperature or 0.0, top_p=asked.top_p or 1.0, seed=asked.seed,
        max_tokens=_at_most(asked.max_completion_tokens or asked.max_tokens, task),
    )  # fmt: skip


def _at_most(tokens: int | None, task: TaskFacts) -> int | None:
    """Clients ask for more than small models write."""
    return None if tokens is None or task.max_tokens is None else min(tokens, task.max_tokens)


def _stop(asked: s.ChatRequest) -> tuple[str, ...]:
    return (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())


def _usage(read: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


async def _events(
    head: dict[str, Any], first: Answer, rest: AsyncIterator[Answer], *, tell_usage: bool
) -> AsyncIterator[bytes]:
    """Server-sent events; closing them closes `rest`, which ends the generation."""
    head = head | {"object": "chat.completion.chunk"}
    written = 0

    def event(delta: dict[str, str], reason: str | None = None) -> bytes:
        return _event(head | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    try:
        yield event({"role": "assistant", "content": ""})
        answer: Answer | None = first
        while answer is not None:
            piece: Piece = answer.results[0]
            written += piece.tokens
            if piece.text:
                yield event({"content": piece.text})
            if piece.end:
                yield event({}, piece.end)
            answer = await anext(rest, None)
        if tell_usage:
            yield _event(head | {"choices": [], "usage": _usage(first.tokens, written)})
        yield b"data: [DONE]\n\n"
    except ApiError as error:
        yield _event(error.body)
    finally:
        await rest.aclose()  # type: ignore[attr-defined]


def _event(content: Any) -> bytes:
    return b"data: " + to_json(content) + b"\n\n"
