"""The training loop of one model on one worker of several.

Everything that is random is a function of (seed, step, rank), so that a run goes on from a checkpoint as if it had
never stopped. Gradients are averaged over the workers once a step.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmbm_core.balance import build_balancer, ogm_ge_
from mmbm_core.encoders.base import fast_dtype
from mmbm_core.errors import RunError, UsageError
from mmbm_core.model import Batch, Model
from mmbm_core.sample import Modality
from mmbm_core.tasks.base import TaskOutput
from workers.storage import Storage
from workers.training.batches import BatchMaker
from workers.training.checkpoint import (
    load_checkpoint,
    load_module,
    load_optimizer,
    optimizer_tensors,
    save_checkpoint,
)
from workers.training.feed import Feed
from workers.training.logs import EventLog
from workers.training.scoring import Scores, predict, score, smaller_is_better
from workers.training.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which worker this is, and where it computes."""

    rank: int
    world: int
    device: torch.device


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
    """One entry an evaluation: step, epoch, loss, scores."""
    bad_values: int
    rows_per_s: float


class Training:
    """One model in training.

    Args:
        model: on the device, in training mode where it is trained.
        report: takes progress, on rank 0.
        storage, path: where the checkpoint is.
        key: names the run: a checkpoint of another is refused.
        log: takes learning curves, on rank 0.
    """

    def __init__(
        self, model: Model, sets: Sequence[Mixed], settings: TrainingSettings, place: Place, *,
        storage: Storage, path: str, key: str, report: Callable[[dict[str, Any]], None],
        log: EventLog | None = None,
    ) -> None:  # fmt: skip
        self.log = log
        self.model, self.sets, self.settings, self.place = model, sets, settings, place
        self.storage, self.path, self.key, self.report = storage, path, key, report
        self.batch_sizes = [_whole_batch(s.feed.num_train, settings.batch_size, place.world) for s in sets]
        per_epoch = sum(s.feed.num_train // size for s, size in zip(sets, self.batch_sizes, strict=True))
        self.num_steps = settings.epochs * per_epoch
        self.turns = _turns([s.weight for s in sets], self.num_steps, settings.seed)
        self.only_until = settings.weak_first.epochs * per_epoch if settings.weak_first else 0
        every = max(1, self.num_steps // settings.evaluations)
        self.evaluate_at = {*range(every, self.num_steps + 1, every), self.num_steps}
        self.balancer = build_balancer(settings.balancer, tasks=list(model.tasks)).to(place.device)
        self.optimizer = torch.optim.AdamW(_groups(model, self.balancer, settings))
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.dtype = _dtype(settings, place.device)
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}
        self.best_score = -math.inf
        self.stale = 0
        self.losses: list[Tensor] = []
        self.mean = {n: t.detach().clone() for n, t in self._moving()} if settings.average else {}

    def run(self) -> Outcome:
        """Train to the end, from the checkpoint on where there is one.

        Raises:
            RunError: the loss is not finite.
        """
        self._resume()
        started = saved = time.monotonic()
        first, trained_s = self.step, 0.0
        for batches in self._steps():
            begun = time.monotonic()
            self._step(batches)
            trained_s += time.monotonic() - begun
            if self.step in self.evaluate_at:
                self._evaluate()
            elif time.monotonic() - saved < self.settings.checkpoint_s:
                self._tell(first, started)
                continue
            self._save()
            saved = time.monotonic()
            self._tell(first, started)
            if self.settings.patience and self.stale >= self.settings.patience:
                break
        self.model.load_state_dict({**self.model.state_dict(), **self.best})
        return Outcome(
            scores=self.history[-1 - self.stale]["scores"], history=self.history, bad_values=self.bad_values,
            rows_per_s=self._rows(first) / max(trained_s, 1e-9),
        )  # fmt: skip

    @property
    def bad_values(self) -> int:
        return sum(each.maker.bad_values for each in self.sets)

    def _rows(self, first: int) -> int:
        """Rows of the steps since `first`."""
        return int(np.asarray(self.batch_sizes)[self.turns[first : self.step]].sum())

    def calibrate(self) -> Scores:
        """Choose temperatures and thresholds on the validation rows; gives the scores that the bundle is sold by."""
        found = predict(self.model, self._val_batches(), world=self.place.world)
        for name, (predictions, targets) in found.items():
            self.model.tasks[name].calibrate(predictions, targets)  # type: ignore[operator]
        return score(self.model, found)

    def _steps(self) -> Iterator[list[Batch]]:
        """This rank's batches of each step that is left, each step's of one set."""
        streams = [self._stream(index) for index in range(len(self.sets))]
        for index in self.turns[self.step :]:
            yield list(islice(streams[index], self.settings.accumulate))

    def _stream(self, index: int) -> Iterator[Batch]:
        """All batches that are left of one set, `accumulate` a step."""
        each, mine = self.sets[index], self.turns == index
        tables = each.feed.train_rows(
            seed=self.settings.seed, rank=self.place.rank, world=self.place.world, batch_size=self.batch_sizes[index],
            first_step=int(mine[: self.step].sum()), last_step=int(mine.sum()),
        )  # fmt: skip
        return each.maker(part for table in tables for part in _parts(table, self.settings.accumulate))

    def _step(self, batches: list[Batch]) -> None:
        settings, seed = self.settings, self.settings.seed
        share = _cosine((self.step + 1) / (self.num_steps + 1), settings.warmup)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * share
        torch.manual_seed(_seed(seed, self.step, self.place.rank))
        generator = torch.Generator().manual_seed(_seed(seed, self.step, self.place.rank + self.place.world))
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.place.device)
        for batch in batches:
            outputs = self._forward(batch, generator)
            losses = {name: output.loss / len(batches) for name, output in outputs.items()}
            total += self.balancer.backward(losses, _shared(self.model))
            if settings.ogm_ge is not None:
                self._slow_down(batch, outputs, generator)
        self._reduce(total)
        if not math.isfinite(total.item()):
            raise RunError(
                f"the loss is {total.item()} at step {self.step + 1} of {self.num_steps}: lower training.lr or "
                "training.clip, or set training.precision to float32"
            )
        nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        self.optimizer.step()
        self.step += 1
        self.losses.append(total)
        self._average()

    def _forward(self, batch: Batch, generator: torch.Generator) -> dict[str, TaskOutput]:
        first = self.settings.weak_first
        only: tuple[Modality, ...] | None = (first.modality,) if first and self.step < self.only_until else None
        with torch.autocast(self.place.device.type, self.dtype, enabled=self.dtype != torch.float32):
            encoded = self.model.encode_batch(batch, only=only)
            return self.model.heads(batch, encoded, generator=generator, only=only)

    def _slow_down(self, batch: Batch, outputs: dict[str, TaskOutput], generator: torch.Generator) -> None:
        """OGM-GE: what each modality alone says of the right class decides whose gradients shrink."""
        for name, output in outputs.items():
            scores = self.model.tasks[name].own_scores(output, batch.targets[name])  # type: ignore[operator]
            params = {m: list(e.parameters()) for m, e in self.model.encoders.items() if m in scores}
            if len(scores) == 2 and len(params) == 2:
                ogm_ge_(params, scores, alpha=self.settings.ogm_ge or 0.0, generator=generator)

    def _reduce(self, total: Tensor) -> None:
        """Average the loss and all gradients over the workers; a parameter that one did not touch counts as zero."""
        if self.place.world == 1:
            return
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in trained]
        flat = torch.cat([total.reshape(1), *[g.reshape(-1) for g in grads]]) / self.place.world
        dist.all_reduce(flat)
        total.copy_(flat[0])
        start = 1
        for parameter, grad in zip(trained, grads, strict=True):
            parameter.grad = flat[start : start + grad.numel()].view_as(grad)
            start += grad.numel()

    def _moving(self) -> Iterator[tuple[str, Tensor]]:
        """All that training changes: parameters and running statistics."""
        return ((n, t) for n, t in self.model.state_dict().items() if t.is_floating_point())

    def _average(self) -> None:
        decay = min(self.settings.average, (1 + self.step) / (10 + self.step))
        for name, tensor in self._moving() if self.mean else ():
            self.mean[name].lerp_(tensor.detach(), 1 - decay)

    def _weights(self) -> dict[str, Tensor]:
        return {n: t.detach().clone() for n, t in self.model.state_dict().items()} | self.mean

    def _evaluate(self) -> None:
        """Score the weights that would be kept, and keep them where they are the best so far."""
        last, kept = self.model.state_dict(), self._weights()
        last = {n: t.detach().clone() for n, t in last.items()} if self.mean else {}
        if self.mean:
            self.model.load_state_dict(kept)
        scores = score(self.model, predict(self.model, self._val_batches(), world=self.place.world))
        if self.mean:
            self.model.load_state_dict(last)
        loss = torch.stack(self.losses).mean().item() if self.losses else float("nan")
        self.losses.clear()
        self._log({"loss": loss, "lr": self.optimizer.param_groups[-1]["lr"], **scores})
        self.history.append({"step": self.step, "loss": round(loss, 6), "scores": scores})
        name = watched(self.model, self.settings)
        if name not in scores:
            raise UsageError(f"training.metric {name} was not measured; there are {', '.join(scores)}")
        task, _, metric = name.partition("/")
        value = -scores[name] if smaller_is_better(self.model.tasks[task], metric) else scores[name]  # type: ignore[arg-type]
        self.stale += 1
        if value > self.best_score or not self.best:
            self.best, self.best_score, self.stale = {n: t.clone() for n, t in kept.items()}, value, 0

    def _log(self, scalars: dict[str, float]) -> None:
        if self.log is not None:
            self.log.add(self.step, scalars)
            self.log.flush()

    def _val_batches(self) -> Iterator[Batch]:
        for each, size in zip(self.sets, self.batch_sizes, strict=True):
            yield from each.maker(each.feed.val_rows(rank=self.place.rank, world=self.place.world, batch_size=size))

    def _save(self) -> None:
        if self.place.rank:
            return
        parts = {
            "model": self.model.state_dict(),
            "mean": self.mean,
            "best": self.best,
            "optimizer": optimizer_tensors(self.optimizer),
            "balancer": self.balancer.state_dict(),
        }
        facts = {"key": self.key, "step": self.step, "history": self.history, "stale": self.stale}
        facts |= {"best_score": self.best_score if self.best else None}
        facts |= {
            "losses": [loss.item() for loss in self.losses],
            "bad_values": [each.maker.bad_values for each in self.sets],
        }
        save_checkpoint(self.storage, self.path, parts, facts)

    def _resume(self) -> None:
        saved = load_checkpoint(self.storage, self.path)
        if saved is None:
            return
        if saved.facts["key"] != self.key:
            raise UsageError(
                f"{self.storage.uri(self.path)} is a checkpoint of another recipe or of other rows: go on with those, "
                "or delete it to begin again"
            )
        load_module(self.model, saved.parts["model"])
        load_module(self.balancer, saved.parts.get("balancer", {}))
        load_optimizer(self.optimizer, saved.parts.get("optimizer", {}))
        self.mean, self.best = saved.parts.get("mean", {}), saved.parts.get("best", {})
        self.step, self.history, self.stale = (saved.facts[k] for k in ("step", "history", "stale"))
        self.best_score = -math.inf if saved.facts["best_score"] is None else saved.facts["best_score"]
        self.losses = [torch.tensor(loss) for loss in saved.facts["losses"]]
        for each, count in zip(self.sets, saved.facts["bad_values"], strict=True):
            each.maker.bad_values = count

    def _tell(self, first: int, started: float) -> None:
        if self.place.rank:
            return
        seconds = time.monotonic() - started
        self.report(
            {
                "step": self.step, "steps": self.num_steps, "rows": self._rows(first), "seconds": seconds,
                "loss": self.losses[-1].item() if self.losses else self.history[-1]["loss"],
                "scores": self.history[-1]["scores"] if self.history else {},
                "watched": watched(self.model, self.settings),
            }
        )  # fmt: skip


def watched(model: Model, settings: TrainingSettings) -> str:
    """TASK/METRIC that chooses the best weights."""
    first, task = next(iter(model.tasks.items()))
    return settings.metric or f"{first}/{task.metric}"


def _groups(model: Model, balancer: nn.Module, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Pretrained encoders learn at a rate of their own; vectors (biases, norms) and scalars don't decay."""
    named = model.spec.encoders
    pretrained = {id(p) for m, e in model.encoders.items() if named[m].pretrained for p in e.parameters()}  # type: ignore[index]
    trained = [p for p in [*model.parameters(), *balancer.parameters()] if p.requires_grad]
    groups = []
    for is_pretrained, rate in ((True, settings.encoder_lr), (False, settings.lr)):
        for matrices, decay in ((True, settings.weight_decay), (False, 0.0)):
            chosen = [p for p in trained if (id(p) in pretrained) == is_pretrained and (p.ndim > 1) == matrices]
            if chosen:
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    return groups


def _shared(model: Model) -> list[nn.Parameter]:
    """What all tasks train: everything but their heads."""
    heads = {id(p) for p in model.tasks.parameters()}
    return [p for p in model.parameters() if p.requires_grad and id(p) not in heads]


def _turns(weights: Sequence[float], num_steps: int, seed: int) -> np.ndarray:
    """(num_steps,) int: which set each step's batch is drawn from."""
    shares = np.asarray(weights) / sum(weights)
    return np.random.default_rng([seed, len(weights)]).choice(len(weights), size=num_steps, p=shares)


def _whole_batch(num_rows: int, batch_size: int, world: int) -> int:
    """A batch that the workers share evenly and that the set can fill."""
    return max(world, min(batch_size, num_rows) // world * world)


def _parts(table: pa.Table, count: int) -> Iterator[pa.Table]:
    bounds = [table.num_rows * i // count for i in range(count + 1)]
    return (table.slice(start, stop - start) for start, stop in pairwise(bounds))


def _cosine(done: float, warmup: float) -> float:
    """Share of the peak learning rate after `done` of the steps (arXiv 1608.03983, without restarts)."""
    return done / warmup if done < warmup else 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _dtype(settings: TrainingSettings, device: torch.device) -> torch.dtype:
    if settings.precision == "auto":
        return torch.bfloat16 if fast_dtype(device) == torch.bfloat16 else torch.float32
    return torch.bfloat16 if settings.precision == "bfloat16" else torch.float32


__all__ = ["Mixed", "Outcome", "Place", "Training", "watched"]
