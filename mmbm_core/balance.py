"""How several losses share one step (multi-task balancing), and how two modalities do (OGM-GE).

To add a balancer: a config class and a `Balancer` here, a line in `BALANCERS` and in `BalancerConfig`, a test.

Shapes: `K` tasks, `G` numbers in all shared gradients, `B` batch.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from mmbm_core.errors import UsageError


class Balancer(nn.Module, ABC):
    """Turns the losses of a step, by task, into gradients. What it learns or remembers is in its state dict."""

    needs_shared: bool = False
    """True where `backward` looks at the parameters that the tasks share."""

    def __init__(self, *, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)

    def backward(self, losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter]) -> Tensor:
        """Add this step's gradients to `.grad` of all parameters, as torch does, the tasks' own and its own included.

        Args:
            losses: () by task. A task without data in this step is left out; without any task nothing happens.
            shared: parameters that the tasks share; which of them, each balancer says. Frozen ones are skipped.

        Returns:
            (): the total, detached.

        Raises:
            UsageError: a loss of an unknown task, or nothing in `shared` trains though the balancer needs it.
        """
        self._check_known(losses, "losses")
        trained = [p for p in shared if p.requires_grad]
        if self.needs_shared and not trained:
            raise UsageError(f"{type(self).__name__} needs shared parameters that train; use the static balancer")
        present = {task: losses[task] for task in self.tasks if task in losses}
        return self._backward(present, trained).detach() if present else torch.zeros(())

    @abstractmethod
    def _backward(self, losses: dict[str, Tensor], shared: list[nn.Parameter]) -> Tensor:
        """`backward` for at least one loss, in the order of `tasks`."""

    def _check_known(self, names: Iterable[str], what: str) -> None:
        if unknown := sorted(set(names) - set(self.tasks)):
            raise UsageError(f"{what} name {', '.join(unknown)}; the tasks are {', '.join(self.tasks)}")


class StaticConfig(BaseModel):
    """Fixed weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["static"] = "static"
    weights: dict[str, NonNegativeFloat] = {}
    """By task; 1 for those not named."""


class StaticBalancer(Balancer):
    """Weighted sum of the losses; `shared` is not used.

    The default: with tuned weights it does as well as the specialised optimizers (Kurin et al., arXiv 2201.04122).
    """

    def __init__(self, config: StaticConfig, *, tasks: Sequence[str]) -> None:
        super().__init__(tasks=tasks)
        self.config = config
        self._check_known(config.weights, "weights")

    def _backward(self, losses: dict[str, Tensor], shared: list[nn.Parameter]) -> Tensor:
        total = torch.stack([self.config.weights.get(task, 1.0) * loss for task, loss in losses.items()]).sum()
        total.backward()
        return total


class UncertaintyConfig(BaseModel):
    """Weights learned as each task's noise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["uncertainty"] = "uncertainty"
    regression: tuple[str, ...] = ()
    """Tasks whose loss is a squared error; all others are cross-entropies."""


class UncertaintyBalancer(Balancer):
    """sum_k c_k exp(-s_k) L_k + s_k / 2 with learned s_k = log sigma_k^2 (arXiv 1705.07115, section 3.2).

    c is 1 for cross-entropies and 1/2 for squared errors. `log_variance` (K,) starts at 0 and belongs in the optimizer.
    `shared` is not used.
    """

    scale: Tensor

    def __init__(self, config: UncertaintyConfig, *, tasks: Sequence[str]) -> None:
        super().__init__(tasks=tasks)
        self._check_known(config.regression, "regression tasks")
        scale = [0.5 if task in config.regression else 1.0 for task in self.tasks]
        self.register_buffer("scale", torch.tensor(scale), persistent=False)
        self.log_variance = nn.Parameter(torch.zeros(len(self.tasks)))

    def _backward(self, losses: dict[str, Tensor], shared: list[nn.Parameter]) -> Tensor:
        which = [self.tasks.index(task) for task in losses]
        s = self.log_variance[which]
        total = (self.scale[which] * torch.exp(-s) * torch.stack(list(losses.values())) + s / 2).sum()
        total.backward()
        return total


class GradNormConfig(BaseModel):
    """Weights that make all tasks learn at a similar rate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["grad_norm"] = "grad_norm"
    lr: PositiveFloat = 0.025
    """Step of the weights, times a gradient norm."""
    alpha: float = 1.5
    """How hard a task that lags behind is pulled; 0 makes all gradient norms equal."""


class GradNormBalancer(Balancer):
    """GradNorm (arXiv 1711.02257, algorithm 1). `shared` is the last layer that all tasks share.

    After the gradients of sum_k w_k L_k, w takes a step of plain gradient descent on sum_k |G_k - G r_k^alpha| and is
    scaled back to a sum of K. G_k is the norm of the gradient of w_k L_k in `shared`, G its mean over tasks, r_k the
    task's L_k / (first L_k) relative to their mean; G r_k^alpha counts as a constant. Beyond the paper: w stays at 0
    or above, and a task without a loss, with a loss of 0 or with a gradient that is not finite has no part in the step.

    w is a buffer, so that no other optimizer moves it. Several processes would each follow their own w.
    """

    needs_shared = True
    weights: Tensor
    first_losses: Tensor

    def __init__(self, config: GradNormConfig, *, tasks: Sequence[str]) -> None:
        super().__init__(tasks=tasks)
        self.config = config
        self.register_buffer("weights", torch.ones(len(self.tasks)))
        self.register_buffer("first_losses", torch.full((len(self.tasks),), math.nan))

    def _backward(self, losses: dict[str, Tensor], shared: list[nn.Parameter]) -> Tensor:
        which = torch.tensor([self.tasks.index(task) for task in losses], device=self.weights.device)
        values = torch.stack(list(losses.values()))
        grads = [torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True) for loss in losses.values()]
        norms = torch.stack([_flat(row, shared).norm() for row in grads])
        total = (self.weights[which] * values).sum()
        total.backward()
        self._step(which, values.detach().to(self.weights), norms.to(self.weights))
        return total

    def _step(self, which: Tensor, losses: Tensor, norms: Tensor) -> None:
        """Move the weights of tasks `which` (k,), given their losses (k,) and norms (k,) of their gradients."""
        able = (losses > 0) & norms.isfinite()
        which, losses, norms = which[able], losses[able], norms[able]
        first = self.first_losses[which]
        self.first_losses[which] = first = torch.where(first.isnan(), losses, first)
        rates = losses / first / (losses / first).mean()
        scaled = self.weights[which] * norms
        # d/dw |w n - target| = n sign(w n - target): no second backward pass is needed
        slope = norms * torch.sign(scaled - scaled.mean() * rates**self.config.alpha)
        self.weights[which] = (self.weights[which] - self.config.lr * slope).clamp(min=0)
        self.weights *= len(self.tasks) / self.weights.sum()


class PcGradConfig(BaseModel):
    """Gradients without their conflicts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["pcgrad"] = "pcgrad"
    seed: int = 0


class PcGradBalancer(Balancer):
    """PCGrad (arXiv 2001.06782, algorithm 1). `shared` is every parameter that more than one task uses.

    Parameters outside `shared` get the plain sum of the losses' gradients. The state dict carries the random state.
    Takes one backward pass a task: DistributedDataParallel, which reduces in the first, can't be used with it.
    """

    needs_shared = True

    def __init__(self, config: PcGradConfig, *, tasks: Sequence[str]) -> None:
        super().__init__(tasks=tasks)
        self.generator = torch.Generator().manual_seed(config.seed)

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())

    def _backward(self, losses: dict[str, Tensor], shared: list[nn.Parameter]) -> Tensor:
        before = [p.grad for p in shared]
        rows = []
        for k, loss in enumerate(losses.values(), start=1):
            for p in shared:
                p.grad = None
            loss.backward(retain_graph=k < len(losses))  # the tasks' graphs have a trunk in common
            rows.append([p.grad for p in shared])
        merged = _without_conflicts(torch.stack([_flat(row, shared) for row in rows]), generator=self.generator)
        parts = merged.split([p.numel() for p in shared])
        for p, old, part, *own in zip(shared, before, parts, *rows, strict=True):
            p.grad = old
            if any(grad is not None for grad in own):  # else torch, too, would leave it as it was
                p.grad = part.view_as(p) if old is None else old.add_(part.view_as(p))
        return torch.stack(list(losses.values())).sum()


def _without_conflicts(gradients: Tensor, *, generator: torch.Generator) -> Tensor:
    """(K, G) -> (G,): the sum of all rows after each lost its part along every (original) row it points against."""
    merged = torch.zeros_like(gradients[0])
    for i, own in enumerate(gradients):
        kept = own.clone()
        for j in torch.randperm(len(gradients), generator=generator).tolist():
            along = kept @ gradients[j]
            if j != i and along < 0:
                kept -= along / gradients[j].square().sum() * gradients[j]
        merged += kept
    return merged


def _flat(grads: Sequence[Tensor | None], shared: list[nn.Parameter]) -> Tensor:
    """(G,): zeros where a loss does not depend on a parameter."""
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(grads, shared, strict=True)])


BALANCERS: dict[str, Callable[..., Balancer]] = {
    "static": StaticBalancer,
    "uncertainty": UncertaintyBalancer,
    "grad_norm": GradNormBalancer,
    "pcgrad": PcGradBalancer,
}
"""Balancers by the `kind` of their config."""

BalancerConfig = Annotated[
    StaticConfig | UncertaintyConfig | GradNormConfig | PcGradConfig, Field(discriminator="kind")
]


def build_balancer(config: BalancerConfig, *, tasks: Sequence[str]) -> Balancer:
    """Build the balancer that `config` describes for `tasks`.

    Raises:
        UsageError: the config names a task that is not there.
    """
    return BALANCERS[config.kind](config, tasks=tasks)


def ogm_ge_(
    params: Mapping[str, Iterable[nn.Parameter]],
    scores: Mapping[str, Tensor],
    *,
    alpha: float,
    generator: torch.Generator | None,
    conv_only: bool = True,
) -> None:
    """Slow down the better of two modalities: OGM-GE (CVPR 2022, arXiv 2203.15332), in place on `.grad`.

    With rho_u = sum_i scores[u]_i / sum_i scores[v]_i the gradients of u are multiplied by 1 - tanh(alpha rho_u) where
    rho_u > 1; then those of both get noise N(0, std(g)^2) of the gradient as it was, as the authors' main.py does.
    Call it after `backward` and before the optimizer's step. Opt-in: on AV-MNIST it did far worse than joint training.

    Args:
        params: parameters of each of the two modalities' encoders.
        scores: (B,) of each: the probability softmax(o)_y that the modality alone gives the right class.
        alpha: strength.
        generator: draws the noise; None leaves it out (plain OGM).
        conv_only: change 4-D gradients alone, as the authors do; False changes all.

    Raises:
        UsageError: not two modalities, or not the same two.
    """
    if len(scores) != 2 or set(params) != set(scores):
        raise UsageError(f"OGM-GE takes the same two modalities twice, got {sorted(params)} and {sorted(scores)}")
    for name, other in (tuple(params), tuple(params)[::-1]):
        ratio = float(scores[name].detach().sum() / scores[other].detach().sum())
        keep = 1 - math.tanh(alpha * ratio) if ratio > 1 else 1.0
        for p in params[name]:
            if p.grad is None or (conv_only and p.grad.dim() != 4):
                continue
            spread = p.grad.std() if p.grad.numel() > 1 else 0.0  # one number has none
            p.grad *= keep
            if generator is not None:
                noise = torch.randn(p.grad.shape, generator=generator, device=generator.device)
                p.grad += spread * noise.to(p.grad)
