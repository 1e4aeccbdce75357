"""The training loop of one model on one worker of several.

A run goes on from a checkpoint as if it had never stopped. Gradients are averaged over the workers once a step.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from mmbm_core.balance import build_balancer, ogm_ge_
from mmbm_core.compress.distill import guided_outputs
from mmbm_core.errors import RunError, UsageError
from mmbm_core.model import Batch, Model
from mmbm_core.sample import Modality
from mmbm_core.tasks.align import AlignTask
from mmbm_core.tasks.base import TaskOutput
from workers.storage import Storage
from workers.training.batches import BatchMaker
from workers.training.checkpoint import (
    BEGIN_AGAIN,
    load_checkpoint,
    load_module,
    load_optimizer,
    optimizer_tensors,
    save_checkpoint,
)
from workers.training.feed import WINDOW_BYTES, Feed
from workers.training.kept import Kept
from workers.training.logs import EventLog
from workers.training.schedule import (
    cosine_share,
    draw_turns,
    parameter_groups,
    parts_of,
    precision_of,
    scored_steps,
    seed_of,
    shared_parameters,
    watched,
    whole_batch,
)
from workers.training.scoring import Scores, predict, score, smaller_is_better, watched_score
from workers.training.settings import TrainingSettings
from workers.training.start import start_adapters
from workers.training.together import Place, average_gradients, sum_counts
from workers.training.trial import try_batches

_TRIED_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """One of the sets that a model learns from."""

    feed: Feed
    maker: BatchMaker
    weight: float
    """How often a batch is drawn from it, relative to the others."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a training came to; the model holds its best weights."""

    scores: Scores
    history: list[dict[str, Any]]
    """One entry an evaluation: step, loss, scores."""
    bad_values: int
    values_cut: int
    rows_per_s: float


class Training:
    """One model in training.

    Args:
        model: on the device, in training mode where it is trained.
        report: takes progress, on rank 0.
        storage, path: where the checkpoint is.
        key: names the run: a checkpoint of another is refused.
        log: takes learning curves, on rank 0.
        teacher: what the model is to say the same as, beside its targets.
    """

    def __init__(
        self, model: Model, sets: Sequence[Mixed], settings: TrainingSettings, place: Place, *,
        storage: Storage, path: str, key: str, report: Callable[[dict[str, Any]], None],
        log: EventLog | None = None, teacher: Model | None = None,
    ) -> None:  # fmt: skip
        self.log, self.teacher = log, teacher
        self.model, self.sets, self.settings, self.place = model, sets, settings, place
        self.storage, self.path, self.key, self.report = storage, path, key, report
        self.batch_sizes = [whole_batch(s.feed.num_train, settings.batch_size, place.world) for s in sets]
        self.epoch_steps = [s.feed.num_train // size for s, size in zip(sets, self.batch_sizes, strict=True)]
        self.num_steps = settings.epochs * sum(self.epoch_steps)
        self.turns = draw_turns([s.weight for s in sets], self.num_steps, settings.seed)
        self.only_until = settings.weak_first.epochs * sum(self.epoch_steps) if settings.weak_first else 0
        self.evaluate_at = scored_steps(self.num_steps, settings.evaluations)
        self.balancer = build_balancer(settings.balancer, tasks=list(model.tasks)).to(place.device)
        self.optimizer = torch.optim.AdamW(parameter_groups(model, self.balancer, settings))
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.dtype = precision_of(settings, place.device)
        self.kept = Kept(model, average=settings.average)
        self.step = self.first_step = 0
        self.losses: list[Tensor] = []
        self.held: dict[int, list[pa.Table]] = {}
        self.started = time.monotonic()

    def run(self) -> Outcome:
        """Train to the end, from the checkpoint on where there is one.

        Raises:
            UsageError: the checkpoint is that of another training; the model can't take a batch of the rows.
            RunError: the loss is not finite.
        """
        self._resume()
        try_batches(model=self.model, batches=self._trial(), forward=self._forward)
        if not self.step:
            self._start()
        self.started = saved = time.monotonic()
        self.first_step, trained_s, begun = self.step, 0.0, 0.0
        for batches in self._steps():
            begun = begun or time.monotonic()  # the wait for a batch counts, that for the first is start-up
            self._step(batches)
            trained_s += time.monotonic() - begun
            if self.step in self.evaluate_at:
                self._evaluate()
            if self.step in self.evaluate_at or time.monotonic() - saved >= self.settings.checkpoint_s:
                self._save()
                saved = time.monotonic()
            self._tell()
            if self._enough():
                break
            begun = time.monotonic()
        self.kept.restore()
        counts = [sum(s.maker.bad_values for s in self.sets), sum(s.maker.values_cut for s in self.sets)]
        bad, cut = sum_counts(counts, world=self.place.world, device=self.place.device)
        return Outcome(
            scores=self.kept.best_scores, history=self.kept.history, bad_values=bad, values_cut=cut,
            rows_per_s=self._rows() / max(trained_s, 1e-9),
        )  # fmt: skip

    def _start(self) -> None:
        """Adapters that do not begin at random."""
        for name, task in self.model.tasks.items():
            if isinstance(task, AlignTask) and task.config.start == "canonical":
                index = next(i for i, each in enumerate(self.sets) if name in each.maker.tasks)
                batches = self.sets[index].maker(self._tables(index, 0, self.epoch_steps[index]), counted=0)
                start_adapters(self.model, task.config, batches, world=self.place.world)
                self.kept = Kept(self.model, average=self.settings.average)

    def calibrate(self) -> Scores:
        """Choose temperatures and thresholds on the validation rows; gives the scores that the bundle is sold by."""
        found = predict(self.model, self._val_batches(), world=self.place.world)
        for name, (predictions, targets) in found.items():
            self.model.tasks[name].calibrate(predictions, targets)  # type: ignore[operator]
        return score(self.model, found)

    def _rows(self) -> int:
        """Rows of the steps that this start has done."""
        return int(np.asarray(self.batch_sizes)[self.turns[self.first_step : self.step]].sum())

    def _enough(self) -> bool:
        """Has training stopped early?"""
        return bool(self.settings.patience) and self.kept.stale >= (self.settings.patience or 0)

    def _trial(self) -> Iterator[Batch]:
        return (each.maker.make(each.feed.some_rows(_TRIED_ROWS)).batch for each in self.sets)

    def _steps(self) -> Iterator[list[Batch]]:
        """This rank's batches of each step that is left, each step's of one set."""
        if self._enough():
            return
        streams = [self._stream(index) for index in range(len(self.sets))]
        for index in self.turns[self.step :]:
            yield list(islice(streams[index], self.settings.accumulate))

    def _stream(self, index: int) -> Iterator[Batch]:
        """All batches that are left of one set, `accumulate` a step."""
        each, mine = self.sets[index], self.turns == index
        first, last, count = int(mine[: self.step].sum()), int(mine.sum()), self.settings.accumulate
        parts = (part for table in self._tables(index, first, last) for part in parts_of(table, count))
        epochs = (step // self.epoch_steps[index] for step in range(first, last) for _ in range(count))
        seeds = (seed_of(self.settings.seed, epoch) for epoch in epochs)
        return each.maker(parts, counted=max(0, self.epoch_steps[index] - first) * count, seeds=seeds)

    def _tables(self, index: int, first_step: int, last_step: int) -> Iterator[pa.Table]:
        """This rank's training rows of some of a set's steps."""
        return self.sets[index].feed.train_rows(
            seed=self.settings.seed, rank=self.place.rank, world=self.place.world, batch_size=self.batch_sizes[index],
            first_step=first_step, last_step=last_step,
        )  # fmt: skip

    def _step(self, batches: list[Batch]) -> None:
        settings, seed = self.settings, self.settings.seed
        share = cosine_share((self.step + 1) / (self.num_steps + 1), settings.warmup)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * share
        torch.manual_seed(seed_of(seed, self.step, self.place.rank))
        generator = torch.Generator().manual_seed(seed_of(seed, self.step, self.place.rank + self.place.world))
        self._learn()
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.place.device)
        for batch in batches:
            outputs = self._forward(batch, generator)
            losses = {name: output.loss / len(batches) for name, output in outputs.items()}
            total += self.balancer.backward(losses, shared_parameters(self.model))
            if settings.ogm_ge is not None:
                self._slow_down(batch, outputs, generator)
        average_gradients(total, self.trained, world=self.place.world)
        if not math.isfinite(total.item()):
            raise RunError(
                f"the loss is {total.item()} at step {self.step + 1} of {self.num_steps}: lower training.lr or "
                f"training.clip, or set training.precision to float32, and {BEGIN_AGAIN}"
            )
        nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        self.optimizer.step()
        self.step += 1
        self.losses.append(total)
        self.kept.follow(self.step)

    def _learn(self) -> None:
        """Training mode, but for encoders that do not change: neither dropout nor running statistics."""
        self.model.train()
        for modality, encoder in self.model.encoders.items():
            if self.model.spec.encoders[modality].training == "frozen":  # type: ignore[index]
                encoder.eval()

    def _forward(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, TaskOutput]:
        first = self.settings.weak_first
        only: tuple[Modality, ...] | None = (first.modality,) if first and self.step < self.only_until else None
        with torch.autocast(self.place.device.type, self.dtype, enabled=self.dtype != torch.float32):
            if self.teacher is not None and generator is not None:
                return guided_outputs(self.model, self.teacher, batch, generator=generator)
            outputs: dict[str, TaskOutput] = self.model(batch, generator=generator, only=only)
            return outputs

    def _slow_down(self, batch: Batch, outputs: dict[str, TaskOutput], generator: torch.Generator) -> None:
        """OGM-GE: what each modality alone says of the right class decides whose gradients shrink."""
        for name, output in outputs.items():
            scores = self.model.tasks[name].own_scores(output, batch.targets[name])  # type: ignore[operator]
            params = {m: list(e.parameters()) for m, e in self.model.encoders.items() if m in scores}
            if len(scores) == 2 and len(params) == 2:
                ogm_ge_(params, scores, alpha=self.settings.ogm_ge or 0.0, generator=generator)

    def _evaluate(self) -> None:
        """Score the weights that would be kept, and keep them where they are the best so far."""
        loss = torch.stack(self.losses).mean().item() if self.losses else float("nan")
        with self.kept.in_place():
            apart = self.model.spec.modality_dropout > 0
            found = predict(self.model, self._val_batches(), world=self.place.world, apart=apart)
            scores = score(self.model, found)
        self.losses.clear()
        if self.log is not None:
            self.log.add(self.step, {"loss": loss, "lr": self.optimizer.param_groups[-1]["lr"], **scores})
            self.log.flush()
        name = watched(self.model, self.settings)
        value = watched_score(name, scores)
        if value is None:
            raise UsageError(f"training.metric {name} was not measured; there are {', '.join(scores)}")
        task, _, metric = name.partition("/")
        sign = -1 if smaller_is_better(self.model.tasks[task], metric) else 1  # type: ignore[arg-type]
        self.kept.add(sign * value, step=self.step, loss=loss, scores=scores)

    def _val_batches(self) -> Iterator[Batch]:
        for index, each in enumerate(self.sets):
            for batch in each.maker(self._val_tables(index), counted=0 if self.kept.history else each.feed.num_val):
                self._tell()
                yield batch

    def _val_tables(self, index: int) -> Iterator[pa.Table]:
        """This rank's validation rows of a set; they stay in memory where they are few."""
        if index in self.held:
            yield from self.held[index]
            return
        held, size_bytes = [], 0
        size = self.batch_sizes[index]
        for table in self.sets[index].feed.val_rows(rank=self.place.rank, world=self.place.world, batch_size=size):
            yield table
            size_bytes += table.nbytes
            if size_bytes <= WINDOW_BYTES:
                held.append(table)
        if size_bytes <= WINDOW_BYTES:
            self.held[index] = held

    def _save(self) -> None:
        if self.place.rank:
            return
        parts = {
            "model": self.model.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
            "balancer": self.balancer.state_dict(),
            **self.kept.tensors(),
        }
        facts = {"key": self.key, "step": self.step, **self.kept.facts()}
        facts |= {
            "losses": [loss.item() for loss in self.losses],
            "counts": [[each.maker.bad_values, each.maker.values_cut] for each in self.sets],
        }
        save_checkpoint(self.storage, self.path, parts, facts)

    def _resume(self) -> None:
        saved = load_checkpoint(self.storage, self.path)
        if saved is None:
            return
        if saved.facts["key"] != self.key:
            raise UsageError(
                f"{self.storage.uri(self.path)} is a checkpoint of another recipe or of other rows: go on with those, "
                f"or {BEGIN_AGAIN}"
            )
        load_module(self.model, saved.parts["model"])
        load_module(self.balancer, saved.parts.get("balancer", {}))
        load_optimizer(self.optimizer, saved.parts.get("optimizer", {}))
        self.kept.load(saved.parts, saved.facts)
        self.step = saved.facts["step"]
        self.losses = [torch.tensor(loss, device=self.place.device) for loss in saved.facts["losses"]]
        for each, (bad, cut) in zip(self.sets, saved.facts["counts"], strict=True):
            each.maker.bad_values, each.maker.values_cut = bad, cut

    def _tell(self) -> None:
        if self.place.rank:
            return
        last = self.kept.history[-1] if self.kept.history else {"loss": math.nan, "scores": {}}
        self.report(
            {
                "step": self.step, "steps": self.num_steps, "rows": self._rows(),
                "seconds": time.monotonic() - self.started,
                "loss": self.losses[-1].item() if self.losses else last["loss"],
                "scores": last["scores"], "watched": watched(self.model, self.settings),
            }
        )  # fmt: skip


__all__ = ["Mixed", "Outcome", "Place", "Training"]
