"""`mmbm serve` as a process: when it is ready, what it refuses, how it ends, and a replica killed under load."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.server import MMBM, Load, Server, environment
from tests.survival.harness import processes


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


@pytest.fixture
def server(text_model: str) -> Iterator[Server]:
    made = Server(f"m={text_model}", "--allow-anonymous")
    yield made
    made.close()


def test_a_killed_replica_is_replaced_and_a_signal_under_load_loses_nothing(server: Server) -> None:
    assert server.get("/ready").status_code == 200
    (pid,) = server.replicas()
    with Load(lambda: server.embed().status_code) as load:
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while server.replicas() in ([], [pid]) or server.embed().status_code != 200:
            assert time.monotonic() < deadline, load.answers
            time.sleep(0.2)
    assert set(load.answers) <= {200, 503, 504} and load.answers[200] > 20, load.answers
    with Load(lambda: server.embed().status_code) as load:
        replicas = server.replicas()
        stopped = time.monotonic()
        assert server.stop() == 0
    assert {answer for began, _, answer in load.asked if began < stopped} <= {200, 503}, load.answers
    cut = load.answers["ConnectionError"]  # of those that came after the signal: one a thread, as the port closes
    assert set(load.answers) <= {200, 503, "refused", "ConnectionError"} and cut <= len(load.threads), load.answers
    assert load.answers[200] > 20 and "Traceback" not in server.log
    assert server.process.stdout is not None and server.process.stdout.read() == ""
    deadline = time.monotonic() + 30
    while set(replicas) & set(processes()):
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_the_throughput_profile_serves_and_ends_as_the_other_does(text_model: str) -> None:
    server = Server(f"m={text_model}", "--allow-anonymous", "--throughput")
    try:
        with Load(lambda: server.embed().status_code) as load:
            assert server.stop() == 0
        assert set(load.answers) <= {200, 503, "refused"} and load.answers[200] > 10, load.answers
        assert "should not happen" not in server.log
    finally:
        server.close()


@pytest.mark.slow
def test_keys_of_a_file_are_asked_for_and_told_nowhere(tmp_path: Path, text_model: str) -> None:
    (tmp_path / "keys").write_text("first-key-of-two\nsecond-key-of-two\n")
    server = Server(text_model, "--api-keys-file", str(tmp_path / "keys"))
    try:
        assert server.embed().status_code == 401
        for key in ("first-key-of-two", "second-key-of-two"):
            found = requests.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {key}"}, timeout=60)
            assert found.status_code == 200 and found.json()["data"][0]["id"] == Path(text_model).name
        assert server.stop(signal.SIGINT) == 0
        assert "key-of-two" not in server.log
    finally:
        server.close()
