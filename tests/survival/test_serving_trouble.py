"""A real `mmbm serve` in trouble: slow clients, processes that are killed, a full disk."""

import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.bundles import make_talker, save_bundle
from tests.server import Load, Server
from tests.survival.harness import kill, wait_for

pytestmark = pytest.mark.slow
_TIMEOUT_S = 20.0
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def server(text_model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serves `m`, and a `talker` whose texts take minutes."""
    talker = save_bundle(tmp_path_factory.mktemp("talker") / "b", make_talker(text_model, max_tokens=2000))
    settings = ("--set", f"timeout_s={_TIMEOUT_S}", "--set", "body_bytes=1048576")
    made = Server(f"m={text_model}", f"talker={talker}", "--allow-anonymous", *settings)
    yield made
    made.close()


def recover(server: Server, title: str) -> Load:
    """Kill a process under load; returns what was asked until it is back and answers."""
    (pid,) = server.members(title)
    with Load(lambda: server.embed().status_code) as load:
        kill(pid)
        wait_for(lambda: server.members(title) not in ([], [pid]) and _answers(server), timeout_s=90)
        time.sleep(2)
    assert load.answers[200] > 20 and load.asked[-1][2] == 200, load.answers
    return load


def _answers(server: Server) -> bool:
    with suppress(requests.ConnectionError):
        return server.embed().status_code == 200
    return False


def rss_bytes(server: Server) -> int:
    """Memory of the processes that requests pass."""
    pids = server.members("ray::ProxyActor") + server.members("ray::ServeReplica:mmbm:Ingress")
    assert len(pids) == 2
    found = [re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()) for pid in pids]
    return sum(int(each[1]) << 10 for each in found if each)


def connection(server: Server, sent: bytes) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", server.port))
    made.sendall(sent)
    return made


def answer_of(asked: socket.socket) -> tuple[int, str]:
    """Status and code of an error."""
    asked.settimeout(10)
    answer = HTTPResponse(asked)
    answer.begin()
    return answer.status, json.loads(answer.read())["error"]["code"]


def test_slow_clients_keep_nobody_waiting(server: Server) -> None:
    assert server.embed().status_code == 200
    before = rss_bytes(server)
    heads = [connection(server, HEAD) for _ in range(150)]
    bodies = [connection(server, HEAD + b"content-length: 100000\r\n\r\n") for _ in range(150)]
    seconds, deadline = [], time.monotonic() + _TIMEOUT_S - 2
    while time.monotonic() < deadline:
        for head, body in zip(heads, bodies, strict=True):
            head.sendall(b"x-slow: 1\r\n")
            body.sendall(b" ")
        began = time.monotonic()
        assert server.embed().status_code == 200
        seconds.append(time.monotonic() - began)
        time.sleep(0.2)
    assert statistics.median(seconds) < 1 and max(seconds) < 5, seconds
    for body in bodies:
        assert answer_of(body) == (408, "body_timeout")
    assert rss_bytes(server) - before < 100 << 20
    for each in heads + bodies:
        each.close()


@pytest.mark.parametrize("line", [b"x-long: " + b"a" * 60_000 + b"\r\n", b"a" * 60_000], ids=["headers", "header"])
def test_a_head_without_end_is_cut(server: Server, line: bytes) -> None:
    before, sent = rss_bytes(server), 0
    with closing(connection(server, HEAD + b"x-long: ")) as made, suppress(ConnectionError):
        made.settimeout(10)
        while sent < 64 << 20:
            made.sendall(line)
            sent += len(line)
    assert sent < 8 << 20 and rss_bytes(server) - before < 50 << 20
    assert server.embed().status_code == 200


def test_a_body_without_end_is_refused(server: Server) -> None:
    before, sent = rss_bytes(server), 0
    with closing(connection(server, HEAD + b"transfer-encoding: chunked\r\n\r\n")) as made:
        made.settimeout(10)
        with suppress(ConnectionError):
            while sent < 128 << 20:
                made.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
                sent += 65536
        assert answer_of(made) == (413, "body_too_large")
    assert rss_bytes(server) - before < 300 << 20
    assert server.embed().status_code == 200


def test_a_header_that_is_no_text_is_passed_over(server: Server) -> None:
    body = json.dumps({"model": "m", "input": "a"}).encode()
    for header in (b"x-request-id: \xe9\xff", b"x-session-id: \xff", b"x-request-id: " + b"a" * 10_000):
        with closing(connection(server, HEAD + header + b"\r\ncontent-length: %d\r\n\r\n" % len(body) + body)) as made:
            made.settimeout(10)
            assert made.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_is_gone_ends_its_text(server: Server) -> None:
    with stream(server) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith(b"data: ")
        assert told(server, "running_texts") == 1
        begun = told(server, "written_tokens")
        wait_for(lambda: told(server, "written_tokens") > begun + 5)
    wait_for(lambda: told(server, "running_texts") == 0, timeout_s=5)
    written = told(server, "written_tokens")
    assert written < 1000
    time.sleep(0.5)
    assert told(server, "written_tokens") <= written + 2  # of the questions for it


def stream(server: Server) -> requests.Response:
    body = {"model": "talker", "task": "answer", "messages": [{"role": "user", "content": "no"}], "stream": True}
    return requests.post(f"{server.url}/v1/chat/completions", json=body, stream=True, timeout=60)


def told(server: Server, name: str) -> float:
    """A gauge of the talker, as its replica tells it with an answer."""
    assert server.embed("talker").status_code == 200
    lines = server.get("/metrics").text.splitlines()
    return max(float(line.split()[-1]) for line in lines if line.startswith(f'mmbm_{name}{{model="talker"'))


def test_a_replica_killed_in_a_stream_ends_it_with_an_error(server: Server) -> None:
    (pid,) = server.members("ray::ServeReplica:mmbm:model-talker")
    with stream(server) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith(b"data: ")
        kill(pid)
        events = [json.loads(line[6:]) for line in lines if line]
    assert events[-1]["error"]["code"] == "model_unavailable"
    wait_for(lambda: server.embed("talker").status_code == 200, timeout_s=90)


def test_a_killed_replica_is_replaced(server: Server) -> None:
    load = recover(server, "ray::ServeReplica:mmbm:model-m")
    assert set(load.answers) <= {200, 503, 504}, load.answers
    assert load.slowest_s < _TIMEOUT_S + 5


def test_a_killed_ingress_is_replaced(server: Server) -> None:
    load = recover(server, "ray::ServeReplica:mmbm:Ingress")
    assert set(load.answers) <= {200, 503}, load.answers
    assert load.slowest_s < 60


def test_a_killed_proxy_comes_back(server: Server) -> None:
    load = recover(server, "ray::ProxyActor")
    assert set(load.answers) <= {200, "refused", "ConnectionError"}, load.answers
    assert load.answers["ConnectionError"] <= 4  # those that were under way, one a thread
    assert load.slowest_s < 10


def test_a_killed_controller_is_not_noticed(server: Server) -> None:
    load = recover(server, "ray::ServeController")
    assert set(load.answers) == {200}, load.answers


def test_a_signal_lets_streams_end(server: Server) -> None:
    """The last test: it stops the server."""
    body: dict[str, Any] = {"model": "talker", "task": "answer", "messages": [{"role": "user", "content": "no"}]}
    body |= {"stream": True, "max_tokens": 300}
    with requests.post(f"{server.url}/v1/chat/completions", json=body, stream=True, timeout=60) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith(b"data: ")
        server.process.terminate()
        assert [line for line in lines if line][-1] == b"data: [DONE]"
    assert server.process.wait(60) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a server a disk of its own")
def test_a_full_disk_leaves_the_server_answering(text_model: str) -> None:
    disk = Path(tempfile.mkdtemp(prefix="mm-", dir="/tmp"))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("this system mounts no disks")
    try:
        server = Server(f"m={text_model}", "--allow-anonymous", scratch=disk)
        with Load(lambda: server.embed().status_code) as load:
            with suppress(OSError), (disk / "fill").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 16))
            assert shutil.disk_usage(disk).free < 1 << 16
            asked = len(load.asked)
            time.sleep(30)
            assert len(load.asked) > asked + 20
        assert set(load.answers) == {200}, load.answers
        assert server.get("/ready").status_code == 200
        server.close()
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
