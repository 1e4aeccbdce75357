"""What a served application is made of, checked as a whole before anything starts."""

import hashlib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mmbm_core.errors import UsageError
from mmbm_core.media import Limits
from mmbm_core.names import DEFAULT_MODEL
from mmbm_core.urls import UrlPolicy

KEYS_VARIABLE = "MMBM_API_KEYS"
_SHORTEST_KEY = 8
MAX_REQUESTS = 2048
"""That the ingress has under way at once."""


class ServeSettings(BaseModel):
    """Settings of `mmbm serve` beside its arguments; `--set key=value` sets one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Literal["exact", "fast"] = Field("exact", description="`fast` takes the fastest kernels there are")
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int | None = Field(None, ge=1, description="of each replica; default: its CPUs, a whole one at least")
    cpus_per_replica: float = Field(0.45, gt=0, description="what Ray reserves for a replica")
    gpus_per_replica: float = Field(0.0, ge=0)
    min_replicas: int = Field(1, ge=1, description="of each model")
    max_replicas: int = Field(1, ge=1, description="above min_replicas: so many as there are batches for")
    batch_cost: float = Field(1.0, gt=0, description="of a batch; 1: what the encoder's own budget is")
    queue_batches: int = Field(16, ge=1, description="batches that may wait; beyond them requests are refused")
    chat_rows: int = Field(32, ge=1, description="texts that a replica generates at once")
    chat_queue: int = Field(128, ge=1, description="texts that may wait; beyond them requests are refused")
    requests: int = Field(
        512, ge=1, le=MAX_REQUESTS, description="that are under way at once; beyond them they are refused"
    )
    timeout_s: float = Field(30.0, gt=0, description="a request that takes longer ends with 504")
    body_bytes: int = Field(32 << 20, ge=1024, description="of a request's body")
    items: int = Field(2048, ge=1, description="texts of one request")
    media_items: int = Field(64, ge=1, description="images and sounds of one request")
    text_bytes: int = Field(256 << 10, ge=1)
    media_bytes: int = Field(16 << 20, ge=1)
    image_px: int = Field(40_000_000, ge=1)
    audio_s: float = Field(600.0, gt=0)
    url_hosts: tuple[str, ...] = Field(
        (), description="web servers that media of requests may be fetched from, such as `*.example.com`; none: no URLs"
    )
    url_schemes: tuple[Literal["https", "http"], ...] = ("https",)
    url_private: bool = Field(False, description="also where their addresses are private ones")

    @field_validator("url_hosts", "url_schemes", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _ordered(self) -> "ServeSettings":
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}")
        return self

    @property
    def limits(self) -> Limits:
        """What a value may be."""
        return Limits(
            text_bytes=self.text_bytes, media_bytes=self.media_bytes, image_px=self.image_px, audio_s=self.audio_s
        )

    @property
    def urls(self) -> UrlPolicy:
        """What requests may have fetched."""
        return UrlPolicy(
            schemes=frozenset(self.url_schemes if self.url_hosts else ()), hosts=self.url_hosts,
            allow_private_addresses=self.url_private, max_bytes=min(self.media_bytes, self.body_bytes),
            timeout_s=self.timeout_s,
        )  # fmt: skip


class Application(BaseModel):
    """Arguments of `build`: what `serve run` and a Serve config give."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: Annotated[dict[str, str], Field(min_length=1)] = {}
    """What clients call each model, and the model: a bundle, preset, checkpoint folder or Hugging Face id."""
    bundle: str | None = None
    """One model, instead of `models`."""
    api_keys_file: str | None = None
    allow_anonymous: bool = False
    allow_new_space: bool = False
    """May a model give way to one whose vectors do not compare with its own?"""
    settings: ServeSettings = ServeSettings()

    @field_validator("allow_anonymous", "allow_new_space", mode="before")
    @classmethod
    def _spelled(cls, value: Any) -> Any:
        return value.lower() == "true" if isinstance(value, str) and value.lower() in ("true", "false") else value

    @property
    def named(self) -> dict[str, str]:
        """All models by name."""
        alone = {model_name(self.bundle): self.bundle} if self.bundle else {}
        return {**alone, **self.models} or {"default": DEFAULT_MODEL}


def model_name(model: str) -> str:
    """What clients call a model that was given no name: the last part of its path; several are joined by `+`."""
    parts = [part.strip().rstrip("/").rsplit("/", 1)[-1] for part in model.split(",")]
    return "+".join(re.sub(r"[^\w.\-]+", "-", part) for part in parts if part)


def named_models(given: list[str]) -> dict[str, str]:
    """`[NAME=]MODEL...` of the command line.

    Raises:
        UsageError: one name for two models.
    """
    found: dict[str, str] = {}
    for each in given:
        name, equals, model = each.partition("=")
        if not equals or "/" in name or "://" in each.split("=")[0]:
            name, model = model_name(each), each
        if name in found:
            raise UsageError(f"two models would be called {name!r}: {found[name]} and {model}; write NAME=MODEL")
        found[name] = model
    return found


def key_digests(file: str | None, *, allow_anonymous: bool) -> tuple[str, ...]:
    """SHA-256 of each API key, from a file of one a line or from MMBM_API_KEYS (commas between them); () asks for none.

    The keys themselves go no further than this function.

    Raises:
        UsageError: no keys and not allow_anonymous, both, or keys that are too short.
    """
    variable = os.environ.get(KEYS_VARIABLE, "")
    if file is not None:
        try:
            text = Path(file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"can't read the API keys of {file}: {type(error).__name__}") from None
        keys = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    else:
        keys = [key.strip() for key in variable.split(",") if key.strip()]
    where = file or KEYS_VARIABLE
    if keys and allow_anonymous:
        raise UsageError(f"there are API keys ({where}) and --allow-anonymous: give one of them")
    if file is not None and not keys:
        raise UsageError(f"{file} holds no API keys; write one a line")
    if not keys and not allow_anonymous:
        raise UsageError(
            f"who may call? Give --api-keys-file FILE (a key a line) or {KEYS_VARIABLE}, or --allow-anonymous on a "
            "loopback host"
        )
    if any(len(key) < _SHORTEST_KEY for key in keys):
        raise UsageError(f"an API key of {where} has fewer than {_SHORTEST_KEY} characters: they can be guessed")
    return tuple(hashlib.sha256(key.encode()).hexdigest() for key in keys)
