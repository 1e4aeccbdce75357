"""Make a trained model smaller before it is trained on: importance of its units on training rows, then pruning."""

import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbm_core.compress.pruning import Importance, prune, sizes_for
from mmbm_core.model import Batch, Model
from mmbm_core.saved import BUNDLE_FILE, load_model, save_model
from mmbm_core.spec import ModelSpec
from workers.bundles import local_bundle, write_bundle
from workers.storage import open_location

NUM_BATCHES = 40
"""That importance is summed over."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What becomes of a bundle."""

    original: str
    """The bundle that all sizes are a share of, and whose answers are learnt."""
    start: str
    """The bundle that is cut: the original, or what an earlier cut left of it."""
    share: float
    """Of the original's work that stays, about."""
    int8: bool
    """Store weights as integers."""
    onnx: bool
    """Write the encoders as ONNX too."""
    kept: str
    """Location of the model once it is cut, for as long as it is trained."""


def load_original(cut: Cut, stack: ExitStack) -> Model:
    """The model to learn from, in evaluation mode."""
    return load_model(stack.enter_context(local_bundle(cut.original)))[0]


def load_cut(cut: Cut, stack: ExitStack) -> tuple[Model, bool]:
    """The model to train, and whether it is still to be cut.

    Args:
        stack: closes what holds its files, which saving it needs.
    """
    storage, folder = open_location(cut.kept)
    ready = storage.exists(f"{folder}/{BUNDLE_FILE}")
    model, _ = load_model(stack.enter_context(local_bundle(cut.kept if ready else cut.start)))
    return model, not ready


def prepare(model: Model, spec: ModelSpec) -> None:
    """Set the model to be trained as `spec` says: which encoders are, and what is done to their values."""
    model.spec = spec
    model.requires_grad_(True)
    for modality, config in spec.encoders.items():
        encoder: Any = model.encoders[modality]
        encoder.augment = config.augment
        encoder.requires_grad_(config.training != "frozen")


def cut_model(model: Model, original: Model, cut: Cut, batches: Iterable[Batch]) -> None:
    """Take out what matters least for the loss on some batches, in place.

    Args:
        original: tells the sizes.
    """
    groups = model.groups()
    importance = Importance(model, groups)
    model.eval()
    for batch in batches:
        model.zero_grad()
        losses = [output.loss for output in model(batch).values()]
        sum(losses[1:], losses[0]).backward()
        importance.add()
    model.zero_grad()
    prune(model, importance, sizes_for(original, original.groups(), share=cut.share))
    mark(model, int8=False)


def mark(model: Model, *, int8: bool) -> None:
    """Tell a model and its encoders that they are smaller than their configs say, and how they are to be saved."""
    model.cut, model.int8 = True, int8
    for encoder in model.encoders.values():
        found = bool(encoder.groups())  # type: ignore[operator]
        encoder.cut, encoder.int8 = found, found and int8  # type: ignore[assignment]


def keep_cut(model: Model, cut: Cut) -> None:
    """Write a model that was cut, so that a run that is killed goes on with the same one."""
    storage, kept = open_location(cut.kept)
    with tempfile.TemporaryDirectory() as temporary:
        save_model(model, Path(temporary), facts={})
        write_bundle(Path(temporary), storage, kept)
