"""Low-rank adapters on a pretrained transformer (LoRA, Hu et al., 2106.09685): W x + alpha / rank B A x."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from mmbm_core.encoders.base import Encoder
from mmbm_core.errors import UsageError


class LoraConfig(BaseModel):
    """Size and place of the adapters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Adapters count alpha / rank times."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of what the adapters see."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Ends of the names of the linear layers that get one, such as `query`; None: all linear layers."""


def add_lora(encoder: Encoder, config: LoraConfig) -> None:
    """Put adapters into the encoder's transformers model, in place; they alone are trained from then on.

    Raises:
        UsageError: the encoder has no transformers model, no layer is called as `config.targets` says, or peft is
            missing.
    """
    model = _transformers_model(encoder)
    names = _linear_names(model)
    if config.targets is not None:
        chosen = [n for n in names if any(n == t or n.endswith(f".{t}") for t in config.targets)]
        if not chosen:
            allowed = ", ".join(sorted({n.rsplit(".", 1)[-1] for n in names}))
            raise UsageError(f"no linear layer is called {', '.join(config.targets)}; allowed here: {allowed}")
        names = chosen
    peft = _peft()
    encoder.requires_grad_(False)
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=names),
        model,
    )


def merge_lora(encoder: Encoder) -> None:
    """Add the adapters to the weights they belong to and take them out: an ordinary model again.

    Raises:
        UsageError: the encoder has no transformers model, or peft is missing.
    """
    model = _transformers_model(encoder)
    _peft()
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()  # type: ignore[operator]
            model.set_submodule(name, module.get_base_layer())


def _transformers_model(encoder: Encoder) -> Any:
    from transformers import PreTrainedModel

    model = getattr(encoder, "model", None)
    if not isinstance(model, PreTrainedModel):
        raise UsageError(
            f"{type(encoder).__name__} is no transformers model, which LoRA needs: train it in full, or choose a "
            "transformers checkpoint"
        )
    return model


def _linear_names(model: nn.Module) -> list[str]:
    """All linear layers but those that nn.MultiheadAttention reads the weights of without calling them."""
    from transformers.pytorch_utils import Conv1D

    fused = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention))
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    return [n for n in linear if not n.startswith(fused)]


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise UsageError("LoRA needs peft: run `pip install 'mmbm[train]'`") from error
    return peft
