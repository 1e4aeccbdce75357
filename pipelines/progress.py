"""What the user reads on standard error: messages, and progress in one line that rewrites itself on a terminal."""

import os
import sys
import tempfile
import time
from typing import TextIO

_LINE_EVERY_S = 5.0
_own: TextIO | None = None
_answers: TextIO | None = None


def keep_to_ourselves() -> str:
    """Leave standard output to `answer` and standard error to `say` and `Progress`.

    All others (Ray's C++, its loggers, what it prints of workers that were killed, libraries) get a log file.

    Returns:
        The log file's path.
    """
    global _own, _answers
    log, path = tempfile.mkstemp(prefix="mmbm-", suffix=".log")
    _own = os.fdopen(os.dup(2), "w", buffering=1)
    _answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    return path


def _stderr() -> TextIO:
    return _own or sys.stderr


class Progress:
    """Counts rows and, once the whole is known, says when it ends.

    Args:
        what: the verb in front of the figures.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._started = time.monotonic()
        self._shown = 0.0
        self._terminal = _stderr().isatty()

    def update(self, *, rows: int, fraction: float | None = None, note: str = "", force: bool = False) -> None:
        """Show `rows` done; `fraction` of the work, where known, gives the time that is left."""
        now = time.monotonic()
        if not force and now - self._shown < (0.5 if self._terminal else _LINE_EVERY_S):
            return
        self._shown = now
        seconds = now - self._started
        line = f"{self._what}: {rows:,} rows, {rows / max(seconds, 1e-9):,.0f} rows/s"
        if fraction:
            line += f", {min(fraction, 1):.0%}, about {_duration(seconds * (1 / fraction - 1))} left"
        line += f" {note}" if note else ""
        _stderr().write(f"\r\x1b[K{line}" if self._terminal else f"{line}\n")
        _stderr().flush()

    def close(self) -> None:
        """End the line."""
        if self._terminal and self._shown:
            _stderr().write("\n")


def answer(text: str) -> None:
    """What the command was asked for, to standard output."""
    print(text, file=_answers or sys.stdout, flush=True)


def say(message: str) -> None:
    """One line to the user; stdout stays for the result."""
    _stderr().write(f"{message}\n")
    _stderr().flush()


def _duration(seconds: float) -> str:
    seconds = max(0, round(seconds))
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"
