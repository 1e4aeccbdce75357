"""What `mmbm augment` makes of each row: how many copies, and how their values are changed."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmbm_core.augment.audio import AudioAugment
from mmbm_core.augment.image import ImageAugment
from mmbm_core.augment.text import TextAugment
from mmbm_core.sample import MODALITIES, Modality


class AugmentRecipe(BaseModel):
    """Changes by modality; a modality that none is named for is copied as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    copies: Annotated[int, Field(ge=1, le=1000)] = 1
    """Changed rows that are made of each row."""
    keep_source: bool = True
    """Does the row itself go into the output too?"""
    image: ImageAugment | None = None
    audio: AudioAugment | None = None
    text: TextAugment | None = None
    speak: bool = False
    """The sound of a copy is its row's text, said anew by a voice and in a room of its own; rows need no sound."""

    @model_validator(mode="after")
    def _check(self) -> "AugmentRecipe":
        if not self.changed:
            raise ValueError("nothing would change: name image, audio, text or speak")
        if self.speak and self.audio is not None:
            raise ValueError("speak makes sounds with noise and room of their own: leave audio out")
        if self.audio is not None and (self.audio.freq_masks or self.audio.time_masks):
            raise ValueError("freq_masks and time_masks hide parts of spectrograms, in training: leave them out")
        return self

    @property
    def changed(self) -> tuple[Modality, ...]:
        """Modalities that copies have changed."""
        given = {"image": self.image, "audio": self.audio or self.speak or None, "text": self.text}
        return tuple(m for m in MODALITIES if given[m] is not None)
