"""The task of a trained bundle that a recipe wants something of."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from mmbm_core.errors import UsageError
from mmbm_core.sample import Modality
from workers.bundles import local_bundle, read_version


class BundleTask(NamedTuple):
    """Of a bundle."""

    model: str
    """The bundle."""
    name: str
    inputs: dict[Modality, str]
    """The column of each modality that it reads."""
    labels: tuple[str, ...]
    version: str
    """Fingerprint of the bundle."""


def find_task(model: str, name: str | None, kinds: Sequence[str], *, modality: Modality | None = None) -> BundleTask:
    """The task of this name, or the only one, among those of some kinds.

    Args:
        modality: that it has to read.

    Raises:
        UsageError: no such bundle or task, or several.
    """
    with local_bundle(model) as folder:
        content, version = read_version(folder)
    tasks: dict[str, dict[str, Any]] = {n: t for n, t in content["spec"]["tasks"].items() if t["kind"] in kinds}
    wanted = f"a task of {' or '.join(kinds)}"
    if modality is not None:
        tasks = {n: t for n, t in tasks.items() if modality in t["inputs"]}
        wanted += f" that reads {modality}"
    if name is not None and name not in tasks:
        raise UsageError(f"{model} has no task {name!r}; it needs {wanted}: {', '.join(tasks) or 'there is none'}")
    if name is None and len(tasks) != 1:
        raise UsageError(f"{model} needs {wanted}, and has {len(tasks)}; name the task: {', '.join(tasks) or 'none'}")
    name = name or next(iter(tasks))
    return BundleTask(model, name, tasks[name]["inputs"], tuple(tasks[name].get("labels", ())), version)
