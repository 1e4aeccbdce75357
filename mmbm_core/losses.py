"""What training minimises: contrastive losses that align modalities, and the likelihood of token sequences.

Shapes: `B` batch, `D` width, `P` pairs of modalities, `M` modalities, `T` tokens, `V` vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from mmbm_core.errors import UsageError

_MAX_LOG_SCALE = math.log(100)


def info_nce(x: Tensor, y: Tensor, *, scale: Tensor | float, groups: Tensor | None = None) -> Tensor:
    """Symmetric softmax loss 1/2 [CE(s x y^T) + CE(s y x^T)] (CLIP, arXiv 2103.00020, figure 3).

    With `groups` the targets are uniform over the positives of a row: SupCon's L_out (arXiv 2004.11362, equation 2)
    between two modalities, as in UniCL (arXiv 2204.03610). Unlike L_in it does not let one easy positive do for all.

    Args:
        x: (B, D), unit norm; row i and row i of `y` belong together.
        y: (B, D), unit norm.
        scale: s, the inverse temperature.
        groups: (B,) int; rows of an equal group (captions of one picture) are all positives of each other.

    Returns:
        (): the mean over rows and both directions.
    """
    logits = scale * x @ y.T
    positive = _positives(x, groups).to(logits.dtype)
    targets = positive / positive.sum(1, keepdim=True)  # symmetric, so it serves both directions
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def siglip(
    x: Tensor, y: Tensor, *, scale: Tensor | float, bias: Tensor | float, groups: Tensor | None = None
) -> Tensor:
    """Sigmoid loss -(1/B) sum_ij log sigmoid(z_ij (s x_i.y_j + b)), z = 1 for positives, else -1 (arXiv 2303.15343).

    Args:
        x: (B, D), unit norm; row i and row i of `y` belong together.
        y: (B, D), unit norm.
        scale: s, the inverse temperature.
        bias: b, which at the start makes up for most pairs being negative.
        groups: (B,) int; rows of an equal group (captions of one picture) are all positives of each other.

    Returns:
        ().
    """
    sign = 2 * _positives(x, groups).to(x.dtype) - 1
    return -F.logsigmoid(sign * (scale * x @ y.T + bias)).sum() / len(x)


def _positives(x: Tensor, groups: Tensor | None) -> Tensor:
    """(B, B) bool: which rows belong together."""
    own = torch.arange(len(x), device=x.device) if groups is None else groups
    return own[:, None] == own


def sequence_nll(
    logits: Tensor, targets: Tensor, *, ignore: int, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Negative log likelihood of each row's tokens together, in nats; 0 where no token counts.

    Args:
        logits: (B, T, V).
        targets: (B, T) int.
        ignore: the target that does not count (padding).
        label_smoothing: share of the target spread evenly over the vocabulary (arXiv 1512.00567, section 7).

    Returns:
        As it is (B,), without a gradient, and with the smoothed targets (B,).
    """
    real = targets != ignore
    log_p = F.log_softmax(logits[real], dim=-1)  # one pass over V for both; padding costs none
    plain = -log_p.gather(1, targets[real][:, None])[:, 0]
    smoothed = (1 - label_smoothing) * plain - label_smoothing * log_p.mean(1)
    none = plain.new_zeros(targets.shape)
    return none.masked_scatter(real, plain.detach()).sum(1), none.masked_scatter(real, smoothed).sum(1)


class ContrastiveConfig(BaseModel):
    """Which loss aligns which modalities."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["info_nce", "siglip"] = "siglip"
    pairs: tuple[tuple[str, str], ...] | None = None
    """Pairs of modalities, in either order; None aligns each modality with every other."""

    @model_validator(mode="after")
    def _pairs_differ(self) -> Self:
        pairs = self.pairs or ()
        if any(a == b for a, b in pairs) or len({frozenset(pair) for pair in pairs}) < len(pairs):
            raise ValueError("each pair is two different modalities, and no pair comes twice in either order")
        return self


class ContrastiveLoss(nn.Module):
    """Sum of a contrastive loss over pairs of modalities, each with a scale (and bias) of its own that it learns.

    `log_scale` (P,) starts at ln(1/0.07) for InfoNCE, where it stays at or below ln 100 (arXiv 2103.00020, section
    2.5), and at ln 10 for SigLIP, with `bias` (P,) at -10 (arXiv 2303.15343, section 3.2).

    Where torch.distributed runs several processes in training, each computes the loss of all their rows together: it
    equals that of one process with the whole batch, and so do the gradients once averaged over the processes (as
    DistributedDataParallel does).

    Args:
        config: which loss and which pairs.
        modalities: names of those there are.

    Raises:
        UsageError: the config names a modality that is not there, or there is no pair at all.
    """

    log_scale: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, config: ContrastiveConfig, *, modalities: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        self.pairs = tuple(combinations(modalities, 2)) if config.pairs is None else config.pairs
        named = {name for pair in self.pairs for name in pair}
        if unknown := sorted(named - set(modalities)):
            raise UsageError(f"contrastive pairs name {', '.join(unknown)}; the model has {', '.join(modalities)}")
        if not self.pairs:
            raise UsageError(f"a contrastive loss needs a pair of modalities; the model has {', '.join(modalities)}")
        self.modalities = tuple(name for name in modalities if name in named)
        sigmoid = config.kind == "siglip"
        start = math.log(10) if sigmoid else math.log(1 / 0.07)
        self.log_scale = nn.Parameter(torch.full((len(self.pairs),), start))
        self.register_parameter("bias", nn.Parameter(torch.full((len(self.pairs),), -10.0)) if sigmoid else None)

    def forward(
        self, vectors: Mapping[str, Tensor], presence: Mapping[str, Tensor], groups: Tensor | None = None
    ) -> Tensor:
        """The loss, each pair on the rows that have both modalities; a pair with fewer than two such rows adds 0.

        In training with several processes all must call it, with equal B and with `groups` in all or none.

        Args:
            vectors: (B, D) by modality, of any norm. A modality that no row has may be left out; a vector whose row
                lacks the modality may hold anything, also NaN.
            presence: (B,) bool by modality: which rows have it.
            groups: (B,) int, one meaning in all processes: rows of an equal group are positives of each other.

        Returns:
            ().
        """
        x, present = self._stack(vectors, presence)
        if self.training:  # in evaluation processes may have different numbers of batches
            x, present, groups = _gather(x), _gather(present), None if groups is None else _gather(groups)
        if self.bias is None:
            with torch.no_grad():  # on the parameter, as CLIP does: a bound on its use would end its gradient there
                self.log_scale.clamp_(max=_MAX_LOG_SCALE)
        terms = []
        for pair, names in enumerate(self.pairs):
            a, b = (self.modalities.index(name) for name in names)
            both = present[:, a] & present[:, b]
            terms.append(self._pair(pair, x[both, a], x[both, b], None if groups is None else groups[both]))
        return torch.stack(terms).sum()

    def _stack(self, vectors: Mapping[str, Tensor], presence: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(B, M, D) and (B, M) bool: one tensor, so that processes with different modalities gather the same way."""
        zeros = torch.zeros_like(next(iter(vectors.values())))
        x = torch.stack([vectors.get(name, zeros) for name in self.modalities], dim=1)
        absent = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        present = [presence[name] if name in vectors else absent for name in self.modalities]
        return x, torch.stack(present, dim=1)

    def _pair(self, pair: int, x: Tensor, y: Tensor, groups: Tensor | None) -> Tensor:
        """The loss () of one pair on its rows (B, D)."""
        scale = self.log_scale[pair].exp()
        bias = None if self.bias is None else self.bias[pair]
        if len(x) < 2:  # nothing to tell apart; still a path for the gradient, which several processes wait for
            return 0 * (x.sum() + y.sum() + scale + (0 if bias is None else bias))
        x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
        if bias is None:
            return info_nce(x, y, scale=scale, groups=groups)
        return siglip(x, y, scale=scale, bias=bias, groups=groups)


def _gather(rows: Tensor) -> Tensor:
    """(B, ...) -> (processes x B, ...): the rows of all training processes, differentiable; alone, the same rows.

    The gradient of a row is the sum of what all processes have for it: as each computes the whole loss, the number of
    processes times too much, which averaging over them takes back.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return rows
    # The successor that torch.distributed.nn.functional.all_gather, deprecated, names in its warning.
    from torch.distributed._functional_collectives import all_gather_single_autograd

    if rows.is_floating_point() and torch.is_grad_enabled() and not rows.requires_grad:
        rows.requires_grad_()  # the backward pass is collective too: a process with nothing to learn here must join
    return all_gather_single_autograd(rows.contiguous(), 0, dist.group.WORLD)  # type: ignore[no-any-return, arg-type]
