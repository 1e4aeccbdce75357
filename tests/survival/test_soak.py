"""Mixed load with hostile requests among it, for MMBM_SOAK_MINUTES: nothing fails, and memory does not grow.

MMBM_SOAK_MINUTES=30 .venv/bin/python -m pytest -m slow -s tests/survival/test_soak.py
"""

import json
import os
import random
import re
import socket
import statistics
import time
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.bundles import make_model, make_talker, save_bundle
from tests.samples import audio_file, image_file, tone
from tests.server import Load, Server
from tests.survival.harness import family

pytestmark = pytest.mark.slow
_MINUTES = float(os.environ.get("MMBM_SOAK_MINUTES", "2"))
_SAMPLE_S = 5.0
_SERVING = re.compile(r"ray::(ServeReplica:mmbm:[\w-]+|ServeController|ProxyActor)")
_GROWTH = 1.05
"""Of the memory from the first sixth of the time on."""

IMAGE = b64encode(image_file(seed=0)).decode()
SOUND = b64encode(audio_file(wave=tone(seconds=0.3, rate_hz=8000), rate_hz=8000)).decode()
CHAT: tuple[str, dict[str, Any]] = (
    "/v1/chat/completions", {"model": "talker", "task": "answer", "messages": [{"role": "user", "content": "a disc?"}]},
)  # fmt: skip
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/embeddings", {"model": "text", "input": ["a red disc", "two blue rings"]}),
    ("/v1/embeddings", {"model": "seen", "input": [{"image": IMAGE}, {"audio": SOUND, "text": "a disc"}]}),
    ("/v1/classify", {"model": "seen", "input": [{"image": IMAGE, "audio": SOUND}]}),
    ("/v1/rerank", {"model": "text", "query": "a disc", "documents": ["a red disc", "a ring"]}),
    ("/v1/translate", {"model": "talker", "task": "german", "input": ["a red disc"]}),
    CHAT,
]
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/embeddings", {"model": "seen", "input": [{"image": IMAGE[: len(IMAGE) // 8 * 4]}]}),
    ("/v1/embeddings", {"model": "seen", "input": [{"audio": "not base64!"}]}),
    ("/v1/embeddings", {"model": "text", "input": ["x"] * 5000}),
    ("/v1/embeddings", {"model": "text", "input": {"text": {"text": {}}}}),
    ("/v1/embeddings", {"model": "none", "input": "x"}),
    ("/v1/chat/completions", {"model": "talker", "messages": [], "temperature": -1}),
    ("/v1/classify", {"model": "seen", "input": [{"image": SOUND}]}),
]  # fmt: skip


def test_nothing_fails_and_memory_is_flat(text_model: str, tmp_path: Path) -> None:
    seen = save_bundle(tmp_path / "seen", make_model(text_model))
    talker = save_bundle(tmp_path / "talker", make_talker(text_model, max_tokens=40))
    server = Server(f"text={text_model}", f"seen={seen}", f"talker={talker}", "--allow-anonymous")
    draw = random.Random(0)
    samples: list[dict[str, float]] = []
    try:
        replicas = server.replicas()
        began = time.monotonic()
        with Load(lambda: ask(server, draw), threads=3) as load:
            while time.monotonic() < began + 60 * _MINUTES:
                time.sleep(_SAMPLE_S)
                samples.append(memory_mb(server))
        assert server.get("/ready").status_code == 200
        assert server.replicas() == replicas  # none was replaced
    finally:
        server.close()
    print(f"{len(load.asked)} requests in {_MINUTES:g} min: {dict(load.answers)}; slowest {load.slowest_s:.2f} s")
    growth = {name: grown([each.get(name, 0.0) for each in samples]) for name in samples[-1]}
    print("\n".join(f"{name}: {samples[-1][name]:.0f} MB, x {factor:.3f}" for name, factor in growth.items()))
    assert set(load.answers) == {"good 200", "bad 4xx", "broken off"}
    assert load.answers["good 200"] > 100 * _MINUTES and len(growth) == 6, growth
    assert max(growth.values()) < _GROWTH, growth


def ask(server: Server, draw: random.Random) -> str:
    """One request, and whether it was answered as it should be."""
    kind = draw.random()
    if kind < 0.1:
        return break_off(server, draw)
    if kind < 0.3:
        path, body = draw.choice(REFUSED)
        status = server.post(path, **body).status_code
        return "bad 4xx" if status in (400, 404, 413, 422) else f"bad {status}: {json.dumps(body)[:80]}"
    path, body = draw.choice(ASKED)
    answer = server.post(path, **body)
    return "good 200" if answer.status_code == 200 else f"good {path} {answer.status_code}: {answer.text[:200]}"


def break_off(server: Server, draw: random.Random) -> str:
    """Go in the middle of a request, or of its answer; and what was answered where that was no text."""
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    if draw.random() < 0.5:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(head)
            time.sleep(0.05)
        return "broken off"
    path, body = CHAT
    with requests.post(server.url + path, json={**body, "stream": True}, stream=True, timeout=30) as answer:
        next(answer.iter_content(16), None)
    return "broken off" if answer.status_code == 200 else f"broken off {answer.status_code}"


def memory_mb(server: Server) -> dict[str, float]:
    """Of each process that requests pass: what it has for itself, in MB."""
    found = {}
    for pid, process in family(server.process.pid).items():
        if name := _SERVING.match(process.title):  # what follows is the method that it is in
            fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
            private = int(fields["Private_Dirty"].split()[0]) + int(fields["Private_Clean"].split()[0])
            found[name[1]] = private / 1024
    return found


def grown(values: list[float]) -> float:
    """The last sixth of a series, as a multiple of what it was after its first sixth."""
    part = max(1, len(values) // 6)
    return statistics.median(values[-part:]) / statistics.median(values[part : 2 * part])
