"""The encode worker: a table of rows in, their vectors out. Runs in Ray actors, or in a user's own `ds.map_batches`.

ds.map_batches(EncodeWorker, fn_constructor_kwargs={"model": "minilm"}, batch_format="pyarrow", concurrency=2)
"""

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mmbm_core.bundle import DEFAULT_MODEL, Bundle, load_bundle
from mmbm_core.errors import RunError, UsageError
from mmbm_core.saved import find_part
from mmbm_core.trained import Fuser, Trained, load_trained
from workers.bundles import local_models


class EncodeWorker:
    """Loads a model once; each call adds vector columns, `modalities` and `error` to a batch.

    Columns named `text`, `image` and `audio` are embedded, as `Bundle.embed` does. A row that can't be used keeps its
    place, with null vectors and its `error`. Any `batch_format` will do; the answer is an Arrow table.

    Args:
        model: names joined by commas, a trained bundle's by folder or URL; see `load_bundle`, which takes `options`
            too.
        device: `cpu` or `cuda`.
        threads: torch threads of this worker.
    """

    def __init__(self, model: str = DEFAULT_MODEL, *, device: str = "cpu", threads: int = 1, **options: Any) -> None:
        self.bundle = load_worker_bundle(model, device=device, threads=threads, **options)

    def __call__(self, batch: pa.Table | dict[str, np.ndarray] | Any) -> pa.Table:
        """Embed B rows.

        Raises:
            UsageError: no column to embed, or one has a name that the vectors need.
        """
        if isinstance(batch, dict):
            batch = pa.table(batch)
        elif not isinstance(batch, pa.Table):
            batch = pa.Table.from_pandas(batch, preserve_index=False)
        embedded = self.bundle.embed(batch)
        clashes = sorted(set(embedded.column_names) & set(batch.column_names))
        if clashes:
            raise UsageError(f"the rows have columns named {', '.join(clashes)} already; drop or rename them first")
        for name in embedded.column_names:
            batch = batch.append_column(embedded.schema.field(name), embedded[name])
        return batch


def load_worker_bundle(model: str, *, device: str, threads: int, **options: Any) -> Bundle:
    """`load_bundle` inside a worker: its share of the machine, its GPU. A bundle behind a URL is fetched first.

    Raises:
        RunError: Ray assigned a GPU that torch can't see.
    """
    _take_share(device, threads)
    with local_models(model) as folders:
        return load_bundle(model, device=device, prepare_threads=threads, folders=folders, **options)


def load_worker_fusion(name: str, *, device: str, threads: int) -> tuple[Fuser, str]:
    """The fusion of a trained bundle, without its encoders, and the bundle's space.

    Raises:
        UsageError: no bundle with a fusion has this name.
        RunError: Ray assigned a GPU that torch can't see.
    """
    _take_share(device, threads)
    with local_models(name) as folders:
        part = find_part(name, folders=folders)
        trained: Trained | None = load_trained(part._replace(modalities=())) if part else None
    if trained is None or trained.fuse is None:
        raise UsageError(f"{name} is no trained bundle with a fusion on this node: put the same bundle on every node")
    trained.model.to(torch.device(device))
    return trained.fuse, trained.space


def _take_share(device: str, threads: int) -> None:
    torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise RunError("Ray assigned a GPU to this worker, but torch sees none here; use --set device=cpu")
