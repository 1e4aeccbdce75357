"""A parent that waits for the command, so that even one that is killed, or that Ray's C++ ends, is accounted for.

Ray ends its driver without a word when the node under it dies, and the system kills what takes too much memory. The
parent holds next to nothing, passes signals on, and says what to do when the command ends without saying anything.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from pipelines.progress import say

_PR_SET_PDEATHSIG = 1


def supervise(command: Callable[[], int], *, log: str) -> NoReturn:
    """Run `command` in a child of its own process group and exit with its status.

    Args:
        log: file to name where the command ended without a message.
    """
    read_end, write_end = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child:
        os.close(write_end)
        os._exit(_wait(child, read_end, log))
    os.close(read_end)
    os.setpgid(0, 0)  # Ctrl-C reaches the parent, which passes it on once
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    status = 1
    try:
        status = command()
    except SystemExit as end:  # `--help`
        status = end.code if isinstance(end.code, int) else 0
    finally:
        os.write(write_end, b"said")
        os._exit(status)


def _wait(child: int, read_end: int, log: str) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os.kill(child, number))
    _, ended = os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(ended)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # a cluster of its own that was just starting
    if os.read(read_end, 4):
        return status
    how = f"was killed ({signal.Signals(-status).name})" if status < 0 else "was ended by Ray: its node died"
    say(f"\nmmbm: the command {how}; run it again to resume. More in {log}")
    return 1
