"""Bundles wherever they lie: as a local folder for as long as they are loaded."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmbm_core.errors import UsageError
from mmbm_core.saved import BUNDLE_FILE
from workers.storage import open_location

SIBLINGS = "siblings"
"""Folder of a bundle with those that were trained beside it: other seeds, baselines."""


@contextmanager
def local_bundle(location: str) -> Iterator[Path]:
    """The bundle as a folder of this machine; fetched, without its siblings, where it lies behind a URL.

    Raises:
        UsageError: no bundle there.
    """
    storage, folder = open_location(location)
    if not storage.exists(f"{folder}/{BUNDLE_FILE}"):
        raise UsageError(f"{storage.uri(folder)} is no bundle: it has no {BUNDLE_FILE}; `mmbm train` writes bundles")
    if storage.is_local:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="mmbm-bundle-") as temporary:
        for entry in storage.list(folder):
            relative = entry.path.removeprefix(folder).lstrip("/")
            if not relative.startswith(f"{SIBLINGS}/"):
                path = Path(temporary, relative)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(storage.read_bytes(entry.path))
        yield Path(temporary)


def sibling_locations(location: str) -> dict[str, str]:
    """Bundles that were trained beside one, by name."""
    storage, folder = open_location(location)
    if not storage.exists(f"{folder}/{SIBLINGS}"):
        return {}
    files = [e for e in storage.list(f"{folder}/{SIBLINGS}") if e.name == BUNDLE_FILE]
    names = sorted(e.path.removesuffix(f"/{BUNDLE_FILE}").rsplit("/", 1)[1] for e in files)
    return {name: f"{location.rstrip('/')}/{SIBLINGS}/{name}" for name in names}
