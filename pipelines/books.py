"""The books of a run: what is done, what it adds up to, and the output's `_run.json`."""

import time
from typing import Any

from mmbm_core.errors import RunError
from pipelines.plan import has_errors, read_plan
from pipelines.progress import Progress, say
from workers.output import Entry, LedgerWriter
from workers.spec import UnitSpec

_SUMMED = (
    *("rows_in", "rows_out", "rows_quarantined", "rows_exploded", "rows_written", "quarantine_lines"),
    *("duplicates", "modalities_dropped", "values_cut"),
)
_MIN_ROWS_FOR_RATE = 200
_ASK_EVERY_S = 3.0
"""Whether the planner has listed everything: a request to the storage each time."""


class Books:
    """Gathers ledger entries. At the end: every planned unit is there, every row is accounted for.

    Args:
        name: of the work, for the line of progress.
        retry_errors: units with errors are done again.
        max_error_rate: share of quarantined rows that ends the run; None: none does.
        finished: entries of the parts found at the start, by name; some may turn out to mirror no source any more.
    """

    def __init__(
        self, spec: UnitSpec, name: str, *, finished: dict[str, Entry], retry_errors: bool,
        max_error_rate: float | None,
    ) -> None:  # fmt: skip
        self.output, self.spec, self.finished = spec.output, spec, finished
        self._retry_errors, self._max_error_rate = retry_errors, max_error_rate
        self._new: dict[str, Entry] = {}
        self._ledger = LedgerWriter(spec.output)
        self._progress = Progress(name)
        self._rows = self._bytes = self._quarantined = 0
        self._first_row_s: float | None = None
        self._started = time.monotonic()
        self._plan: dict[str, Any] | None = None
        self._asked_s = 0.0
        self._description: dict[str, Any] = {}

    def open(self, description: dict[str, Any]) -> None:
        """Write `_run.json` as begun."""
        self._description = description
        self.output.write_run({"state": "running", **description})
        if self._retry_errors:  # parts change under the same names: the ledger must not know the old ones
            self._ledger.replace_all({p: e for p, e in self.finished.items() if not has_errors(e)})
        if self.finished:
            say(f"{len(self.finished)} finished units found")

    def add(self, entry: Entry) -> None:
        """Enter a unit that has been committed."""
        self._new[entry["part"]] = entry
        self._ledger.add(entry)
        self._rows += entry["rows_in"]
        self._bytes += entry["source_bytes"]
        self._quarantined += entry["rows_quarantined"]
        if self._first_row_s is None:
            self._first_row_s = time.monotonic() - self._started
        limit = self._max_error_rate
        if limit is not None and self._rows >= _MIN_ROWS_FOR_RATE and self._quarantined > limit * self._rows:
            raise RunError(_too_many(self._quarantined, self._rows, limit))

    def tick(self) -> None:
        """Show progress."""
        if self._plan is None and time.monotonic() - self._asked_s > _ASK_EVERY_S:
            self._plan, self._asked_s = read_plan(self.spec), time.monotonic()
        total = self._plan["todo_bytes"] if self._plan else 0
        note = f"({self._quarantined} quarantined)" if self._quarantined else ""
        self._progress.update(rows=self._rows, fraction=self._bytes / total if total else None, note=note)

    def close(self, *, seconds: float) -> dict[str, Any]:
        """Check that all is there, retire what mirrors no source, write `_run.json`.

        Raises:
            RunError: units are missing, no row was written, or too many were quarantined.
        """
        self._ledger.flush()
        plan = read_plan(self.spec)
        if plan is None:
            raise RunError("the planner ended without a plan; run the same command again to resume")
        there = set(self.output.parts())
        entries = {part: self._new.get(part) or self.finished.get(part) for part in plan["parts"]}
        missing = [part for part, entry in entries.items() if entry is None or part not in there]
        if missing:
            raise RunError(f"{len(missing)} units were not done; run the same command again to resume")
        kept: dict[str, Entry] = {part: entry for part, entry in entries.items() if entry is not None}
        figures = self._figures(kept, seconds, plan)
        self._progress.update(rows=self._rows, force=True)
        self._progress.close()
        try:
            self._verdict(figures)
        except RunError:  # what earlier runs wrote stays
            self.output.write_run({"state": "failed", **self._description, "figures": figures})
            raise
        self.output.retire(there - set(kept))
        self._ledger.replace_all(kept)
        self.output.write_run({"state": "complete", **self._description, "figures": figures})
        return figures

    def _figures(self, kept: dict[str, Entry], seconds: float, plan: dict[str, Any]) -> dict[str, Any]:
        total = {name: sum(entry[name] for entry in kept.values()) for name in _SUMMED}
        reused = sum(e["rows_in"] for p, e in kept.items() if p not in self._new)
        reused += sum(e["rows_reused"] for e in self._new.values())
        encoded = total["rows_in"] - reused
        if total["rows_in"] != total["rows_out"] + total["rows_quarantined"]:
            raise RunError(f"rows do not add up: {total}")
        return {
            **total,
            "rows_reused": reused,
            "units": len(kept),
            "files_ignored": plan["ignored"],
            "first_unit_s": round(self._first_row_s or 0.0, 2),
            "seconds": round(seconds, 2),
            "rows_per_s": round(encoded / max(time.monotonic() - self._started, 1e-9), 1),
            "output": self.output.storage.uri(self.output.folder),
        }

    def _verdict(self, figures: dict[str, Any]) -> None:
        if figures["rows_quarantined"]:
            where = self.output.storage.uri(self.output.path("_quarantine"))
            say(f"{figures['rows_quarantined']} of {figures['rows_in']} rows are quarantined in {where}")
        if figures["values_cut"]:
            say(f"{figures['values_cut']} values were longer than the model takes and were cut")
        if not figures["rows_written"]:
            raise RunError(
                f"no row was written: {figures['rows_in']} rows read, {figures['rows_quarantined']} quarantined"
            )
        limit = self._max_error_rate
        if limit is not None and figures["rows_quarantined"] > limit * figures["rows_in"]:
            raise RunError(_too_many(figures["rows_quarantined"], figures["rows_in"], limit))


def _too_many(bad: int, rows: int, limit: float) -> str:
    return f"{bad} of {rows} rows are quarantined, more than --max-error-rate {limit:g}; _quarantine says why"
