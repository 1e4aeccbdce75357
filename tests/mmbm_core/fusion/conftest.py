"""Ragged batches with any modalities missing, and a transformer layer as its formula."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

WIDTH = 16


class Tokens(NamedTuple):
    """What a fusion takes."""

    tokens: dict[str, Tensor]
    masks: dict[str, Tensor]
    presence: Tensor


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_batch() -> Callable[..., Tokens]:
    """Rows with the modalities that `presence` says, of 1 to 5 tokens each; noise where there is no token."""

    def make(
        modalities: Sequence[str], presence: Sequence[Sequence[bool]], *, dtype: torch.dtype = torch.float32
    ) -> Tokens:
        generator = torch.Generator().manual_seed(0)
        num_rows, longest = len(presence), 5
        tokens, masks = {}, {}
        for name in modalities:
            lengths = torch.randint(1, longest + 1, (num_rows, 1), generator=generator)
            tokens[name] = torch.randn(num_rows, longest, WIDTH, generator=generator, dtype=dtype)
            masks[name] = torch.arange(longest) < lengths
        return Tokens(tokens, masks, torch.tensor(presence))

    return make


@pytest.fixture
def plain_mean() -> Callable[..., Tensor]:
    """(D,): mean of one modality's real tokens of one row, one after the other, or the learned token."""

    def mean(fusion: nn.Module, batch: Tokens, name: str, row: int) -> Tensor:
        column = list(fusion.modalities).index(name)  # type: ignore[call-overload]
        if not batch.presence[row, column]:
            return fusion.missing[name]  # type: ignore[index]
        total, count = torch.zeros(WIDTH), 0
        for token, is_real in zip(batch.tokens[name][row], batch.masks[name][row], strict=True):
            if is_real:
                total, count = total + token, count + 1
        return total / count

    return mean


@pytest.fixture
def plain_layer() -> Callable[..., Tensor]:
    """A pre-norm transformer layer on the tokens (T, D) of one row, in float64: x + SA(N(x)), then x + FF(N(x))."""

    def run(layer: nn.Module, x: Tensor, *, heads: int) -> Tensor:
        w = {name: value.double() for name, value in layer.state_dict().items()}
        normed = plain_norm(x, w["norm1.weight"], w["norm1.bias"])
        q, k, v = (normed @ w["self_attn.in_proj_weight"].T + w["self_attn.in_proj_bias"]).chunk(3, dim=-1)
        size = x.shape[1] // heads
        mixed = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = (q[:, part] @ k[:, part].T / math.sqrt(size)).exp()
            mixed.append(scores / scores.sum(1, keepdim=True) @ v[:, part])
        x = x + torch.cat(mixed, dim=1) @ w["self_attn.out_proj.weight"].T + w["self_attn.out_proj.bias"]
        hidden = plain_norm(x, w["norm2.weight"], w["norm2.bias"]) @ w["linear1.weight"].T + w["linear1.bias"]
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        return x + hidden @ w["linear2.weight"].T + w["linear2.bias"]

    return run


@pytest.fixture(name="plain_norm")
def _plain_norm() -> Callable[..., Tensor]:
    return plain_norm


def plain_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer normalisation of (T, D), in float64."""
    centred = x.double() - x.double().mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * weight.double() + bias.double()
