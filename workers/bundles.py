"""Bundles wherever they lie: as a local folder for as long as they are loaded."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mmbm_core.errors import UsageError
from mmbm_core.names import BUNDLE_FILE, model_names, split_part
from mmbm_core.sample import Modality
from mmbm_core.saved import read_bundle
from workers.spec import fingerprint
from workers.storage import Storage, open_location

SIBLINGS = "siblings"
"""Folder of a bundle with those that were trained beside it: other seeds, baselines."""


@contextmanager
def local_bundle(location: str, *, whole: bool = True) -> Iterator[Path]:
    """The bundle as a folder of this machine; fetched, without its siblings, where it lies behind a URL.

    Args:
        whole: False fetches bundle.json alone.

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
            if relative == BUNDLE_FILE or (whole and not relative.startswith(f"{SIBLINGS}/")):
                path = Path(temporary, relative)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(storage.read_bytes(entry.path))
        yield Path(temporary)


def write_bundle(folder: Path, storage: Storage, target: str) -> None:
    """Copy a local folder of a bundle, bundle.json last, which makes it one."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    for name in sorted(files, key=lambda path: path.name == BUNDLE_FILE):
        storage.write_bytes(f"{target}/{name.as_posix()}", (folder / name).read_bytes())


def read_version(folder: Path) -> tuple[dict[str, Any], str]:
    """bundle.json, its files checked, and a fingerprint of all that decides what the bundle says.

    Raises:
        UsageError: as `read_bundle`.
    """
    content = read_bundle(folder)
    return content, fingerprint([content["files"], content["spec"]])


def check_versions(bundles: Mapping[str, str]) -> None:
    """See that bundles are those that a run was planned with.

    Raises:
        UsageError: one is not.
    """
    for location, version in bundles.items():
        with local_bundle(location) as folder:
            if read_version(folder)[1] != version:
                raise UsageError(f"{location} is another bundle here than the run was planned with: run it again")


@contextmanager
def local_models(model: str, *, whole: bool = True) -> Iterator[dict[str, Path]]:
    """Where the bundles lie that `model` names by a URL, as `load_bundle` takes it.

    Raises:
        UsageError: no bundle there.
    """
    with ExitStack() as stack:
        urls = {split_part(name)[0] for name in model_names(model) if "://" in name}
        yield {url: stack.enter_context(local_bundle(url, whole=whole)) for url in urls}


def model_parts(name: str) -> dict[str, tuple[Modality, ...]]:
    """What there is to load of a model, with what it encodes: each encoder of a trained bundle; else the model itself.

    Raises:
        UsageError: no model has this name, or it is a bundle that is damaged.
    """
    from mmbm_core.encoders import modalities_of
    from mmbm_core.saved import find_part

    with local_models(name, whole=False) as folders:
        part = find_part(name, folders=folders)
    return part.parts if part else {name: modalities_of(name)}


def sibling_locations(location: str) -> dict[str, str]:
    """Bundles that were trained beside one, by name."""
    storage, folder = open_location(location)
    if not storage.exists(f"{folder}/{SIBLINGS}"):
        return {}
    files = [e for e in storage.list(f"{folder}/{SIBLINGS}") if e.name == BUNDLE_FILE]
    names = sorted(e.path.removesuffix(f"/{BUNDLE_FILE}").rsplit("/", 1)[1] for e in files)
    return {name: f"{location.rstrip('/')}/{SIBLINGS}/{name}" for name in names}
