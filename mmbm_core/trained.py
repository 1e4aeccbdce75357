"""A trained model as the encoders and the fusion that `Bundle` runs.

Shapes: `N` values or rows, `K` tokens of a value, `M` modalities, `D` the model's width.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmbm_core.encoders.base import Encoder, EncoderOutput, Item
from mmbm_core.errors import MediaError, UsageError
from mmbm_core.media import DEFAULT_LIMITS, Limits
from mmbm_core.model import Model, mean_tokens, tokens_of
from mmbm_core.sample import MODALITIES, Modality
from mmbm_core.saved import Part, load_model
from mmbm_core.spec import EncoderConfig

_FUSED_ROWS = 256
"""At once: tokens of several modalities attend to each other."""


class AdaptedEncoder(Encoder):
    """An encoder of a trained model with its adapter, which stays in float32.

    Its vector is the mean over the adapted tokens (N, D); where a fusion follows, all K of them one after the other
    (N, K x D).

    Args:
        modality: the one of the encoder's modalities that the model takes from it.
        width: D.
        fused: does a fusion follow? Then `config.tokens` is a number.
    """

    shared_space = True

    def __init__(
        self, encoder: Encoder, adapter: nn.Module, *, modality: Modality, config: EncoderConfig, width: int,
        fused: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder = encoder
        self.adapter = adapter
        self.modalities = (modality,)
        self.equal_lengths = encoder.equal_lengths
        self.config = config
        self.fused = fused
        self.num_tokens = config.tokens if fused and isinstance(config.tokens, int) else 1
        self._width = width

    @property
    def width(self) -> int:
        return self.num_tokens * self._width

    @property
    def steps(self) -> Any:
        """Of an encoder of images: how they are resized and cut."""
        return self.encoder.steps

    @property
    def kernels(self) -> str:  # type: ignore[override]
        return self.encoder.kernels

    @kernels.setter
    def kernels(self, kernels: str) -> None:
        self.encoder.kernels = kernels

    def fast_kernels(self) -> tuple[str, ...]:
        return self.encoder.fast_kernels()

    def accelerate(self, kernels: str) -> None:
        self.encoder.accelerate(kernels)

    def budget(self, modality: Modality) -> int:
        return self.encoder.budget(modality)

    def prepare(
        self, modality: Modality, values: Sequence[Any], *, limits: Limits = DEFAULT_LIMITS
    ) -> list[Item | MediaError]:
        return self.encoder.prepare(modality, values, limits=limits)

    def collate(self, modality: Modality, items: Sequence[Item]) -> Any:
        return self.encoder.collate(modality, items)

    def forward(self, modality: Modality, batch: Any) -> EncoderOutput:
        tokens, mask = tokens_of(self.encoder(modality, batch), self.config)
        adapted: Tensor = self.adapter(tokens.float())
        return EncoderOutput(adapted, mask, adapted.flatten(1) if self.fused else mean_tokens(adapted, mask))

    def preprocessing(self) -> dict[str, Any]:
        return {"tokens": self.config.tokens, "fused": self.fused, **self.encoder.preprocessing()}


class Fuser:
    """The fusion of a trained model, on the vectors of `AdaptedEncoder`s.

    Args:
        name: of the bundle that the model comes from.
    """

    def __init__(self, model: Model, *, name: str) -> None:
        self.model, self.name = model, name

    @torch.inference_mode()
    def __call__(self, values: Mapping[Modality, np.ndarray], present: Mapping[Modality, np.ndarray]) -> np.ndarray:
        """One vector a row, (N, D) float32. What a row lacks is the token that the fusion learnt for it.

        Args:
            values: (N, K x D) of some of the model's modalities; anything where a row lacks the modality.
            present: (N,) bool of the same.
        """
        num_rows = len(next(iter(present.values())))
        fused = np.empty((num_rows, self.model.width), dtype=np.float32)
        for start in range(0, num_rows, _FUSED_ROWS):
            rows = slice(start, start + _FUSED_ROWS)
            fused[rows] = self._fuse({m: v[rows] for m, v in values.items()}, {m: p[rows] for m, p in present.items()})
        return fused

    def _fuse(self, values: Mapping[Modality, np.ndarray], present: Mapping[Modality, np.ndarray]) -> np.ndarray:
        device, modalities = self.model.device, self.model.modalities
        tokens = {
            m: torch.from_numpy(v).to(device, torch.float32).unflatten(1, (-1, self.model.width))
            for m, v in values.items()
        }
        masks = {m: torch.ones(t.shape[:2], dtype=torch.bool, device=device) for m, t in tokens.items()}
        nowhere = np.zeros(len(next(iter(present.values()))), dtype=bool)
        presence = torch.from_numpy(np.stack([present.get(m, nowhere) for m in modalities], axis=1)).to(device)
        return self.model.fuse(tokens, masks, presence).fused.pooled.float().cpu().numpy()  # type: ignore[no-any-return]


class Trained(NamedTuple):
    """What is loaded of a trained bundle."""

    model: Model
    """With the encoders that were asked for."""
    space: str
    encoders: dict[str, Encoder]
    """By name, as `Part.parts` gives them."""
    fuse: Fuser | None
    """None: vectors are the normalised mean of the modalities'."""


def load_trained(part: Part, *, options: Mapping[str, Mapping[str, Any]] | None = None) -> Trained:
    """Load a bundle with the encoders that `part` names; with none, its fusion is all there is to use.

    Args:
        options: encoder options by modality; a bundle takes none.

    Raises:
        UsageError: the bundle is damaged, options were given, or its vectors have no fixed width.
    """
    given = [f"{option} of {m}" for m in part.modalities for option in (options or {}).get(m, {})]
    if given:
        raise UsageError(f"bundle {part.name} was trained with options of its own: leave out {', '.join(given)}")
    model, content = load_model(part.folder, only=part.modalities)
    encoders: dict[str, Encoder] = {}
    for name, (modality,) in part.parts.items():
        config = model.spec.encoders[modality]
        if model.fusion is not None and config.tokens == "all":
            raise UsageError(
                f"bundle {part.name} fuses all tokens of {modality}, however many a value has: it gives no vectors of "
                f"one width yet. Train it with a number in place of all, such as encoders.{modality}.tokens=16"
            )
        encoders[name] = AdaptedEncoder(
            model.encoders[modality], model.adapters[modality],  # type: ignore[arg-type]
            modality=modality, config=config, width=model.width, fused=model.fusion is not None,
        )  # fmt: skip
    fuse = Fuser(model, name=part.name) if model.fusion is not None else None
    return Trained(model, content["space"], encoders, fuse)


def join_parts(parts: Sequence[Part]) -> Part | None:
    """One part of all that are named of a bundle; None where there is none.

    Raises:
        UsageError: they are of several bundles.
    """
    names = list(dict.fromkeys(part.name for part in parts))
    if len(names) > 1:
        raise UsageError(f"{' and '.join(names)} are trained bundles, each with a space of its own; give one of them")
    named = {m for part in parts for m in part.modalities}
    return parts[0]._replace(modalities=tuple(m for m in MODALITIES if m in named)) if parts else None


__all__ = ["AdaptedEncoder", "Fuser", "Trained", "join_parts", "load_trained"]
