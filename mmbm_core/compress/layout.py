"""The sizes of a model that is smaller than its config says: kept beside its weights, put in place before they load.

A pruned model is built as its config says and then cut: lists to the layers that were kept, weights to their shapes. So
a pruned checkpoint needs no class of its own.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from mmbm_core.errors import UsageError

LAYOUT_FILE = "layout.json"
_PLACES = "mmbm_places"
PER_UNIT = ("bias", "running_mean", "running_var")
"""Tensors of a layer beside its weight: a number for each unit that it makes."""


class Layout(BaseModel):
    """Sizes by module name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: dict[str, tuple[int, ...]] = {}
    """Of lists of layers, the places of those that were kept."""
    shapes: dict[str, tuple[int, ...]] = {}
    """Of the weights of linear layers, convolutions and norms, under their names once lists have lost the others."""


def layout_of(module: nn.Module, *, leave: tuple[str, ...] = ()) -> Layout:
    """The sizes of all that can be pruned.

    Args:
        leave: beginnings of the names of modules that are left out.
    """
    named = [(name, each) for name, each in module.named_modules() if not name.startswith(leave)]
    return Layout(
        layers={name: places(each) for name, each in named if isinstance(each, nn.ModuleList)},
        shapes={name: tuple(each.weight.shape) for name, each in named if _has_shape(each)},
    )


def apply_layout(module: nn.Module, layout: Layout) -> None:
    """Cut a module that was built as its config says to the sizes of `layout`, in place; weights are yet to be loaded.

    Raises:
        UsageError: a name or a size that the module does not have.
    """
    for name, kept in layout.layers.items():
        layers = _find(module, name)
        if not isinstance(layers, nn.ModuleList) or not set(kept) <= set(range(len(layers))):
            raise UsageError(f"{LAYOUT_FILE} does not fit the model: {name} can't have the layers {kept}")
        keep_layers(layers, kept)
    for name, shape in layout.shapes.items():
        each: Any = _find(module, name)
        old = tuple(each.weight.shape) if _has_shape(each) else ()
        if len(old) != len(shape) or not all(0 < new <= was for new, was in zip(shape, old, strict=True)):
            raise UsageError(f"{LAYOUT_FILE} does not fit the model: {name} is {old} and can't become {shape}")
        if old == shape:
            continue
        replace_tensor(each, "weight", each.weight.new_empty(shape))
        for part in PER_UNIT:
            if isinstance(tensor := getattr(each, part, None), Tensor):
                replace_tensor(each, part, tensor.new_empty(shape[0]))
        tell_size(each)


def places(layers: nn.ModuleList) -> tuple[int, ...]:
    """Where the layers of a list stood when it was built."""
    return tuple(getattr(layers, _PLACES, range(len(layers))))


def keep_layers(layers: nn.ModuleList, kept: Sequence[int]) -> None:
    """Leave only some layers of a list, in their order."""
    setattr(layers, _PLACES, tuple(places(layers)[i] for i in kept))
    chosen = [layers[i] for i in kept]
    del layers[:]
    layers.extend(chosen)
    for place, layer in enumerate(chosen):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):  # where it keeps keys and values while it generates
                module.layer_idx = place  # type: ignore[assignment]


def replace_tensor(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Put another tensor in place of a parameter or a buffer."""
    old = getattr(module, name)
    if isinstance(old, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=old.requires_grad)
    setattr(module, name, tensor)


def tell_size(module: Any) -> None:
    """Make a layer's attributes say what its weight does."""
    shape = tuple(module.weight.shape)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, _ConvNd):
        module.out_channels = shape[0]
        if module.groups > 1:
            module.groups = shape[0]
        module.in_channels = shape[1] * module.groups
    elif isinstance(module, _BatchNorm):
        module.num_features = shape[0]


def write_layout(layout: Layout, folder: Path) -> None:
    """Beside the weights."""
    (folder / LAYOUT_FILE).write_text(layout.model_dump_json())


def read_layout(folder: Path) -> Layout | None:
    """None where the model is as its config says.

    Raises:
        UsageError: a damaged file.
    """
    file = folder / LAYOUT_FILE
    if not file.is_file():
        return None
    try:
        return Layout.model_validate(json.loads(file.read_text()))
    except (ValueError, ValidationError) as error:
        raise UsageError(f"{file} is damaged ({type(error).__name__}): copy the model again") from error


def _has_shape(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | _ConvNd | _BatchNorm) and isinstance(module.weight, torch.Tensor)


def _find(module: nn.Module, name: str) -> Any:
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        raise UsageError(f"{LAYOUT_FILE} does not fit the model: it has no {name}") from error
