"""A real `mmbm serve` in a process of its own, and load on it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

from tests.survival.harness import family, kill

MMBM = str(Path(sys.executable).with_name("mmbm"))
ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**changes: str) -> dict[str, str]:
    """Of a process with a cluster of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MMBM_"))}
    return kept | changes


class Server:
    """A running `mmbm serve`.

    Args:
        scratch: folder of its cluster; a short path, as sockets lie in it.
    """

    def __init__(self, *args: str, scratch: Path | None = None, **env: str) -> None:
        self.port = free_port()
        self.scratch = scratch or Path(tempfile.mkdtemp(prefix="mm-", dir="/tmp"))
        self._log = Path(tempfile.mkstemp(suffix=".log")[1])
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [MMBM, "serve", *args, "--port", str(self.port)], cwd=ROOT, stdout=subprocess.PIPE, stderr=log,
                text=True, env=environment(RAY_TMPDIR=str(self.scratch), **env),
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's & turns it off
            )  # fmt: skip
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            said = self.log
            self.close()
            raise AssertionError(said)
        self.url = json.loads(line)["url"]

    @property
    def log(self) -> str:
        """What it has said on standard error."""
        return self._log.read_text()

    def members(self, title: str) -> list[int]:
        """Processes that it started whose title holds `title`."""
        return [pid for pid, process in family(self.process.pid).items() if title in process.title]

    def replicas(self) -> list[int]:
        """Processes that hold a model."""
        return self.members("ray::ServeReplica:mmbm:model-")

    def post(self, path: str, timeout: float = 60, **body: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=timeout)

    def get(self, path: str, timeout: float = 60) -> requests.Response:
        return requests.get(self.url + path, timeout=timeout)

    def embed(self, model: str = "m") -> requests.Response:
        return self.post("/v1/embeddings", input="a red disc", model=model)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def close(self) -> None:
        """Kill what is left."""
        for pid in family(self.process.pid):
            kill(pid)
        self.process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)
        self._log.unlink()


class Load:
    """Threads that ask one thing after the other: when each was asked, how long it took, and the answer.

    Args:
        ask: what each does. Of a request that found no server the answer is "refused"; of one that broke, how.
    """

    def __init__(self, ask: Callable[[], Any], threads: int = 4) -> None:
        self.ask = ask
        self.asked: list[tuple[float, float, Any]] = []
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def _run(self) -> None:
        while not self.stopping.is_set():
            began = time.monotonic()
            try:
                answer = self.ask()
            except requests.RequestException as error:
                answer = "refused" if "Connection refused" in str(error) else type(error).__name__
                time.sleep(0.05)
            self.asked.append((began, time.monotonic() - began, answer))

    @property
    def answers(self) -> Counter[Any]:
        """How often each answer came."""
        return Counter(answer for *_, answer in self.asked)

    @property
    def slowest_s(self) -> float:
        return max(seconds for _, seconds, _ in self.asked)

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
            assert not thread.is_alive(), "a request hangs"
