"""Encoders that start from random weights, by the kind of their config.

To add one: a file beside this one, a line in `SCRATCH` and in `ScratchConfig`, a mirrored test.
"""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from mmbm_core.encoders.base import Encoder
from mmbm_core.encoders.bert import BertConfig, build_bert
from mmbm_core.encoders.image_cnn import ImageCnnConfig, ImageCnnEncoder
from mmbm_core.encoders.log_mel import LogMelConfig, LogMelEncoder
from mmbm_core.errors import UsageError
from mmbm_core.sample import Modality

ScratchConfig = Annotated[ImageCnnConfig | LogMelConfig | BertConfig, Field(discriminator="kind")]

SCRATCH: dict[str, tuple[Modality, Callable[..., Encoder]]] = {
    "image_cnn": ("image", ImageCnnEncoder),
    "log_mel": ("audio", LogMelEncoder),
    "bert": ("text", build_bert),
}
"""Modality and builder by kind."""


def modality_of(config: Any) -> Modality:
    """What the encoder of a ScratchConfig encodes."""
    return SCRATCH[config.kind][0]


def build_scratch(config: Any, *, tokenizer: str | None = None) -> Encoder:
    """The encoder of a ScratchConfig with random weights from torch's global generator, ready to be trained.

    Args:
        tokenizer: content of the tokenizer.json of an encoder of texts.

    Raises:
        UsageError: an encoder of texts without a tokenizer, or one that does not fit.
    """
    modality, build = SCRATCH[config.kind]
    if modality != "text":
        return build(config).train()
    if tokenizer is None:
        raise UsageError(f"{config.kind} needs a tokenizer: train one with mmbm_core.bpe.train_bpe")
    return build(config, tokenizer=tokenizer).train()
