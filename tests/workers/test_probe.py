"""The probe takes fast kernels only where their vectors agree with exact ones."""

import pytest
import torch

from mmbm_core.bundle import load_bundle
from mmbm_core.encoders.text import TextEncoder
from workers.probe import MIN_COSINE, needed_models, settle_kernels

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
