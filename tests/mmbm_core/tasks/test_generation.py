"""Rows that are generated together say what each says alone, whoever comes and goes; samples are as likely as they are.

Shapes: `B` rows, `V` vocabulary.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmbm_core.errors import UsageError
from mmbm_core.tasks.decoder import TextDecoder
from mmbm_core.tasks.generation import Generation, Sampling, TextPieces, generate_tokens, search_beams
from tests.seq2seq import (
    TEXTS,
    fit_task,
    make_task,
    make_view,
    represent,
    save_bart,
    save_m2m,
    save_marian,
    save_t5,
    take_rows,
    task_of_checkpoint,
)

GREEDY = Sampling()


def _decoder(kind: str, folder: Path) -> TextDecoder:
    savers: dict[str, Callable[[Path], str]] = {
        "bart": save_bart, "marian": save_marian, "t5": save_t5, "m2m_100": save_m2m,
    }  # fmt: skip
    return make_task().decoder if kind == "own" else task_of_checkpoint(savers[kind](folder)).decoder


class Runner:
    """Notes what the rows of a generation say."""

    def __init__(self, decoder: TextDecoder) -> None:
        self.run, self.said, self.ends = Generation(decoder), {}, {}  # type: ignore[var-annotated]

    def add(self, view: Any, sampling: list[Sampling]) -> None:
        self._note(self.run.add(view.fused.tokens, view.fused.mask, sampling))

    def step(self) -> None:
        self._note(self.run.step())

    def finish(self) -> None:
        while len(self.run):
            self.step()

    def _note(self, steps: list[Any]) -> None:
        for step in steps:
            self.said.setdefault(step.row, []).append(step.token)
            self.ends[step.row] = step.end


# --- together and alone


@pytest.mark.parametrize("kind", ["own", "bart", "marian", "t5", "m2m_100"])
def test_rows_that_come_and_go_say_what_transformers_lets_each_say_alone(kind: str, tmp_path: Path) -> None:
    decoder = _decoder(kind, tmp_path)
    views = [make_view(3, seed=0), make_view(1, seed=1, num_tokens=7), make_view(2, seed=2, num_tokens=1)]
    lengths = [[24, 4, 9], [24], [11, 24]]
    settings = [[Sampling(max_tokens=n) for n in each] for each in lengths]
    runner = Runner(decoder)
    runner.add(views[0], settings[0])
    for view, each, steps in zip(views[1:], settings[1:], (2, 3), strict=True):
        for _ in range(steps):
            runner.step()
        if not runner.run.takes_more:
            assert kind == "m2m_100"
            runner.finish()
        runner.add(view, each)
    runner.finish()
    alone = [
        search_beams(
            decoder, view.fused.tokens[[i]], view.fused.mask[[i]], beams=1, length_penalty=1.0, max_tokens=most
        )[0]
        for view, each in zip(views, lengths, strict=True)
        for i, most in enumerate(each)
    ]
    assert [decoder.text(runner.said[i]) for i in range(6)] == alone
    assert len({len(ids) for ids in runner.said.values()}) > 3 and len(set(alone)) > 3
    assert set(runner.ends.values()) <= {"stop", "length"}


def test_a_row_that_is_dropped_changes_nothing_for_the_others() -> None:
    decoder, view = make_task().decoder, make_view(4)
    expected = Runner(decoder)
    expected.add(view, [GREEDY] * 4)
    expected.finish()
    runner = Runner(decoder)
    runner.add(view, [GREEDY] * 4)
    runner.step()
    runner.run.drop([1])
    runner.finish()
    assert len(runner.said[1]) == 2
    assert {i: runner.said[i] for i in (0, 2, 3)} == {i: expected.said[i] for i in (0, 2, 3)}


def test_rows_end_at_their_own_length_or_their_end() -> None:
    task = fit_task(TEXTS)
    runner = Runner(task.decoder)
    runner.add(make_view(8), [Sampling(max_tokens=n) for n in (2, 1, 24, 24, 24, 3, 24, 24)])
    assert runner.ends[1] == "length" and len(runner.run) == 7
    runner.finish()
    assert [len(runner.said[i]) for i in (0, 1, 5)] == [2, 1, 3]
    assert [runner.ends[i] for i in range(8)] == [*("length",) * 2, *("stop",) * 3, "length", *("stop",) * 2]
    assert [task.decoder.text(runner.said[i]) for i in (2, 3, 4, 6, 7)] == [TEXTS[i] for i in (2, 3, 4, 6, 7)]


def test_earlier_tokens_are_not_computed_again() -> None:
    decoder, view = make_task().decoder, make_view(2)
    widths: list[tuple[int, ...]] = []
    hook = decoder.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    list(generate_tokens(decoder, view.fused.tokens, view.fused.mask, [GREEDY] * 2))
    hook.remove()
    assert len(widths) > 3 and {width for _, width in widths} == {1}


def test_dropout_is_off_and_the_mode_stays() -> None:
    task, view = make_task(decoder={"dropout": 0.5}), make_view(2)
    expected = task.sample(view, GREEDY)
    task.train()
    assert task.sample(view, GREEDY) == expected
    assert task.decoder.model.training


# --- sampling


def test_sampling_repeats_by_its_seed_and_uses_no_other_random_state() -> None:
    task, view = make_task(), make_view(3)
    state = torch.get_rng_state()
    first = task.sample(view, Sampling(temperature=1.0, seed=7))
    assert task.sample(view, Sampling(temperature=1.0, seed=7)) == first
    assert task.sample(view, Sampling(temperature=1.0, seed=8)) != first
    assert task.sample(view, Sampling(temperature=1.0)) != task.sample(view, Sampling(temperature=1.0))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_seed_repeats_a_row_whatever_is_sampled_beside_it() -> None:
    decoder, view = make_task().decoder, make_view(4)
    wanted = Sampling(temperature=1.3, top_p=0.9, seed=11)
    alone = Runner(decoder)
    alone.add(take_rows(view, [2]), [wanted])
    alone.finish()
    beside = Runner(decoder)
    beside.add(take_rows(view, [0, 1]), [Sampling(temperature=0.5), GREEDY])
    beside.step()
    beside.add(take_rows(view, [2, 3]), [wanted, Sampling(temperature=2.0)])
    beside.finish()
    assert beside.said[2] == alone.said[0]


def test_samples_are_as_frequent_as_likely() -> None:
    """The first token over many rows with one memory, against the softmax at its temperature within its nucleus."""
    task, num_rows = make_task(), 4000
    view = represent(*(x[:1].expand(num_rows, *x.shape[1:]) for x in make_view(1).fused[:2]))
    logits = task.decoder(view.fused.tokens[:1], view.fused.mask[:1], torch.zeros(1, 1, dtype=torch.int64))[0, 0]
    p = torch.softmax(logits.detach() / 1.5, dim=0)
    order = p.argsort(descending=True)
    kept = order[: int((p[order].cumsum(0) < 0.8).sum()) + 1]
    expected = torch.zeros_like(p).index_copy(0, kept, p[kept] / p[kept].sum())
    sampling = [Sampling(temperature=1.5, top_p=0.8, max_tokens=1, seed=seed) for seed in range(num_rows)]
    steps = Generation(task.decoder).add(view.fused.tokens, view.fused.mask, sampling)
    drawn = [step.token for step in steps]
    found = torch.bincount(torch.tensor(drawn), minlength=len(p)) / num_rows
    assert set(drawn) <= set(kept.tolist())
    assert (found - expected).abs().max() < 4 * (0.25 / num_rows) ** 0.5


# --- text in pieces


@pytest.mark.parametrize("text", [TEXTS[6], "日本語 and 🙂🙂", "two  spaces"])
def test_pieces_of_a_stream_join_to_the_text(text: str) -> None:
    task = fit_task([text])
    pieces = list(task.stream(make_view(1)))
    assert "".join(pieces) == text
    assert len(pieces) > 3 and all(pieces) and not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["square"], "two black discs beside a white "),
        (["no such text"], TEXTS[7]),
        (["e a whale", "disc", "black"], "two "),
        ([""], TEXTS[7]),
        (["white squares"], TEXTS[7]),
    ],
)
def test_nothing_is_said_from_a_stop_on(stop: list[str], expected: str) -> None:
    decoder = make_task().decoder
    pieces = TextPieces(decoder, stop)
    ids = [int(i) for i in decoder.encode([TEXTS[7]])[0] if i != decoder.pad]
    said = ""
    for i, token in enumerate(ids):
        said += pieces.add([token], last=i + 1 == len(ids))
        assert expected.startswith(said)
    assert said == expected
    assert pieces.stopped == (expected != TEXTS[7])


def test_characters_that_never_become_whole_come_last() -> None:
    decoder = make_task().decoder
    face = [int(i) for i in decoder.encode(["🙂"])[0] if i != decoder.pad][:-2]
    pieces = TextPieces(decoder)
    assert pieces.add(face) == "" and pieces.add([], last=True) == decoder.text(face) != ""


# --- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"max_tokens": 25}, "max_tokens is 25; allowed: 1 to 24"),
        ({"max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_task().sample(make_view(1), Sampling(**options))


def test_a_row_that_is_refused_leaves_the_others_as_they_are() -> None:
    runner = Runner(make_task().decoder)
    runner.add(make_view(2), [GREEDY] * 2)
    with pytest.raises(UsageError, match="max_tokens is 99"):
        runner.run.add(*make_view(1).fused[:2], [Sampling(max_tokens=99)])
    runner.finish()
    assert set(runner.said) == {0, 1}
