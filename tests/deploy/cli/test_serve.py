"""`mmbm serve` as a process: when it is ready, what it refuses, how it ends, and a replica killed under load."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.deploy.serving.conftest import free_port

MMBM = str(Path(sys.executable).with_name("mmbm"))
MARK = "MMBM_TEST_SERVER"


def environment(**changes: str) -> dict[str, str]:
    """Of a process with a cluster of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MMBM_"))}
    return kept | changes


def refused(*args: str, **changes: str) -> str:
    """What `mmbm serve` says when it ends with status 2."""
    command = [MMBM, "serve", *args]
    done = subprocess.run(command, env=environment(**changes), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and not done.stdout, done.stderr
    return done.stderr


def test_who_may_call_has_to_be_said(tmp_path: Path) -> None:
    said = refused("minilm")
    assert "--api-keys-file" in said and "MMBM_API_KEYS" in said and "--allow-anonymous" in said
    assert "loopback" in refused("minilm", "--allow-anonymous", "--host", "0.0.0.0")
    (tmp_path / "keys").write_text("short\n")
    said = refused("minilm", "--api-keys-file", str(tmp_path / "keys"))
    assert "fewer than 8 characters" in said and "short" not in said
    (tmp_path / "keys").write_text("# none\n\n")
    assert "holds no API keys" in refused("minilm", "--api-keys-file", str(tmp_path / "keys"))
    assert "can't read the API keys" in refused("minilm", "--api-keys-file", str(tmp_path / "gone"))
    said = refused("minilm", "--allow-anonymous", MMBM_API_KEYS="a-long-enough-key")
    assert "give one of them" in said and "a-long-enough-key" not in said


def test_wrong_arguments(tmp_path: Path) -> None:
    said = refused("nothing", f"other={tmp_path}", "--allow-anonymous")
    assert "nothing" in said and str(tmp_path) in said  # both, before anything starts
    assert "would be called 'a'" in refused("a=minilm", "a=mfcc", "--allow-anonymous")
    assert "threads" in refused("minilm", "--allow-anonymous", "--set", "threads=0")
    assert "unknown; allowed" in refused("minilm", "--allow-anonymous", "--set", "thread=1")
    (tmp_path / "c.yaml").write_text("items: many\n")
    assert "items" in refused("minilm", "--allow-anonymous", "--config", str(tmp_path / "c.yaml"))
    (tmp_path / "c.yaml").write_text("- a\n")
    assert "write `key: value` lines" in refused("minilm", "--allow-anonymous", "--config", str(tmp_path / "c.yaml"))
    with contextlib.closing(__import__("socket").create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        assert "Address already in use" in refused("minilm", "--allow-anonymous", "--port", port)


class Server:
    """A running `mmbm serve`."""

    def __init__(self, folder: Path, *args: str) -> None:
        self.mark = f"{os.getpid()}-{time.monotonic_ns()}"
        self.port = free_port()
        self.log = folder / "serve.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [MMBM, "serve", *args, "--port", str(self.port)], env=environment(**{MARK: self.mark}),
                stdout=subprocess.PIPE, stderr=log, text=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's & turns it off
            )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        self.url = json.loads(line)["url"]

    def replicas(self) -> list[int]:
        """Processes that hold a model."""
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                title = (folder / "cmdline").read_bytes() if folder.name.isdigit() else b""
                if b"ServeReplica:mmbm:model-" in title and f"{MARK}={self.mark}" in (folder / "environ").read_text():
                    found.append(int(folder.name))
        return found

    def embed(self, text: str = "a red disc", timeout: float = 60) -> requests.Response:
        return requests.post(f"{self.url}/v1/embeddings", json={"input": text}, timeout=timeout)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture
def server(tmp_path: Path, text_model: str) -> Iterator[Server]:
    made = Server(tmp_path, f"m={text_model}", "--allow-anonymous")
    yield made
    made.process.kill()


class Load:
    """Threads that ask one thing after the other: when each was asked, and the answer."""

    def __init__(self, server: Server, threads: int = 4) -> None:
        self.server = server
        self.asked: list[tuple[float, Any]] = []
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(threads)]

    def _ask(self) -> None:
        while not self.stopping.is_set():
            began = time.monotonic()
            try:
                self.asked.append((began, self.server.embed().status_code))
            except requests.ConnectionError:
                self.asked.append((began, "no connection"))
                time.sleep(0.05)

    @property
    def answers(self) -> Counter[Any]:
        """How often each answer came."""
        return Counter(answer for _, answer in self.asked)

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        while len(self.asked) < 20:
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(60)


def test_a_killed_replica_is_replaced_and_a_signal_under_load_loses_nothing(server: Server) -> None:
    assert requests.get(f"{server.url}/ready", timeout=60).status_code == 200
    (pid,) = server.replicas()
    with Load(server) as load:
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while server.replicas() in ([], [pid]) or server.embed().status_code != 200:
            assert time.monotonic() < deadline, load.answers
            time.sleep(0.2)
    assert set(load.answers) <= {200, 503, 504} and load.answers[200] > 20, load.answers
    with Load(server) as load:
        stopped = time.monotonic()
        assert server.stop() == 0
    assert {answer for began, answer in load.asked if began < stopped} <= {200, 503}, load.answers
    assert set(load.answers) <= {200, 503, "no connection"} and load.answers[200] > 20, load.answers
    assert "Traceback" not in server.log.read_text()
    assert server.process.stdout is not None and server.process.stdout.read() == ""
    deadline = time.monotonic() + 30
    while server.replicas():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_the_throughput_profile_serves_and_ends_as_the_other_does(tmp_path: Path, text_model: str) -> None:
    server = Server(tmp_path, f"m={text_model}", "--allow-anonymous", "--throughput")
    try:
        with Load(server) as load:
            assert server.stop() == 0
        assert set(load.answers) <= {200, 503, "no connection"} and load.answers[200] > 10, load.answers
        assert "should not happen" not in server.log.read_text()
    finally:
        server.process.kill()


def test_keys_of_a_file_are_asked_for_and_told_nowhere(tmp_path: Path, text_model: str) -> None:
    (tmp_path / "keys").write_text("first-key-of-two\nsecond-key-of-two\n")
    server = Server(tmp_path, text_model, "--api-keys-file", str(tmp_path / "keys"))
    try:
        assert server.embed().status_code == 401
        for key in ("first-key-of-two", "second-key-of-two"):
            found = requests.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {key}"}, timeout=60)
            assert found.status_code == 200 and found.json()["data"][0]["id"] == Path(text_model).name
        assert server.stop(signal.SIGINT) == 0
        assert "key-of-two" not in server.log.read_text()
    finally:
        server.process.kill()
