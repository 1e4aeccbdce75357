"""Units that kill their worker: found, isolated row by row, and the rows that did it quarantined.

A decoder that dies in native code takes the whole process with it, and Ray runs the unit again on another actor, for
ever. So each attempt leaves a mark in the run's staging folder. From the third attempt on the unit goes row by row and
the mark says which row is under way; a row that was under way at two deaths is not tried again.
"""

import json
from collections import Counter
from types import TracebackType

from workers.output import Output

_CAREFUL_AFTER = 2
_DEADLY = 2
_READING = -1
"""Stands for a row where a careful attempt died between rows: in the reader, or while it wrote."""


class WorkerLost(Exception):
    """An actor died that the unit needed: counts as a death of the unit's own worker."""


class CrashLog:
    """The marks of one unit; used as a context, leaves none where the unit ends well or with an exception."""

    def __init__(self, output: Output, key: str) -> None:
        self._output, self._name = output, f"attempts-{key}.json"
        self._deaths: Counter[int] = Counter()
        self._attempts = 0

    @property
    def careful(self) -> bool:
        """Has the unit died often enough to go row by row?"""
        return self._attempts > _CAREFUL_AFTER

    @property
    def unreadable(self) -> bool:
        """Has reading the unit killed the worker as often as a row may?"""
        return self.deadly(_READING)

    def __enter__(self) -> "CrashLog":
        mark = self._output.staged(self._name)
        if mark:
            facts = json.loads(mark)
            self._attempts = facts["attempts"]
            self._deaths = Counter({int(row): count for row, count in facts["deaths"].items()})
            if self.careful:
                self._deaths[facts["row"]] += 1
        self._attempts += 1
        self.note(None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or not issubclass(kind, WorkerLost):
            self._output.unstage(self._name)

    def deadly(self, position: int) -> bool:
        """Was this row under way at two deaths?"""
        return self._deaths[position] >= _DEADLY

    def note(self, position: int | None) -> None:
        """Leave a mark of the row that is under way now."""
        row = _READING if position is None else position
        mark = {"attempts": self._attempts, "deaths": self._deaths, "row": row}
        self._output.stage(self._name, json.dumps(mark).encode())
