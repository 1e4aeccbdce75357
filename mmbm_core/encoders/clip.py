"""CLIP (Radford et al., 2103.00020) and SigLIP (Zhai et al., 2303.15343): text and images in one space.

Shapes: `B` batch, `T` tokens, `D` width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmbm_core.encoders.base import Encoder, EncoderOutput, Item, image_kernels, jpeg_oversize
from mmbm_core.encoders.checkpoint import load_model, load_preprocessor, load_tokenizer
from mmbm_core.encoders.pixels import PixelSteps, stack
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


class ClipEncoder(Encoder):
    """Vectors (B, D) of length 1; tokens are those of the text or vision tower before its projection.

    Args:
        model: has `get_text_features` and `get_image_features`.
        pad_to: SigLIP pads every text to this many tokens, as it was trained.
    """

    modalities = ("text", "image")
    shared_space = True

    def __init__(self, model: Any, *, tokenizer: Any, steps: PixelSteps, pad_to: int | None = None) -> None:
        super().__init__()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.steps = steps
        self.pad_to = pad_to
        self.max_tokens = int(min(model.config.text_config.max_position_embeddings, tokenizer.model_max_length))

    @property
    def width(self) -> int:
        config = self.model.config
        siglip = getattr(config.text_config, "projection_size", None)
        return int(siglip if self.pad_to else config.projection_dim)  # type: ignore[arg-type]

    def budget(self, modality: Modality) -> int:
        cpu = self.device.type == "cpu"
        return (2048 if cpu else 65536) if modality == "text" else (16 if cpu else 128) * 224 * 224

    def preprocessing(self) -> dict[str, Any]:
        text = {"max_tokens": self.max_tokens, "pad_to": self.pad_to, "masked": self._masked}
        rules = tokenizer_fingerprint(self.tokenizer)
        return {"kind": "clip", **text, "tokenizer": rules, **self.steps.model_dump()}

    def fast_kernels(self) -> tuple[str, ...]:
        return image_kernels(self.device)

    def prepare(
        self, modality: Modality, values: Sequence[Any], *, limits: Limits = DEFAULT_LIMITS
    ) -> list[Item | MediaError]:
        if modality == "image":
            return self.steps.prepare(values, limits=limits, oversize=jpeg_oversize(self.kernels))
        items = prepare_texts(self.tokenizer, values, max_tokens=self.max_tokens, limits=limits)
        for item in items:
            if self.pad_to and isinstance(item, Item):
                item.cost = self.pad_to
        return items

    def collate(self, modality: Modality, items: Sequence[Item]) -> Tensor | TokenBatch:
        if modality == "image":
            return stack(items, self.device)
        return collate_tokens(
            items,
            pad_id=self.tokenizer.pad_token_id,
            device=self.device,
            num_tokens=self.pad_to,
            left=self.tokenizer.padding_side == "left",
        )

    def token_rules(self) -> TokenRules:
        """How ids of texts are put together."""
        return token_rules(self.tokenizer, max_tokens=self.max_tokens, padded_to=self.pad_to or 0)

    def forward(self, modality: Modality, batch: Any) -> EncoderOutput:
        if modality == "image":
            output = self.model.get_image_features(pixel_values=self.steps.normalise(batch, self.dtype))
            mask = torch.ones(output.last_hidden_state.shape[:2], dtype=torch.bool, device=self.device)
        else:
            mask = batch.mask.bool()
            output = self.model.get_text_features(batch.input_ids, batch.mask if self._masked else None)
        vector = nn.functional.normalize(output.pooler_output.float(), dim=-1)
        return EncoderOutput(output.last_hidden_state, mask, vector)

    @property
    def _masked(self) -> bool:
        """SigLIP's published tokenizers return no attention mask: its texts attend to their padding."""
        return "attention_mask" in self.tokenizer.model_input_names


def build_clip(path: str) -> ClipEncoder:
    """Load a checkpoint folder of CLIP, or SigLIP (1 or 2) of a fixed resolution.

    Raises:
        UsageError: a file is missing, or the image preprocessing can't be reproduced (SigLIP 2 NaFlex).
    """
    from transformers import AutoImageProcessor

    steps = PixelSteps.from_processor(load_preprocessor(path, loader=AutoImageProcessor))
    tokenizer = load_tokenizer(path)
    model, _ = load_model(path, whole=True)
    pad_to = None if model.config.model_type == "clip" else model.config.text_config.max_position_embeddings
    return ClipEncoder(model, tokenizer=tokenizer, steps=steps, pad_to=pad_to)
