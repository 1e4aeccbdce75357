"""Tiny seeded checkpoints, in the form that transformers saves: they load in milliseconds."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

_WORDS = ["a red disc beside the blue square", "seven green rings under one yellow star", "text number with words"]
_WORDS += ["0123456789 1234567890 abcdefghijklmnopqrstuvwxyz zabcdefghijklmnopqrstuvwxy"]  # any word has pieces


def save_text_model(folder: Path, *, seed: int = 0) -> str:
    """A BERT 32 wide."""
    config = BertConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=64, max_position_embeddings=64)  # fmt: skip
    _save(BertModel(config), folder, seed)
    return str(folder)


def save_clip(folder: Path) -> str:
    """A CLIP with a shared space 16 wide."""
    tower: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
    }  # fmt: skip
    text = {**tower, "vocab_size": 300, "max_position_embeddings": 16, "eos_token_id": 2}
    vision = {**tower, "image_size": 32, "patch_size": 16}
    _save(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)), folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return str(folder)


def _save(model: Any, folder: Path, seed: int = 0) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3)
    model.eval().save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    tokenizer.train_from_iterator(
        _WORDS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", eos_token="[SEP]",
        model_max_length=64,
    ).save_pretrained(folder)  # fmt: skip
