"""`mmbm export`: a copy of a trained bundle whose encoders also lie there as ONNX, checked against torch.

The copy is the same model: its space stays, and so do its exact vectors. Precision `fast` has one kernel more, `onnx`.
"""

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbm_core.compress.export import export_bundle
from mmbm_core.compress.onnx import ONNX_FILE, lacking_packages
from mmbm_core.errors import RunError, UsageError
from mmbm_core.saved import BUNDLE_FILE, read_bundle, with_facts
from pipelines.checks import check_output, make_work
from pipelines.progress import say
from pipelines.train import publish
from workers.bundles import local_bundle, write_bundle
from workers.lock import output_lock
from workers.storage import open_location


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What the command line asks for."""

    bundle: str
    output: str
    overwrite: bool = False


def export(request: ExportRequest) -> dict[str, Any]:
    """Export a bundle; needs no Ray.

    Returns:
        bundle, exported (modality: largest difference to torch), left (modality: why), seconds.

    Raises:
        UsageError: a package is missing, BUNDLE is none, or OUTPUT is taken.
        RunError: no encoder can be exported, or OUTPUT can't be written: there is no OUTPUT then.
    """
    started = time.monotonic()
    if lacking := lacking_packages():
        raise UsageError(f"export needs {', '.join(lacking)}: run pip install 'mmbm[onnx]'")
    storage, output = open_location(request.output)
    check_output(storage, output, overwrite=request.overwrite)
    work = f"{output}.exporting"
    with local_bundle(request.bundle) as folder, tempfile.TemporaryDirectory(prefix="mmbm-export-") as temporary:
        _copy(folder, Path(temporary))
        say(f"exporting the encoders of {request.bundle}")
        made = export_bundle(Path(temporary))
        for modality, reason in made.left.items():
            say(f"{modality} is left as it is: {reason}")
        if not made.differences:
            reasons = "; ".join(f"{modality}: {reason}" for modality, reason in made.left.items())
            raise RunError(f"no encoder of {request.bundle} can be exported, nothing is written. {reasons}")
        make_work(storage, work)
        with output_lock(storage, work, say=say):
            storage.delete_dir(f"{work}/bundle")  # what an earlier start of this command left there
            write_bundle(Path(temporary), storage, f"{work}/bundle")
            publish(storage, f"{work}/bundle", output, overwrite=request.overwrite)
            storage.delete_dir(work)
    return {
        "bundle": request.output, "exported": made.differences, "left": made.left,
        "seconds": round(time.monotonic() - started, 2),
    }  # fmt: skip


def _copy(folder: Path, target: Path) -> None:
    """Copy a bundle's files into an empty folder, without the ONNX of an earlier export."""
    content = read_bundle(folder)
    names = [name for name in content["files"] if Path(name).name != ONNX_FILE]
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target / name)
    facts = {"files": {name: content["files"][name] for name in names}}
    (target / BUNDLE_FILE).write_bytes(with_facts((folder / BUNDLE_FILE).read_bytes(), facts))
