"""Speech and sound checkpoints equal transformers' extractor and model on a row alone."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers as hf

from mmbm_core.encoders import build_encoder
from mmbm_core.encoders.base import Item
from mmbm_core.encoders.speech import SpeechEncoder
from mmbm_core.errors import MediaError, UsageError
from mmbm_core.media import decode_audio

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
CONVS = {"conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 2), "conv_stride": (5, 4, 4), "num_feat_extract_layers": 3}
# 16 channels a group: with 8, oneDNN's bfloat16 convolution of an even width is wrong on CPUs with AMX (torch 2.14).
WAVE = {**TINY, **CONVS, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
MASKED = {**WAVE, "feat_extract_norm": "layer", "do_stable_layer_norm": True}
EXTRACTOR = hf.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
UNMASKED = hf.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
CASES: dict[str, tuple[Any, Any, Any]] = {
    "wav2vec2-group": (hf.Wav2Vec2ForCTC, hf.Wav2Vec2Config(**WAVE), UNMASKED),
    "wav2vec2-layer": (hf.Wav2Vec2Model, hf.Wav2Vec2Config(**MASKED), EXTRACTOR),
    "hubert-group": (hf.HubertModel, hf.HubertConfig(**WAVE), UNMASKED),
    "hubert-layer": (hf.HubertModel, hf.HubertConfig(**MASKED), EXTRACTOR),
    "wavlm-layer": (hf.WavLMModel, hf.WavLMConfig(**MASKED), EXTRACTOR),
    "wavlm-group": (hf.WavLMModel, hf.WavLMConfig(**WAVE), UNMASKED),
    "unispeech-sat": (hf.UniSpeechSatModel, hf.UniSpeechSatConfig(**MASKED), EXTRACTOR),
    "data2vec": (hf.Data2VecAudioModel, hf.Data2VecAudioConfig(**WAVE, conv_pos_kernel_size=5), EXTRACTOR),
    "conformer": (
        hf.Wav2Vec2ConformerModel,
        hf.Wav2Vec2ConformerConfig(**WAVE, feat_extract_norm="layer", conv_depthwise_kernel_size=5),
        EXTRACTOR,
    ),
    "sew": (hf.SEWModel, hf.SEWConfig(**WAVE, squeeze_factor=2), UNMASKED),
    "wav2vec2-adapter": (
        hf.Wav2Vec2Model,
        hf.Wav2Vec2Config(**MASKED, add_adapter=True, output_hidden_size=24, num_adapter_layers=1),
        EXTRACTOR,
    ),
}
SOUNDS_S = (0.7, 1.3, 0.31, 1.3, 0.9)


@pytest.fixture
def checkpoint(tmp_path: Path, save_model: Any) -> Any:
    def make(model_class: Any, config: Any, extractor: Any) -> str:
        save_model(tmp_path, model_class, config)
        extractor.save_pretrained(tmp_path)
        return str(tmp_path)

    return make


@pytest.fixture
def whisper(checkpoint: Any) -> str:
    """A Whisper whose window is 1 s."""
    config = hf.WhisperConfig(
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
    extractor = hf.WhisperFeatureExtractor(feature_size=20, chunk_length=1)
    return checkpoint(hf.WhisperForConditionalGeneration, config, extractor)  # type: ignore[no-any-return]


@pytest.fixture
def ast(checkpoint: Any) -> str:
    """A spectrogram transformer whose window is 1 s."""
    config = hf.ASTConfig(**TINY, max_length=98, num_mel_bins=32, patch_size=16)
    extractor = hf.ASTFeatureExtractor(max_length=98, num_mel_bins=32)
    return checkpoint(hf.ASTForAudioClassification, config, extractor)  # type: ignore[no-any-return]


def _waves(files: list[bytes]) -> list[np.ndarray]:
    return [decode_audio(file, rate_hz=16_000) for file in files]


@pytest.mark.parametrize("name", CASES)
def test_wave_models(name: str, checkpoint: Any, sounds: Any, check_encoder: Any) -> None:
    folder = checkpoint(*CASES[name])
    files = sounds(22_050, *SOUNDS_S)
    model, extractor = hf.AutoModel.from_pretrained(folder).eval(), hf.AutoFeatureExtractor.from_pretrained(folder)
    with torch.inference_mode():
        hidden = [
            model(**extractor(wave, sampling_rate=16_000, return_tensors="pt")).last_hidden_state[0]
            for wave in _waves(files)
        ]
    encoder = build_encoder(folder)
    assert encoder.equal_lengths == (name not in ("wav2vec2-layer", "hubert-layer", "wavlm-layer", "unispeech-sat"))
    check_encoder(encoder, "audio", files, torch.stack([h.mean(0) for h in hidden]).numpy())


def test_whisper_means_over_the_sound(whisper: str, sounds: Any, check_encoder: Any) -> None:
    files = sounds(16_000, 0.7, 1.0, 0.305, 0.004, 0.9)
    extractor = hf.AutoFeatureExtractor.from_pretrained(whisper)
    model = hf.AutoModel.from_pretrained(whisper).get_encoder().eval()
    rows = []
    for wave in _waves(files):
        with torch.inference_mode():
            hidden = model(**extractor(wave, sampling_rate=16_000, return_tensors="pt")).last_hidden_state[0]
        rows.append(hidden[: -(-len(wave) // 320)].mean(0))  # 20 ms a frame; the last may hold less
    check_encoder(build_encoder(whisper), "audio", files, torch.stack(rows).numpy())


def test_spectrogram_transformer(ast: str, sounds: Any, check_encoder: Any) -> None:
    files = sounds(16_000, 0.7, 0.9825, 1.5, 0.03, 0.01)
    extractor, model = hf.AutoFeatureExtractor.from_pretrained(ast), hf.AutoModel.from_pretrained(ast).eval()
    rows = []
    for wave in _waves(files):
        padded = np.pad(wave, (0, max(0, 400 - len(wave))))  # Kaldi needs one window
        with torch.inference_mode():
            output = model(**extractor(padded, sampling_rate=16_000, return_tensors="pt"))
        rows.append(output.pooler_output[0])
    check_encoder(build_encoder(ast), "audio", files, torch.stack(rows).numpy())


@pytest.mark.parametrize("kind", ["whisper", "ast"])
def test_window_models_cut_and_count(kind: str, request: Any, sounds: Any) -> None:
    encoder = build_encoder(request.getfixturevalue(kind))
    window = 16_000 if kind == "whisper" else 97 * 160 + 400
    limit_s = window / 16_000
    items = encoder.prepare("audio", sounds(16_000, 0.5, limit_s, limit_s + 0.001))
    assert [(item.cost, item.cut) for item in items if isinstance(item, Item)] == [
        (window, False),
        (window, False),
        (window, True),
    ]


def test_wave_models_cut_after_a_minute(checkpoint: Any, sounds: Any) -> None:
    encoder = build_encoder(checkpoint(*CASES["wav2vec2-layer"]))
    items = encoder.prepare("audio", sounds(16_000, 59.9, 60.1))
    assert [(item.cost, item.cut) for item in items if isinstance(item, Item)] == [(958_400, False), (960_000, True)]


@pytest.mark.parametrize("name", CASES)
def test_one_sample_and_silence(name: str, checkpoint: Any, encode: Any) -> None:
    encoder = build_encoder(checkpoint(*CASES[name]))
    files = []
    for length in (1, 8000):
        buffer = io.BytesIO()
        soundfile.write(buffer, np.zeros(length, np.float32), 16_000, format="WAV", subtype="FLOAT")
        files.append(buffer.getvalue())
    assert np.isfinite(encode(encoder, "audio", files)).all()


def test_tokens_and_mask(checkpoint: Any, sounds: Any) -> None:
    encoder = build_encoder(checkpoint(*CASES["wav2vec2-layer"]))
    items = encoder.prepare("audio", sounds(16_000, 0.4, 0.2))
    output = encoder("audio", encoder.collate("audio", items))  # type: ignore[arg-type]
    frames = [(((6400 - 10) // 5 + 1 - 3) // 4 + 1 - 2) // 4 + 1, (((3200 - 10) // 5 + 1 - 3) // 4 + 1 - 2) // 4 + 1]
    assert output.mask.sum(1).tolist() == frames
    assert output.tokens.shape == (2, frames[0], 32)


def test_bad_values_give_errors_in_place(whisper: str, sounds: Any) -> None:
    items = build_encoder(whisper).prepare("audio", [b"", sounds(16_000, 0.2)[0], b"RIFF not a sound"])
    assert [isinstance(item, MediaError) for item in items] == [True, False, True]


def test_missing_or_unknown_extractor(checkpoint: Any, tmp_path: Path) -> None:
    folder = checkpoint(*CASES["wav2vec2-group"])
    assert isinstance(build_encoder(folder), SpeechEncoder)
    hf.SeamlessM4TFeatureExtractor().save_pretrained(folder)
    with pytest.raises(UsageError, match=r"SeamlessM4T.*allowed: Wav2Vec2"):
        build_encoder(folder)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UsageError, match=r"preprocessor_config\.json"):
        build_encoder(folder)
