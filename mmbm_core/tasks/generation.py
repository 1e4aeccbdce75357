"""Texts from a decoder: by beam search, or a token at a time for rows that come and go between the steps.

Shapes: `B` rows, `T` tokens said so far, `T'` tokens of memory, `D` width, `V` vocabulary.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mmbm_core.errors import UsageError
from mmbm_core.tasks.decoder import TextDecoder


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the tokens of a text are chosen.

    Raises:
        UsageError: out of range.
    """

    temperature: float = 0.0
    """0 takes the likeliest token; above it, one is drawn."""
    top_p: float = 1.0
    """Drawn among the likeliest tokens that sum to it (nucleus sampling, arXiv 1904.09751)."""
    seed: int | None = None
    """Repeats a text, whatever is generated beside it."""
    max_tokens: int | None = None
    """Up to the decoder's, which None takes."""

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, self.temperature >= 0, "0 or above")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, up to 1")


class Step(NamedTuple):
    """A token that a row has said."""

    row: int
    """As `Generation.add` numbered it."""
    token: int
    end: Literal["", "stop", "length"]
    """Was it the last: because the text is over, or as many as were allowed?"""


@dataclass(eq=False)
class _Row:
    number: int
    sampling: Sampling
    max_tokens: int
    rules: Any
    """What the vocabulary asks of its tokens: a LogitsProcessorList, or None."""
    random: np.random.Generator
    ids: list[int] = field(default_factory=list)


class Generation:
    """Rows whose texts are generated together; each has its own settings, and says what it would say alone.

    What the decoder computed of earlier tokens is kept (the KV cache), shorter rows padded on their left.

    Args:
        decoder: runs without dropout here, whatever its mode.
    """

    def __init__(self, decoder: TextDecoder) -> None:
        self.decoder, self.model = decoder, decoder.model
        rules = self.model.generation_config
        self._start: int = rules.decoder_start_token_id
        ends = rules.eos_token_id if rules.eos_token_id is not None else decoder.end
        self._ends = set(ends if isinstance(ends, list) else [ends])
        self._joinable = _is_joinable(self.model)
        self._rows: list[_Row] = []
        self._added = 0
        self._state: _State | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def takes_more(self) -> bool:
        """May rows be added now? (Some decoders count positions such that all rows must begin together.)"""
        return not self._rows or self._joinable

    def add(self, memory: Tensor, mask: Tensor, sampling: Sequence[Sampling]) -> list[Step]:
        """The first token of each of B new rows, in order.

        Args:
            memory: (B, T', D).
            mask: (B, T') bool.

        Raises:
            UsageError: max_tokens out of range.
        """
        if not self.takes_more:
            raise RuntimeError("rows of this decoder must begin together")
        rows = [self._row(self._added + i, each) for i, each in enumerate(sampling)]
        memory, mask = self.decoder.attended(memory, mask)
        tokens = torch.full((len(rows), 1), self._start, device=memory.device)
        state, logits = self._forward(_State(None, torch.ones_like(tokens), memory, mask), tokens)
        self._added += len(rows)
        self._state = state if self._state is None else self._state.joined(state)
        first = len(self._rows)
        self._rows += rows
        return self._choose(rows, logits, first)

    def step(self) -> list[Step]:
        """The next token of each row; those that end leave."""
        if self._state is None:
            return []
        last = torch.tensor([[row.ids[-1]] for row in self._rows], device=self._state.memory.device)
        self._state, logits = self._forward(self._state.grown(), last)
        return self._choose(self._rows, logits, 0)

    def drop(self, rows: Sequence[int]) -> None:
        """Rows that nobody waits for."""
        self._keep([i for i, row in enumerate(self._rows) if row.number not in set(rows)])

    def _row(self, number: int, sampling: Sampling) -> _Row:
        most = self.decoder.max_tokens
        wanted = most if sampling.max_tokens is None else sampling.max_tokens
        _check("max_tokens", wanted, 1 <= wanted <= most, f"1 to {most}")
        rules = _rules(self.model.generation_config, wanted, self._ends)
        return _Row(number, sampling, wanted, rules, np.random.default_rng(sampling.seed))

    @torch.inference_mode()
    def _forward(self, state: "_State", tokens: Tensor) -> "tuple[_State, Tensor]":
        """(B, V) float32: scores of the tokens after `tokens` (B, 1)."""
        from transformers import DynamicCache, EncoderDecoderCache

        cache = state.cache or EncoderDecoderCache(DynamicCache(), DynamicCache())
        with evaluating(self.model), _positions(self.model, state.said.sum(1) - 1):
            output = self.model(
                encoder_outputs=(state.memory,), attention_mask=state.mask, decoder_input_ids=tokens,
                decoder_attention_mask=state.said, past_key_values=cache, use_cache=True,
            )  # fmt: skip
        return _State(cache, state.said, state.memory, state.mask), output.logits[:, -1].float()

    def _choose(self, rows: Sequence[_Row], logits: Tensor, first: int) -> list[Step]:
        """A token for each row; `first` is the place of the first of them."""
        if any(row.rules is not None for row in rows):
            logits = torch.cat([self._ruled(row, scores) for row, scores in zip(rows, logits.split(1), strict=True)])
        chosen = logits.argmax(1).tolist()
        for i, row in enumerate(rows):
            if row.sampling.temperature:
                chosen[i] = _draw(logits[i], row.sampling, row.random)
        steps = []
        for row, token in zip(rows, chosen, strict=True):
            row.ids.append(token)
            over = "stop" if token in self._ends else "length" if len(row.ids) >= row.max_tokens else ""
            steps.append(Step(row.number, token, over))  # type: ignore[arg-type]
        ended = {first + i for i, step in enumerate(steps) if step.end}
        if ended:
            self._keep([i for i in range(len(self._rows)) if i not in ended])
        return steps

    def _ruled(self, row: _Row, scores: Tensor) -> Tensor:
        """(1, V) scores without the tokens that are forbidden after what the row has said."""
        said = torch.tensor([[self._start, *row.ids]], device=scores.device)
        return scores if row.rules is None else row.rules(said, scores.clone())  # type: ignore[no-any-return]

    def _keep(self, places: list[int]) -> None:
        if self._state is not None and len(places) < len(self._rows):
            self._state = self._state.taken(places) if places else None
            self._rows = [self._rows[i] for i in places]


class _State(NamedTuple):
    """What the rows have said, for the decoder."""

    cache: Any
    """EncoderDecoderCache, or None."""
    said: Tensor
    """(B, T) int64: 1 where a row has a token, 0 on the left of shorter rows."""
    memory: Tensor
    """(B, T', D)"""
    mask: Tensor
    """(B, T') int64"""

    def grown(self) -> "_State":
        """With room for another token."""
        return self._replace(said=pad(self.said, (0, 1), value=1))

    def joined(self, other: "_State") -> "_State":
        """The rows of both."""
        said = max(self.said.shape[1], other.said.shape[1])
        attended = max(self.mask.shape[1], other.mask.shape[1])
        for mine, theirs in zip(self._layers, other._layers, strict=True):
            for own, new, length, side in ((mine[0], theirs[0], said, 0), (mine[1], theirs[1], attended, 1)):
                own.keys = _stack(own.keys, new.keys, length, dim=2, side=side)
                own.values = _stack(own.values, new.values, length, dim=2, side=side)
        return _State(
            self.cache, _stack(self.said, other.said, said, dim=1, side=0),
            _stack(self.memory, other.memory, attended, dim=1, side=1),
            _stack(self.mask, other.mask, attended, dim=1, side=1),
        )  # fmt: skip

    def taken(self, places: list[int]) -> "_State":
        """Some rows, without what is padding in all of them."""
        at = torch.tensor(places, device=self.said.device)
        said, mask = self.said[at], self.mask[at]
        begin, end = int(said.any(0).nonzero()[0]), int(mask.any(0).nonzero()[-1]) + 1
        for layers in self._layers:
            for layer, used in zip(layers, (slice(begin, None), slice(end)), strict=True):
                layer.keys, layer.values = layer.keys[at][:, :, used], layer.values[at][:, :, used]
        return _State(self.cache, said[:, begin:], self.memory[at][:, :end], mask[:, :end])

    @property
    def _layers(self) -> list[tuple[Any, Any]]:
        """(B, heads, T, head width) keys and values of each layer's attention to what was said, and to memory."""
        pair = (self.cache.self_attention_cache.layers, self.cache.cross_attention_cache.layers)
        return list(zip(*pair, strict=True))


def _stack(first: Tensor, second: Tensor, length: int, *, dim: int, side: int) -> Tensor:
    """Rows of both, zero-padded in `dim` on the left (side 0) or right (1)."""
    behind = 2 * (first.dim() - 1 - dim)
    widths = [[0] * behind + ([length - x.shape[dim], 0][:: 1 - 2 * side]) for x in (first, second)]
    return torch.cat([pad(x, width) for x, width in zip((first, second), widths, strict=True)])


def _is_joinable(model: nn.Module) -> bool:
    """Can the positions of rows differ? Yes where they are given (BART's kin), or only distances count (T5's kin)."""
    decoder = model.get_decoder()  # type: ignore[operator]
    table = getattr(decoder, "embed_positions", None)
    if table is not None:
        return "position_ids" in inspect.signature(table.forward).parameters
    return any(getattr(module, "has_relative_attention_bias", False) for module in decoder.modules())


@contextmanager
def _positions(model: nn.Module, positions: Tensor) -> Iterator[None]:
    """Give each row's token its own position (B,), where the decoder would give all rows one."""
    table = getattr(model.get_decoder(), "embed_positions", None)  # type: ignore[operator]
    if table is None or "position_ids" not in inspect.signature(table.forward).parameters:
        yield
        return
    hooks = (
        table.register_forward_pre_hook(lambda m, args, kwargs: (args, kwargs | {"position_ids": positions}),
                                        with_kwargs=True),
        table.register_forward_hook(lambda m, args, output: output.reshape(len(positions), 1, -1)),
    )  # fmt: skip
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rules(config: Any, max_tokens: int, ends: set[int]) -> Any:
    """What a checkpoint's vocabulary asks of generated tokens; None: nothing."""
    from transformers import generation as g
    from transformers.generation import logits_process as rules

    found: list[Any] = []
    if config.bad_words_ids:
        found.append(rules.NoBadWordsLogitsProcessor(config.bad_words_ids, eos_token_id=list(ends)))
    if config.forced_bos_token_id is not None:
        found.append(rules.ForcedBOSTokenLogitsProcessor(config.forced_bos_token_id))
    if config.forced_eos_token_id is not None:
        found.append(rules.ForcedEOSTokenLogitsProcessor(max_tokens + 1, config.forced_eos_token_id))
    if config.suppress_tokens:
        found.append(rules.SuppressTokensLogitsProcessor(config.suppress_tokens))
    if config.begin_suppress_tokens:
        begin = 1 if config.forced_bos_token_id is None else 2
        found.append(rules.SuppressTokensAtBeginLogitsProcessor(config.begin_suppress_tokens, begin))
    return g.LogitsProcessorList(found) if found else None


def _draw(logits: Tensor, sampling: Sampling, random: np.random.Generator) -> int:
    """One token of (V,): where a uniform number falls among the likeliest that sum to top_p."""
    p, order = torch.softmax(logits.double() / sampling.temperature, 0).sort(descending=True)
    below = p.cumsum(0)
    kept = int((below < sampling.top_p).sum()) + 1 if sampling.top_p < 1 else len(p)
    at = random.random() * float(below[min(kept, len(p)) - 1])
    return int(order[min(int((below <= at).sum()), kept - 1, len(p) - 1)])


def generate_tokens(
    decoder: TextDecoder, memory: Tensor, mask: Tensor, sampling: Sequence[Sampling]
) -> Iterator[list[Step]]:
    """Steps until every row has ended; rows are numbered from 0."""
    run = Generation(decoder)
    yield run.add(memory, mask, sampling)
    while len(run):
        yield run.step()


@torch.inference_mode()
def search_beams(
    decoder: TextDecoder, memory: Tensor, mask: Tensor, *, beams: int, length_penalty: float,
    max_tokens: int | None = None,
) -> list[str]:  # fmt: skip
    """The text of each row that beam search finds (transformers' own).

    Args:
        memory: (B, T', D).
        mask: (B, T') bool.
        length_penalty: exponent of the length that a beam's log likelihood is divided by.

    Raises:
        UsageError: settings out of range.
    """
    from transformers.modeling_outputs import BaseModelOutput

    _check("beams", beams, beams >= 1, "1 or more")
    most = decoder.max_tokens
    max_tokens = most if max_tokens is None else max_tokens
    _check("max_tokens", max_tokens, 1 <= max_tokens <= most, f"1 to {most}")
    memory, mask = decoder.attended(memory, mask)
    with evaluating(decoder.model):
        ids = decoder.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=memory), attention_mask=mask, do_sample=False,
            num_beams=beams, max_new_tokens=max_tokens, length_penalty=length_penalty,
        )  # fmt: skip
    return [decoder.text(row) for row in ids.tolist()]


class TextPieces:
    """The text of one row, as its tokens come.

    A piece never ends within a character, nor within what may become one of `stop`; from that on nothing is said.
    """

    def __init__(self, decoder: TextDecoder, stop: Sequence[str] = ()) -> None:
        self.decoder, self.stop = decoder, [each for each in stop if each]
        self.ids: list[int] = []
        self.stopped = False
        """Has one of `stop` come?"""
        self._sent = 0

    def add(self, tokens: Sequence[int], *, last: bool = False) -> str:
        """What can be said now that was not said before."""
        if self.stopped:
            return ""
        self.ids += tokens
        text = self.decoder.text(self.ids)
        found = [at for each in self.stop if (at := text.find(each)) >= 0]
        if found:
            self.stopped = True
            text = text[: min(found)]
        elif not last:
            text = text[: len(text) - self._held(text)]
            if text.endswith("\ufffd"):  # a character of several tokens
                return ""
        piece = text[self._sent :]
        self._sent = max(self._sent, len(text))
        return piece

    def _held(self, text: str) -> int:
        """Length of the end of the text that one of `stop` begins with."""
        longest = max((len(each) for each in self.stop), default=1) - 1
        ends = range(min(longest, len(text)), 0, -1)
        return next((n for n in ends if any(each.startswith(text[-n:]) for each in self.stop)), 0)


def _check(name: str, value: float, allowed: bool, range: str) -> None:
    if not allowed:
        raise UsageError(f"{name} is {value}; allowed: {range}")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
