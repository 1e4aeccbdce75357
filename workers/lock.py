"""One run at a time per OUTPUT, and no commit by a run that is over.

A local lock is the operating system's (`flock`): it ends with its owner, however that dies. An object store has none, so
there a heartbeat file says who is alive. Commits of a local run go through a staging folder of its own, which the next
run deletes first: a late writer of a dead run finds its file gone and can't commit.
"""

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from mmbm_core.errors import RunError
from workers.storage import Storage

HEARTBEAT_S = 10.0
STALE_S = 45.0


@contextmanager
def output_lock(storage: Storage, folder: str) -> Iterator[str]:
    """Hold the lock of an output folder; gives the run's token.

    Raises:
        RunError: another run holds it.
    """
    token = uuid.uuid4().hex[:12]
    if storage.is_local:
        with _flock(os.path.join(folder, "_lock"), token):
            yield token
    else:
        with _heartbeat(storage, f"{folder}/_lock", token):
            yield token


def owns_lock(storage: Storage, folder: str, token: str) -> bool:
    """Is the run called `token` still the one that may commit? (One object-store read.)"""
    path = f"{folder}/_lock"
    return storage.exists(path) and json.loads(storage.read_bytes(path)).get("token") == token


@contextmanager
def _flock(path: str, token: str) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken(os.read(descriptor, 1000)) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, _owner(token), 0)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _heartbeat(storage: Storage, path: str, token: str) -> Iterator[None]:
    deadline = time.monotonic() + STALE_S
    seen = storage.read_bytes(path) if storage.exists(path) else None
    while seen is not None and json.loads(seen)["token"] and time.monotonic() < deadline:
        time.sleep(HEARTBEAT_S / 2)
        now = storage.read_bytes(path) if storage.exists(path) else None
        if now != seen and now is not None and json.loads(now)["token"]:
            raise _taken(now)
        seen = seen if now is not None else None
    storage.write_bytes(path, _owner(token))
    over = threading.Event()
    beat = threading.Thread(target=_beat, args=(storage, path, token, over), daemon=True)
    beat.start()
    try:
        yield
    finally:
        over.set()
        beat.join()
        storage.delete(path)


def _beat(storage: Storage, path: str, token: str, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT_S):
        storage.write_bytes(path, _owner(token))


def _owner(token: str) -> bytes:
    owner = {"token": token, "host": socket.gethostname(), "pid": os.getpid(), "time_s": round(time.time(), 1)}
    return json.dumps(owner).encode()


def _taken(owner: bytes) -> RunError:
    try:
        who = json.loads(owner)
        by = f"process {who['pid']} on {who['host']}"
    except (ValueError, KeyError, TypeError):
        by = "another process"
    return RunError(f"this OUTPUT is being written by {by}; wait until it ends, stop it, or give another OUTPUT")
