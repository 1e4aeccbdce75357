"""One file that a training goes on from: tensors as safetensors, all else as JSON in its header."""

import json
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from mmbm_core.errors import RunError
from workers.storage import Storage

_FACTS = "facts"
CHECKPOINT = ".safetensors"
"""How the names of such files end."""
BEGIN_AGAIN = "begin again with --overwrite"


class Checkpoint(NamedTuple):
    """What was saved: tensors by part and name, and facts."""

    parts: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]


def save_checkpoint(storage: Storage, path: str, parts: dict[str, dict[str, Tensor]], facts: dict[str, Any]) -> None:
    """Replace the file at `path` in one step."""
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().contiguous()
        for part, named in parts.items()
        for name, tensor in named.items()
    }
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # shared memory is refused
    storage.write_bytes(path, safetensors.torch.save(tensors, metadata={_FACTS: json.dumps(facts)}))


def load_checkpoint(storage: Storage, path: str) -> Checkpoint | None:
    """What `save_checkpoint` wrote; None where there is none.

    Raises:
        RunError: the file is damaged.
    """
    if not storage.exists(path):
        return None
    data = storage.read_bytes(path)
    try:
        size = int.from_bytes(data[:8], "little")
        facts = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_FACTS])
        tensors = safetensors.torch.load(data)
    except (ValueError, KeyError, safetensors.SafetensorError) as error:
        raise RunError(f"checkpoint {storage.uri(path)} is damaged ({error}); {BEGIN_AGAIN}") from error
    parts: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        part, _, name = full.partition("/")
        parts.setdefault(part, {})[name] = tensor
    return Checkpoint(parts, facts)


def serves(storage: Storage, path: str, key: str) -> bool:
    """Could the training of that key go on from what is at `path`? True where there is nothing."""
    try:
        saved = load_checkpoint(storage, path)
    except RunError:
        return False
    return saved is None or bool(saved.facts["key"] == key)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by `PARAMETER.KEY`, parameters numbered as its groups hold them."""
    return {
        f"{index}.{key}": torch.as_tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def load_module(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """All of a module's state, by name."""
    module.load_state_dict(tensors, strict=True)
