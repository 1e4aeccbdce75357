"""Learning curves for TensorBoard, kept beside the bundle that is being trained."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.storage import Storage


class EventLog:
    """Writes scalars; `flush` copies the file to where it belongs, which may be an object store.

    Args:
        folder: of the event files; TensorBoard reads all that lie in it as one run.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage, self._folder = storage, folder
        self._local = tempfile.TemporaryDirectory(prefix="mmbm-events-")
        self._writer: Any = None

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add the values of a step."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self._local.name)
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Make what was added visible."""
        if self._writer is None:
            return
        self._writer.flush()
        for file in Path(self._local.name).iterdir():
            self._storage.write_bytes(f"{self._folder}/{file.name}", file.read_bytes())
