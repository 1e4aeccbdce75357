"""What `mmbm train` refuses before it begins."""

import importlib.util
from collections.abc import Mapping

import numpy as np
import ray

from mmbm_core.errors import RunError, UsageError
from mmbm_core.saved import BUNDLE_FILE
from pipelines.dataset import Indexed
from pipelines.parallel import in_tasks
from workers.readers.base import Unit
from workers.storage import Storage
from workers.training.feed import READ_CPUS, Feed
from workers.training.rows import SetSpec, read_unit
from workers.training.settings import TrainingSettings

_NEEDS = ("scipy", "torchmetrics", "sacrebleu", "tensorboard")


def check_installed() -> None:
    """Raises: UsageError: a package that training needs is not there."""
    lacking = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if lacking:
        raise UsageError(f"training needs {', '.join(lacking)}: run pip install 'mmbm[train]'")


def check_cpus(settings: TrainingSettings) -> None:
    """Raises: UsageError: the workers and the tasks that read for them do not fit on the cluster."""
    have = ray.cluster_resources().get("CPU", 0)
    need = settings.workers * (settings.cpus_per_worker or 1) + 1
    if have < need:
        many = f"{settings.workers} worker{'s' if settings.workers > 1 else ''}"
        raise UsageError(f"training with {many} needs {need:g} CPUs, one of them for reading; the cluster has {have:g}")


def check_output(storage: Storage, output: str, *, overwrite: bool) -> None:
    """Raises: UsageError: OUTPUT holds something that is not to be replaced."""
    if storage.exists(f"{output}/{BUNDLE_FILE}"):
        if not overwrite:
            raise UsageError(f"OUTPUT {storage.uri(output)} holds a bundle already; give another, or --overwrite")
    elif storage.exists(output) and any(True for _ in storage.children(output)):
        raise UsageError(f"OUTPUT {storage.uri(output)} is not empty and no bundle; give another folder")


def make_work(storage: Storage, work: str) -> None:
    """Make the folder beside OUTPUT that holds what is not yet finished.

    Raises:
        RunError: it can't be made.
    """
    try:
        storage.makedirs(work)
    except OSError as error:
        raise RunError(f"can't write beside OUTPUT, {storage.uri(work)}: {error.strerror or error}") from error


def check_rows(indexed: Mapping[str, Indexed], *, workers: int) -> None:
    """Raises: UsageError: too few rows to train on, or none to validate on; a column without any value."""
    problems = []
    for name, each in indexed.items():
        start = f"{name}: " if len(indexed) > 1 else ""
        for feed in (each.feed, each.feed.partner):
            if feed is None:
                continue
            if feed.num_train < workers or not feed.num_val:
                problems.append(
                    f"{start}{feed.num_train} rows to train on and {feed.num_val} to validate on: name files train... "
                    "and val..., give --val, or set data.val_fraction"
                )
                continue
            problems += [
                f"{start}no training row has a value in the column {column!r}, which the recipe reads as {modality}: "
                "give rows that have some, or leave the modality out of the recipe"
                for modality, column in empty_columns(feed)
            ]
    if problems:
        raise UsageError("\n".join(problems))


def empty_columns(feed: Feed) -> list[tuple[str, str]]:
    """Modality and column of what no training row of a feed has. Reads no more units than it takes to find one."""
    left = {(e.modality, e.column): e.output for e in feed.spec.encodings}
    shared, look = ray.put(feed.spec), ray.remote(num_cpus=READ_CPUS)(filled_columns)
    units = [unit for unit in feed.units if len(unit.train)]
    for filled in in_tasks(look, ((shared, u.storage, u.unit, u.train) for u in units), at_once=2):
        left = {key: output for key, output in left.items() if output not in filled}
        if not left:
            break
    return [(str(modality), column) for modality, column in left]


def filled_columns(spec: SetSpec, storage: Storage, unit: Unit, rows: np.ndarray) -> list[str]:
    """Columns of cells that have a value in some of the rows of a unit."""
    table = read_unit(spec, storage, unit).take(rows)
    return [e.output for e in spec.encodings if any(cell for cell in table[e.output].to_pylist())]
