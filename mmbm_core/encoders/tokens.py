"""Text to token ids and padded batches, shared by every encoder that reads text.

Shapes: `B` batch, `T` tokens.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmbm_core.encoders.base import Item
from mmbm_core.errors import MediaError
from mmbm_core.media import Limits, text_error

_CHARS_PER_TOKEN = 200
"""A text is first cut at this many characters per token the model takes, so that megabytes need no tokenizing."""


class TokenBatch(NamedTuple):
    """Padded ids of a batch."""

    input_ids: Tensor
    """(B, T) int64."""
    mask: Tensor
    """(B, T) int64: 1 for a real token."""


class TokenRules(NamedTuple):
    """What stands around the tokens of a text, and how many there may be."""

    start: int
    """Ids before the text: special ones, and a prompt's."""
    end: int
    """Special ids after it."""
    most: int
    """All ids of a text; longer ones are cut, before the end."""
    least: int = 0
    """Ids that each text is padded to."""

    def join(self, first: Sequence[int], second: Sequence[int]) -> list[int]:
        """Ids of two texts as those of one: one start, the tokens of both, one end."""
        stop = len(second) - self.end
        body = [*first[: len(first) - self.end], *second[self.start : stop]]
        return [*body[: self.most - self.end], *second[stop:]]


def token_rules(tokenizer: Any, *, max_tokens: int, prompt_tokens: int = 0, padded_to: int = 0) -> TokenRules:
    """What a transformers tokenizer puts around a text: what an empty one consists of, parted where another begins.

    Args:
        prompt_tokens: ids before the text where there is a prompt, the special ones among them.
        padded_to: ids that each text is padded to.
    """
    around, some = tokenizer("")["input_ids"], tokenizer("a")["input_ids"]
    start = next((i for i, (a, b) in enumerate(zip(around, some, strict=False)) if a != b), len(around))
    return TokenRules(prompt_tokens or start, len(around) - start, max_tokens, padded_to)


def token_budget(device: torch.device) -> int:
    """Tokens, padding counted, of a batch that uses the device well."""
    return 1024 if device.type == "cpu" else 65536


def prepare_texts(
    tokenizer: Any, values: Sequence[str], *, max_tokens: int, limits: Limits, prompt: str = ""
) -> list[Item | MediaError]:
    """Ids of each text after `prompt`, cut at `max_tokens`; cost is their number.

    Args:
        tokenizer: a transformers tokenizer.
    """
    prepared: list[Item | MediaError | None] = [text_error(value, limits=limits) for value in values]
    good = [i for i, error in enumerate(prepared) if error is None]
    most_chars = max_tokens * _CHARS_PER_TOKEN
    items = _tokenize(tokenizer, [prompt + values[i][:most_chars] for i in good], max_tokens)
    for i, item in zip(good, items, strict=True):
        if len(values[i]) > most_chars and not item.cut:
            item = _tokenize(tokenizer, [prompt + values[i]], max_tokens)[0]
        prepared[i] = item
    return prepared  # type: ignore[return-value]


def collate_tokens(
    items: Sequence[Item], *, pad_id: int, device: torch.device, num_tokens: int | None = None, left: bool = False
) -> TokenBatch:
    """Pad to the longest item.

    Args:
        num_tokens: pad to this many instead.
        left: put the padding before the tokens.
    """
    lengths = torch.tensor([len(item.data) for item in items])
    mask = torch.arange(num_tokens or int(lengths.max())) < lengths[:, None]
    if left:
        mask = mask.flip(1)
    input_ids = torch.full(mask.shape, pad_id, dtype=torch.int64)
    input_ids[mask] = torch.tensor([token for item in items for token in item.data], dtype=torch.int64)
    return TokenBatch(input_ids.to(device), mask.long().to(device))


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash of rules and vocabulary. Truncation and padding are left out: they are those of the last call."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    rules = {k: v for k, v in rules.items() if k not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def _tokenize(tokenizer: Any, texts: list[str], max_tokens: int) -> list[Item]:
    if not texts:
        return []
    options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    encoded = tokenizer(texts, truncation=True, max_length=max_tokens, **options)
    if encoded.encodings is not None:
        cut = [bool(one.overflowing) for one in encoded.encodings]
    else:  # a tokenizer in Python does not tell
        cut = [len(ids) > max_tokens for ids in tokenizer(texts, **options)["input_ids"]]
    return [Item(ids, cost=len(ids), cut=c) for ids, c in zip(encoded["input_ids"], cut, strict=True)]
