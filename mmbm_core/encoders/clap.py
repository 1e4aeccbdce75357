"""CLAP (Wu et al., 2211.06687): text and sound in one space, without the randomness of its feature extractor.

transformers crops long sounds at random and calls one random row of a batch "longer". Here a row's vector depends on
the row alone: crops come from the middle of the range they are drawn from, and a model with feature fusion fuses every
row, as transformers does with a row that is alone. Shapes: `B` batch, `T` tokens, `D` width, `S` samples, `F` frames,
`C` mel bands.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmbm_core.encoders.base import Encoder, EncoderOutput, Item
from mmbm_core.encoders.checkpoint import load_model, load_preprocessor, load_tokenizer, settings
from mmbm_core.encoders.sound import prepare_sounds
from mmbm_core.encoders.tokens import (
    TokenBatch,
    TokenRules,
    collate_tokens,
    prepare_texts,
    token_rules,
    tokenizer_fingerprint,
)
from mmbm_core.errors import MediaError
from mmbm_core.media import DEFAULT_LIMITS, Limits
from mmbm_core.sample import Modality

MAX_FUSED_S = 120.0
"""A model with feature fusion looks at the whole sound, up to this length."""


class ClapEncoder(Encoder):
    """Vectors (B, D) of length 1; tokens are those of the text tower, or the cells of the last audio feature map.

    Args:
        model: a transformers ClapModel.
        extractor: a ClapFeatureExtractor.
    """

    modalities = ("text", "audio")
    shared_space = True

    def __init__(self, model: Any, *, tokenizer: Any, extractor: Any) -> None:
        super().__init__()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.extractor = extractor
        self.fused = bool(model.config.audio_config.enable_fusion)
        positions = model.config.text_config.max_position_embeddings - 2  # RoBERTa counts from its padding id
        self.max_tokens = int(min(positions, tokenizer.model_max_length))

    @property
    def width(self) -> int:
        return int(self.model.config.projection_dim)

    def budget(self, modality: Modality) -> int:
        cpu = self.device.type == "cpu"
        if modality == "text":
            return 2048 if cpu else 65536
        return (4 if cpu else 64) * int(self.extractor.nb_max_samples)

    def preprocessing(self) -> dict[str, Any]:
        rules = {"max_tokens": self.max_tokens, "tokenizer": tokenizer_fingerprint(self.tokenizer)}
        return {"kind": "clap", "crop": "middle", "fused": self.fused, **rules, **settings(self.extractor)}

    def prepare(
        self, modality: Modality, values: Sequence[Any], *, limits: Limits = DEFAULT_LIMITS
    ) -> list[Item | MediaError]:
        """Tokens; or log-mel (1, F, C), with fusion (4, F, C), whose cost is the samples of one window."""
        if modality == "text":
            return prepare_texts(self.tokenizer, values, max_tokens=self.max_tokens, limits=limits)
        max_s = MAX_FUSED_S if self.fused else limits.audio_s
        sounds = prepare_sounds(values, rate_hz=self.extractor.sampling_rate, max_s=max_s, limits=limits)
        return [sound if isinstance(sound, MediaError) else self._extract(sound) for sound in sounds]

    def collate(self, modality: Modality, items: Sequence[Item]) -> Tensor | TokenBatch:
        if modality == "text":
            return collate_tokens(items, pad_id=self.tokenizer.pad_token_id, device=self.device)
        return torch.stack([item.data for item in items]).to(self.device)

    def token_rules(self) -> TokenRules:
        """How ids of texts are put together."""
        return token_rules(self.tokenizer, max_tokens=self.max_tokens)

    def forward(self, modality: Modality, batch: Any) -> EncoderOutput:
        if modality == "text":
            output = self.model.get_text_features(batch.input_ids, batch.mask)
            tokens, mask = output.last_hidden_state, batch.mask.bool()
        else:
            longer = torch.full((len(batch), 1), self.fused, device=batch.device)
            output = self.model.get_audio_features(batch.to(self.dtype), is_longer=longer)
            tokens = output.last_hidden_state.flatten(2).transpose(1, 2)
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return EncoderOutput(tokens, mask, nn.functional.normalize(output.pooler_output.float(), dim=-1))

    def _extract(self, sound: Item) -> Item:
        window = int(self.extractor.nb_max_samples)
        wave, spare = sound.data, max(0, len(sound.data) - window)
        if not self.fused:
            start = spare // 2
            mels = self._log_mel(_fill(wave[start : start + window], window, self.extractor.padding))[None]
            return Item(mels, cost=window, cut=spare > 0)
        mel = self._log_mel(_fill(wave, window, self.extractor.padding))
        frames = window // self.extractor.hop_length + 1
        return Item(_fuse(mel, frames), cost=window, cut=sound.cut)

    def _log_mel(self, waveform: np.ndarray) -> Tensor:
        """(S,) -> (F, C) in dB, as ClapFeatureExtractor, with torch's faster transform; float64 keeps quiet bands."""
        filters = self.extractor.mel_filters if self.fused else self.extractor.mel_filters_slaney
        size, hop = self.extractor.fft_window_size, self.extractor.hop_length
        window = torch.hann_window(size, dtype=torch.float64)
        samples = torch.from_numpy(waveform).double()
        power = torch.stft(samples, size, hop, window=window, pad_mode="reflect", return_complex=True).abs().square()
        mels = power.T @ torch.from_numpy(filters)
        return (10 * mels.clamp(min=1e-10).log10()).float()


def build_clap(path: str) -> ClapEncoder:
    """Load a checkpoint folder of CLAP.

    Raises:
        UsageError: a file is missing.
    """
    from transformers import AutoFeatureExtractor

    extractor = load_preprocessor(path, loader=AutoFeatureExtractor)
    tokenizer = load_tokenizer(path)
    model, _ = load_model(path, whole=True)
    return ClapEncoder(model, tokenizer=tokenizer, extractor=extractor)


def _fill(waveform: np.ndarray, window: int, how: str) -> np.ndarray:
    """Fill a window with a short sound: `repeat` it to the end, `repeatpad` whole times and then silence, or `pad`."""
    if len(waveform) >= window:
        return waveform
    if how == "repeat":
        return np.resize(waveform, window)
    if how == "repeatpad":
        waveform = np.tile(waveform, window // len(waveform))
    return np.pad(waveform, (0, window - len(waveform)))


def _fuse(mel: Tensor, frames: int) -> Tensor:
    """(F, C) -> (4, frames, C): the whole sound shrunk, then a crop of its first, middle and last third."""
    starts = [part[len(part) // 2] if len(part) else 0 for part in np.array_split(range(len(mel) - frames + 1), 3)]
    shrunk = nn.functional.interpolate(mel[None, None], size=(frames, mel.shape[1]), mode="bilinear")
    return torch.stack([shrunk[0, 0], *(mel[start : start + frames] for start in starts)])
