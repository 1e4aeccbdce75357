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
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in network.state_dict().items():  # transformers renames weights when it saves some models
        if not name.startswith(leave) and (not tensor.numel() or tensor.data_ptr() not in seen):
            seen.add(tensor.data_ptr())
            state[name] = tensor.detach().cpu().contiguous().clone()
    packed = pack(state, network) if int8 else state
    metadata = {"format": "pt", **(_PACKED if int8 else {})}
    safetensors.torch.save_file(packed, folder / WEIGHTS_FILE, metadata=metadata)


def load_network(network: nn.Module, folder: Path) -> None:
    """Cut a network that was built as its config says to its layout, and load its weights in float32.

    Raises:
        UsageError: a layout that does not fit.
        RuntimeError: weights that do not.
    """
    if (layout := read_layout(folder)) is not None:
        apply_layout(network, layout)
    given = read_weights(folder)
    wrong = network.load_state_dict(given, strict=False)
    state = network.state_dict()
    loaded = {tensor.data_ptr() for name, tensor in state.items() if name in given}
    lacking = [name for name in wrong.missing_keys if state[name].data_ptr() not in loaded]  # the others are tied
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
