"""A BERT-style text encoder (Devlin et al., 1810.04805) with random weights, trained from scratch.

Its layers are those of ModernBERT (Warner et al., 2412.13663): pre-norm, rotary positions and gated feed-forward
layers, which train without long warm-up; every layer sees the whole text. Shapes: `B` batch, `T` tokens, `D` width.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors.torch import save_file

from mmbm_core.encoders.text import TextConfig, TextEncoder
from mmbm_core.errors import UsageError

Count = Annotated[int, Field(ge=1)]

_SPECIALS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_ROPE_BASE = 10_000.0


class BertConfig(BaseModel):
    """Sizes of the transformer and of its vocabulary."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["bert"] = "bert"
    vocab_size: Annotated[int, Field(ge=260)] = 8000
    """Most entries of the tokenizer: 256 bytes, 4 special tokens, and merges of those."""
    max_tokens: Count = 128
    """Longer texts are cut here."""
    width: Count = 256
    """D."""
    layers: Count = 4
    heads: Count = 4
    feed_forward: Count = 2
    """Width of the gated feed-forward layers, in multiples of D."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _check(self) -> "BertConfig":
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of twice the heads ({self.heads})")
        return self


class BertEncoder(TextEncoder):
    """A TextEncoder that comes from no checkpoint folder: it writes its tokenizer itself."""

    def save(self, folder: Path) -> None:
        self.model.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
        weights = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        self.tokenizer.save_pretrained(folder)


def build_bert(config: BertConfig, *, tokenizer: str) -> BertEncoder:
    """A text encoder with random weights; vector (B, D) = mean over tokens.

    Args:
        tokenizer: content of a tokenizer.json with the special tokens `<pad>`, `<s>`, `</s>` and `<unk>`.

    Raises:
        UsageError: the tokenizer lacks a special token or has more entries than `config.vocab_size`.
    """
    from transformers import AutoModel, ModernBertConfig

    wrapped = _wrap(tokenizer, config)
    rope = {"rope_type": "default", "rope_theta": _ROPE_BASE}
    model = AutoModel.from_config(
        ModernBertConfig(
            vocab_size=len(wrapped),
            hidden_size=config.width,
            intermediate_size=config.feed_forward * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=config.max_tokens,
            layer_types=["full_attention"] * config.layers,
            rope_parameters={"full_attention": rope, "sliding_attention": rope},
            embedding_dropout=config.dropout,
            mlp_dropout=config.dropout,
            pad_token_id=wrapped.pad_token_id,
            bos_token_id=wrapped.bos_token_id,
            eos_token_id=wrapped.eos_token_id,
            cls_token_id=wrapped.bos_token_id,
            sep_token_id=wrapped.eos_token_id,
        )
    )
    return BertEncoder(model, tokenizer=wrapped, config=TextConfig(max_tokens=config.max_tokens))


def _wrap(tokenizer: str, config: BertConfig) -> Any:
    """As a transformers tokenizer."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tokenizer)
    lacking = [token for token in _SPECIALS.values() if backend.token_to_id(token) is None]
    if lacking:
        raise UsageError(f"the tokenizer lacks {', '.join(lacking)}: make it with mmbm_core.bpe.train_bpe")
    size = backend.get_vocab_size()
    if size > config.vocab_size:
        raise UsageError(
            f"the tokenizer has {size} entries and bert allows vocab_size {config.vocab_size}: train a smaller one or "
            f"set vocab_size to {size}"
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=config.max_tokens, **_SPECIALS)
