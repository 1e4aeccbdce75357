"""Batches for the model: values of about equal length are encoded together, and each is what it is alone."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from mmbm_core.augment import TextAugment
from mmbm_core.bpe import train_bpe
from mmbm_core.encoders.bert import BertConfig, build_bert
from mmbm_core.encoders.image_cnn import ImageCnnConfig
from mmbm_core.encoders.scratch import build_scratch
from mmbm_core.media import DEFAULT_LIMITS
from mmbm_core.model import Model
from mmbm_core.rows import Encoding
from mmbm_core.spec import ModelSpec
from tests.samples import image_file
from workers.training.batches import BatchMaker, Columns

WORDS = "a red disc lies left of the blue square and three green rings".split()
CPU = torch.device("cpu")


def maker(modality: str, encoder: torch.nn.Module) -> BatchMaker:
    encoding = Encoding(column="value", modality=modality, output="value")  # type: ignore[arg-type]
    columns = Columns(cells=(encoding,), vectors={}, tokens={})
    return BatchMaker(columns, {modality: encoder}, {}, DEFAULT_LIMITS, CPU)  # type: ignore[dict-item]


def table(cells: list[list[object] | None]) -> pa.Table:
    return pa.table({"id": [str(i) for i in range(len(cells))], "value": cells})


@pytest.mark.parametrize("tokens", [1, 2, "all"])
def test_texts_of_all_lengths_are_what_they_are_alone(tokens: int | str) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=n)) for n in rng.integers(1, 60, 50)]
    torch.manual_seed(0)
    config = BertConfig(width=16, layers=1, heads=2, max_tokens=200, vocab_size=300)
    encoder = build_bert(config, tokenizer=train_bpe(texts, vocab_size=300))
    task = {"kind": "recognition", "inputs": {"text": "value"}, "label": "label", "labels": ["a", "b"]}
    spec = ModelSpec.model_validate(
        {"encoders": {"text": {"model": {"kind": "bert"}, "training": "full", "tokens": tokens}}, "tasks": {"t": task}}
    )
    model = Model(spec, widths={"text": 16}, encoders={"text": encoder}).eval()
    cells: list[list[object] | None] = [[text] for text in texts]
    cells[3] = None
    batch = maker("text", encoder).make(table(cells)).batch
    values = batch.values["text", "value"]
    assert len(values.data) > 1 and sum(len(part.mask) for part in values.data) == len(texts) - 1
    used = sum(part.mask.sum().item() for part in values.data)
    assert used > 0.8 * sum(part.mask.numel() for part in values.data)  # hardly any padding
    with torch.inference_mode():
        found = model.encode_batch(batch)["text", "value"]
        assert found.present.tolist() == [i != 3 for i in range(len(texts))]
        for row in (0, 1, 17, 49):
            alone = model.encode_batch(maker("text", encoder).make(table([cells[row]])).batch)["text", "value"]
            expected = alone.tokens[0][alone.mask[0]]
            torch.testing.assert_close(found.tokens[row][found.mask[row]], expected, atol=1e-5, rtol=1e-4)


def test_batch_norm_sees_all_values_at_once() -> None:
    encoder = build_scratch(ImageCnnConfig(size_px=32, widths=(4, 4, 4)))
    assert encoder.budget("image") < 3000 * 32 * 32
    cells: list[list[object] | None] = [[image_file("PNG", i % 5, width=32, height=32)] for i in range(3000)]
    parts = maker("image", encoder).make(table(cells)).batch.values["image", "value"].data
    assert [len(part) for part in parts] == [3000]


def test_texts_are_augmented_by_epoch_and_row() -> None:
    texts = [" ".join(np.random.default_rng(i).choice(WORDS, size=12)) for i in range(30)]
    encoder = build_bert(
        BertConfig(width=16, layers=1, heads=2, max_tokens=200, vocab_size=300),
        tokenizer=train_bpe(texts, vocab_size=300),
    )
    encoder.augment = TextAugment(drop=0.2, swap=0.2, typos=0.2)
    make = maker("text", encoder)
    cells: list[list[object] | None] = [[text] for text in texts]
    cells[3] = None
    whole = table(cells)

    def said(part: pa.Table, *seed: int) -> dict[int, str]:
        values = next(iter(make([part], seeds=seed)) if seed else iter(make([part]))).values["text", "value"]
        ids = [row for tokens in values.data for row in tokens.input_ids]
        rows = values.rows.tolist()
        decoded = encoder.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return {int(part["id"][row].as_py()): text for row, text in zip(rows, decoded, strict=True)}

    plain, first, again, next_epoch = said(whole), said(whole, 7), said(whole, 7), said(whole, 8)
    assert plain == {i: text for i, text in enumerate(texts) if i != 3}
    assert first == again
    assert sum(first[i] != plain[i] for i in plain) > 20 and sum(first[i] != next_epoch[i] for i in plain) > 20
    part = said(whole.slice(10, 5), 7)
    assert part == {i: first[i] for i in range(10, 15)}  # whatever the batch
