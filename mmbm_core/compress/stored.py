"""Weights of compressed networks on disk: cut to their layout, as integers where asked."""

from pathlib import Path

import safetensors.torch
from safetensors import safe_open
from torch import Tensor, nn

from mmbm_core.compress.layout import LAYOUT_FILE, apply_layout, layout_of, read_layout, write_layout
from mmbm_core.compress.quantize import pack, unpack

WEIGHTS_FILE = "model.safetensors"
_PACKED = {"mmbm": "int8"}
"""Metadata of a file of weights that are integers."""


def finish_network(network: nn.Module, folder: Path, *, cut: bool, int8: bool, leave: tuple[str, ...] = ()) -> None:
    """Complete a folder that the network's weights were saved to, as `load_network` reads it.

    Args:
        cut: write the layout.
        int8: store weights as integers.
        leave: beginnings of the names of modules that are saved elsewhere.
    """
    if cut:
        write_layout(layout_of(network, leave=leave), folder)
    if int8:
        file = folder / WEIGHTS_FILE
        packed = pack(safetensors.torch.load_file(file), network)
        safetensors.torch.save_file(packed, file, metadata={"format": "pt", **_PACKED})


def load_network(network: nn.Module, folder: Path) -> None:
    """Cut a network that was built as its config says to its layout, and load its weights in float32.

    Raises:
        UsageError: a layout that does not fit.
        RuntimeError: weights that do not.
    """
    if (layout := read_layout(folder)) is not None:
        apply_layout(network, layout)
    wrong = network.load_state_dict(read_weights(folder), strict=False)
    tied = set(getattr(network, "_tied_weights_keys", None) or ())
    lacking = [name for name in wrong.missing_keys if name not in tied]
    if lacking or wrong.unexpected_keys:
        raise RuntimeError(f"weights of {folder} do not fit: {', '.join([*lacking, *wrong.unexpected_keys][:5])}")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The state dict of a folder; integers as float32."""
    return unpack(safetensors.torch.load_file(folder / WEIGHTS_FILE))


def is_packed(folder: Path) -> bool:
    """Are the weights of a folder integers?"""
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        return False
    with safe_open(file, framework="pt") as opened:
        return (opened.metadata() or {}).items() >= _PACKED.items()


def is_compressed(folder: Path) -> bool:
    """Did `mmbm compress` write the network of a folder?"""
    return (folder / LAYOUT_FILE).is_file() or is_packed(folder)


__all__ = ["finish_network", "is_compressed", "is_packed", "load_network", "read_weights"]
