"""Where adapters begin: at random, or where canonical correlation analysis of the training rows puts them."""

from collections.abc import Iterable

import torch
from torch import nn

from mmbm_core.canonical import Moments, canonical_maps
from mmbm_core.model import Batch, Model, scatter
from mmbm_core.sample import Modality
from mmbm_core.tasks.align import AlignConfig
from workers.training.together import sum_tensors


@torch.no_grad()
def start_adapters(model: Model, config: AlignConfig, batches: Iterable[Batch], *, world: int) -> None:
    """Set the adapters of a task's modalities by one pass over its rows, on all workers alike."""
    layers: dict[Modality, nn.Sequential] = {m: model.adapters[m] for m in config.inputs}  # type: ignore[misc]
    moments = Moments({m: layers[m][0].normalized_shape[0] for m in config.inputs})  # type: ignore
    for batch in batches:
        vectors, present = {}, {}
        for modality, column in config.inputs.items():
            values = batch.values.get((modality, column))
            if values is None or not len(values.rows):
                continue
            means = layers[modality][0](values.data.float()).mean(1)  # type: ignore[union-attr]
            here = torch.ones_like(values.rows, dtype=torch.bool)
            vectors[modality], present[modality] = (scatter(x, values.rows, len(batch.ids)) for x in (means, here))
        moments.add(vectors, present)
    sum_tensors(moments.sums(), world=world, device=model.device)
    maps = canonical_maps(moments, width=model.width, ridge=config.ridge, joining_ridge=config.joining_ridge)
    for modality, (weight, bias) in maps.items():
        linear = layers[modality][-1]
        linear.weight.copy_(weight)  # type: ignore[union-attr, operator]
        linear.bias.copy_(bias)  # type: ignore[union-attr, operator]
