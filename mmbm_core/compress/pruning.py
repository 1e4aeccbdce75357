"""Structured pruning: attention heads, neurons, channels and whole layers are taken out, and what is left is rebuilt.

A unit's importance is the first-order change of the loss were its output zero, |sum of gradient x weight| over the
weights that read it (Molchanov et al., arXiv 1906.10771, eq. 8, squared and summed over batches).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mmbm_core.compress.layout import PER_UNIT, keep_layers, replace_tensor, tell_size

MULTIPLE = 8
"""Neurons and channels are kept in multiples of this, which vector units like."""


@dataclass(frozen=True)
class Slot:
    """One dimension of a module's weight along which a group's units lie."""

    module: str
    reads: bool
    """Is it the input side (dimension 1) of a layer that reads the units, or the output side of one that makes them?"""
    block: int = 1
    """Neighbouring entries of a unit: a head's width, the cells of a channel that is flattened."""
    stacks: int = 1
    """Equal parts of the dimension that each hold all units, such as queries, keys and values."""


@dataclass(frozen=True)
class Group:
    """Units that can be taken out one by one: the heads of an attention, the neurons or channels of a layer."""

    name: str
    units: int
    slots: tuple[Slot, ...]
    multiple: int = MULTIPLE
    square: bool = False
    """Are the layers between two such groups most of the work, which then goes with the square of their units?"""

    def under(self, prefix: str) -> "Group":
        """The same of a module that is part of another."""
        slots = tuple(replace(slot, module=prefix + slot.module) for slot in self.slots)
        return replace(self, name=prefix + self.name, slots=slots)


_ATTENTIONS: tuple[tuple[tuple[str, ...], str, int], ...] = (
    (("self.query", "self.key", "self.value"), "output.dense", 1),
    (("attention.query", "attention.key", "attention.value"), "output.dense", 1),
    (("q_proj", "k_proj", "v_proj"), "out_proj", 1),
    (("q_proj", "k_proj", "v_proj"), "o_proj", 1),
    (("q_lin", "k_lin", "v_lin"), "out_lin", 1),
    (("Wqkv",), "Wo", 3),
)
"""How transformers names the layers of an attention: those that make heads, the one that reads them, and stacks."""
_FEED_FORWARDS: tuple[tuple[tuple[str, ...], str, int], ...] = (
    (("intermediate.dense",), "output.dense", 1),
    (("fc1",), "fc2", 1),
    (("linear1",), "linear2", 1),
    (("lin1",), "lin2", 1),
    (("intermediate_dense",), "output_dense", 1),
    (("Wi",), "Wo", 2),
)
_FAMILIES = frozenset(
    {
        "bart", "bert", "camembert", "clip", "clip_text_model", "clip_vision_model", "deit", "distilbert", "electra",
        "hubert", "marian", "mbart", "modernbert", "roberta", "vit", "wav2vec2", "xlm-roberta",
    }
)  # fmt: skip
"""Model types of transformers whose layers are cut. Others share heads, or have tables and convolutions by head."""
_HEAD_WIDTHS = ("attention_head_size", "head_dim")


def transformer_groups(module: nn.Module) -> list[Group]:
    """Heads and neurons of all attentions and feed-forward layers whose names are known, but not of models of other
    families."""
    found: list[Group] = []
    modules = {f"{name}." if name else "": each for name, each in module.named_modules()}
    unknown = tuple(prefix for prefix, each in modules.items() if not _known(each))
    for prefix, each in modules.items():
        if prefix.startswith(unknown):
            continue
        for makers, reader, stacks in _ATTENTIONS:
            width = _head_width(each) if _has(each, *makers, reader) else None
            if width:
                found.append(_group(each, prefix, "heads", makers, reader, stacks, block=width, multiple=1))
                break
        for makers, reader, stacks in _FEED_FORWARDS:
            if _has(each, *makers, reader):
                found.append(_group(each, prefix, "neurons", makers, reader, stacks))
                break
    return found


def _known(module: Any) -> bool:
    """Is it no model of transformers, or one of a family that is known?"""
    kind = getattr(getattr(module, "config", None), "model_type", None)
    return not isinstance(kind, str) or kind in _FAMILIES


def _group(
    module: nn.Module, prefix: str, what: str, makers: Sequence[str], reader: str, stacks: int, *, block: int = 1,
    multiple: int = MULTIPLE,
) -> Group:  # fmt: skip
    reads = module.get_submodule(reader)
    slots = [Slot(prefix + maker, False, block, stacks) for maker in makers]
    units = reads.weight.shape[1] // block  # type: ignore[union-attr, index]
    return Group(prefix + what, int(units), (*slots, Slot(prefix + reader, True, block)), multiple)


def _has(module: nn.Module, *names: str) -> bool:
    children = dict(module.named_children())
    if any(name.split(".")[0] not in children for name in names):
        return False
    try:
        return all(isinstance(module.get_submodule(name), nn.Linear) for name in names)
    except AttributeError:
        return False


def _head_width(module: Any) -> int | None:
    """Of an attention, or of what is in it."""
    for each in (module, getattr(module, "self", None), getattr(module, "attention", None)):
        for name in _HEAD_WIDTHS:
            if isinstance(width := getattr(each, name, None), int):
                return width
    return None


def layer_lists(module: nn.Module, groups: Sequence[Group]) -> dict[str, list[list[Group]]]:
    """Lists of like transformer layers that may lose some: each layer's groups, by the list's name.

    A layer counts where it has both heads and neurons, which both end in a residual sum.
    """
    lists: dict[str, list[list[Group]]] = {}
    for name, each in module.named_modules():
        if isinstance(each, nn.ModuleList) and len(each) > 1:
            parts = [[g for g in groups if g.name.startswith(f"{name}.{i}.")] for i in range(len(each))]
            kinds = [sorted(g.name.rsplit(".", 1)[-1] for g in part) for part in parts]
            if all("heads" in kind and kind.count("neurons") == 1 for kind in kinds):
                lists[name] = parts
    return lists


class Importance:
    """Importance of the units of groups, summed over batches; `add` after each backward pass."""

    def __init__(self, module: nn.Module, groups: Sequence[Group]) -> None:
        self._modules = dict(module.named_modules())
        self.groups = {group.name: group for group in groups}
        self._units: dict[str, Tensor] = {g.name: torch.zeros(g.units) for g in groups}
        self._whole: dict[str, Tensor] = {g.name: torch.zeros(()) for g in groups}

    @torch.no_grad()
    def add(self) -> None:
        """Take the gradients that stand in the module's weights."""
        for name, group in self.groups.items():
            effects = torch.zeros(group.units)
            for slot in group.slots:
                if slot.reads:
                    effects += self._effects(slot, group.units)
            self._units[name] += effects.square()
            self._whole[name] += effects.sum().square()

    def _effects(self, slot: Slot, units: int) -> Tensor:
        """(units,): sum of gradient x weight of each unit in one reading layer."""
        module: Any = self._modules[slot.module]
        if module.weight.grad is None:
            return torch.zeros(units)
        product = (module.weight.grad * module.weight).float().cpu()
        return product.transpose(0, 1).flatten(1).sum(1).view(slot.stacks, units, slot.block).sum((0, 2))

    def units(self, group: Group) -> Tensor:
        """(units,)"""
        return self._units[group.name]

    def whole(self, groups: Sequence[Group]) -> float:
        """Of a layer: of the outputs of its groups as they are."""
        return float(sum(self._whole[g.name] for g in groups))


@dataclass(frozen=True)
class Sizes:
    """What is left of a model."""

    units: Mapping[str, int]
    """Of each group, by name."""
    layers: Mapping[str, int]
    """Of each list of layers that may lose some, by name."""


def sizes_for(module: nn.Module, groups: Sequence[Group], *, share: float) -> Sizes:
    """Sizes that leave about `share` of the work of what can be pruned; depth and width of a transformer shrink alike.

    Args:
        module: the whole model, before anything was taken out.
    """
    layers, left = {}, {group.name: share for group in groups}
    for name, parts in layer_lists(module, groups).items():
        layers[name] = max(1, round(len(parts) * share**0.5))
        for group in (group for part in parts for group in part):
            left[group.name] = min(1.0, share * len(parts) / layers[name])
    return Sizes({g.name: _rounded(g, left[g.name] ** 0.5 if g.square else left[g.name]) for g in groups}, layers)


def _rounded(group: Group, share: float) -> int:
    """A share of a group's units, in its multiple; at least 8, or one head."""
    return min(group.units, max(group.multiple, round(group.units * share / group.multiple) * group.multiple))


def prune(module: nn.Module, importance: Importance, sizes: Sizes) -> None:
    """Keep the most important units and layers, as many as `sizes` says, in place."""
    groups = list(importance.groups.values())
    kept_layers = {}
    for name, parts in layer_lists(module, groups).items():
        scores = torch.tensor([importance.whole(part) for part in parts])
        count = min(sizes.layers.get(name, len(parts)), len(parts))
        kept_layers[name] = sorted(scores.topk(count).indices.tolist())
    for group in groups:
        count = min(sizes.units[group.name], group.units)
        keep_units(module, group, importance.units(group).topk(count).indices.sort().values)
    for name, kept in kept_layers.items():
        keep_layers(module.get_submodule(name), kept)  # type: ignore[arg-type]


@torch.no_grad()
def keep_units(module: nn.Module, group: Group, kept: Tensor) -> None:
    """Take all other units of a group out of every layer that makes or reads them."""
    if len(kept) == group.units:
        return
    for slot in group.slots:
        each: Any = module.get_submodule(slot.module)
        size = group.units * slot.block
        within = (kept[:, None] * slot.block + torch.arange(slot.block)).flatten()
        index = (torch.arange(slot.stacks)[:, None] * size + within).flatten().to(each.weight.device)
        for part, dim in _parts(each, slot.reads):
            replace_tensor(each, part, getattr(each, part).index_select(dim, index).contiguous())
        tell_size(each)


def _parts(module: nn.Module, reads: bool) -> Iterator[tuple[str, int]]:
    """Tensors of a layer, with the dimension that units lie along."""
    if reads:
        yield "weight", 1
        return
    for part in ("weight", *PER_UNIT):
        if isinstance(getattr(module, part, None), Tensor):
            yield part, 0
