"""The decoder of a transformers Seq2Seq model, from scratch or of a checkpoint, that attends to any memory.

Shapes: `B` rows, `T` target tokens, `T'` tokens after fusion, `D` width, `V` vocabulary.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmbm_core.bpe import END, MIN_VOCAB, PAD, START, UNKNOWN, load_bpe
from mmbm_core.encoders.checkpoint import load_model, load_tokenizer, locate
from mmbm_core.encoders.tokens import token_budget
from mmbm_core.errors import UsageError

TOKENIZER_FILE = "tokenizer.json"
_TOKEN_RULES = (
    "decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens",
)  # fmt: skip
"""What of a checkpoint's generation settings belongs to its vocabulary; the rest (lengths, beams) is the task's."""


class DecoderConfig(BaseModel):
    """A pre-norm Transformer decoder (mBART's) of the model's width D, trained from scratch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: Annotated[int, Field(ge=1)] = 2
    heads: Annotated[int, Field(ge=1)] = 4
    feed_forward: Annotated[int, Field(ge=1)] = 4
    """Width of the feed-forward layers, as a multiple of D."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    vocab_size: Annotated[int, Field(ge=MIN_VOCAB)] = 8192
    """Tokens at most, of the BPE learnt from the target column."""
    max_tokens: Annotated[int, Field(ge=2)] = 64
    """Of a target or a generated text, its end among them; longer targets are cut."""


class TextDecoder(nn.Module):
    """The decoder of a transformers Seq2Seq model with its tokenizer; what it attends to comes from elsewhere.

    Args:
        checkpoint: folder or Hugging Face id; then only `max_tokens` of the config holds.
        width: D.
        assets: what `assets` of such a decoder was, or `tokenizer.json` alone for a new one from scratch. None loads
            the checkpoint.

    Raises:
        UsageError: no tokenizer, or a decoder that does not fit the width or `max_tokens`.
    """

    assets: dict[str, bytes]
    """Files, by name, that build this decoder again, with random weights."""

    def __init__(
        self, config: DecoderConfig, *, checkpoint: str | None, width: int, assets: Mapping[str, bytes] | None
    ) -> None:
        super().__init__()
        self.max_tokens = config.max_tokens
        if checkpoint is None:
            self.model, self.tokenizer, self.assets = _from_scratch(config, width, assets)
        else:
            self.model, self.tokenizer, self.assets = _from_checkpoint(checkpoint, width, assets)
            _check_fit(self.model, self.tokenizer, checkpoint, config.max_tokens)
        _drop_encoder(self.model)
        self.pad, self.end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        self._aliases = _aliases(self)
        self.register_state_dict_post_hook(_forget_aliases)
        self.register_load_state_dict_pre_hook(_restore_aliases)

    @property
    def budget(self) -> int:
        """Target tokens, padding counted, that are decoded at once."""
        return token_budget(self.model.device)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(B, max_tokens) int64: each text's tokens up to its end, then padding."""
        tokens = np.full((len(texts), self.max_tokens), self.pad, np.int64)
        options = {"truncation": True, "max_length": self.max_tokens}
        encoded = self.tokenizer(text_target=list(texts), **options)["input_ids"] if len(texts) else []
        for row, ids in enumerate(encoded):
            ids = ids if self.end in ids else [*ids[: self.max_tokens - 1], self.end]
            tokens[row, : len(ids)] = ids
        return tokens

    def text(self, ids: Sequence[int]) -> str:
        """What tokens say, without the special ones."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def forward(self, memory: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """(B, T, V) float32: scores of each of `labels` (B, T), given those before it and memory (B, T', D)."""
        memory, mask = self.attended(memory, mask)
        start = torch.full_like(labels[:, :1], self.model.generation_config.decoder_start_token_id)
        shifted = torch.cat([start, labels[:, :-1]], dim=1)
        output = self.model(encoder_outputs=(memory,), attention_mask=mask, decoder_input_ids=shifted, use_cache=False)
        return output.logits.float()  # type: ignore[no-any-return]

    def attended(self, memory: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Memory (B, T', D) and mask (B, T') as the model takes them, without what is padding in every row.

        Zeros where nothing is real; a row without any real token attends to those: softmax over nothing is NaN.
        """
        used = int(mask.any(0).nonzero().max()) + 1 if mask.any() else 1
        memory, mask = memory[:, :used], mask[:, :used]
        memory = torch.where(mask[..., None], memory, 0.0).to(self.model.dtype)
        return memory, (mask | ~mask.any(1, keepdim=True)).long()


_Built = tuple[Any, Any, dict[str, bytes]]
"""A transformers model and tokenizer, and the assets that rebuild them."""


def _from_scratch(config: DecoderConfig, width: int, assets: Mapping[str, bytes] | None) -> _Built:
    from tokenizers.processors import TemplateProcessing
    from transformers import MBartConfig, MBartForConditionalGeneration, PreTrainedTokenizerFast

    if assets is None or TOKENIZER_FILE not in assets:
        raise UsageError(f"a decoder from scratch needs its {TOKENIZER_FILE}: learn one by train_bpe from the targets")
    if width % config.heads:
        raise UsageError(f"decoder.heads is {config.heads}; allowed: what divides the width {width}")
    bpe = load_bpe(assets[TOKENIZER_FILE].decode())
    bpe.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, bpe.token_to_id(END))])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, bos_token=START, eos_token=END, unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False, split_special_tokens=True,
    )  # fmt: skip
    architecture = MBartConfig(
        vocab_size=len(tokenizer), d_model=width, max_position_embeddings=config.max_tokens, encoder_layers=0,
        decoder_layers=config.layers, decoder_attention_heads=config.heads,
        decoder_ffn_dim=config.feed_forward * width, dropout=config.dropout,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id, forced_eos_token_id=None,
    )  # fmt: skip
    return MBartForConditionalGeneration(architecture), tokenizer, {TOKENIZER_FILE: assets[TOKENIZER_FILE]}


def _from_checkpoint(checkpoint: str, width: int, assets: Mapping[str, bytes] | None) -> _Built:
    from transformers import AutoConfig, AutoModelForSeq2SeqLM, GenerationConfig

    if assets is None:
        folder = locate(checkpoint, presets=())
        _check_kind(AutoConfig.from_pretrained(folder, local_files_only=True), checkpoint, width)
        model, _ = load_model(folder, loader=AutoModelForSeq2SeqLM, whole=True)
        rules = {name: getattr(model.generation_config, name) for name in _TOKEN_RULES}
        if rules["decoder_start_token_id"] is None:  # transformers' own fallback
            rules["decoder_start_token_id"] = rules["bos_token_id"]
        model.generation_config = GenerationConfig(**rules)
        tokenizer = load_tokenizer(folder)
        return model, tokenizer, _files_of(model.config, model.generation_config, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in assets.items():
            Path(folder, Path(name).name).write_bytes(content)
        model = AutoModelForSeq2SeqLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        return model, load_tokenizer(folder), dict(assets)


def _files_of(*parts: Any) -> dict[str, bytes]:
    """What parts of transformers save, by file name."""
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            part.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}


def _check_kind(found: Any, checkpoint: str, width: int) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as KNOWN

    if found.model_type not in KNOWN or not found.is_encoder_decoder or not hasattr(found, "d_model"):
        raise UsageError(
            f"{checkpoint} is a {found.model_type}; allowed: a text Seq2Seq model (BART, T5, Marian, mBART)"
        )
    if found.d_model != width:
        raise UsageError(
            f"the decoder of {checkpoint} is {found.d_model} wide, the model {width}: set width to {found.d_model}, or "
            f"give a checkpoint that is {width} wide"
        )


def _check_fit(model: Any, tokenizer: Any, checkpoint: str, max_tokens: int) -> None:
    if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
        raise UsageError(f"the tokenizer of {checkpoint} lacks pad_token or eos_token: add it to tokenizer_config.json")
    if model.generation_config.decoder_start_token_id is None:
        raise UsageError(f"{checkpoint} lacks decoder_start_token_id: add it to its generation_config.json")
    positions = getattr(model.config, "max_position_embeddings", max_tokens)
    if max_tokens > positions:
        raise UsageError(f"decoder.max_tokens is {max_tokens}; allowed: up to {positions}, as {checkpoint} has it")


class _NoEncoder(nn.Module):
    """Stands where a Seq2Seq model had its encoder; `generate` asks for its name of the input."""

    main_input_name = "input_ids"


def _drop_encoder(model: Any) -> None:
    encoder = model.get_encoder()
    name = next(name for name, module in model.named_modules() if module is encoder)
    model.set_submodule(name, _NoEncoder())


def _aliases(module: nn.Module) -> dict[str, str]:
    """Names of tied weights (input and output embeddings), each with the first name of the same weight."""
    first: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        first.setdefault(id(parameter), name)
    return {
        name: first[id(parameter)]
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if first[id(parameter)] != name
    }


def _forget_aliases(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """A tied weight is saved once."""
    for name in module._aliases:  # type: ignore[union-attr]
        state.pop(prefix + str(name), None)


def _restore_aliases(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, first in module._aliases.items():  # type: ignore[union-attr, operator]
        if prefix + first in state:
            state[prefix + name] = state[prefix + first]
