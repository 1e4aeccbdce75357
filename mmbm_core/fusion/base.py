"""What every fusion offers: tokens of several modalities in, one vector a row and tokens for a decoder out.

A modality that a row lacks is replaced by a learned token, in training, evaluation and serving alike: zeros would be
a value the model never learned to read, and a token used in training only would change the model when it is served.

Shapes: `B` batch, `M` modalities, `T_m` tokens of modality m, `T'` tokens after fusion, `D` width.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmbm_core.errors import UsageError
from mmbm_core.sample import MODALITIES

INIT_STD = 0.02
"""Deviation of learned tokens and embeddings at the start, as in BERT and ViT."""


class Fused(NamedTuple):
    """What a fusion makes of a batch."""

    tokens: Tensor
    """(B, T', D): what a decoder attends to."""
    mask: Tensor
    """(B, T') bool: True where `tokens` holds a real token."""
    pooled: Tensor
    """(B, D): one vector per row."""


class Seen(NamedTuple):
    """One modality as the methods see it: the learned token first, then the modality's own; one kind is masked out."""

    tokens: Tensor
    """(B, 1 + T_m, D), zero where the mask is False."""
    mask: Tensor
    """(B, 1 + T_m) bool: the first alone where a row lacks the modality, else the row's real tokens."""

    @property
    def present(self) -> Tensor:
        """(B,) bool: True where a row has the modality."""
        return ~self.mask[:, 0]

    def mean(self) -> Tensor:
        """(B, D): mean of the real tokens; the learned token itself where a row lacks the modality."""
        return self.tokens.sum(1) / self.mask.sum(1, keepdim=True)


class Fusion(nn.Module, ABC):
    """Joins tokens of several modalities, any of which a row may lack.

    What all variants hold: a row's result does not depend on the rows beside it, on padding, on the order of the
    mappings, or on what stands in place of tokens that are masked or missing (NaN included).

    Args:
        modalities: any of text, image and audio, each once, in any order.
        width: D, of the tokens that come in and go out.

    Raises:
        UsageError: no modality, an unknown one, or one named twice.
    """

    modalities: tuple[str, ...]
    """In the order of `sample.MODALITIES`, which is also the order of `presence`."""

    def __init__(self, modalities: Sequence[str], *, width: int) -> None:
        super().__init__()
        if not modalities or len(set(modalities)) < len(modalities) or set(modalities) - set(MODALITIES):
            given = ", ".join(modalities) or "none"
            raise UsageError(f"a fusion takes one or more of {', '.join(MODALITIES)}, each once; got {given}")
        self.modalities = tuple(sorted(modalities, key=MODALITIES.index))  # type: ignore[arg-type]
        self.width = width
        self.missing = learned_vectors(self.modalities, width=width)

    @abstractmethod
    def forward(self, tokens: Mapping[str, Tensor], masks: Mapping[str, Tensor], presence: Tensor) -> Fused:
        """Fuse a batch.

        A present modality without any real token (an empty text) counts as missing. A row without any modality gives
        finite numbers without meaning.

        Args:
            tokens: (B, T_m, D) by modality; one that no row has may be left out of `tokens` and `masks`.
            masks: (B, T_m) bool by modality, True where `tokens` holds a real token.
            presence: (B, M) bool, True where the row has the modality, in the order of `self.modalities`.

        Raises:
            ValueError: the mappings or `presence` do not fit `self.modalities`.
        """

    def _see(self, tokens: Mapping[str, Tensor], masks: Mapping[str, Tensor], presence: Tensor) -> list[Seen]:
        """The modalities in order, with the learned token where a row lacks one."""
        self._check(tokens, masks, presence)
        seen = []
        for name, has in zip(self.modalities, presence.unbind(1), strict=True):
            absent = self.missing[name].expand(len(presence), 1, -1)
            real = masks.get(name, presence[:, :0]) & has[:, None]
            mask = torch.cat([~real.any(1, keepdim=True), real], dim=1)
            both = torch.cat([absent, tokens.get(name, absent[:, :0])], dim=1)
            # `where`, not a product: 0 x NaN is NaN, forwards and backwards.
            seen.append(Seen(torch.where(mask[..., None], both, 0.0), mask))
        return seen

    def _check(self, tokens: Mapping[str, Tensor], masks: Mapping[str, Tensor], presence: Tensor) -> None:
        known = ", ".join(self.modalities)
        if set(tokens) != set(masks) or not set(tokens) <= set(self.modalities):
            raise ValueError(f"tokens of {sorted(tokens)} and masks of {sorted(masks)}; this fusion takes {known}")
        if presence.shape[1:] != (len(self.modalities),):
            raise ValueError(f"presence has the shape {tuple(presence.shape)}; expected a column each for {known}")
        for i, name in enumerate(self.modalities):
            if name not in tokens and presence[:, i].any():
                raise ValueError(f"presence says that rows have {name}, but there are no tokens of it")


def learned_vectors(names: Sequence[str], *, width: int) -> nn.ParameterDict:
    """A learned vector (D,) for each name."""
    return nn.ParameterDict({name: nn.Parameter(INIT_STD * torch.randn(width)) for name in names})


def one_token(pooled: Tensor) -> Fused:
    """(B, D) -> the result of a method that keeps one vector per row: T' = 1."""
    return Fused(pooled[:, None], torch.ones_like(pooled[:, :1], dtype=torch.bool), pooled)


def drop_modalities(presence: Tensor, p: float, *, generator: torch.Generator | None) -> Tensor:
    """Modality dropout: forget each present modality of each row with probability p, but never all of a row.

    Where all would fall, one is kept, chosen uniformly among those present. The draw is one per sample and modality,
    not one per batch: every batch then shows every subset.

    Args:
        presence: (B, M) bool, True where a row has the modality.
        p: probability in [0, 1].
        generator: draws on its own device, so that one on the CPU repeats on any; None takes torch's own.

    Returns:
        (B, M) bool, a subset of `presence`.

    Raises:
        ValueError: p is no probability.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"modality dropout {p}; it is a probability from 0 to 1")
    device = generator.device if generator else presence.device
    chance, lot = torch.rand((2, *presence.shape), generator=generator, device=device).to(presence.device)
    keep = presence & (chance >= p)
    last = torch.zeros_like(presence).scatter(1, lot.masked_fill(~presence, -1).argmax(1, keepdim=True), True)
    return torch.where(keep.any(1, keepdim=True), keep, last & presence)
