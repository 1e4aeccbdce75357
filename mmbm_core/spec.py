"""What a trained model is made of: the union of the config classes of encoders, fusion and tasks.

A recipe writes it, training completes it (label names, widths), and the bundle keeps it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmbm_core.augment import AudioAugment, ImageAugment, TextAugment
from mmbm_core.augment.changes import changes_of
from mmbm_core.encoders.lora import LoraConfig
from mmbm_core.encoders.scratch import ScratchConfig
from mmbm_core.fusion import FusionConfig
from mmbm_core.sample import MODALITIES, Modality
from mmbm_core.tasks import TaskConfig
from mmbm_core.tasks.align import AlignConfig
from mmbm_core.tasks.classification import ClassificationConfig

AUGMENTS: dict[Modality, type[BaseModel]] = {"text": TextAugment, "image": ImageAugment, "audio": AudioAugment}


class EncoderConfig(BaseModel):
    """One modality's encoder, and how much of it is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | ScratchConfig
    """A preset, checkpoint folder or Hugging Face id, or what to start from scratch; in a bundle, a folder of it."""
    training: Literal["frozen", "full", "lora"] = "frozen"
    """`frozen`: its vectors are computed once, before training; `full`: all its weights are trained; `lora`: a low-rank
    update of them, which ends up in the weights."""
    lora: LoraConfig = LoraConfig()
    augment: ImageAugment | AudioAugment | TextAugment | None = None
    """What training does to the values; only encoders that are trained can."""
    tokens: Annotated[int, Field(ge=1)] | Literal["all"] = 1
    """Tokens that fusion sees of a value: 1 is the encoder's vector, K > 1 its tokens' means over K segments."""
    options: dict[str, Any] = {}
    """Encoder options, such as `pooling`."""

    @model_validator(mode="after")
    def _check(self) -> "EncoderConfig":
        if not isinstance(self.model, str) and self.training != "full":
            raise ValueError(
                f"an encoder from scratch is trained as a whole: write training: full, not {self.training}"
            )
        if self.augment is not None and self.training == "frozen":
            raise ValueError("a frozen encoder runs once, before training: augment needs training: full or lora")
        return self

    @property
    def pretrained(self) -> bool:
        """Does it start from somebody's weights?"""
        return isinstance(self.model, str)

    @property
    def stored(self) -> bool:
        """Are its tokens computed once, before training?"""
        return self.training == "frozen" and self.tokens != "all"


class ModelSpec(BaseModel):
    """Encoders -> adapters of one width -> fusion -> tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoders: Annotated[dict[Modality, EncoderConfig], Field(min_length=1)]
    width: Annotated[int, Field(ge=8)] | None = None
    """D of fusion and task heads; None keeps the width of the one encoder there is, without an adapter."""
    adapter_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    modality_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """How often training hides a modality of a row; one always stays."""
    fusion: FusionConfig | None = None
    """None: the mean of the present modalities' unit vectors."""
    tasks: Annotated[dict[str, TaskConfig], Field(min_length=1)]

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """In canonical order."""
        return tuple(m for m in MODALITIES if m in self.encoders)

    @model_validator(mode="after")
    def _check(self) -> "ModelSpec":
        if self.width is None and len(self.encoders) > 1:
            raise ValueError("width is missing: several encoders need one width to meet in")
        if self.width is None and self.fusion is not None:
            raise ValueError("width is missing: a fusion works in a width of its own")
        for modality, encoder in self.encoders.items():
            if encoder.augment is not None and not isinstance(encoder.augment, AUGMENTS[modality]):
                known = ", ".join(AUGMENTS[modality].model_fields)
                raise ValueError(f"encoders.{modality}.augment is for another modality; known: {known}")
        for name, task in self.tasks.items():
            self._check_labels(name, task)
            if isinstance(task, AlignConfig) and task.start == "canonical":
                self._check_canonical(name, task.views["inputs"])
            if isinstance(task, AlignConfig | ClassificationConfig) and task.mix is not None:
                self._check_mix(name, task.inputs)
            for view in task.views.values():
                unknown = [m for m in view if m not in self.encoders]
                if unknown:
                    raise ValueError(
                        f"task {name} reads {', '.join(unknown)}, which no encoder takes; encoders: "
                        f"{', '.join(self.encoders)}"
                    )
        return self

    def _check_labels(self, name: str, task: Any) -> None:
        """Refuse augmentation that a task's targets don't survive."""
        for modality in [m for m in self.modalities if any(m in view for view in task.views.values())]:
            augment = self.encoders[modality].augment
            for field, aspects in changes_of(augment).items() if augment else ():
                told = [aspect for aspect in aspects if aspect in task.depends_on]
                if told:
                    rest = ", ".join(aspect for aspect in task.depends_on if aspect not in told)
                    raise ValueError(
                        f"encoders.{modality}.augment.{field} changes {' and '.join(told)}, which the targets of task "
                        f"{name} may tell: leave it out, or write depends_on: [{rest}] in the task if they never do"
                    )

    def _check_mix(self, name: str, mixed: Mapping[Modality, str]) -> None:
        """Refuse mixing where another task sees the mixed values, or where none are there to mix."""
        what = " and ".join(f"{modality}s" for modality in mixed)
        others = [n for n, t in self.tasks.items() if n != name
                  and any(mixed.items() & view.items() for view in t.views.values())]  # fmt: skip
        if others:
            raise ValueError(
                f"task {name} mixes {what} that {', '.join(others)} reads too, whose targets are not mixed; leave "
                "mix out"
            )
        frozen = [m for m in mixed if m in self.encoders and self.encoders[m].training == "frozen"]
        if frozen:
            raise ValueError(
                f"task {name} mixes {what}, which needs an encoder of {' and one of '.join(f'{m}s' for m in frozen)} "
                "with training: full or lora; a frozen one runs once, before training: leave mix out, or train it"
            )

    def _check_canonical(self, name: str, view: Mapping[Modality, str]) -> None:
        trained = [m for m in view if m in self.encoders and not self.encoders[m].stored]
        if trained or self.width is None:
            what = f"{', '.join(trained)} is trained" if trained else "width is missing"
            raise ValueError(f"task {name} has start: canonical, for adapters of frozen encoders; {what}")
