"""Texts generated from any modalities: answers in a dialogue, translations, captions.

Shapes: `B` rows, `T` target tokens, `T'` tokens after fusion, `D` width, `V` vocabulary, `N` rows of a set.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmbm_core import metrics
from mmbm_core.batching import cut_batches
from mmbm_core.errors import UsageError
from mmbm_core.losses import ContrastiveConfig, ContrastiveLoss, sequence_nll
from mmbm_core.sample import Modality
from mmbm_core.tasks.base import IGNORED, BaseTaskConfig, Representation, Task, TaskOutput, View
from mmbm_core.tasks.decoder import DecoderConfig, TextDecoder
from mmbm_core.tasks.generation import Sampling, TextPieces, generate_tokens, search_beams

_NUM_DISTRACTORS = 9


class Seq2SeqConfig(BaseTaskConfig):
    """Generate a text from a view."""

    kind: Literal["dialogue", "translation", "captioning"]
    """Three names of one task."""
    inputs: Annotated[View, Field(min_length=1)]
    target: str
    """The column of the text to generate."""
    decoder: DecoderConfig = DecoderConfig()
    checkpoint: str | None = None
    """Folder or Hugging Face id of a Seq2Seq model (BART, T5, Marian, mBART, ...) whose decoder and tokenizer are taken
    instead; of `decoder`, `max_tokens` still holds."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    beams: Annotated[int, Field(ge=1)] = 4
    length_penalty: float = 1.0
    """Exponent of the length that a beam's log likelihood is divided by: above 0 favours long texts."""
    turns: Annotated[int, Field(ge=1)] | None = None
    """Of a dialogue, that the input text holds at most; None, and not dialogues of `data.turns`: all."""
    ranking: Annotated[float, Field(ge=0)] = 0.0
    """Weight of an InfoNCE loss between the inputs and the target as a text; lets dialogue rank given responses."""

    @model_validator(mode="after")
    def _one_decoder(self) -> Self:
        if self.checkpoint and self.decoder != DecoderConfig(max_tokens=self.decoder.max_tokens):
            raise ValueError("checkpoint brings its own decoder: of decoder, set max_tokens only")
        return self

    @property
    def views(self) -> dict[str, View]:
        return {"inputs": self.inputs} | ({"response": {"text": self.target}} if self.ranking else {})

    @property
    def target_columns(self) -> tuple[str, ...]:
        return (self.target,)

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Columns whose training texts the decoder's BPE is learnt from."""
        return () if self.checkpoint else (self.target,)


class Seq2SeqTask(Task):
    """A decoder that attends to the fused tokens.

    Args:
        assets: what `assets()` of a task of this config gave, or for a new one `tokenizer.json` as `train_bpe` made it;
            weights then come by `load_state_dict`. With a checkpoint, None loads decoder and weights from it.

    Raises:
        UsageError: no tokenizer, or a decoder that does not fit the width or `max_tokens`.
    """

    metric = "perplexity"

    def __init__(
        self, config: Seq2SeqConfig, *, modalities: Sequence[Modality], width: int,
        assets: Mapping[str, bytes] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = config
        self.decoder = TextDecoder(config.decoder, checkpoint=config.checkpoint, width=width, assets=assets)
        contrast = ContrastiveConfig(kind="info_nce")
        self.contrast = ContrastiveLoss(contrast, modalities=("context", "response")) if config.ranking else None

    def assets(self) -> dict[str, bytes]:
        """Files, by name, that build this task again without its checkpoint."""
        return dict(self.decoder.assets)

    def encode_targets(self, columns: Mapping[str, Sequence[Any]], ids: Sequence[str]) -> dict[str, np.ndarray]:
        """`tokens` (B, max_tokens) int64, padded; IGNORED throughout where a row has no text.

        Raises:
            UsageError: the column holds lists.
        """
        name = self.config.target
        values = columns[name]
        if any(isinstance(value, list) for value in values):
            raise UsageError(f"column {name!r} holds lists, a target is one text: --explode {name} makes a row of each")
        rows = [i for i, value in enumerate(values) if value is not None and str(value).strip()]
        tokens = np.full((len(values), self.decoder.max_tokens), IGNORED, np.int64)
        tokens[rows] = self.decoder.encode([str(values[i]) for i in rows])
        return {"tokens": tokens}

    def forward(self, views: Mapping[str, Representation], targets: Mapping[str, Tensor]) -> TaskOutput:
        """`nll` (B,) nats of each row's target and its `tokens` (B,); 0 where the task does not apply.

        With `ranking`, also `context` and `response` (B, D); NaN where missing.
        """
        tokens = targets["tokens"]
        labelled = tokens[:, 0] != IGNORED
        loss, predictions = self._likelihood(views["inputs"], tokens, labelled & views["inputs"].present)
        if self.contrast is not None:
            pooled = {"context": views["inputs"].fused.pooled, "response": views["response"].fused.pooled}
            presence = {"context": views["inputs"].present, "response": views["response"].present & labelled}
            vectors = {name: vector.float() for name, vector in pooled.items()}
            loss = loss + self.config.ranking * self.contrast(vectors, presence, fingerprints(tokens))
            missing = loss.new_tensor(float("nan"))
            for name, vector in vectors.items():
                predictions[name] = torch.where(presence[name][:, None], vector.detach(), missing)
        return TaskOutput(loss, predictions)

    def _likelihood(self, view: Representation, tokens: Tensor, usable: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        pad = self.decoder.pad
        # where no row is usable, the first one with nothing but padding to say keeps the gradient path
        rows = usable.nonzero()[:, 0] if usable.any() else torch.zeros(1, dtype=torch.int64, device=usable.device)
        labels = torch.where(usable[:, None], tokens, pad)
        lengths = (labels != pad).sum(1)
        nll = torch.zeros(len(usable), device=usable.device)
        total = torch.zeros((), device=usable.device)
        for part in cut_batches(lengths[rows].tolist(), budget=self.decoder.budget):  # padding is work too
            here = rows[part]
            said = labels[here, : max(1, int(lengths[here].max()))]
            logits = self.decoder(view.fused.tokens[here], view.fused.mask[here], said)
            nll[here], smoothed = sequence_nll(logits, said, ignore=pad, label_smoothing=self.config.label_smoothing)
            total = total + smoothed.sum()
        return total / lengths.sum().clamp(min=1), {"nll": nll, "tokens": lengths}

    def score(self, predictions: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]) -> dict[str, float]:
        total, count = predictions["nll"].astype(np.float64).sum(), predictions["tokens"].sum()
        scores = metrics.perplexity(float(total), int(count))
        if self.contrast is not None:
            groups = fingerprints(torch.from_numpy(np.array(targets["tokens"]))).numpy()
            scores |= rank_responses(predictions["context"], predictions["response"], groups)
        return scores

    def generate(self, view: Representation, *, beams: int | None = None, max_tokens: int | None = None) -> list[str]:
        """The likeliest text for each row, also for one that has nothing of the view.

        Args:
            beams: that are searched; 1 takes the likeliest token each time. None: the config's.
            max_tokens: up to the config's.

        Raises:
            UsageError: out of range.
        """
        beams = self.config.beams if beams is None else beams
        if beams == 1:
            return self.sample(view, Sampling(max_tokens=max_tokens))
        return search_beams(
            self.decoder, view.fused.tokens, view.fused.mask, beams=beams, max_tokens=max_tokens,
            length_penalty=self.config.length_penalty,
        )  # fmt: skip

    def sample(self, view: Representation, sampling: Sampling | Sequence[Sampling]) -> list[str]:
        """A text for each row, drawn token by token; with a seed, a call repeats. Several samplings: one a row."""
        if isinstance(sampling, Sampling):
            seeds = np.random.SeedSequence(sampling.seed).generate_state(len(view.present))
            sampling = [replace(sampling, seed=int(seed)) for seed in seeds]
        said: list[list[int]] = [[] for _ in sampling]
        for steps in generate_tokens(self.decoder, view.fused.tokens, view.fused.mask, sampling):
            for step in steps:
                said[step.row].append(step.token)
        return [self.decoder.text(ids) for ids in said]

    def stream(self, view: Representation, sampling: Sampling | None = None) -> Iterator[str]:
        """Pieces of the text of one row as they are generated."""
        pieces = TextPieces(self.decoder)
        for [step] in generate_tokens(self.decoder, view.fused.tokens, view.fused.mask, [sampling or Sampling()]):
            if piece := pieces.add([step.token], last=bool(step.end)):
                yield piece


def fingerprints(tokens: Tensor) -> Tensor:
    """(B, T) -> (B,) int64: equal for equal rows, in every batch and process; others differ but by a rare accident."""
    multiplier = torch.full_like(tokens[0], 6364136223846793005).cumprod(0)  # modulo 2^64
    return (tokens * multiplier).sum(1)


def rank_responses(context: np.ndarray, response: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """`response_r@1`: how often, by cosine, a context is closest to its own response among 9 drawn from other rows.

    None of the 9 has the group of the own one. The draw is the same every time; a row for which there are fewer than 9
    is left out.

    Args:
        context: (N, D); NaN where missing.
        response: (N, D); NaN where missing.
        groups: (N,) int: rows with equal responses.
    """
    rows = np.flatnonzero(~np.isnan(context).any(1) & ~np.isnan(response).any(1))
    rows = rows[np.argsort(groups[rows], kind="stable")]
    _, first, size = np.unique(groups[rows], return_index=True, return_counts=True)
    first, size = np.repeat(first, size), np.repeat(size, size)
    asked = np.flatnonzero(len(rows) - size >= _NUM_DISTRACTORS)
    if not len(asked):
        return {}
    rng = np.random.default_rng(0)
    drawn = np.stack([rng.choice(len(rows) - size[i], _NUM_DISTRACTORS, replace=False) for i in asked])
    drawn += np.where(drawn >= first[asked, None], size[asked, None], 0)  # rows of a group are neighbours: skip them
    x, y = (_units(vectors[rows]) for vectors in (context, response))
    candidates = np.concatenate([asked[:, None], drawn], axis=1).T
    return metrics.ranked_choice(np.stack([(x[asked] * y[column]).sum(1) for column in candidates], axis=1))


def _units(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))
