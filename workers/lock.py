"""One run at a time per OUTPUT, and no commit by a run that is over.

A local lock is the operating system's (`flock`): it ends with its owner, however that dies. Commits of a local run go
through a staging folder of its own, which the next run deletes first: a late writer of a dead run finds it gone and
can't commit. An object store has no locks, so there a heartbeat file says who is alive and who may commit.
"""

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from mmbm_core.errors import RunError
from workers.storage import Storage

HEARTBEAT_S = 10.0
STALE_S = 45.0
SETTLE_S = 0.5


@contextmanager
def output_lock(storage: Storage, folder: str, *, say: Callable[[str], None]) -> Iterator[str]:
    """Hold the lock of an output folder; gives the run's token.

    Args:
        say: told where it takes a while.

    Raises:
        RunError: another run holds it.
    """
    token = uuid.uuid4().hex[:12]
    if storage.is_local:
        with _flock(os.path.join(folder, "_lock"), token):
            yield token
    else:
        with _heartbeat(storage, f"{folder}/_lock", token, say):
            yield token


def owns_lock(storage: Storage, folder: str, token: str) -> bool:
    """Is the run called `token` still the one that may commit? (One object-store read.)"""
    return _token(_read(storage, f"{folder}/_lock")) == token


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
def _heartbeat(storage: Storage, path: str, token: str, say: Callable[[str], None]) -> Iterator[None]:
    _wait_until_free(storage, path, say)
    storage.write_bytes(path, _owner(token))
    time.sleep(SETTLE_S)
    if _token(_read(storage, path)) != token:  # two began at once: the one that wrote last goes on
        raise _taken(_read(storage, path) or b"")
    over = threading.Event()
    beat = threading.Thread(target=_beat, args=(storage, path, token, over), daemon=True)
    beat.start()
    try:
        yield
    finally:
        over.set()
        beat.join()
        with suppress(OSError):
            if _token(_read(storage, path)) == token:
                storage.delete(path)


def _wait_until_free(storage: Storage, path: str, say: Callable[[str], None]) -> None:
    """A lock that does not change for STALE_S was left by a run that died.

    Raises:
        RunError: its owner is alive.
    """
    first = _read(storage, path)
    if first is not None:
        say(f"OUTPUT holds the lock of a run that did not end; watching for {STALE_S:g} s whether that still lives")
    deadline = time.monotonic() + STALE_S
    while first is not None and time.monotonic() < deadline:
        time.sleep(HEARTBEAT_S / 2)
        now = _read(storage, path)
        if now is None:
            return
        if now != first:
            raise _taken(now)


def _beat(storage: Storage, path: str, token: str, over: threading.Event) -> None:
    """Say every HEARTBEAT_S that this run lives, until another took the lock because it was silent for too long."""
    while not over.wait(HEARTBEAT_S):
        with suppress(OSError):  # the next beat may come through; a lock that got stale meanwhile is lost below
            if _token(_read(storage, path)) != token:
                return
            storage.write_bytes(path, _owner(token))


def _read(storage: Storage, path: str) -> bytes | None:
    try:
        return storage.read_bytes(path)
    except FileNotFoundError:
        return None


def _token(owner: bytes | None) -> str | None:
    return json.loads(owner).get("token") if owner else None


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
