"""The trained model: encoders -> adapters of one width -> fusion -> task heads.

Shapes: `B` rows, `N` values, `T` tokens, `D` width, `E` an encoder's width, `M` modalities.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmbm_core.compress.pruning import Group, transformer_groups
from mmbm_core.encoders.base import Encoder, EncoderOutput
from mmbm_core.encoders.segments import segment_tokens
from mmbm_core.fusion import build_fusion
from mmbm_core.fusion.base import Fused, drop_modalities
from mmbm_core.mixing import mix_rows
from mmbm_core.sample import MODALITIES, Modality
from mmbm_core.spec import EncoderConfig, ModelSpec
from mmbm_core.tasks import build_task
from mmbm_core.tasks.align import AlignConfig
from mmbm_core.tasks.base import Representation, TaskOutput, View


class Values(NamedTuple):
    """One column of a batch for one encoder."""

    rows: Tensor
    """(N,) int64: the rows that have a value, in the order of `data`."""
    data: Sequence[Any] | Tensor
    """What the encoder's `collate` made of them, part by part, or tokens (N, T, E) where the encoder is frozen."""


class Encoded(NamedTuple):
    """What the encoder and the adapter of a modality made of a column of B rows."""

    tokens: Tensor
    """(B, T, D); zeros where a row has no value."""
    mask: Tensor
    """(B, T) bool: real tokens."""
    present: Tensor
    """(B,) bool: rows that have a value."""


Column = tuple[Modality, str]
"""A modality and the column it is read from."""


class Batch(NamedTuple):
    """B rows ready for the model."""

    ids: list[str]
    values: dict[Column, Values]
    targets: dict[str, dict[str, Tensor]]
    """By task, then by the task's names."""


class Model(nn.Module):
    """Encoders, adapters, fusion and tasks of a spec.

    Args:
        spec: completed: every task has learnt its labels.
        widths: E of each modality.
        encoders: those that run inside the model; a frozen one may be left out where its tokens are given.
        assets: files of each task that needs some (its vocabulary).
    """

    def __init__(
        self, spec: ModelSpec, *, widths: Mapping[Modality, int], encoders: Mapping[Modality, Encoder],
        assets: Mapping[str, Mapping[str, bytes]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.spec = spec
        self.modalities = spec.modalities
        self.width = spec.width or widths[self.modalities[0]]
        self.encoders = nn.ModuleDict({m: encoders[m] for m in self.modalities if m in encoders})
        self.adapters = nn.ModuleDict({m: _adapter(widths[m], spec) for m in self.modalities})
        self.fusion = build_fusion(spec.fusion, modalities=self.modalities, width=self.width) if spec.fusion else None
        built = {
            n: build_task(c, modalities=self.modalities, width=self.width, assets=(assets or {}).get(n))
            for n, c in spec.tasks.items()
        }
        self.tasks = nn.ModuleDict(built)
        joining = [n for n, c in spec.tasks.items() if isinstance(c, AlignConfig) and c.mix and "text" in self.encoders]
        # known before training: tokenizers change while they are called, and threads call them there
        self.token_rules = {name: encoders["text"].token_rules() for name in joining}  # type: ignore[operator]

    cut: bool = False
    """Is what comes after the encoders smaller than the spec says?"""
    int8: bool = False
    """Are weights after the encoders integers when it is saved?"""

    def groups(self) -> list[Group]:
        """Units that pruning may take out of encoders, fusion and decoders."""
        parts = [("fusion", self.fusion), *((f"tasks.{name}", task) for name, task in self.tasks.items())]
        rest = [(name, transformer_groups(each)) for name, each in parts if each is not None]
        encoders = [(f"encoders.{m}", e.groups()) for m, e in self.encoders.items()]  # type: ignore[operator]
        return [group.under(f"{name}.") for name, found in (*encoders, *rest) for group in found]

    def forward(
        self, batch: Batch, *, generator: torch.Generator | None = None, only: Collection[Modality] | None = None
    ) -> dict[str, TaskOutput]:
        """Outputs by task.

        Args:
            generator: draws the modality dropout of training.
            only: modalities that are looked at; None: all.
        """
        batch = self.augment(batch) if self.training else batch
        return self.heads(batch, self.encode_batch(batch, only=only), generator=generator, only=only)

    def augment(self, batch: Batch) -> Batch:
        """The batch that training sees: each encoder's values changed, then rows mixed where a task says so."""
        values = dict(batch.values)
        for (modality, column), (rows, data) in batch.values.items():
            if not isinstance(data, Tensor):
                encoder: Any = self.encoders[modality]
                values[modality, column] = Values(rows, [encoder.augmented(modality, part) for part in data])
        batch = batch._replace(values=values)
        for name, task in self.tasks.items():
            batch = mix_rows(batch, name, task, encoders=self.encoders, rules=self.token_rules)
        return batch

    def encode_batch(self, batch: Batch, *, only: Collection[Modality] | None = None) -> dict[Column, Encoded]:
        """All columns of a batch (of some modalities), each encoded once however many tasks read it."""
        encoded = {}
        for (modality, column), values in batch.values.items():
            if len(values.rows) and modality in (self.modalities if only is None else only):
                tokens, mask = self.encode(modality, values.data)
                each = (tokens, mask, torch.ones_like(values.rows, dtype=torch.bool))
                encoded[modality, column] = Encoded(*(scatter(part, values.rows, len(batch.ids)) for part in each))
        return encoded

    def heads(
        self, batch: Batch, encoded: Mapping[Column, Encoded], *, generator: torch.Generator | None = None,
        only: Collection[Modality] | None = None,
    ) -> dict[str, TaskOutput]:  # fmt: skip
        """Fuse what was encoded and let the tasks predict; `only` hides all other modalities."""
        views: dict[tuple[Column, ...], Representation] = {}
        outputs: dict[str, TaskOutput] = {}
        for name, task in self.tasks.items():
            if name not in batch.targets:
                continue
            seen = {}
            for view_name, view in self.spec.tasks[name].views.items():
                key = tuple(sorted(view.items()))
                if key not in views:
                    views[key] = self.represent(view, encoded, len(batch.ids), generator=generator, only=only)
                seen[view_name] = views[key]
            outputs[name] = task(seen, batch.targets[name])
        return outputs

    def represent(
        self, view: View, encoded: Mapping[Column, Encoded], num_rows: int, *,
        generator: torch.Generator | None = None, only: Collection[Modality] | None = None,
    ) -> Representation:  # fmt: skip
        """Fuse one view of B rows."""
        found = {m: encoded[m, c] for m, c in view.items() if (m, c) in encoded and (only is None or m in only)}
        presence = torch.zeros(num_rows, len(self.modalities), dtype=torch.bool, device=self.device)
        for modality, each in found.items():
            presence[:, self.modalities.index(modality)] = each.present
        if self.training and self.spec.modality_dropout and generator is not None:
            presence = drop_modalities(presence, self.spec.modality_dropout, generator=generator)
        return self.fuse({m: e.tokens for m, e in found.items()}, {m: e.mask for m, e in found.items()}, presence)

    def encode(self, modality: Modality, data: Sequence[Any] | Tensor) -> tuple[Tensor, Tensor]:
        """Adapted tokens (N, T, D) and their mask (N, T) of N values: parts of collated items, or stored tokens."""
        if isinstance(data, Tensor):
            tokens, mask = data, torch.ones(data.shape[:2], dtype=torch.bool, device=data.device)
        else:
            encoder, config = self.encoders[modality], self.spec.encoders[modality]
            tokens, mask = _join([tokens_of(encoder(modality, part), config) for part in data])
        return self.adapters[modality](tokens.float()), mask

    def fuse(
        self, tokens: Mapping[Modality, Tensor], masks: Mapping[Modality, Tensor], presence: Tensor
    ) -> Representation:
        """Fuse adapted tokens (B, T, D) by presence (B, M)."""
        present = {m: presence[:, self.modalities.index(m)] for m in tokens}
        vectors = {m: mean_tokens(tokens[m], masks[m]) for m in tokens}
        absent = {m: presence.new_zeros(len(presence), self.width, dtype=torch.float32) for m in self.modalities}
        if self.fusion is not None:
            fused = self.fusion(tokens, masks, presence)
        else:
            pooled = mean_of_units(vectors, present, absent[self.modalities[0]])
            fused = _side_by_side(pooled, tokens, masks, present)
        return Representation(fused, absent | vectors, presence)

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))


def mean_of_units(vectors: Mapping[Modality, Tensor], present: Mapping[Modality, Tensor], zero: Tensor) -> Tensor:
    """(B, D): the normalised mean of the present modalities' unit vectors, which stands for a fusion."""
    total = zero
    for modality, vector in vectors.items():
        unit = nn.functional.normalize(vector.float(), dim=-1)
        total = total + torch.where(present[modality][:, None], unit, torch.zeros_like(unit))
    return nn.functional.normalize(total, dim=-1)


def _side_by_side(
    pooled: Tensor,
    tokens: Mapping[Modality, Tensor],
    masks: Mapping[Modality, Tensor],
    present: Mapping[Modality, Tensor],
) -> Fused:
    """All tokens of all present modalities, in canonical order, for a decoder to attend to."""
    order = [m for m in MODALITIES if m in tokens]
    if not order:
        return Fused(pooled[:, None], torch.ones(len(pooled), 1, dtype=torch.bool, device=pooled.device), pooled)
    mask = torch.cat([masks[m] & present[m][:, None] for m in order], dim=1)
    joined = torch.cat([tokens[m] for m in order], dim=1)
    return Fused(torch.where(mask[..., None], joined, torch.zeros_like(joined)), mask, pooled)


def tokens_of(output: EncoderOutput, config: EncoderConfig) -> tuple[Tensor, Tensor]:
    """Tokens (N, K, E) and their mask that `config.tokens` asks for: the vector, means over segments, or all."""
    if config.tokens == "all":
        return output.tokens, output.mask
    tokens = segment_tokens(output, config.tokens)
    return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


def _join(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Tokens and masks of several parts as one, padded to the longest."""
    if len(parts) == 1:
        return parts[0]
    longest = max(mask.shape[1] for _, mask in parts)
    pad = nn.functional.pad
    tokens = torch.cat([pad(tokens, (0, 0, 0, longest - tokens.shape[1])) for tokens, _ in parts])
    return tokens, torch.cat([pad(mask, (0, longest - mask.shape[1])) for _, mask in parts])


def _adapter(width_in: int, spec: ModelSpec) -> nn.Module:
    if spec.width is None:
        return nn.Identity()
    layers = [nn.LayerNorm(width_in), nn.Dropout(spec.adapter_dropout), nn.Linear(width_in, spec.width)]
    return nn.Sequential(*layers)


def scatter(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """(N, ...) to its places in (B, ...); zeros elsewhere."""
    return values.new_zeros(num_rows, *values.shape[1:]).index_copy(0, rows, values)


def mean_tokens(tokens: Tensor, mask: Tensor) -> Tensor:
    """(B, T, D) -> (B, D) in float32: the mean over real tokens."""
    weights = mask[..., None].float()
    return (tokens.float() * weights).sum(1) / weights.sum(1).clamp(min=1)
