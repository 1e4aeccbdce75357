"""The engine gives what the core gives on a row alone, for every modality and subset."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmbm_core.bundle import load_bundle
from mmbm_core.encoders import build_encoder
from mmbm_core.errors import MediaError
from mmbm_core.media import Limits
from mmbm_core.model import Batch, Values
from mmbm_core.saved import load_model
from tests.bundles import FUSIONS, make_model, pooled_alone, save_bundle, subset_rows
from tests.samples import audio_file, image_file
from workers.serving.engine import Classify, Embed, Engine, Prepared

SMALL = Limits(text_bytes=1000, media_bytes=1 << 20, image_px=10_000, audio_s=5.0)


def engine(model: str) -> Engine:
    return Engine(model, device="cpu", threads=1, precision="exact", limits=SMALL)


def ask(made: Engine, work: Any, rows: list[dict[str, Any]]) -> list[Any]:
    prepared = made.prepare([{m: v for m, v in row.items() if m != "id" and v is not None} for row in rows])  # type: ignore[misc]
    assert all(isinstance(each, Prepared) for each in prepared), prepared
    return list(made.run(work, [each.row for each in prepared]))  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, text_model: str) -> str:
    model = make_model(text_model, fusion=FUSIONS["attention"], tokens={"text": 3, "image": 2, "audio": 2})
    return save_bundle(tmp_path_factory.mktemp("bundle"), model)


@pytest.mark.parametrize("fusion", ["attention", "none"])
def test_vectors_of_every_subset(tmp_path: Path, text_model: str, fusion: str) -> None:
    model = make_model(text_model, fusion=FUSIONS.get(fusion))
    found = ask(engine(save_bundle(tmp_path / "b", model)), Embed(), subset_rows())
    for row, vector in zip(subset_rows(), found, strict=True):
        np.testing.assert_allclose(vector, pooled_alone(model, row), atol=1e-4)


def test_vectors_of_encoders_without_a_space_in_common(text_model: str) -> None:
    made = engine(f"{text_model},mfcc")
    rows = [{"text": "a red disc"}, {"audio": audio_file()}, {"text": "two"}]
    found = ask(made, Embed(), rows)
    encoder = build_encoder(text_model).eval()
    with torch.inference_mode():
        items: Any = encoder.prepare("text", ["a red disc"])
        expected = encoder("text", encoder.collate("text", items)).vector[0].numpy()
    np.testing.assert_allclose(found[0], expected, atol=1e-4)
    sound = load_bundle("mfcc").embed([rows[1]])["audio_embedding"][0].as_py()
    np.testing.assert_allclose(found[1], sound, atol=1e-4)
    both = made.prepare([{"text": "a", "audio": audio_file()}])[0]
    (refused,) = made.run(Embed(), [both.row])  # type: ignore[union-attr]
    assert isinstance(refused, MediaError) and "no space in common" in str(refused)
    assert made.facts.widths == {"text": 32, "audio": 640} and not made.facts.shared and made.facts.tasks == {}


def test_vectors_of_a_shared_space(clip_model: str) -> None:
    rows = [{"text": "a red disc"}, {"image": image_file()}, {"text": "a red disc", "image": image_file()}]
    found = ask(engine(clip_model), Embed(), rows)
    expected = load_bundle(clip_model).embed(rows)["embedding"].to_pylist()
    np.testing.assert_allclose(np.stack(found), expected, atol=1e-4)


def test_classes_of_every_subset(bundle: str) -> None:
    model, _ = load_model(Path(bundle))
    rows = subset_rows()
    found = ask(engine(bundle), Classify("seen"), rows)
    for row, (labels, probabilities, refused) in zip(rows, found, strict=True):
        assert labels == ("no", "yes")
        values = {}
        for modality, encoder in model.encoders.items():
            if row.get(modality) is not None:
                items = encoder.prepare(modality, [row[modality]])  # type: ignore[operator]
                values[modality, modality] = Values(torch.tensor([0]), [encoder.collate(modality, items)])  # type: ignore[operator]
        batch = Batch(["x"], values, {"seen": {"label": torch.tensor([0])}})  # type: ignore[arg-type]
        with torch.inference_mode():
            logits = model(batch)["seen"].predictions["logits"]
        np.testing.assert_allclose(probabilities, torch.softmax(logits, -1)[0].numpy(), atol=1e-4)
        assert not refused
    spread = np.stack([each.probabilities for each in found])
    assert spread.std(0).min() > 1e-3  # rows differ, so that equality says something


def test_facts(bundle: str) -> None:
    facts = engine(bundle).facts
    assert facts.shared and set(facts.widths.values()) == {20}
    task = facts.tasks["seen"]
    assert (task.kind, task.labels, task.metrics) == ("recognition", ("no", "yes"), {"accuracy": 0.5})
    assert task.modalities == ("text", "image", "audio")


def test_what_can_not_be_used_is_told_by_row(bundle: str, text_model: str) -> None:
    rows: list[Any] = [
        {"text": "fine"}, {"text": "x" * 2000}, {"image": b"no image"}, {"image": image_file(width=200, height=200)},
        {"image": image_file("JPEG")[:-40]}, {"audio": b""}, {"text": (5, 6)}, {"text": (10**9,)},
    ]  # fmt: skip
    found = engine(bundle).prepare(rows)
    wrong = {i: str(each) for i, each in enumerate(found) if isinstance(each, MediaError)}
    assert set(wrong) == {1, 2, 3, 4, 5, 7} and isinstance(found[6], Prepared)
    assert wrong[1].startswith("text: ") and "limit" in wrong[1] and wrong[2].startswith("image: ")
    assert "no token 1000000000" in wrong[7]
    (alien,) = engine(text_model).prepare([{"image": image_file()}])
    assert str(alien) == "this model takes no image; it takes text"


def test_token_ids_are_the_text_they_stand_for(text_model: str) -> None:
    made = engine(text_model)
    tokenizer = made.bundle.encoders["text"].encoder.tokenizer
    ids = tuple(tokenizer("red disc", add_special_tokens=False)["input_ids"])
    by_ids, by_text = ask(made, Embed(), [{"text": ids}, {"text": "red disc"}])
    np.testing.assert_allclose(by_ids, by_text, atol=1e-5)


def test_costs_are_parts_of_a_batch(bundle: str) -> None:
    made = engine(bundle)
    short, long, both = made.prepare([{"text": "a"}, {"text": "a red disc " * 8}, {"text": "a", "image": image_file()}])
    assert 0 < short.cost < long.cost <= 1 and both.cost > short.cost and long.tokens > short.tokens  # type: ignore[union-attr]
