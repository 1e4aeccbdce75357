"""The text encoder from scratch: a plain checkpoint when saved, blind to padding, and that it learns."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from mmbm_core.encoders import build_encoder
from mmbm_core.encoders.bert import BertConfig, build_bert
from mmbm_core.encoders.text import TextEncoder
from mmbm_core.errors import UsageError

TINY = BertConfig(vocab_size=300, max_tokens=32, width=16, layers=2, heads=2)


@pytest.fixture(scope="module")
def bpe() -> str:
    """Byte-level BPE as mmbm_core.bpe.train_bpe makes it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a cat sat on the mat and the dog sat on the cat"] * 5, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer.to_str()


def _encoder(bpe: str) -> TextEncoder:
    torch.manual_seed(0)
    return build_bert(TINY, tokenizer=bpe).eval()


def test_a_row_is_the_same_in_any_batch(bpe: str, texts: list[str], encode: Any, check_encoder: Any) -> None:
    encoder = _encoder(bpe)
    check_encoder(encoder, "text", texts, encode(encoder, "text", texts, budget={"text": 1}))


def test_every_layer_sees_the_whole_text(bpe: str) -> None:
    encoder = _encoder(bpe)
    assert set(encoder.model.config.layer_types) == {"full_attention"}  # type: ignore[union-attr]
    assert encoder.config.max_tokens == 32
    [item] = encoder.prepare("text", ["cat " * 40])
    assert item.cut and item.cost == 32  # type: ignore[union-attr]


def test_saved_as_a_plain_checkpoint(
    bpe: str, tmp_path: Path, texts: list[str], encode: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    encoder = _encoder(bpe)
    encoder.save(tmp_path)
    again = build_encoder(str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "modernbert"
    assert again.space_fingerprint() == encoder.space_fingerprint()
    assert (encode(again, "text", texts) == encode(encoder, "text", texts)).all()
    encoder_again = tmp_path / "again"
    encoder_again.mkdir()
    again.save(encoder_again)
    assert build_encoder(str(encoder_again)).space_fingerprint() == encoder.space_fingerprint()
    assert capfd.readouterr().err == ""


def test_it_learns_the_order_of_two_words(bpe: str) -> None:
    encoder = _encoder(bpe).train()
    texts = [f"{'the ' * (i % 5)}{'cat dog' if i % 2 else 'dog cat'}{' mat' * (i % 3)}" for i in range(30)]
    label = torch.arange(30) % 2
    batch = encoder.collate("text", encoder.prepare("text", texts))  # type: ignore[arg-type]
    head = torch.nn.Linear(encoder.width, 2)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(head(encoder("text", batch).vector), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    encoder.eval()
    assert (head(encoder("text", batch).vector).argmax(1) == label).float().mean() >= 0.95


def test_refused(bpe: str) -> None:
    with pytest.raises(UsageError, match="set vocab_size to 278"):
        build_bert(TINY.model_copy(update={"vocab_size": 270}), tokenizer=bpe)
    with pytest.raises(UsageError, match="lacks </s>"):
        build_bert(TINY, tokenizer=bpe.replace("</s>", "[SEP]"))
    with pytest.raises(ValidationError, match="twice the heads"):
        BertConfig(width=20, heads=4)
