"""Adapters: they alone train, start as nothing, merge to the same vectors, and leave an ordinary checkpoint."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from pydantic import ValidationError

from mmbm_core.encoders import build_encoder
from mmbm_core.encoders.base import Encoder
from mmbm_core.encoders.lora import LoraConfig, add_lora, merge_lora
from mmbm_core.errors import UsageError
from mmbm_core.sample import Modality

pytest.importorskip("peft", reason="needs mmbm[train]")

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
PATCHES = {**TINY, "image_size": 32, "patch_size": 8}
VIT = hf.ViTImageProcessor(size={"height": 32, "width": 32})
CONVS = {"conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 2), "conv_stride": (5, 4, 4), "num_feat_extract_layers": 3}
WAVE = hf.Wav2Vec2Config(
    **TINY,
    **CONVS,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
)
WHISPER = hf.WhisperConfig(
    d_model=32,
    encoder_layers=2,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=64,
    decoder_ffn_dim=64,
    num_mel_bins=20,
    max_source_positions=50,
    vocab_size=60,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1),
)
CASES: dict[str, tuple[Modality, Any, Any, Any]] = {
    "vit": ("image", hf.ViTModel, hf.ViTConfig(**PATCHES), VIT),
    "siglip-vision": ("image", hf.SiglipVisionModel, hf.SiglipVisionConfig(**PATCHES), VIT),
    "wav2vec2": ("audio", hf.Wav2Vec2Model, WAVE, hf.Wav2Vec2FeatureExtractor(return_attention_mask=True)),
    "whisper": ("audio", hf.WhisperModel, WHISPER, hf.WhisperFeatureExtractor(feature_size=20, chunk_length=1)),
}
NAMES = ["bert", "clip/text", "clip/image", *CASES]


@pytest.fixture
def pretrained(
    request: pytest.FixtureRequest, tmp_path: Path, text_model: str, clip_model: str, save_model: Any,
    texts: list[str], photos: list[bytes], sounds: Any,
) -> tuple[Encoder, Modality, Any]:  # fmt: skip
    """An encoder, one of its modalities, and a batch."""
    name = request.param
    if name in CASES:
        modality, model_class, config, processor = CASES[name]
        folder = str(tmp_path / "pretrained")
        save_model(Path(folder), model_class, config)
        processor.save_pretrained(folder)
    else:
        modality = "image" if name == "clip/image" else "text"
        folder = text_model if name == "bert" else clip_model
    values = {"text": texts, "image": photos, "audio": sounds(16_000, 0.5, 0.8)}[modality]
    encoder = build_encoder(folder)
    return encoder, modality, encoder.collate(modality, encoder.prepare(modality, values))  # type: ignore[arg-type]


def _train(encoder: Encoder, modality: Modality, batch: Any) -> None:
    """Some steps away from where the weights are, with the seeds that the trainer sets."""
    encoder.train()
    torch.manual_seed(0)
    target = torch.randn(encoder.width)
    optimizer = torch.optim.AdamW([p for p in encoder.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(5):
        loss = (encoder(modality, batch).vector - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    encoder.eval()


@pytest.mark.parametrize("pretrained", NAMES, indirect=True)
def test_adapters_alone_train_and_merge(pretrained: tuple[Encoder, Modality, Any], tmp_path: Path) -> None:
    encoder, modality, batch = pretrained
    before = encoder(modality, batch).vector
    names = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    add_lora(encoder, LoraConfig(rank=4))
    trained = [name for name, p in encoder.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    torch.testing.assert_close(encoder(modality, batch).vector, before)  # B starts at zero

    _train(encoder, modality, batch)
    apart = encoder(modality, batch).vector
    assert (apart - before).abs().max() > 1e-3
    merge_lora(encoder)
    merged = encoder(modality, batch).vector
    torch.testing.assert_close(merged, apart, atol=1e-5, rtol=1e-5)

    state = encoder.state_dict()
    assert set(state) == set(names)
    changed = {name for name in names if not torch.equal(state[name], names[name])}
    assert changed and all(name.endswith("weight") and names[name].ndim == 2 for name in changed)
    folder = tmp_path / "merged"
    folder.mkdir()
    encoder.save(folder)
    again = build_encoder(str(folder))
    torch.testing.assert_close(again(modality, batch).vector, merged)
    assert not list(folder.glob("adapter*"))


@pytest.mark.parametrize("pretrained", NAMES, indirect=True)
def test_all_weights_can_be_trained(pretrained: tuple[Encoder, Modality, Any]) -> None:
    encoder, modality, batch = pretrained
    encoder.requires_grad_(True)
    _train(encoder, modality, batch)
    reached = {name for name, p in encoder.named_parameters() if p.grad is not None and p.grad.any()}
    assert len(reached) > 20


@pytest.mark.parametrize("pretrained", ["bert"], indirect=True)
def test_targets_are_ends_of_names(pretrained: tuple[Encoder, Modality, Any]) -> None:
    encoder, *_ = pretrained
    with pytest.raises(UsageError, match="no linear layer is called q_proj; allowed here: dense, key, query, value"):
        add_lora(encoder, LoraConfig(targets=("q_proj",)))
    add_lora(encoder, LoraConfig(targets=("query", "attention.self.value")))
    adapted = {name.split(".lora_")[0] for name, p in encoder.named_parameters() if p.requires_grad}
    assert len(adapted) == 4 and all(name.endswith(("query", "value")) for name in adapted)


@pytest.mark.parametrize("name", ["efficientnet-lite0", "mfcc"])
def test_other_encoders_are_refused(name: str) -> None:
    for call in (lambda e: add_lora(e, LoraConfig()), merge_lora):
        with pytest.raises(UsageError, match="is no transformers model, which LoRA needs"):
            call(build_encoder(name))


@pytest.mark.parametrize("pretrained", ["bert"], indirect=True)
def test_without_peft(pretrained: tuple[Encoder, Modality, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"pip install 'mmbm\[train\]'"):
        add_lora(pretrained[0], LoraConfig())
    assert not any(p.requires_grad for p in pretrained[0].parameters())


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0}, {"dropout": 1}, {"targets": ()}, {"r": 8}])
def test_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LoraConfig(**wrong)
