"""What every encoder offers: prepare values one by one, encode prepared items in batches.

Shapes: `B` batch, `T` tokens, `D` width.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmbm_core.augment import AudioAugment, Draws, ImageAugment, TextAugment, augment_images
from mmbm_core.compress.onnx import ONNX, OnnxNetwork, runs_onnx
from mmbm_core.compress.pruning import Group, transformer_groups
from mmbm_core.errors import MediaError, UsageError
from mmbm_core.media import DEFAULT_LIMITS, Limits
from mmbm_core.names import EXACT
from mmbm_core.sample import Modality

ENCODER_FILE = "encoder.json"
"""Beside the weights of an encoder that MMBM saved: its kind and config."""


@dataclass(slots=True)
class Item:
    """One value ready for the model."""

    data: Any
    """What the encoder's `collate` takes: token ids, a uint8 image (3, H, W), a waveform (S,)."""
    cost: int
    """Tokens, pixels or samples: what a batch budget counts."""
    cut: bool = False
    """True where the value was longer than the model takes."""


class EncoderOutput(NamedTuple):
    """What a model says of a batch."""

    tokens: Tensor
    """(B, T, D_tokens): one vector per token, patch or frame."""
    mask: Tensor
    """(B, T) bool: True where `tokens` holds a real token."""
    vector: Tensor
    """(B, D): one vector per value."""


class Encoder(nn.Module, ABC):
    """A model for one or several modalities. Built in float32; `accelerate` turns on fast kernels."""

    modalities: tuple[Modality, ...]
    shared_space: bool = False
    """True where the vectors of all its modalities may be compared (CLIP, CLAP)."""
    equal_lengths: bool = False
    """True where padding would change a result, so that only items of equal cost share a batch."""
    whole: Sequence[Any] = ()
    """The checkpoint's model, where the encoder runs but a part of it; in a sequence, so that it is no submodule."""
    augment: ImageAugment | AudioAugment | TextAugment | None = None
    """What training does to the values of its modality."""
    cut: bool = False
    """Is its network smaller than its config says?"""
    int8: bool = False
    """Are its weights integers when it is saved?"""
    core_parts: tuple[str, ...] = ()
    """Modules that `core` runs and nothing else does; none where the encoder has no `core`."""
    stand_in: Callable[..., Tensor] | None = None
    """Runs in place of `core`; no module."""
    onnx: Path | None = None
    """`core` as a file of ONNX, where its bundle holds one."""
    kernels: str = EXACT
    """What the model runs on, and how its values are prepared: `exact`, or one of `fast_kernels`."""

    @property
    @abstractmethod
    def width(self) -> int:
        """D: length of one vector."""

    @abstractmethod
    def budget(self, modality: Modality) -> int:
        """Cost (tokens, pixels, samples; padding counted) of a batch that uses the device well."""

    @abstractmethod
    def prepare(
        self, modality: Modality, values: Sequence[Any], *, limits: Limits = DEFAULT_LIMITS
    ) -> list[Item | MediaError]:
        """Turn strings or encoded bytes into items, in order; a value that can't be used gives its error."""

    @abstractmethod
    def forward(self, modality: Modality, batch: Any) -> EncoderOutput:
        """Run the model on what `collate` returned."""

    def core(self, *inputs: Tensor) -> Tensor:
        """The part of `forward` that is network alone, such as ids (B, T) and mask (B, T) -> tokens (B, T, D)."""
        raise NotImplementedError(f"{type(self).__name__} has no core_parts")

    def run_core(self, *inputs: Tensor) -> Tensor:
        """`core`, or what stands in for it: what `forward` calls."""
        return self.core(*inputs) if self.stand_in is None else self.stand_in(*inputs)

    def noise(self, lengths: Sequence[int], *, generator: torch.Generator) -> list[Item]:
        """Random items of so many tokens, or of their one size, to try `core` on."""
        raise NotImplementedError(f"{type(self).__name__} has no core_parts")

    @abstractmethod
    def collate(self, modality: Modality, items: Sequence[Item]) -> Any:
        """Stack items to tensors on this encoder's device."""

    def augmented(self, modality: Modality, batch: Any) -> Any:
        """What `collate` returned as `augment` changes it, for training alone; texts are changed before `prepare`.

        Seeds come from torch's global generator on the CPU, which the trainer seeds anew for every step and worker.
        """
        if modality == "image" and isinstance(self.augment, ImageAugment):
            return augment_images(batch, self.augment, draws=Draws.fresh(len(batch), batch.device))
        return batch

    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """Everything beside the weights that shapes a vector: sizes, pooling, prompts. Part of the fingerprint."""

    def fast_kernels(self) -> tuple[str, ...]:
        """Kernels that this device gains from, fastest (and least precise) first; none where exact is the fastest."""
        dtype = fast_dtype(self.device)
        return (*((dtype_name(dtype),) if dtype else ()), *self.onnx_kernels())

    def onnx_kernels(self) -> tuple[str, ...]:
        """Its ONNX, where this device runs it: as precise as float32, and faster but for big batches of long texts."""
        return (ONNX,) if self.onnx is not None and self.device.type == "cpu" and runs_onnx() else ()

    def accelerate(self, kernels: str) -> None:
        """Turn on one of `fast_kernels`."""
        self.kernels = kernels
        if not kernels.startswith(ONNX):
            self.to(kernels_dtype(kernels))
            return
        assert self.onnx is not None, "else it is none of fast_kernels"
        self.stand_in = OnnxNetwork(self.onnx)
        for part in self.core_parts:  # weights that nothing reads any more
            delattr(self, part)
        self.whole = ()

    @property
    def network(self) -> nn.Module:
        """The module whose weights `save` writes."""
        return self.whole[0] if self.whole else self.model  # type: ignore[return-value]

    def groups(self) -> list[Group]:
        """Units that pruning may take out: heads and neurons where it is a transformer."""
        return transformer_groups(self)

    def save(self, folder: Path) -> None:
        """Write a folder that `build_encoder` makes this encoder of again; its options (pooling, prompt) are not in it.

        Encoders that are no transformers checkpoint say in ENCODER_FILE what they are.
        """
        from mmbm_core.encoders.checkpoint import save_checkpoint

        save_checkpoint(self.network, folder)

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.parameters()), torch.float32)

    def space_fingerprint(self) -> str:
        """Hash of weights, preprocessing, pooling and prompts: vectors are comparable only within one.

        Call before `accelerate`, which changes the weights' type but not their space.
        """
        digest = hashlib.sha256(json.dumps(self.preprocessing(), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` of torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def kernels_dtype(kernels: str) -> torch.dtype:
    """The type that a name such as `bfloat16+jpeg-3x` begins with."""
    return getattr(torch, re.split(r"[-+]", kernels)[0])  # type: ignore[no-any-return]


def image_kernels(device: torch.device) -> tuple[str, ...]:
    """Of a transformer on images: half precision where the device has it, and JPEGs decoded at a smaller scale."""
    half = fast_dtype(device)
    fastest = [f"{dtype_name(half)}+jpeg-{oversize}x" for oversize in (1, 3)] if half else []
    return (*fastest, "float32+jpeg-3x")


def jpeg_oversize(kernels: str) -> int | None:
    """How many times the size wanted a JPEG keeps at least when decoded at a smaller scale; None: decode it whole.

    The larger, the closer to a whole decode: on photographs EfficientNet-Lite0's vectors have a cosine of 0.9996 to the
    exact ones at 3, 0.999 at 2 and 0.992 at 1. Transformers differ: the run tries 1 on its
    own images.
    """
    found = re.search(r"jpeg-(\d+)x", kernels)
    return int(found[1]) if found else None


def without_jpeg(kernels: str) -> str:
    """The same kernels on JPEGs decoded whole."""
    return re.sub(r"\+jpeg-\d+x", "", kernels)


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """The half-precision type that `device` computes faster than float32, or None."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    features = torch.cpu.get_capabilities()
    return torch.bfloat16 if features.get("avx512_bf16") or features.get("amx_bf16") else None


def check_options(options: dict[str, Any], *allowed: str) -> None:
    """Refuse options an encoder does not know, naming the ones it does."""
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise UsageError(f"unknown model option {', '.join(unknown)}; allowed here: {', '.join(allowed) or 'none'}")
