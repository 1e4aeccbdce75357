"""Configs from plain values, and trainable encoders from configs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from mmbm_core.encoders.scratch import SCRATCH, ScratchConfig, build_scratch, modality_of
from mmbm_core.errors import UsageError

CONFIGS: Any = TypeAdapter(ScratchConfig)
TINY = {
    "image_cnn": {"size_px": 16, "widths": [8], "depths": [1]},
    "log_mel": {"widths": [8], "width": 8},
    "bert": {"width": 16, "layers": 1, "heads": 2},
}
MODALITIES = {"image_cnn": "image", "log_mel": "audio", "bert": "text"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, save_tokenizer: Any) -> str:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    text = (folder / "tokenizer.json").read_text()
    return text.replace("[CLS]", "<s>").replace("[PAD]", "<pad>").replace("[UNK]", "<unk>").replace("[SEP]", "</s>")


@pytest.mark.parametrize("kind", list(SCRATCH))
def test_built_from_plain_values(kind: str) -> None:
    config = CONFIGS.validate_python({"kind": kind, **TINY[kind]})
    assert modality_of(config) == MODALITIES[kind]
    assert CONFIGS.validate_json(CONFIGS.dump_json(config)) == config


@pytest.mark.parametrize("kind", list(SCRATCH))
def test_ready_to_be_trained_and_repeated_by_seed(kind: str, tokenizer: str) -> None:
    config = CONFIGS.validate_python({"kind": kind, **TINY[kind]})
    text = {"tokenizer": tokenizer} if kind == "bert" else {}
    encoders = []
    for _ in range(2):
        torch.manual_seed(5)
        encoders.append(build_scratch(config, **text))
    first, again = encoders
    assert first.training and all(p.requires_grad for p in first.parameters())
    assert modality_of(config) in first.modalities
    assert first.space_fingerprint() == again.space_fingerprint()
    assert first.space_fingerprint() != build_scratch(config, **text).space_fingerprint()


def test_refused() -> None:
    with pytest.raises(UsageError, match="bert needs a tokenizer"):
        build_scratch(CONFIGS.validate_python({"kind": "bert"}))
    with pytest.raises(ValidationError, match="image_cnn"):
        CONFIGS.validate_python({"kind": "resnet"})
