"""An encoder's network as ONNX, which onnxruntime runs on a CPU: faster than torch, most of all in small batches.

What is exported is `Encoder.core`: tensors in, one tensor out. What comes before (tokens, pixels, spectrograms) and
after it (pooling) stays in torch. Shapes: `B` batch, `T` tokens, `D` width.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mmbm_core.encoders.base import Encoder, EncoderOutput

ONNX = "onnx"
"""The kernel."""
ONNX_FILE = "model.onnx"
"""Beside the weights of an encoder of a bundle."""
TOLERANCE = 1e-4
"""Share of the largest component that a component may differ from torch's."""
_NEEDS = ("onnx", "onnxscript", "onnxruntime")
_EXAMPLES = ((3, 2), (9, 5, 7, 2))
"""Lengths of the values of two batches: axes that differ between them are dynamic. No size is 1, which is special."""
_CHECKED = ((1,), (12,), (9, 2, 5), (7, 7), (33, 1, 17, 8, 3))
"""Lengths of the values of the batches that are compared."""


class NotExportable(Exception):
    """Why an encoder has no ONNX."""


def lacking_packages() -> list[str]:
    """Packages that export needs and that are not installed."""
    return [name for name in _NEEDS if importlib.util.find_spec(name) is None]


def runs_onnx() -> bool:
    """Is onnxruntime installed?"""
    return importlib.util.find_spec("onnxruntime") is not None


class OnnxNetwork:
    """Stands in for `Encoder.core`. No module: it has no weights that torch could save, move or train.

    Args:
        file: what `export_encoder` wrote.
    """

    def __init__(self, file: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # workers share the machine
        options.enable_mem_pattern = False  # else it keeps a plan for every shape it has seen
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._names = [each.name for each in self._session.get_inputs()]

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The tensors that `core` takes, in its order -> what it returns."""
        fed = {name: x.contiguous().numpy() for name, x in zip(self._names, inputs, strict=True)}
        return torch.from_numpy(self._session.run(None, fed)[0])


def export_encoder(encoder: "Encoder", file: Path) -> float:
    """Write an encoder's network to `file`, and compare it with torch.

    Args:
        encoder: in float32 on the CPU, ready for inference. It is left as it was.

    Returns:
        The largest difference, as a share of the largest component.

    Raises:
        NotExportable: it has no network, torch can't export it, or the result is not what torch says.
    """
    if not encoder.core_parts:
        kind = type(encoder).__name__
        raise NotExportable(f"{kind} has no network that is exported: transformers on text, CNNs and log_mel have one")
    try:
        _export(encoder, file)
        worst = _difference(encoder, OnnxNetwork(file))
    except Exception as error:  # the exporter and onnxruntime raise many kinds; for the user it is one: not exported
        file.unlink(missing_ok=True)
        raise NotExportable(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
    if not worst <= TOLERANCE:
        file.unlink()
        raise NotExportable(f"its ONNX differs from torch by {worst:.1e} of the largest component, over {TOLERANCE:g}")
    return worst


class _Core(nn.Module):
    """`core` as a module, which is what torch exports."""

    def __init__(self, encoder: "Encoder") -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.encoder.core(*inputs)


def _export(encoder: "Encoder", file: Path) -> None:
    example, other = (_core_inputs(encoder, lengths) for lengths in _EXAMPLES)
    axes = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis in range(x.dim()) if x.shape[axis] != y.shape[axis]}
        for x, y in zip(example, other, strict=True)
    )
    with torch.no_grad():
        program: Any = torch.onnx.export(
            _Core(encoder).eval(), example, dynamic_shapes=(axes,), dynamo=True, verbose=False
        )
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces with paths of this machine
    program.save(str(file), external_data=False)


def _core_inputs(encoder: "Encoder", lengths: Sequence[int]) -> tuple[Tensor, ...]:
    """What `forward` gives to `core` for a batch."""
    seen: list[tuple[Tensor, ...]] = []

    def watch(*inputs: Tensor) -> Tensor:
        seen.append(inputs)
        return encoder.core(*inputs)

    _run(encoder, lengths, stand_in=watch)
    return seen[0]


def _difference(encoder: "Encoder", network: OnnxNetwork) -> float:
    """The largest over several batches, of tokens (B, T, D) that are no padding and of vectors (B, D)."""
    worst = 0.0
    for lengths in _CHECKED:
        one, other = (_run(encoder, lengths, stand_in=each) for each in (None, network))
        pairs = ((one.tokens[one.mask], other.tokens[one.mask]), (one.vector, other.vector))
        for ours, theirs in pairs:
            share = ((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-12)).item()
            worst = share if not share <= worst else worst  # a share that is no number is the worst
    return worst


@torch.no_grad()
def _run(encoder: "Encoder", lengths: Sequence[int], *, stand_in: Any) -> "EncoderOutput":
    """What the encoder says of a seeded batch of values of these lengths."""
    modality = encoder.modalities[0]
    items = encoder.noise(lengths, generator=torch.Generator().manual_seed(sum(lengths)))
    encoder.stand_in = stand_in
    try:
        return encoder(modality, encoder.collate(modality, items))  # type: ignore[no-any-return]
    finally:
        encoder.stand_in = None


__all__ = ["ONNX", "ONNX_FILE", "NotExportable", "OnnxNetwork", "export_encoder", "lacking_packages", "runs_onnx"]
