"""What commands over a dataset are asked for: the command line's arguments and settings, validated."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mmbm_core.compress.vectors import VectorKind
from mmbm_core.media import Limits
from mmbm_core.names import DEFAULT_MODEL
from mmbm_core.sample import MODALITIES, Modality
from workers.placement import PLACEMENTS


class RowsSettings(BaseModel):
    """Settings of every command over a dataset beside its arguments; `--set key=value` sets one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int | None = Field(None, ge=1, description="actors; default: one a CPU, or as many as GPUs take")
    cpus_per_worker: float | None = Field(None, gt=0, description="CPUs each actor reserves")
    drop_columns: str = Field("", description="source columns to leave out, joined by commas")
    column_types: str = Field("", description="types the sample got wrong, such as score:double,zip:string")
    unit_rows: int | None = Field(None, ge=1, description="rows a work unit at most")
    max_text_bytes: int = Field(Limits.text_bytes, ge=1)
    max_media_bytes: int = Field(Limits.media_bytes, ge=1)
    max_image_px: int = Field(Limits.image_px, ge=1)
    max_audio_s: float = Field(Limits.audio_s, gt=0)
    fetch_timeout_s: float = Field(30.0, gt=0, description="for one URI")
    fetch_private: bool = Field(False, description="fetch from private and loopback addresses too")
    stall_s: float = Field(900.0, gt=0, description="without progress for so long the run ends")

    @property
    def dropped(self) -> list[str]:
        """Columns of `drop_columns`."""
        return [name.strip() for name in self.drop_columns.split(",") if name.strip()]


class EmbedSettings(RowsSettings):
    """Settings of `mmbm embed` beside its arguments."""

    gpus_per_worker: float | None = Field(None, ge=0, description="GPUs each actor reserves; fractions share one")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    placement: Literal["together", "per_modality", "decode_apart"] = Field("together", description=str(PLACEMENTS))
    vectors: VectorKind = Field("float32", description="float16: half the bytes, int8: a quarter, binary: 1/32")
    keep_media: bool = Field(False, description="carry raw images and sounds into the output")
    text_budget: int | None = Field(None, ge=1, description="tokens a batch, padding counted")
    image_budget: int | None = Field(None, ge=1, description="pixels a batch")
    audio_budget: int | None = Field(None, ge=1, description="samples a batch, padding counted")
    pooling: str | None = Field(None, description="text: mean, cls, last or max; image: cls, mean or pooler")
    prompt: str | None = Field(None, description="name of the text model's prompt (query, passage), or its words")


class RowsRequest(BaseModel):
    """What every command over a dataset is asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: list[str] = Field(min_length=1)
    output: str
    columns: dict[Modality, list[str]] = Field(default_factory=dict)
    id_column: str | None = None
    explode: str | None = None
    format: str | None = None
    retry_errors: bool = False
    overwrite: bool = False
    on_bad_modality: Literal["quarantine", "drop"] = "quarantine"
    max_error_rate: float | None = Field(None, ge=0, le=1)
    allow_schemes: list[str] = Field(default_factory=list)
    settings: RowsSettings = RowsSettings()

    @property
    def limits(self) -> Limits:
        """What a value may be."""
        s = self.settings
        return Limits(
            text_bytes=s.max_text_bytes, media_bytes=s.max_media_bytes, image_px=s.max_image_px, audio_s=s.max_audio_s
        )


class EmbedRequest(RowsRequest):
    """What `mmbm embed` is asked for."""

    model: str = DEFAULT_MODEL
    precision: Literal["exact", "fast"] = "fast"
    settings: EmbedSettings = EmbedSettings()

    @property
    def budget(self) -> dict[Modality, int]:
        """Cost of a batch, where the user gave one."""
        given = {m: getattr(self.settings, f"{m}_budget") for m in MODALITIES}
        return {m: value for m, value in given.items() if value is not None}

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        """Encoder options by modality."""
        text = {"pooling": self.settings.pooling, "prompt": self.settings.prompt}
        return {"text": {k: v for k, v in text.items() if v is not None}}
