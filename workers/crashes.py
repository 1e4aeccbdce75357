"""Units that kill their worker: found, isolated row by row, and the rows that did it quarantined.

A decoder that dies in native code takes the whole process with it, and Ray runs the unit again on another actor, for
ever. So each attempt leaves a mark in the run's staging folder. The third attempt goes row by row and notes the row
before it touches it; a row that was under way at two deaths is not tried again.
"""

import json
from types import TracebackType

from workers.output import Output

_CAREFUL_AFTER = 2
_DEADLY = 2


class CrashLog:
    """The marks of one unit; used as a context, leaves none where the unit ends well or with an exception."""

    def __init__(self, output: Output, key: str) -> None:
        self._storage, self._path = output.storage, f"{output.staging()}/attempts-{key}.json"
        self._deaths: dict[int, int] = {}
        self._attempts = 0

    @property
    def careful(self) -> bool:
        """Has the unit died often enough to go row by row?"""
        return self._attempts > _CAREFUL_AFTER

    def __enter__(self) -> "CrashLog":
        if self._storage.exists(self._path):
            mark = json.loads(self._storage.read_bytes(self._path))
            self._attempts = mark["attempts"]
            self._deaths = {int(row): count for row, count in mark["deaths"].items()}
        self._attempts += 1
        self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._storage.delete(self._path)

    def has_killed(self, position: int) -> bool:
        """Was this row under way at two deaths? Else notes that it is under way now."""
        if self._deaths.get(position, 0) >= _DEADLY:
            return True
        self._deaths = {row: count for row, count in self._deaths.items() if count >= _DEADLY} | {
            position: self._deaths.get(position, 0) + 1
        }
        self._write()
        return False

    def _write(self) -> None:
        mark = {"attempts": self._attempts, "deaths": self._deaths}
        self._storage.write_bytes(self._path, json.dumps(mark).encode())
