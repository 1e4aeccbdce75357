"""Any transformers speech or sound model, with its checkpoint's own feature extractor.

Three kinds: models of the waveform (wav2vec 2.0, HuBERT, WavLM, data2vec, ...), Whisper's encoder, and the Audio
Spectrogram Transformer. Shapes: `B` batch, `S` samples, `F` frames, `C` mel bands, `T` tokens, `D` width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmbm_core.encoders.base import Encoder, EncoderOutput, Item
from mmbm_core.encoders.checkpoint import load_model, load_preprocessor, settings
from mmbm_core.encoders.sound import prepare_sounds
from mmbm_core.errors import MediaError, UsageError
from mmbm_core.media import DEFAULT_LIMITS, Limits
from mmbm_core.sample import Modality

MAX_WAVE_S = 60.0
"""Models of the waveform have no limit of their own; attention over a minute is 3,000 frames."""
_MASKABLE = ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat")
"""Families that an attention mask makes blind to padding. In others convolutions let it leak into the last frames."""


class SoundBatch(NamedTuple):
    """Model inputs of a batch."""

    inputs: Tensor
    """(B, S) normalised waveforms, zero-padded; or (B, C, F) or (B, F, C) log-mel windows."""
    lengths: Tensor
    """(B,): real samples or mel frames of each."""


class SpeechEncoder(Encoder):
    """Tokens (B, T, D): one per frame (wave models 20 ms) or patch.

    Args:
        model: a transformers model that returns `last_hidden_state` (B, T, D).
        extractor: its feature extractor.
        max_s: longer sounds are cut here.
        min_samples: shorter sounds are padded with silence up to here.
    """

    modalities = ("audio",)

    def __init__(self, model: Any, *, extractor: Any, max_s: float, min_samples: int = 1) -> None:
        super().__init__()
        self.model = model.eval()
        self.extractor = extractor
        self.max_s = max_s
        self.min_samples = min_samples

    @property
    def width(self) -> int:
        config = self.model.config
        return int(config.output_hidden_size if getattr(config, "add_adapter", False) else config.hidden_size)

    def budget(self, modality: Modality) -> int:
        seconds = 60 if self.device.type == "cpu" else 960
        return int(max(seconds, self.max_s) * self.extractor.sampling_rate)

    def preprocessing(self) -> dict[str, Any]:
        return {"kind": "speech", "max_s": self.max_s, "min_samples": self.min_samples, **settings(self.extractor)}

    def prepare(
        self, modality: Modality, values: Sequence[bytes], *, limits: Limits = DEFAULT_LIMITS
    ) -> list[Item | MediaError]:
        rate_hz = self.extractor.sampling_rate
        sounds = prepare_sounds(values, rate_hz=rate_hz, max_s=self.max_s, limits=limits, min_samples=self.min_samples)
        return [sound if isinstance(sound, MediaError) else self._extract(sound) for sound in sounds]

    def collate(self, modality: Modality, items: Sequence[Item]) -> SoundBatch:
        inputs = nn.utils.rnn.pad_sequence([torch.from_numpy(item.data[0]) for item in items], batch_first=True)
        lengths = torch.tensor([item.data[1] for item in items])
        return SoundBatch(inputs.to(self.device), lengths.to(self.device))

    def _extract(self, sound: Item) -> Item:
        """Waveform (S,) -> (model input, its real length)."""
        raise NotImplementedError

    def _features(self, waveform: np.ndarray, **options: Any) -> Any:
        """What the feature extractor makes of one sound alone."""
        return self.extractor(waveform, sampling_rate=self.extractor.sampling_rate, return_tensors="np", **options)


class WaveEncoder(SpeechEncoder):
    """Models of the waveform; vector = mean over real frames.

    Where a mask can't keep padding out (norms over time, convolutions after the mask), only sounds of equal length
    share a batch.
    """

    def __init__(self, model: Any, *, extractor: Any) -> None:
        config = model.config
        min_samples = getattr(config, "squeeze_factor", 1)
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            min_samples = (min_samples - 1) * stride + kernel
        super().__init__(model, extractor=extractor, max_s=MAX_WAVE_S, min_samples=min_samples)
        config.apply_spec_augment = False  # in training it would draw from NumPy's state, and refuse short sounds
        maskable = config.model_type in _MASKABLE and config.feat_extract_norm == "layer"
        self.equal_lengths = not maskable or getattr(config, "add_adapter", False)

    def forward(self, modality: Modality, batch: SoundBatch) -> EncoderOutput:
        inputs = batch.inputs.to(self.dtype)
        if self.equal_lengths:
            tokens = self.model(inputs).last_hidden_state
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        else:
            real = (torch.arange(inputs.shape[1], device=inputs.device) < batch.lengths[:, None]).long()
            tokens = self.model(inputs, attention_mask=real).last_hidden_state
            mask = self.model._get_feature_vector_attention_mask(tokens.shape[1], real).bool()
        return EncoderOutput(tokens, mask, masked_mean(tokens, mask))

    def _extract(self, sound: Item) -> Item:
        wave = self._features(sound.data)["input_values"][0]
        return Item((wave.astype(np.float32), len(wave)), cost=sound.cost, cut=sound.cut)


class WhisperEncoder(SpeechEncoder):
    """Whisper's encoder on one window (30 s) of log-mel; vector = mean over the frames that hold the sound."""

    def __init__(self, model: Any, *, extractor: Any) -> None:
        super().__init__(model, extractor=extractor, max_s=extractor.n_samples / extractor.sampling_rate)

    def forward(self, modality: Modality, batch: SoundBatch) -> EncoderOutput:
        tokens = self.model(batch.inputs.to(self.dtype)).last_hidden_state
        frames = self.model._get_feat_extract_output_lengths(batch.lengths)
        mask = torch.arange(tokens.shape[1], device=tokens.device) < frames[:, None]
        return EncoderOutput(tokens, mask, masked_mean(tokens, mask))

    def _extract(self, sound: Item) -> Item:
        features = self._features(sound.data, return_attention_mask=True)
        frames = int(features["attention_mask"][0].sum())
        return Item((features["input_features"][0], frames), cost=self.extractor.n_samples, cut=sound.cut)


class AstEncoder(SpeechEncoder):
    """Audio Spectrogram Transformer (Gong et al., 2104.01778) on one window (10 s); vector = its pooled output.

    That is the mean of its two class tokens, which its classifiers read. Tokens are patches of time and frequency; it
    was trained on padded windows and has no mask.
    """

    def __init__(self, model: Any, *, extractor: Any) -> None:
        hop, window = extractor.sampling_rate // 100, extractor.sampling_rate // 40  # Kaldi's 10 ms and 25 ms
        self.window_samples = (extractor.max_length - 1) * hop + window
        max_s = self.window_samples / extractor.sampling_rate
        super().__init__(model, extractor=extractor, max_s=max_s, min_samples=window)

    def forward(self, modality: Modality, batch: SoundBatch) -> EncoderOutput:
        output = self.model(batch.inputs.to(self.dtype))
        tokens = output.last_hidden_state
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return EncoderOutput(tokens, mask, output.pooler_output.float())

    def _extract(self, sound: Item) -> Item:
        features = self._features(sound.data)["input_values"][0]
        return Item((features, len(features)), cost=self.window_samples, cut=sound.cut)


_KINDS: dict[str, type[Any]] = {
    "Wav2Vec2FeatureExtractor": WaveEncoder,
    "WhisperFeatureExtractor": WhisperEncoder,
    "ASTFeatureExtractor": AstEncoder,
}


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, T, D) over the tokens whose `mask` (B, T) is True, in float32: (B, D)."""
    kept = tokens.masked_fill(~mask[..., None], 0)
    return kept.sum(1, dtype=torch.float32) / mask.sum(1, keepdim=True)


def build_speech(path: str) -> SpeechEncoder:
    """Load a checkpoint folder.

    Raises:
        UsageError: a file is missing, or the feature extractor is not one of three known kinds.
    """
    from transformers import AutoFeatureExtractor

    extractor = load_preprocessor(path, loader=AutoFeatureExtractor)
    kind = _KINDS.get(type(extractor).__name__)
    if kind is None:
        allowed = ", ".join(_KINDS)
        raise UsageError(f"{type(extractor).__name__} of {path} is not supported; allowed: {allowed}")
    model, _ = load_model(path)
    encoder: SpeechEncoder = kind(
        model.get_encoder() if model.config.is_encoder_decoder else model, extractor=extractor
    )
    encoder.whole = (model,)
    return encoder
