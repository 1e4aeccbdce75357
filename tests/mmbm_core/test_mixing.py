"""Image-text pairs mixed in training: pixels and token ids by MixGen's definition, the same rows of both."""

from typing import Any

import numpy as np
import pytest
import torch

from mmbm_core.augment.cross import Pairs, regroup
from mmbm_core.encoders import build_encoder
from mmbm_core.encoders.image_cnn import ImageCnnConfig, ImageCnnEncoder
from mmbm_core.encoders.word2vec import Word2VecEncoder, WordVectors
from mmbm_core.model import Batch, Model, Values
from mmbm_core.spec import ModelSpec
from tests.training import COLORS, color_png

VIEW = {"image": "photo", "text": "said"}
ROWS = 12
NO_TEXT, NO_IMAGE = 3, 7
SAID = {row: f"a {list(COLORS)[row % 3]} number {row}" + " with words" * (row % 4) for row in range(ROWS)}


def make(text_model: str, *, mixgen: float = 0.4, kind: str = "siglip", text: str = "full") -> Model:
    torch.manual_seed(0)
    image = ImageCnnConfig(size_px=16, widths=(8, 16), depths=(0, 0))
    task = {"kind": "align", "inputs": VIEW, "loss": {"kind": kind}, "mix": {"mixgen": mixgen}}
    encoders = {"text": build_encoder(text_model), "image": ImageCnnEncoder(image)}
    configs = {"text": {"model": text_model, "training": text}, "image": {"model": image, "training": "full"}}
    spec = ModelSpec.model_validate({"encoders": configs, "width": 16, "tasks": {"pair": task}})
    widths = {m: e.width for m, e in encoders.items()}
    return Model(spec, widths=widths, encoders=encoders)  # type: ignore[arg-type]


def batch(model: Model) -> Batch:
    """Rows of which one lacks its text and one its image; values come in parts and in orders of their own."""
    images: Any = model.encoders["image"]
    texts: Any = model.encoders["text"]
    seen = [row for row in range(ROWS) if row != NO_IMAGE]
    said = [row for row in reversed(range(ROWS)) if row != NO_TEXT]
    pictures = images.collate("image", images.prepare("image", [color_png(list(COLORS)[r % 3], r) for r in seen]))
    items = texts.prepare("text", [SAID[row] for row in said])
    values = {
        ("image", "photo"): Values(torch.tensor(seen), pictures.split([5, 6])),
        ("text", "said"): Values(torch.tensor(said), [texts.collate("text", part) for part in (items[:4], items[4:])]),
    }
    group = torch.tensor([row if row != 9 else 0 for row in range(ROWS)])  # rows 0 and 9 are of one photograph
    return Batch([str(row) for row in range(ROWS)], values, {"pair": {"group": group}})  # type: ignore[arg-type]


def pixels(made: Batch) -> dict[int, torch.Tensor]:
    rows, parts = made.values["image", "photo"]
    return dict(zip(rows.tolist(), torch.cat(list(parts)).float(), strict=True))


def ids(made: Batch) -> dict[int, list[int]]:
    rows, parts = made.values["text", "said"]
    found = [ids[mask.bool()].tolist() for part in parts for ids, mask in zip(*part, strict=True)]
    return dict(zip(rows.tolist(), found, strict=True))


def test_the_same_rows_of_both_are_mixed(text_model: str) -> None:
    model = make(text_model)
    made = batch(model)
    torch.manual_seed(1)
    changed = model.augment(made)
    before, after, texts, joined = pixels(made), pixels(changed), ids(made), ids(changed)
    replaced = [row for row in texts if joined[row] != texts[row]]
    assert len(replaced) == 4  # of ten that have both
    assert replaced == [row for row in texts if row in before and not torch.equal(after[row], before[row])]
    tokenizer: Any = model.encoders["text"].tokenizer
    partners = []
    for row in replaced:
        (partner,) = [p for p in texts if joined[row] == [*texts[row][:-1], *texts[p][1:]] and p in before
                      and torch.allclose(after[row], 0.5 * before[row] + 0.5 * before[p])]  # fmt: skip
        partners.append(partner)
        plain = tokenizer(f"{SAID[row]} {SAID[partner]}")["input_ids"]
        assert joined[row] == plain and plain.count(plain[0]) == plain.count(plain[-1]) == 1
    assert not {*partners, NO_TEXT, NO_IMAGE} & set(replaced) and len(set(partners)) == 4
    old, new = made.targets["pair"]["group"], changed.targets["pair"]["group"]
    assert torch.equal(new, regroup(old, Pairs(torch.tensor(replaced), torch.tensor(partners))))
    untouched = [row for row in range(ROWS) if row not in replaced]
    assert torch.equal(new[untouched], old[untouched])
    torch.manual_seed(1)
    again = model.augment(made)
    assert ids(again) == joined and all(torch.equal(after[row], each) for row, each in pixels(again).items())
    torch.manual_seed(2)
    assert ids(model.augment(made)) != joined


def test_long_texts_are_cut_at_the_encoders_limit_and_keep_their_end(text_model: str) -> None:
    rules = make(text_model).token_rules["pair"]
    assert (rules.start, rules.end, rules.most) == (1, 1, 64)
    first, second = [1, *range(100, 140), 2], [1, *range(200, 240), 2]
    joined = rules.join(first, second)
    assert len(joined) == 64 and joined == [1, *range(100, 140), *range(200, 222), 2]


@pytest.mark.parametrize(("model", "options"), [("text", {}), ("text", {"prompt": "the query : "}), ("clip", {})])
def test_joined_ids_are_those_of_both_texts_in_a_row(
    model: str, options: dict[str, str], text_model: str, clip_model: str
) -> None:
    encoder: Any = build_encoder(text_model if model == "text" else clip_model, **options)
    rules = encoder.token_rules()
    first, second, both = (i.data for i in encoder.prepare("text", ["a red disc", "two rings", "a red disc two rings"]))
    assert rules.join(first, second) == both


def test_word_vectors_have_nothing_around_their_words() -> None:
    encoder = Word2VecEncoder(WordVectors(["a", "red", "disc"], np.eye(3, dtype=np.float32)))
    first, second = (i.data for i in encoder.prepare("text", ["a disc", "red"]))  # type: ignore[union-attr]
    assert encoder.token_rules().join(first, second) == [0, 2, 1]


def test_scoring_sees_no_mixture(text_model: str) -> None:
    model = make(text_model).eval()
    made = batch(model)
    with torch.no_grad():
        torch.testing.assert_close(model(made)["pair"].loss, model(made)["pair"].loss, atol=0, rtol=0)
        plain = make(text_model, mixgen=0.01).eval()
        assert model(made)["pair"].loss == plain(made)["pair"].loss


@pytest.mark.parametrize("kind", ["siglip", "info_nce"])
def test_a_model_learns_from_it(text_model: str, kind: str) -> None:
    model = make(text_model, kind=kind).train()
    made = batch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for seed in range(3):
        torch.manual_seed(seed)
        loss = model(made)["pair"].loss
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        optimizer.step()


def test_batches_with_too_little_to_mix_are_taken_as_they_are(text_model: str) -> None:
    model = make(text_model)
    made = batch(model)
    rows, parts = made.values["image", "photo"]
    one = made._replace(values={**made.values, ("image", "photo"): Values(rows[:1], [parts[0][:1]])})  # type: ignore[index, dict-item]
    none = made._replace(values={**made.values, ("image", "photo"): Values(rows[:0], [])})  # type: ignore[dict-item]
    for each in (one, none):
        assert ids(model.augment(each)) == ids(each)
