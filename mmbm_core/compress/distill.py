"""Distillation: a smaller model is trained to say what the original says of the same batch.

Shapes: `B` rows, `T` tokens, `D` width, `C` classes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmbm_core.model import Batch, Encoded, Model
from mmbm_core.tasks.base import TaskOutput

TEMPERATURE = 2.0
_LOGITS = "logits"
"""What the names of a classifier's predictions begin with."""


def output_loss(student: TaskOutput, teacher: TaskOutput) -> Tensor:
    """How far apart what two models say of a batch is; 0 where a task says nothing that can be compared.

    Logits (B, C): Kullback-Leibler divergence at a temperature, times its square (Hinton et al., arXiv 1503.02531).
    """
    total = student.loss.new_zeros(())
    for name, said in teacher.predictions.items():
        if name.startswith(_LOGITS) and name in student.predictions:
            total = total + divergence(student.predictions[name], said, temperature=TEMPERATURE)
    return total


def divergence(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Mean over rows of KL(teacher || student) of logits (B, C), times the temperature's square."""
    log_p = torch.log_softmax(student.float() / temperature, dim=-1)
    log_q = torch.log_softmax(teacher.float() / temperature, dim=-1)
    losses = nn.functional.kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1)
    return losses.mean() * temperature**2


def token_loss(student: Mapping[Any, Encoded], teacher: Mapping[Any, Encoded]) -> Tensor | float:
    """Mean squared distance of adapted tokens (B, T, D) relative to the teacher's mean square, over real tokens."""
    total: Tensor | float = 0.0
    for column, theirs in teacher.items():
        ours = student[column]
        real = (theirs.mask & theirs.present[:, None])[..., None].float()
        gap = ((ours.tokens - theirs.tokens).float().square() * real).sum()
        total = total + gap / (theirs.tokens.float().square() * real).sum().clamp(min=1e-9)
    return total


def guided_outputs(
    student: Model, teacher: Model, batch: Batch, *, generator: torch.Generator
) -> dict[str, TaskOutput]:
    """What the student says of a batch, each task's loss with what sets it apart from the teacher added.

    Both see the batch as the student's augmentation changed it. The teacher, in evaluation mode, sees all modalities;
    the student what modality dropout leaves.
    """
    batch = student.augment(batch)
    encoded = student.encode_batch(batch)
    outputs = student.heads(batch, encoded, generator=generator)
    with torch.no_grad():
        known = teacher.encode_batch(batch)
        said = teacher.heads(batch, known)
    apart = token_loss(encoded, known) / len(outputs)
    return {n: out._replace(loss=out.loss + output_loss(out, said[n]) + apart) for n, out in outputs.items()}
