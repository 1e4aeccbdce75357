"""Convolutional image encoders: torchvision architectures, and EfficientNet-Lite0 with its packaged weights.

Shapes: `B` batch, `H` rows, `W` columns, `D` width.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmbm_core.compress.onnx import ONNX
from mmbm_core.compress.pruning import Group, Slot
from mmbm_core.compress.stored import load_network
from mmbm_core.encoders.base import (
    ENCODER_FILE,
    Encoder,
    EncoderOutput,
    Item,
    dtype_name,
    fast_dtype,
    jpeg_oversize,
    kernels_dtype,
)
from mmbm_core.encoders.pixels import PixelSteps, stack
from mmbm_core.errors import MediaError, UsageError
from mmbm_core.media import DEFAULT_LIMITS, Limits
from mmbm_core.names import EXACT
from mmbm_core.sample import Modality

LITE0 = "efficientnet-lite0"

_LEAST_PX, _MOST_PX = 32, 1024


class CnnEncoder(Encoder):
    """Feature maps -> tokens (B, H x W, D); their mean -> vector (B, D).

    Args:
        features: uint8-derived float (B, 3, H, W) -> (B, D, h, w).
        classifier: (B, D) -> (B, L) logits of `labels`, where the weights come with one.
        config: what ENCODER_FILE holds: the kind, and what its builder needs to know.
    """

    modalities = ("image",)
    core_parts = ("features",)

    def __init__(
        self,
        features: nn.Module,
        *,
        width: int,
        steps: PixelSteps,
        classifier: nn.Module | None = None,
        labels: Sequence[str] = (),
        config: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.saved_config = dict(config)
        self.features = features.eval()
        self.classifier = classifier
        self.labels = tuple(labels)
        self.steps = steps
        self._width = width

    def save(self, folder: Path) -> None:
        (folder / ENCODER_FILE).write_text(json.dumps(self.saved_config))
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")

    @property
    def network(self) -> nn.Module:
        return self

    @property
    def width(self) -> int:
        return self._width

    def groups(self) -> list[Group]:
        """The channels between the convolutions of each inverted residual; of other networks none are known."""
        blocks = [(name, each) for name, each in self.named_modules() if isinstance(each, _Block)]
        return [group.under(f"{name}.") for name, block in blocks for group in block.groups()]

    def budget(self, modality: Modality) -> int:
        return (4 if self.device.type == "cpu" else 256) * 224 * 224

    def preprocessing(self) -> dict[str, Any]:
        return {"kind": "cnn", **self.steps.model_dump()}

    def fast_kernels(self) -> tuple[str, ...]:
        """Deep CNNs lose much to half-precision activations, so there are two steps between that and exact."""
        dtype = fast_dtype(self.device)
        half = (dtype_name(dtype), f"float32-{dtype_name(dtype)}-pointwise") if dtype else ()
        names = [f"{name}+folded" for name in (*half, "float32")]
        names[-1:-1] = self.onnx_kernels()
        return tuple(f"{name}+jpeg-3x" for name in names)

    def accelerate(self, kernels: str) -> None:
        if kernels.startswith(ONNX):
            super().accelerate(kernels)
            return
        self.kernels = kernels
        fold_batch_norms(self.features)
        self.features.to(memory_format=torch.channels_last)
        if self.device.type == "cpu":
            half = fast_dtype(self.device) if "pointwise" in kernels else None
            replace_pointwise(self.features, half or kernels_dtype(kernels))
        if "pointwise" not in kernels:
            self.to(kernels_dtype(kernels))

    def prepare(
        self, modality: Modality, values: Sequence[bytes], *, limits: Limits = DEFAULT_LIMITS
    ) -> list[Item | MediaError]:
        return self.steps.prepare(values, limits=limits, oversize=jpeg_oversize(self.kernels))

    def collate(self, modality: Modality, items: Sequence[Item]) -> Tensor:
        return stack(items, self.device)

    def forward(self, modality: Modality, batch: Tensor) -> EncoderOutput:
        maps = self.run_core(self.steps.normalise(batch, self.dtype))
        tokens = maps.flatten(2).transpose(1, 2)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return EncoderOutput(tokens, mask, tokens.mean(1, dtype=torch.float32))

    def core(self, pixels: Tensor) -> Tensor:  # type: ignore[override]
        """(B, 3, H, W) -> (B, D, h, w)"""
        if self.kernels != EXACT or self.training:  # trains 1.7 times as fast on a CPU
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return self.features(pixels)  # type: ignore[no-any-return]

    def noise(self, lengths: Sequence[int], *, generator: torch.Generator) -> list[Item]:
        shape = (3, *self.steps.out_size)
        images = [torch.randint(256, shape, dtype=torch.uint8, generator=generator) for _ in lengths]
        return [Item(image, cost=shape[1] * shape[2]) for image in images]

    def classify(self, vectors: Tensor) -> Tensor:
        """(B, D) -> (B, L) logits over `labels`.

        Raises:
            UsageError: the weights came without a classifier.
        """
        if self.classifier is None:
            raise UsageError("this encoder has no classifier; efficientnet-lite0 has one")
        return self.classifier(vectors.to(self.dtype)).float()


def fold_batch_norms(module: nn.Module) -> None:
    """Merge each BatchNorm into the convolution before it, in place (Jacob et al., 1712.05877, 3.2)."""
    previous: tuple[str, nn.Conv2d] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and previous is not None:
            fused = torch.nn.utils.fusion.fuse_conv_bn_eval(previous[1], child)
            setattr(module, previous[0], fused)
            setattr(module, name, nn.Identity())
        fold_batch_norms(child)
        previous = (name, child) if isinstance(child, nn.Conv2d) else None


class Pointwise(nn.Module):
    """A 1x1 convolution as the matrix product it is, in `dtype`: torch has no fast path for it on one thread."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().flatten(1).to(dtype), requires_grad=False)
        bias = conv.bias.detach() if conv.bias is not None else torch.zeros(conv.out_channels)
        self.bias = nn.Parameter(bias.to(dtype), requires_grad=False)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H, W), both channels last and of one type."""
        product = nn.functional.linear(maps.permute(0, 2, 3, 1).to(self.weight.dtype), self.weight, self.bias)
        return product.to(maps.dtype).permute(0, 3, 1, 2)


def replace_pointwise(module: nn.Module, dtype: torch.dtype) -> None:
    """Compute the 1x1 convolutions of a network as matrix products, in place."""
    for name, child in list(module.named_children()):
        plain = isinstance(child, nn.Conv2d) and child.kernel_size == (1, 1) and child.stride == (1, 1)
        if plain and child.groups == 1 and child.padding == (0, 0):
            setattr(module, name, Pointwise(child, dtype))  # type: ignore[arg-type]
        else:
            replace_pointwise(child, dtype)


class _Block(nn.Module):
    """Inverted residual: expand, depthwise, project (Tan and Le, 1905.11946; Lite: ReLU6, no squeeze-excite)."""

    def __init__(self, width_in: int, width_out: int, *, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        width = width_in * expand
        self.expand = _conv_bn(width_in, width, act=True) if expand > 1 else nn.Identity()
        self.depthwise = _conv_bn(width, width, kernel=kernel, stride=stride, groups=width, act=True)
        self.project = _conv_bn(width, width_out)
        self.residual = stride == 1 and width_in == width_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y

    def groups(self) -> list[Group]:
        """The expanded channels; none where nothing is expanded."""
        if isinstance(self.expand, nn.Identity):
            return []
        makers = [
            f"{name}.{place}"
            for name in ("expand", "depthwise")
            for place, layer in enumerate(getattr(self, name))
            if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)
        ]
        slots = [Slot(name, reads=False) for name in makers]
        units = int(self.project[0].weight.shape[1])  # type: ignore[index]
        return [Group("channels", units, (*slots, Slot("project.0", reads=True)))]


def _conv_bn(
    width_in: int, width_out: int, *, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = False
) -> nn.Sequential:
    """Convolution padded as TensorFlow's SAME on even inputs: a stride has one more row at the bottom and right."""
    low = (kernel - stride) // 2 if stride > 1 else kernel // 2
    high = kernel - stride - low if stride > 1 else kernel // 2
    pad: list[nn.Module] = [] if low == high else [nn.ZeroPad2d((low, high, low, high))]
    conv = nn.Conv2d(width_in, width_out, kernel, stride, 0 if pad else low, groups=groups, bias=False)
    return nn.Sequential(*pad, conv, nn.BatchNorm2d(width_out, eps=1e-3), *([nn.ReLU6(inplace=True)] if act else []))


_LITE0_STAGES = (  # repeats, kernel, stride, expansion, width out (EfficientNet-Lite0)
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def efficientnet_lite0(weights: dict[str, Tensor] | None = None, *, size_px: int = 224) -> CnnEncoder:
    """EfficientNet-Lite0 (1280 wide) from a state dict in the names of the lukemelas port; None leaves it random.

    Args:
        size_px: height and width that images are resized to.
    """
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    width, blocks = 32, []
    for repeats, kernel, stride, expand, width_out in _LITE0_STAGES:
        for i in range(repeats):
            blocks.append(_Block(width, width_out, kernel=kernel, stride=stride if i == 0 else 1, expand=expand))
            width = width_out
    features = nn.Sequential(_conv_bn(3, 32, kernel=3, stride=2, act=True), *blocks, _conv_bn(width, 1280, act=True))
    classifier = nn.Linear(1280, 1000)
    if weights is not None:
        features.load_state_dict(_rename_lite0(features, weights))
        classifier.load_state_dict({"weight": weights["_fc.weight"], "bias": weights["_fc.bias"]})
    half = (127 / 255,) * 3
    steps = PixelSteps(size=(_check_size(size_px),) * 2, mean=half, std=(128 / 255,) * 3, resample=3)
    config = {"kind": "cnn", "architecture": LITE0, "size_px": size_px}
    return CnnEncoder(
        features, width=1280, steps=steps, classifier=classifier, labels=_IMAGENET_CATEGORIES, config=config
    )


def _check_size(size_px: Any) -> int:
    if not isinstance(size_px, int) or not _LEAST_PX <= size_px <= _MOST_PX:
        raise UsageError(f"size_px is {size_px!r}; allowed: whole numbers from {_LEAST_PX} to {_MOST_PX}")
    return size_px


def build_saved(folder: Path, *, architecture: str, size_px: int | None = None) -> CnnEncoder:
    """What `CnnEncoder.save` wrote; `size_px` None takes the architecture's own."""
    size: dict[str, Any] = {} if size_px is None else {"size_px": size_px}
    encoder = efficientnet_lite0(**size) if architecture == LITE0 else _torchvision(architecture, {}, **size)
    load_network(encoder, folder)
    return encoder


def _rename_lite0(features: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both networks list convolutions and norms in the order of computation; only their names differ."""
    source = [v for k, v in weights.items() if not k.startswith("_fc.")]
    names = list(features.state_dict())
    if len(source) != len(names):
        raise UsageError(f"EfficientNet-Lite0 weights hold {len(source)} tensors, {len(names)} are needed")
    return dict(zip(names, source, strict=True))


def build_torchvision(name: str, *, weights_path: str | None = None, size_px: int | None = None) -> CnnEncoder:
    """A torchvision architecture with the weights of a safetensors file.

    Args:
        name: as torchvision names it, such as `resnet50`.
        weights_path: file of the architecture's own state dict; its preprocessing is torchvision's default for it.
        size_px: height and width that images are cut to; None takes the architecture's own.

    Raises:
        UsageError: no weights were given (torchvision would fetch pickles), or the architecture has no CNN trunk.
    """
    if weights_path is None:
        raise UsageError(f"torchvision:{name} needs weights: write torchvision:{name}@FILE.safetensors")
    return _torchvision(name, load_file(weights_path), size_px=size_px)


def _torchvision(name: str, weights: dict[str, Tensor], *, size_px: int | None = None) -> CnnEncoder:
    """The architecture with its own state dict; {} leaves it random."""
    from torchvision.models import get_model, get_model_weights

    model = get_model(name, weights=None).eval()  # else the forward below would change the running means
    if weights:
        model.load_state_dict(weights)
    transforms = get_model_weights(name).DEFAULT.transforms()  # type: ignore[attr-defined]
    crop_px = transforms.crop_size[0] if size_px is None else _check_size(size_px)
    steps = PixelSteps(
        shortest_edge=round(transforms.resize_size[0] * crop_px / transforms.crop_size[0]),
        crop=(crop_px, crop_px),
        crop_rounds=True,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        resample=3 if transforms.interpolation.value == "bicubic" else 2,
    )
    features = _trunk(name, model)
    with torch.inference_mode():
        width = features(torch.zeros(1, 3, *steps.crop)).shape[1]  # type: ignore[misc]
    config = {"kind": "cnn", "architecture": name, "size_px": crop_px}
    return CnnEncoder(features, width=width, steps=steps, config=config)


def _trunk(name: str, model: nn.Module) -> nn.Module:
    """The layers before global pooling."""
    if hasattr(model, "features"):
        return model.features  # type: ignore[return-value]
    if hasattr(model, "layer4"):
        return nn.Sequential(*[m for n, m in model.named_children() if n not in ("avgpool", "fc")])
    raise UsageError(f"torchvision:{name} has no convolutional trunk; use a resnet, efficientnet, convnext, ...")
