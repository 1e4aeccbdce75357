"""One small batch through a model before it is trained, so that what does not fit is told at once."""

from collections.abc import Callable, Iterable, Mapping

import torch

from mmbm_core.errors import RunError, UsageError
from mmbm_core.model import Batch, Model
from mmbm_core.tasks.base import TaskOutput


def try_batches(
    model: Model, batches: Iterable[Batch], forward: Callable[[Batch], Mapping[str, TaskOutput]]
) -> None:  # fmt: skip
    """Each batch forward and backward; the model is left as it was.

    Raises:
        UsageError: the model can't take one: its shapes do not fit.
    """
    model.eval()  # running statistics stay as they are
    try:
        for batch in batches:
            torch.stack([output.loss for output in forward(batch).values()]).sum().backward()
    except (UsageError, RunError):
        raise
    except (RuntimeError, ValueError, IndexError, TypeError, KeyError) as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UsageError(f"the model that the recipe describes can't take a batch of these rows: {what}") from error
    model.zero_grad(set_to_none=True)
