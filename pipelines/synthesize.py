"""Write a synthetic world as Parquet: one Ray Data task a part, restartable, the same rows however it is cut.

A part is finished when its file has its final name; its Parquet metadata holds the settings it was made with. A
restart keeps finished parts, so a killed run loses at most the parts that were being written.
"""

import json
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray.data

from mmbm_core.errors import RunError, UsageError
from mmbm_core.synth import BUILT_IN, WORLD_VERSION, World, make_row, schema_of

# Parts are cut so that a small world still has 16 of them to share out, and a large one no more than it needs.
ROWS_PER_FILE = (32, 256)
# What a task holds in memory, and the least that a reader can take: about 9 MB with speech.
ROWS_PER_GROUP = 64
# Twice as many tasks as CPUs keeps cores busy while others write; and two fit, with Ray's own, into a single CPU.
CPUS_PER_TASK = 0.45
# Ray Data plans all tasks of a dataset at once; very large worlds run as several.
_FILES_PER_DATASET = 10_000
_SETTINGS_KEY = b"mmbm.synth"
_PART = re.compile(r"part-\d+-of-\d+\.parquet")


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What decides the bytes of every part."""

    seed: int
    rows: int
    rows_per_file: int
    speech: bool
    world: World

    @property
    def num_files(self) -> int:
        return math.ceil(self.rows / self.rows_per_file)

    def settings(self) -> dict[str, Any]:
        """As a part's metadata tells them; the built-in world goes without saying."""
        names = ("seed", "rows", "rows_per_file", "speech")
        settings = {name: getattr(self, name) for name in names} | {"version": WORLD_VERSION}
        return settings | ({"world": self.world.fingerprint} if self.is_new else {})

    @property
    def is_new(self) -> bool:
        """Is the world another than the built-in one?"""
        return self.world.fingerprint != BUILT_IN.fingerprint

    def part_name(self, index: int) -> str:
        return f"part-{index:05d}-of-{self.num_files:05d}.parquet"

    def indices(self, part: int) -> range:
        return range(part * self.rows_per_file, min((part + 1) * self.rows_per_file, self.rows))


def synthesize(
    *,
    output: str,
    rows: int,
    seed: int = 0,
    rows_per_file: int | None = None,
    speech: bool = True,
    world: World = BUILT_IN,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write rows 0 to `rows - 1` of a world by `seed` to Parquet parts in `output`, on the running Ray.

    Args:
        output: folder, local or a URL that pyarrow or fsspec knows; made if missing.
        rows_per_file: how rows are cut into parts; changes no row. By default between 32 and 256.
        speech: False leaves `audio` null, and doesn't need espeak-ng.
        world: what rows are drawn from; its schema lacks the languages that it has no words for.
        overwrite: remove the parts of another world in `output`, rather than refuse.
        progress: called with (rows done, rows in all) after each part.

    Returns:
        `rows_in`, `rows_out`, `rows_quarantined`, `rows_reused` (parts kept from an earlier run), `seconds`,
        `rows_per_s` (of rows made this time), `output`. Also written to `output/_run.json`.

    Raises:
        UsageError: a number is out of range, or `output` holds something else.
        SpeechUnavailable: `speech` is asked for and espeak-ng isn't installed.
        RunError: parts are missing at the end, since nodes don't share the folder.
    """
    start = time.monotonic()
    if rows_per_file is None:
        rows_per_file = min(max(math.ceil(rows / 16), ROWS_PER_FILE[0]), ROWS_PER_FILE[1])
    _check(rows=rows, seed=seed, rows_per_file=rows_per_file)
    plan = _Plan(seed=seed, rows=rows, rows_per_file=rows_per_file, speech=speech, world=world)
    make_row(0, seed=seed, speech=speech, world=world)  # what is not installed shows here, before any task starts
    if "://" not in output:
        output = os.path.abspath(output)  # workers run in other folders
    filesystem, folder = _open(output)
    filesystem.create_dir(folder, recursive=True)
    _claim(filesystem, folder, plan, overwrite)
    done = reused = 0
    for part_rows, part_reused in _write_parts(output, plan):
        done, reused = done + part_rows, reused + part_reused
        if progress:
            progress(done, rows)
    _sweep(filesystem, folder, plan)
    seconds = time.monotonic() - start
    result = {
        "rows_in": rows,
        "rows_out": done,
        "rows_quarantined": 0,
        "rows_reused": reused,
        "seconds": round(seconds, 3),
        "rows_per_s": round((done - reused) / seconds, 2),
        "output": output,
    }
    record = result | {"settings": plan.settings()}
    if plan.is_new:  # whole, so that the rows can be made again without the file that it was read from
        record["world"] = world.model_dump(mode="json", exclude_none=True)
    with filesystem.open_output_stream(f"{folder}/_run.json") as stream:
        stream.write(json.dumps(record, indent=2).encode())
    return result


def _check(**numbers: int) -> None:
    least = {"rows": 1, "seed": 0, "rows_per_file": 1}
    wrong = [
        f"{name} must be {least[name]} or more; got {value}" for name, value in numbers.items() if value < least[name]
    ]
    if wrong:
        raise UsageError("; ".join(wrong))


def _open(output: str) -> tuple[pafs.FileSystem, str]:
    try:
        filesystem, folder = pafs.FileSystem.from_uri(output)
    except pa.ArrowInvalid:  # a scheme that pyarrow doesn't know
        import fsspec

        native, folder = fsspec.core.url_to_fs(output)
        filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(native))
    return filesystem, folder


def _claim(filesystem: pafs.FileSystem, folder: str, plan: _Plan, overwrite: bool) -> None:
    """Make sure that `folder` holds no Parquet but parts of this world. The first part stands for the others here:
    each task looks at its own before it writes."""
    files = filesystem.get_file_info(pafs.FileSelector(folder))
    names = sorted(info.base_name for info in files if info.base_name.endswith(".parquet"))
    for name in names:
        if not _PART.fullmatch(name):
            raise UsageError(f"{folder} holds {name}, which synthesize didn't write; choose another output folder")
    for name in names if overwrite else names[:1]:
        _is_part_of(plan, filesystem, f"{folder}/{name}", any_world=overwrite)
    for name in names if overwrite else ():
        filesystem.delete_file(f"{folder}/{name}")


def _is_part_of(plan: _Plan, filesystem: pafs.FileSystem, path: str, *, any_world: bool = False) -> bool:
    """Whether a finished part of `plan` is at `path`. Raises UsageError where it is something else."""
    made_with = _settings_of(filesystem, path)
    if made_with is None:
        return False
    if not made_with:
        raise UsageError(f"{path} wasn't written by synthesize; choose another output folder")
    was, wanted = ({"world": "built-in"} | settings for settings in (made_with, plan.settings()))
    if was != wanted and not any_world:
        told = ", ".join(f"{key}={was.get(key)}" for key in wanted if was.get(key) != wanted[key])
        raise UsageError(f"{path} was made with {told}; use the same, another output folder, or overwrite")
    return True


def _settings_of(filesystem: pafs.FileSystem, path: str) -> dict[str, Any] | None:
    """What a part was made with, empty if not by us; None where no Parquet file that can be read is there."""
    try:
        with filesystem.open_input_file(path) as file:
            metadata = pq.read_schema(file).metadata or {}
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    settings: dict[str, Any] = json.loads(metadata.get(_SETTINGS_KEY, b"{}"))
    return settings


def _write_parts(output: str, plan: _Plan) -> Iterator[tuple[int, int]]:
    """Write all parts on the cluster; yield (rows, rows reused) as each is done."""
    for first in range(0, plan.num_files, _FILES_PER_DATASET):
        num_files = min(_FILES_PER_DATASET, plan.num_files - first)
        write_part = partial(_write_part, first=first, output=output, plan=plan)
        written = ray.data.range(num_files, override_num_blocks=num_files).map(write_part, num_cpus=CPUS_PER_TASK)
        for row in written.iter_rows():
            yield row["rows"], row["reused"]


def _write_part(row: dict[str, Any], *, first: int, output: str, plan: _Plan) -> dict[str, Any]:
    """Write one part, in a worker, unless it is there: to a name of its own, then renamed."""
    part = first + int(row["id"])
    indices = plan.indices(part)
    filesystem, folder = _open(output)
    filesystem.create_dir(folder, recursive=True)
    path = f"{folder}/{plan.part_name(part)}"
    if _is_part_of(plan, filesystem, path):
        return {"rows": len(indices), "reused": len(indices)}
    schema = schema_of(plan.world).with_metadata({_SETTINGS_KEY: json.dumps(plan.settings())})
    draft = f"{folder}/_{plan.part_name(part)}.{uuid.uuid4().hex}.tmp"
    with filesystem.open_output_stream(draft) as stream, pq.ParquetWriter(stream, schema) as writer:
        for start in range(indices.start, indices.stop, ROWS_PER_GROUP):
            group = range(start, min(start + ROWS_PER_GROUP, indices.stop))
            made = [make_row(index, seed=plan.seed, speech=plan.speech, world=plan.world) for index in group]
            writer.write_table(pa.Table.from_pylist(made, schema=schema))
    filesystem.move(draft, path)
    return {"rows": len(indices), "reused": 0}


def _sweep(filesystem: pafs.FileSystem, folder: str, plan: _Plan) -> None:
    """See that every part is there, and remove the drafts of killed runs."""
    names = {info.base_name for info in filesystem.get_file_info(pafs.FileSelector(folder))}
    missing = sum(plan.part_name(part) not in names for part in range(plan.num_files))
    if missing:
        raise RunError(
            f"{missing} of {plan.num_files} parts aren't in {folder}: the cluster's nodes don't share it; "
            "use a shared disk or a URL as output"
        )
    for name in names:
        if name.startswith("_part-") and name.endswith(".tmp"):
            filesystem.delete_file(f"{folder}/{name}")
