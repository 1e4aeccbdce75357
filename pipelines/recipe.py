"""Recipes: whole trainings as YAML, checked before any data is touched.

A recipe names columns, not files; INPUTs come from the command line. `recipes/` holds those that ship.
"""

from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmbm_core.spec import ModelSpec
from pipelines.recipe_file import FOLDER, read_recipe
from workers.training.settings import TrainingSettings


class TurnsSettings(BaseModel):
    """How dialogues are read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str = "turns"
    context: Annotated[int, Field(ge=1)] = 3
    """Turns before a response that it is an answer to, at most."""


class DataSettings(BaseModel):
    """Which rows there are, and how they are dealt out where no file name begins with train, val, dev or test."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id_column: str | None = None
    explode: str | None = None
    """The list column that becomes a row for each element, `ID#0`, `ID#1`, ..."""
    one_each: bool = False
    """Of the rows that one was exploded into, an epoch takes one, drawn by the seed: what all share is encoded once."""
    format: str | None = None
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    group: str | None = None
    """A regular expression searched in ids: its first group (a speaker) is never on both sides of the split."""
    val_groups: tuple[str, ...] = ()
    """The groups to validate on; none: dealt out by hash."""
    turns: TurnsSettings | None = None
    """Dialogues: their rows are read as `turn.context` and `turn.response`."""
    pair: str | None = None
    """A column of two INPUTs: a row of the first meets one of the second that has the same value."""
    allow_schemes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "DataSettings":
        if self.turns and self.explode:
            raise ValueError("turns and explode can't both cut rows up; give one")
        if self.one_each and not (self.turns or self.explode):
            raise ValueError("one_each takes one of the rows that explode or turns make of one; give either")
        return self


class MixedSet(DataSettings):
    """One of several sets that a model learns from in turns; its INPUTs are given as NAME=PATH."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    """Those that its rows are for."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """How often a batch is drawn from it, relative to the others; None: as often as it has rows."""


class Recipe(BaseModel):
    """A model, its data, its training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelSpec
    data: DataSettings = DataSettings()
    sets: dict[str, MixedSet] = {}
    """Instead of `data`: several sets, mixed."""
    training: TrainingSettings = TrainingSettings()

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        known = ", ".join(self.model.tasks)
        if self.sets and self.data != DataSettings():
            raise ValueError("give data for one set or sets for several, not both")
        unknown = sorted({task for each in self.sets.values() for task in each.tasks} - set(self.model.tasks))
        if unknown:
            raise ValueError(f"sets name the tasks {', '.join(unknown)}; the model has {known}")
        unread = set(self.model.tasks) - {task for each in self.sets.values() for task in each.tasks}
        if self.sets and unread:
            raise ValueError(f"no set has rows for {', '.join(sorted(unread))}; name tasks in sets.NAME.tasks")
        metric = self.training.metric
        if metric is not None and metric.partition("/")[0] not in self.model.tasks:
            raise ValueError(f"training.metric is {metric!r}; write TASK/METRIC, TASK one of {known}")
        self._check_modality_balance()
        return self

    def _check_modality_balance(self) -> None:
        first = self.training.weak_first
        if first and first.modality not in self.model.encoders:
            have = ", ".join(self.model.encoders)
            raise ValueError(f"training.weak_first names {first.modality}, which no encoder takes; encoders: {have}")
        trained = [m for m, encoder in self.model.encoders.items() if encoder.training != "frozen"]
        scored = any(getattr(task, "unimodal_logits", False) for task in self.model.tasks.values())
        if self.training.ogm_ge is not None and (len(trained) != 2 or not scored):
            raise ValueError(
                "training.ogm_ge slows down one of two trained encoders by their own logits: it needs two encoders "
                "with training: full or lora, and a task with unimodal_logits: true"
            )

    @property
    def parts(self) -> dict[str, MixedSet]:
        """The sets by name; the only one is called `data`."""
        alone = {"data": MixedSet(**self.data.model_dump(), tasks=tuple(self.model.tasks))}
        return self.sets or alone


def load_recipe(name: str, *, settings: Iterable[str] = ()) -> Recipe:
    """What to train: a recipe file, or one that ships by its name.

    Args:
        settings: `part.key=value` pairs that replace what the file says, such as `training.epochs=3`.

    Raises:
        UsageError: no such recipe, or all that is wrong with it.
    """
    return read_recipe(name, Recipe, FOLDER, settings=settings)
