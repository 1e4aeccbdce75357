"""Rows of a training batch mixed: images with the classes they show, or image-text pairs of an alignment.

Shapes: `B` rows, `N` values, `K` new pairs, `H` rows of pixels, `W` columns of them.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmbm_core.augment import Pairs, blend_images
from mmbm_core.batching import cut_values
from mmbm_core.encoders.base import Item
from mmbm_core.encoders.tokens import TokenRules
from mmbm_core.tasks.align import AlignTask
from mmbm_core.tasks.classification import ClassificationTask

if TYPE_CHECKING:
    from mmbm_core.model import Batch, Column, Values


def mix_rows(batch: "Batch", name: str, task: Any, *, encoders: Any, rules: Mapping[str, TokenRules]) -> "Batch":
    """The batch as a task that mixes rows has it; the same batch where it mixes none.

    Args:
        name: of the task.
        encoders: of the model, by modality.
        rules: by task, how its texts' ids are put together.
    """
    if name not in batch.targets or getattr(task.config, "mix", None) is None:
        return batch
    if isinstance(task, ClassificationTask):
        return _mix_classes(batch, name, task)
    return _mix_pairs(batch, name, task, encoders["text"], rules[name])


def _mix_classes(batch: "Batch", name: str, task: ClassificationTask) -> "Batch":
    """The images of a task mixed across the parts that they are encoded in, and its targets."""
    column: Column = ("image", task.config.inputs["image"])
    rows, parts = batch.values[column]
    if not len(rows):
        return batch
    images, targets = task.mix(torch.cat(list(parts)), rows, batch.targets[name])
    mixed = batch.values[column]._replace(data=images.split([len(part) for part in parts]))
    return batch._replace(values={**batch.values, column: mixed}, targets={**batch.targets, name: targets})


def _mix_pairs(batch: "Batch", name: str, task: AlignTask, encoder: Any, rules: TokenRules) -> "Batch":
    """The images and the texts of the same rows mixed, and the groups of these rows."""
    image: Column = ("image", task.config.inputs["image"])
    text: Column = ("text", task.config.inputs["text"])
    images, texts = batch.values[image], batch.values[text]
    whole = images.rows[torch.isin(images.rows, texts.rows)].sort().values
    pairs, targets = task.mix(whole, batch.targets[name])
    if not len(pairs.rows):
        return batch
    mixed = {image: _blended(images, pairs), text: _joined(texts, pairs, encoder, rules)}
    return batch._replace(values={**batch.values, **mixed}, targets={**batch.targets, name: targets})


def _blended(values: "Values", pairs: Pairs) -> "Values":
    """Images (N, 3, H, W) in their parts."""
    images = blend_images(torch.cat(list(values.data)), _placed(values.rows, pairs))
    return values._replace(data=images.split([len(part) for part in values.data]))


def _joined(values: "Values", pairs: Pairs, encoder: Any, rules: TokenRules) -> "Values":
    """Texts, put into parts anew: they are longer."""
    batches = [(part.input_ids.tolist(), part.mask.tolist()) for part in values.data]  # type: ignore[union-attr]
    ids = [[id for id, real in zip(*row, strict=True) if real] for each in batches for row in zip(*each, strict=True)]
    at, partners = (each.tolist() for each in _placed(values.rows, pairs))
    for place, joined in [(i, rules.join(ids[i], ids[j])) for i, j in zip(at, partners, strict=True)]:
        ids[place] = joined
    items = [Item(each, cost=max(len(each), rules.least)) for each in ids]
    parts = cut_values(encoder, "text", [item.cost for item in items])
    order = torch.tensor([i for part in parts for i in part], device=values.rows.device)
    data = [encoder.collate("text", [items[i] for i in part]) for part in parts]
    return values._replace(rows=values.rows[order], data=data)


def _placed(rows: Tensor, pairs: Pairs) -> Pairs:
    """Pairs of rows as pairs of places in `rows` (N,)."""
    places = ((rows == each[:, None]).int().argmax(1) for each in pairs)
    return Pairs(*places)
