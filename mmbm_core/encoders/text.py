"""Any transformers text model, pooled and prompted as its checkpoint asks.

Honours sentence-transformers folders (modules.json: Transformer, Pooling, Dense, Normalize). Without one the
pooling is the mean over tokens. Shapes: `B` batch, `T` tokens, `D` width.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmbm_core.compress.onnx import ONNX
from mmbm_core.compress.quantize import KERNEL, multiplies_int8, quantize_linears
from mmbm_core.encoders.base import Encoder, EncoderOutput, Item, kernels_dtype
from mmbm_core.encoders.checkpoint import load_model, load_tokenizer
from mmbm_core.encoders.tokens import (
    TokenBatch,
    TokenRules,
    collate_tokens,
    prepare_texts,
    token_budget,
    token_rules,
    tokenizer_fingerprint,
)
from mmbm_core.errors import MediaError, UsageError
from mmbm_core.media import DEFAULT_LIMITS, Limits
from mmbm_core.sample import Modality

Pooling = Literal["mean", "cls", "last", "max"]
_ACTIVATIONS = {c.__name__: c for c in (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid)}
_MOST_TOKENS = 8192
"""Attention over more needs gigabytes for a single text; a checkpoint may ask for them by `max_seq_length`."""


class TextConfig(BaseModel):
    """How token vectors become one vector."""

    model_config = ConfigDict(frozen=True)

    pooling: Pooling = "mean"
    normalize: bool = False
    max_tokens: int = 512
    prompt: str = ""
    """Put before every text, such as `query: `."""
    pool_prompt: bool = True
    """False leaves the prompt's tokens out of the pooling."""


class TextEncoder(Encoder):
    """A transformers encoder or decoder with pooling on top.

    Args:
        model: returns `last_hidden_state` (B, T, D).
        tokenizer: a transformers tokenizer.
        dense: layers that follow the pooling (sentence-transformers' Dense modules).
    """

    modalities = ("text",)
    core_parts = ("model",)

    def __init__(self, model: nn.Module, *, tokenizer: Any, config: TextConfig, dense: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model.eval()
        self.dense = dense
        self._hidden_width = int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self.config = config
        self.tokenizer = tokenizer
        self._prompt_tokens = _count_prompt(tokenizer, config.prompt)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token_id = tokenizer.eos_token_id or 0  # masked, so any id serves

    @property
    def width(self) -> int:
        if self.dense is not None:
            return int([m for m in self.dense.modules() if isinstance(m, nn.Linear)][-1].out_features)
        return self._hidden_width

    def budget(self, modality: Modality) -> int:
        return token_budget(self.device)

    def preprocessing(self) -> dict[str, Any]:
        rules = tokenizer_fingerprint(self.tokenizer)
        return {"kind": "text", **self.config.model_dump(), "dense": str(self.dense), "tokenizer": rules}

    def fast_kernels(self) -> tuple[str, ...]:
        integers = (KERNEL,) if self.device.type == "cpu" and multiplies_int8() else ()
        return (*integers, *super().fast_kernels())

    def accelerate(self, kernels: str) -> None:
        if kernels == ONNX:
            super().accelerate(kernels)
            return
        self.kernels = kernels
        if kernels == KERNEL:
            quantize_linears(self.model)
            return
        self.model.to(kernels_dtype(kernels))  # the dense layers after the pooling stay float32

    def save(self, folder: Path) -> None:
        super().save(folder)
        layers: list[Any] = list(self.dense) if self.dense is not None else []  # type: ignore[call-overload]
        for module, layer in zip(_dense_folders(folder), layers, strict=True):
            save_file(layer[0].state_dict(prefix="linear."), module / "model.safetensors")

    def prepare(
        self, modality: Modality, values: Sequence[str], *, limits: Limits = DEFAULT_LIMITS
    ) -> list[Item | MediaError]:
        """Tokenize; cost is the number of tokens."""
        return prepare_texts(
            self.tokenizer, values, max_tokens=self.config.max_tokens, limits=limits, prompt=self.config.prompt
        )

    def collate(self, modality: Modality, items: Sequence[Item]) -> TokenBatch:
        return collate_tokens(items, pad_id=self.tokenizer.pad_token_id, device=self.device)

    def token_rules(self) -> TokenRules:
        """How ids of texts are put together."""
        return token_rules(self.tokenizer, max_tokens=self.config.max_tokens, prompt_tokens=self._prompt_tokens)

    def forward(self, modality: Modality, batch: TokenBatch) -> EncoderOutput:
        tokens = self.run_core(batch.input_ids, batch.mask)
        mask = batch.mask
        if self._prompt_tokens and not self.config.pool_prompt:
            mask = mask * (torch.arange(mask.shape[1], device=mask.device) >= self._prompt_tokens)
            mask = torch.where(mask.any(1, keepdim=True), mask, batch.mask)  # nothing after the prompt: pool the prompt
        vector = pool(tokens, mask, self.config.pooling)
        if self.dense is not None:
            vector = self.dense(vector)
        if self.config.normalize:
            vector = nn.functional.normalize(vector, dim=-1)
        return EncoderOutput(tokens, batch.mask.bool(), vector)

    def core(self, input_ids: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """ids (B, T), mask (B, T) -> (B, T, D)"""
        return self.model(input_ids=input_ids, attention_mask=mask).last_hidden_state  # type: ignore[no-any-return]

    def noise(self, lengths: Sequence[int], *, generator: torch.Generator) -> list[Item]:
        count = int(self.model.config.vocab_size)  # type: ignore[union-attr, arg-type]
        sizes = [min(length, self.config.max_tokens) for length in lengths]
        return [Item(torch.randint(count, (size,), generator=generator).tolist(), cost=size) for size in sizes]


def pool(tokens: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """Pool (B, T, D) over the tokens whose `mask` (B, T) is 1 to (B, D), in float32."""
    rows = torch.arange(len(tokens), device=tokens.device)
    if how == "cls":
        return tokens[rows, mask.argmax(1)].float()
    if how == "last":
        return tokens[rows, mask.shape[1] - 1 - mask.flip(1).argmax(1)].float()
    if how == "max":
        return tokens.float().masked_fill(mask[..., None] == 0, -torch.inf).amax(1)
    return (tokens * mask[..., None].to(tokens.dtype)).sum(1, dtype=torch.float32) / mask.sum(1, keepdim=True)


def build_text(path: str, *, pooling: str | None = None, prompt: str | None = None) -> TextEncoder:
    """Load a checkpoint folder.

    Args:
        pooling: overrides the checkpoint's pooling.
        prompt: the name of one of the checkpoint's prompts (`query`, `passage`) or the text to put before each value;
            an empty text turns the checkpoint's default prompt off.

    Raises:
        UsageError: a file is missing, or a sentence-transformers module or pooling is not known here.
    """
    from transformers import AutoModel, AutoModelForTextEncoding

    folder = Path(path)
    model_type = (_read_json(folder / "config.json") or {}).get("model_type", "")
    t5_like = "t5" in model_type  # their checkpoints may hold the encoder alone
    model, _ = load_model(path, loader=AutoModelForTextEncoding if t5_like else AutoModel)
    whole = model
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    model.config.use_cache = False  # decoders would keep keys and values that nobody reads
    tokenizer = load_tokenizer(path)
    config, dense = _read_layout(folder, model, tokenizer)
    if pooling is not None:
        if pooling not in get_args(Pooling):
            raise UsageError(f"pooling {pooling!r} is unknown; allowed: {', '.join(get_args(Pooling))}")
        config["pooling"] = pooling
    prompts = _read_json(folder / "config_sentence_transformers.json") or {}
    name = prompt if prompt is not None else prompts.get("default_prompt_name")
    if name:
        config["prompt"] = (prompts.get("prompts") or {}).get(name, name)
    encoder = TextEncoder(model, tokenizer=tokenizer, config=TextConfig(**config), dense=dense)
    encoder.whole = (whole,)
    return encoder


def _count_prompt(tokenizer: Any, prompt: str) -> int:
    """Tokens of the prompt where a text follows: a special token at its end (SEP, EOS) comes after that text."""
    if not prompt:
        return 0
    ids = tokenizer(prompt)["input_ids"]
    return len(ids) - (ids[-1] in tokenizer.all_special_ids)


def _read_layout(folder: Path, model: Any, tokenizer: Any) -> tuple[dict[str, Any], nn.Module | None]:
    """The sentence-transformers modules of a checkpoint as TextConfig fields and Dense layers."""
    settings = _read_json(folder / "sentence_bert_config.json") or {}
    if settings.get("do_lower_case"):
        _lower_case(tokenizer)
    config: dict[str, Any] = {"max_tokens": _max_tokens(model, tokenizer, settings.get("max_seq_length"))}
    layers: list[nn.Module] = []
    for module in _read_json(folder / "modules.json") or []:
        kind = module["type"].rsplit(".", 1)[-1]
        if kind == "Pooling":
            config |= _read_pooling(_read_json(folder / module["path"] / "config.json") or {})
        elif kind == "Dense" and not config.get("normalize"):
            layers.append(_read_dense(folder / module["path"]))
        elif kind == "Normalize":
            config["normalize"] = True
        elif kind not in ("Transformer", "Dropout"):
            raise UsageError(
                f"sentence-transformers module {kind} of {folder} is not supported here; allowed: Transformer, "
                "Pooling, Dense, then Normalize"
            )
    return config, nn.Sequential(*layers) if layers else None


def _max_tokens(model: Any, tokenizer: Any, asked: int | None) -> int:
    """The checkpoint's `max_seq_length`, else the tokenizer's limit; never more than there are positions."""
    positions = getattr(model.config, "max_position_embeddings", None) or 0
    if positions <= 0:  # relative positions: no limit of their own
        positions = asked or min(tokenizer.model_max_length, 512)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions = min(positions, module.num_embeddings - module.padding_idx - 1)  # RoBERTa counts from there
    return int(min(positions, asked or min(tokenizer.model_max_length, _MOST_TOKENS)))


def _lower_case(tokenizer: Any) -> None:
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *filter(None, [backend.normalizer])])


def _read_pooling(settings: dict[str, Any]) -> dict[str, Any]:
    modes = settings.get("pooling_mode") or [
        k.removeprefix("pooling_mode_") for k, v in settings.items() if k.startswith("pooling_mode_") and v is True
    ]
    modes = [modes] if isinstance(modes, str) else list(modes) or ["mean"]
    short = [mode.removesuffix("_token").removesuffix("_tokens").removesuffix("token") for mode in modes]
    if len(short) != 1 or short[0] not in get_args(Pooling):
        raise UsageError(f"pooling {', '.join(modes)} is not supported; allowed: one of cls, mean, max, lasttoken")
    return {"pooling": short[0], "pool_prompt": settings.get("include_prompt", True)}


def _dense_folders(folder: Path) -> list[Path]:
    modules = _read_json(folder / "modules.json") or []
    return [folder / module["path"] for module in modules if module["type"].endswith(".Dense")]


def _read_dense(folder: Path) -> nn.Module:
    settings = _read_json(folder / "config.json") or {}
    activation = settings.get("activation_function", "Tanh").rsplit(".", 1)[-1]
    on_tokens = settings.get("module_input_name", "sentence_embedding") != "sentence_embedding"
    if on_tokens or settings.get("use_residual") or activation not in _ACTIVATIONS:
        raise UsageError(
            f"Dense of {folder} is not supported: on sentence vectors, without residual, and one of these "
            f"activations is allowed: {', '.join(_ACTIVATIONS)}"
        )
    linear = nn.Linear(settings["in_features"], settings["out_features"], bias=settings.get("bias", True))
    file = folder / "model.safetensors"
    if not file.is_file():
        raise UsageError(
            f"Dense of {folder} lacks model.safetensors: save the model with a current sentence-transformers"
        )
    linear.load_state_dict({k.removeprefix("linear."): v for k, v in load_file(file).items()})
    return nn.Sequential(linear, _ACTIVATIONS[activation]())


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None
