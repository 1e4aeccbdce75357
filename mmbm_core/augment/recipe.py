"""What `mmbm augment` makes of each row: how many copies, and how their values are changed."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmbm_core.augment.audio import AudioAugment
from mmbm_core.augment.image import ImageAugment
from mmbm_core.augment.text import TextAugment
from mmbm_core.names import DEFAULT_MODEL
from mmbm_core.sample import MODALITIES, Modality

MAX_COPIES = 1000
"""Of a row."""


class Gate(BaseModel):
    """Rows that are left out, with all that would be made of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = DEFAULT_MODEL
    """What rows are compared by: as of `mmbm embed --model`."""
    duplicates: Annotated[float, Field(gt=0, le=1)] | None = None
    """Cosine from which on the later of two rows is one too many."""
    label: str | None = None
    """The column of labels; rows are left out whose label the others speak against (confident learning)."""

    @model_validator(mode="after")
    def _check(self) -> "Gate":
        if self.duplicates is None and self.label is None:
            raise ValueError("nothing would be left out: name duplicates or label")
        return self


class PseudoLabels(BaseModel):
    """Labels for rows that have none, by a trained model (Lee, Pseudo-Label, ICML 2013 workshop); rows that it is not
    sure of are left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """A bundle with a task of recognition or understanding."""
    task: str | None = None
    """Needed where it has several of these."""
    column: str = "label"
    """Of labels; it may be empty here and there, or not be there."""
    confidence: Annotated[float, Field(gt=0, le=1)] = 0.9
    """The calibrated probability from which on a label counts."""


class BackTranslation(BaseModel):
    """Texts in other words, by way of another language."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    there: str
    """A bundle that translates into the other language."""
    back: str
    """A bundle that translates from it."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """Of the way back: 0 makes all copies of a text alike."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95


class AugmentRecipe(BaseModel):
    """Changes by modality; a modality that none is named for is copied as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gate: Gate | None = None
    pseudo_labels: PseudoLabels | None = None
    copies: Annotated[int, Field(ge=0, le=MAX_COPIES)] = 1
    """Changed rows that are made of each row."""
    balance: str | None = None
    """A column of labels: rows of rarer classes get more copies, so that all classes have about as many rows as the
    most frequent one gets by `copies`. Rows without a label get `copies`."""
    keep_source: bool = True
    """Does the row itself go into the output too? One that has nothing to change then goes there without copies."""
    image: ImageAugment | None = None
    audio: AudioAugment | None = None
    text: TextAugment | None = None
    translate: BackTranslation | None = None
    """Texts are said in other words, before what `text` changes of them."""
    speak: bool = False
    """The sound of a copy is its row's text, said anew by a voice and in a room of its own; rows need no sound."""

    @model_validator(mode="after")
    def _check(self) -> "AugmentRecipe":
        if not self.changed and self.gate is None and self.pseudo_labels is None:
            raise ValueError("nothing would change: name image, audio, text, translate, speak, gate or pseudo_labels")
        if bool(self.changed) != bool(self.copies):
            raise ValueError("copies are what changes make: give both, or copies: 0 and neither")
        if self.balance is not None and (not self.changed or self.pseudo_labels is not None):
            raise ValueError("balance adds copies by the labels that rows have: name a change, and label rows before")
        if self.speak and self.audio is not None:
            raise ValueError("speak makes sounds with noise and room of their own: leave audio out")
        if self.audio is not None and (self.audio.freq_masks or self.audio.time_masks):
            raise ValueError("freq_masks and time_masks hide parts of spectrograms, in training: leave them out")
        return self

    def changes(self, modality: Modality) -> bool:
        """Do the values of a modality change? (What `speak` makes is new.)"""
        given = {"image": self.image, "audio": self.audio, "text": self.text or self.translate}
        return given[modality] is not None

    @property
    def changed(self) -> tuple[Modality, ...]:
        """Modalities that copies have changed."""
        return tuple(m for m in MODALITIES if self.changes(m) or (m == "audio" and self.speak))
