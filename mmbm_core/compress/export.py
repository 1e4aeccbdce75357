"""The ONNX of a bundle's encoders, written into its folder."""

from pathlib import Path
from typing import NamedTuple

from mmbm_core.compress.onnx import NotExportable, export_encoder
from mmbm_core.saved import BUNDLE_FILE, file_digests, load_model, onnx_file, with_facts


class Exported(NamedTuple):
    """What became of the encoders, by modality."""

    differences: dict[str, float]
    """Largest difference to torch of those that were exported, as a share of the largest component."""
    left: dict[str, str]
    """Why the others were not."""


def export_bundle(folder: Path) -> Exported:
    """Write the network of each encoder as ONNX beside its weights, each compared with torch; bundle.json last.

    The bundle is the same model as before: its space stays.

    Raises:
        UsageError: no bundle, or a damaged one.
    """
    model, _ = load_model(folder)
    differences: dict[str, float] = {}
    left: dict[str, str] = {}
    for modality, encoder in model.encoders.items():
        try:
            worst = export_encoder(encoder, onnx_file(folder, modality))  # type: ignore[arg-type]
        except NotExportable as reason:
            left[modality] = str(reason)
        else:
            differences[modality] = float(f"{worst:.2g}")
    file = folder / BUNDLE_FILE
    file.write_bytes(with_facts(file.read_bytes(), {"files": file_digests(folder)}))
    return Exported(differences, left)
