"""Labels of the rows that are augmented: given where there are none, and balanced."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray

from mmbm_core.augment.recipe import MAX_COPIES, AugmentRecipe, PseudoLabels
from mmbm_core.errors import UsageError
from mmbm_core.rows import Encoding
from mmbm_core.sample import Modality
from pipelines.bundle_tasks import BundleTask
from pipelines.parallel import in_tasks
from pipelines.progress import Progress
from workers.augmentation import AugmentSpec, LabelSpec
from workers.labels import count_labels
from workers.readers.base import UnreadableSource
from workers.readers.discover import InputSet
from workers.resources import PLANNER_CPUS
from workers.storage import is_trouble

_MAX_CLASSES = 100_000


def settle_labels(
    config: PseudoLabels, task: BundleTask, encodings: Sequence[Encoding], schema: pa.Schema, *, kept: Sequence[str]
) -> LabelSpec:
    """The columns that a bundle's task reads, and the type of its labels.

    Raises:
        UsageError: nothing that it reads, or labels that the column can't hold.
    """
    columns: dict[Modality, str] = {}
    for modality, own in task.inputs.items():
        found = [e.column for e in encodings if e.modality == modality]
        if found:
            columns[modality] = own if own in found else found[0]
    if not columns:
        wanted = ", ".join(task.inputs)
        raise UsageError(f"{config.model} labels by {wanted}, and no column of {', '.join(schema.names)} holds any")
    there = config.column in schema.names
    if "." in config.column or (there and config.column not in kept):
        raise UsageError(f"column {config.column!r} can't be labelled: name one of its own that is not dropped")
    kind = schema.field(config.column).type if there else pa.string()
    try:
        pa.array(task.labels, pa.string()).cast(kind)
    except pa.ArrowException as error:
        raise UsageError(f"column {config.column!r} holds {kind}, and the labels of {config.model} are none") from error
    return LabelSpec(config=config, task=task.name, columns=columns, type=kind)


def balance_classes(recipe: AugmentRecipe, spec: AugmentSpec, inputs: InputSet) -> dict[str, float]:
    """Copies of a row of each class, on average, so that all have as many rows.

    They depend on how many rows each class has: an input with other rows is done anew.

    Raises:
        UsageError: too many classes, or one so rare that its rows would be copied more often than `copies` allows.
    """
    column = str(recipe.balance)
    progress = Progress(f"counting {column}")
    counts: Counter[str] = Counter()
    shared, count = ray.put(spec), ray.remote(num_cpus=PLANNER_CPUS)(count_labels)
    for found in in_tasks(count, ((shared, column, storage, unit) for storage, unit in _units(spec, inputs))):
        counts.update(found)
        progress.update(rows=counts.total(), fraction=None)
        if len(counts) > _MAX_CLASSES:
            raise UsageError(f"column {column!r} has over {_MAX_CLASSES:,} values: no classes")
    progress.close()
    copies = _copies(counts, recipe.copies, kept=int(recipe.keep_source))
    label, most = max(copies.items(), key=lambda item: item[1], default=("", 0.0))
    if most > MAX_COPIES:
        raise UsageError(
            f"{column} {label!r} has {counts[label]} rows and the most frequent one {max(counts.values())}: to balance "
            f"them takes {most:.0f} copies of each, and {MAX_COPIES} are allowed; leave that class out, or balance less"
        )
    return copies


def _copies(counts: Mapping[str, int], copies: int, *, kept: int) -> dict[str, float]:
    most = max(counts.values(), default=0) * (copies + kept)
    return {label: most / count - kept for label, count in sorted(counts.items())}


def _units(spec: AugmentSpec, inputs: InputSet) -> Iterator[tuple[Any, Any]]:
    for storage, source in inputs.sources():
        try:
            yield from ((storage, unit) for unit in inputs.reader.units(storage, source, spec.unit_size))
        except UnreadableSource as error:  # the run itself quarantines it
            if is_trouble(error):
                raise
