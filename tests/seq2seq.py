"""Small Seq2Seq tasks and checkpoints, and views for them.

Shapes: `B` rows, `T'` memory tokens, `D` width.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from mmbm_core.bpe import load_bpe, train_bpe
from mmbm_core.fusion.base import Fused
from mmbm_core.tasks.base import Representation
from mmbm_core.tasks.seq2seq import DecoderConfig, Seq2SeqConfig, Seq2SeqTask

WIDTH = 16
TEXTS = [
    "the red disc", "a blue square", "seven green rings", "one yellow star",
    "no", "the red star and the blue ring", "zażółć 🙂 naïve", "two black discs beside a white square",
]  # fmt: skip
BPE = train_bpe(TEXTS * 3, vocab_size=300)
SMALL: dict[str, Any] = {"layers": 2, "heads": 2, "feed_forward": 2, "vocab_size": 300, "max_tokens": 24}


def make_config(**changes: Any) -> Seq2SeqConfig:
    decoder = DecoderConfig(**{**SMALL, "dropout": 0.0, **changes.pop("decoder", {})})
    fields: dict[str, Any] = {"kind": "translation", "inputs": {"text": "source"}, "target": "target"}
    return Seq2SeqConfig(**{**fields, "decoder": decoder, **changes})


def make_task(seed: int = 0, **changes: Any) -> Seq2SeqTask:
    """A task with weights large enough that what it says depends on what it attends to."""
    torch.manual_seed(seed)
    task = Seq2SeqTask(
        make_config(**changes), modalities=("text",), width=WIDTH, assets={"tokenizer.json": BPE.encode()}
    ).eval()
    with torch.no_grad():
        for weight in task.decoder.parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.4)
    return task


def make_view(num_rows: int, *, seed: int = 0, num_tokens: int = 3) -> Representation:
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randn(num_rows, num_tokens, WIDTH, generator=random)
    mask = torch.ones(num_rows, num_tokens, dtype=torch.bool)
    return represent(tokens, mask)


def represent(tokens: Tensor, mask: Tensor) -> Representation:
    return Representation(Fused(tokens, mask, tokens.mean(1)), {"text": tokens[:, 0]}, mask.any(1, keepdim=True))


def take_rows(view: Representation, rows: list[int]) -> Representation:
    return represent(view.fused.tokens[rows], view.fused.mask[rows])


def make_targets(task: Seq2SeqTask, texts: list[Any]) -> dict[str, Tensor]:
    arrays = task.encode_targets({"target": texts}, [str(i) for i in range(len(texts))])
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def fit_task(texts: list[str], **changes: Any) -> Seq2SeqTask:
    """Trained until it says each text to its row of `_view`."""
    torch.manual_seed(0)
    assets = {"tokenizer.json": BPE.encode()}
    task = Seq2SeqTask(make_config(**changes), modalities=("text",), width=WIDTH, assets=assets)
    view, targets = make_view(len(texts)), make_targets(task, texts)
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = task({"inputs": view}, targets).loss
        loss.backward()
        optimizer.step()
        if loss.item() < 0.02:
            break
    return task.eval()


def save_checkpoint(model: Any, folder: Path, **config: Any) -> str:
    """A checkpoint whose tokenizer puts the special tokens where BART's and T5's do."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(0, 2.0 if "encoder_attn" in name or "EncDec" in name else 0.4)
    model.eval().save_pretrained(folder)
    bpe = load_bpe(BPE)
    from tokenizers.processors import TemplateProcessing

    template = "<s> $A </s>" if isinstance(model, BartForConditionalGeneration) else "$A </s>"
    bpe.post_processor = TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    specials = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=bpe, **specials).save_pretrained(folder)
    if config:  # as checkpoints of years ago have it: generation settings among the architecture's
        (folder / "generation_config.json").unlink()
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return str(folder)


def save_bart(folder: Path) -> str:
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=300, d_model=WIDTH, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
    )  # fmt: skip
    legacy = {"num_beams": 2, "no_repeat_ngram_size": 1, "min_length": 9, "forced_bos_token_id": 1}
    return save_checkpoint(BartForConditionalGeneration(config), folder, **legacy)


def save_t5(folder: Path) -> str:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=300, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=2, num_heads=2,
        pad_token_id=0, eos_token_id=2, decoder_start_token_id=0,
    )  # fmt: skip
    return save_checkpoint(T5ForConditionalGeneration(config), folder)


def _architecture() -> dict[str, Any]:
    """Of BART's kin."""
    sizes = {"d_model": WIDTH, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}  # fmt: skip
    tokens = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return {**sizes, **tokens, "max_position_embeddings": 32, "decoder_start_token_id": 2}


def save_marian(folder: Path) -> str:
    torch.manual_seed(0)
    return save_checkpoint(MarianMTModel(MarianConfig(**_architecture(), bad_words_ids=[[5]])), folder)


def save_m2m(folder: Path) -> str:
    torch.manual_seed(0)
    return save_checkpoint(M2M100ForConditionalGeneration(M2M100Config(**_architecture())), folder)


def checkpoint_config(folder: str, **changes: Any) -> Seq2SeqConfig:
    return Seq2SeqConfig(kind="translation", inputs={"text": "source"}, target="target", checkpoint=folder,
                         **{"decoder": DecoderConfig(max_tokens=24), **changes})  # fmt: skip


def task_of_checkpoint(folder: str, **changes: Any) -> Seq2SeqTask:
    return Seq2SeqTask(checkpoint_config(folder, **changes), modalities=("text",), width=WIDTH).eval()
