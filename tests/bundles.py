"""Tiny trained bundles: seeded weights of all three modalities, in the form that `mmbm train` writes."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmbm_core.encoders import build_encoder
from mmbm_core.encoders.image_cnn import ImageCnnConfig, ImageCnnEncoder
from mmbm_core.encoders.log_mel import LogMelConfig, LogMelEncoder
from mmbm_core.model import Batch, Model, Values
from mmbm_core.sample import MODALITIES, Modality
from mmbm_core.saved import save_model
from mmbm_core.spec import ModelSpec
from tests.samples import audio_file, image_file, tone
from tests.seq2seq import BPE, SMALL, WIDTH

IMAGE = ImageCnnConfig(size_px=16, widths=(8, 16), depths=(0, 0))
AUDIO = LogMelConfig(rate_hz=8000, num_mels=16, widths=(4, 8), width=12)
FUSIONS: dict[str, dict[str, Any]] = {
    "concat": {"kind": "concat"},
    "gated": {"kind": "gated"},
    "attention": {"kind": "attention", "layers": 1, "heads": 2},
    "bottleneck": {"kind": "bottleneck", "layers": 1, "heads": 2},
    "low_rank": {"kind": "low_rank"},
}


def make_model(
    text_model: str, *, fusion: dict[str, Any] | None = None, tokens: Mapping[str, int | str] | None = None,
    modalities: Sequence[Modality] = MODALITIES, width: int | None = 20,
) -> Model:  # fmt: skip
    """A model that recognises two classes; `tokens` of a modality are 1 unless given."""
    torch.manual_seed(0)
    starts = {
        "text": {"model": text_model}, "image": {"model": IMAGE, "training": "full"},
        "audio": {"model": AUDIO, "training": "full"},
    }  # fmt: skip
    configs = {m: {**starts[m], "tokens": (tokens or {}).get(m, 1)} for m in modalities}
    task = {"kind": "recognition", "inputs": {m: m for m in modalities}, "label": "label", "labels": ["no", "yes"]}
    spec = ModelSpec.model_validate({"encoders": configs, "width": width, "fusion": fusion, "tasks": {"seen": task}})
    built = {"text": lambda: build_encoder(text_model), "image": lambda: ImageCnnEncoder(IMAGE)}
    encoders = {m: built.get(m, lambda: LogMelEncoder(AUDIO))() for m in modalities}
    model = Model(spec, widths={m: e.width for m, e in encoders.items()}, encoders=encoders)
    for parameter in (*model.adapters.parameters(), *(model.fusion.parameters() if model.fusion else ())):
        parameter.data += 0.3 * torch.randn_like(parameter)  # so that learnt tokens matter
    return model.eval().requires_grad_(False)


def make_talker(text_model: str, *, max_tokens: int = SMALL["max_tokens"]) -> Model:
    """A model that answers dialogues about pictures (two turns of them) and translates, in random words."""
    torch.manual_seed(0)
    configs = {
        "text": {"model": text_model, "tokens": 3}, "image": {"model": IMAGE, "training": "full", "tokens": 2},
    }  # fmt: skip
    said = {"target": "said", "decoder": {**SMALL, "dropout": 0.0, "max_tokens": max_tokens}}
    tasks = {
        "answer": {"kind": "dialogue", "inputs": {"text": "turn.context", "image": "image"}, "turns": 2, **said},
        "german": {"kind": "translation", "inputs": {"text": "text"}, "beams": 3, **said},
    }
    spec = ModelSpec.model_validate(
        {"encoders": configs, "width": WIDTH, "fusion": FUSIONS["attention"], "tasks": tasks}
    )
    encoders = {"text": build_encoder(text_model), "image": ImageCnnEncoder(IMAGE)}
    assets = {name: {"tokenizer.json": BPE.encode()} for name in tasks}
    model = Model(spec, widths={m: e.width for m, e in encoders.items()}, encoders=encoders, assets=assets)  # type: ignore[misc, arg-type]
    for task in model.tasks.values():
        for weight in task.decoder.parameters():
            weight.data.normal_(0, 0.4) if weight.dim() == 2 else None
    return model.eval().requires_grad_(False)


def save_bundle(folder: Path, model: Model, **facts: Any) -> str:
    """Write it as `mmbm train` does."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, folder, facts={"metrics": {"seen": {"accuracy": 0.5}}, **facts})
    return str(folder)


def subset_rows(modalities: Sequence[Modality] = MODALITIES) -> list[dict[str, Any]]:
    """A row for every subset of `modalities` but the empty one, all with contents of their own."""
    rows: list[dict[str, Any]] = []
    for size in range(1, len(modalities) + 1):
        for subset in combinations(modalities, size):
            n = len(rows)
            wave = tone(seconds=0.1 + 0.05 * n, rate_hz=8000, pitch_hz=300.0 + 40 * n)
            row: dict[str, Any] = {
                "id": "+".join(subset), "text": "a red disc beside the blue square " * n + f"text number {n}",
                "image": image_file(seed=n, width=20 + n, height=30), "audio": audio_file(wave=wave, rate_hz=8000),
            }  # fmt: skip
            rows.append(
                {k: v if k == "id" or k in subset else None for k, v in row.items() if k in ("id", *modalities)}
            )
    return rows


def pooled_alone(model: Model, row: Mapping[str, Any]) -> np.ndarray:
    """(D,): what the model itself says of one row, with nothing in between."""
    values = {}
    for modality, encoder in model.encoders.items():
        if row.get(modality) is not None:
            items = encoder.prepare(modality, [row[modality]])  # type: ignore[operator]
            values[modality, modality] = Values(torch.tensor([0]), [encoder.collate(modality, items)])  # type: ignore[operator]
    batch = Batch(ids=["x"], values=values, targets={})
    with torch.inference_mode():
        view = {m: m for m in model.modalities}
        return model.represent(view, model.encode_batch(batch), 1).fused.pooled[0].numpy()
