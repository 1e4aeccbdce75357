"""Tasks by kind. To add one: a file beside this one, a line in `TASKS` and in `TaskConfig`, a mirrored test."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from mmbm_core.sample import Modality
from mmbm_core.tasks.align import AlignConfig, AlignTask
from mmbm_core.tasks.base import Task
from mmbm_core.tasks.classification import ClassificationConfig, ClassificationTask
from mmbm_core.tasks.seq2seq import Seq2SeqConfig, Seq2SeqTask
from mmbm_core.tasks.similarity import SimilarityConfig, SimilarityTask

TaskConfig = Annotated[
    AlignConfig | ClassificationConfig | SimilarityConfig | Seq2SeqConfig, Field(discriminator="kind")
]

TASKS: dict[type[Any], type[Task]] = {
    AlignConfig: AlignTask,
    ClassificationConfig: ClassificationTask,
    SimilarityConfig: SimilarityTask,
    Seq2SeqConfig: Seq2SeqTask,
}


def build_task(
    config: Any, *, modalities: Sequence[Modality], width: int, assets: Mapping[str, bytes] | None = None
) -> Task:
    """The task of a config that `learn` has completed; `assets` as the task gives them, where it needs some."""
    more = {} if assets is None else {"assets": assets}
    return TASKS[type(config)](config, modalities=modalities, width=width, **more)  # type: ignore[call-arg]


__all__ = ["TASKS", "Task", "TaskConfig", "build_task"]
